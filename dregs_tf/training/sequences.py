"""What runs of --model=vrnn do in their own way: the model, its evaluation, its pictures."""

import math
from collections.abc import Iterable

import numpy as np

from dregs_tf import data, models
from dregs_tf.training import model_flags, optimizers
from dregs_tf.training.config import TrainConfig


def build(settings: TrainConfig, images: data.Images) -> models.VRNN:
  """Returns the compiled model of a new run, of images read row by row."""
  by_row = np.reshape(images.mean, images.image_shape)
  model = models.VRNN(np.mean(by_row, axis=0), latent_dim=settings.latent_dim)
  model.compile(
    optimizer=optimizers.optimizer(settings, len(images.train)),
    bound=settings.bound,
    num_samples=settings.num_samples,
    resampling=settings.resampling,
    resample_when=model_flags.as_schedule(settings.resample_when),
    seed=settings.seed,
    jit_compile=settings.jit_compile,
  )
  return model


def evaluate(
  model: models.StateSpaceModel, batches: Iterable, num_samples: int, seed: int
) -> tuple[dict[str, float], list[dict]]:
  """Estimates the log-likelihood of sequences by a particle filter.

  Args:
    model: the model.
    batches: batches of sequences.
    num_samples: the number of particles.
    seed: the seed of the particles.

  Returns:
    What the result file holds: `num_images`, `log_likelihood`, the mean in nats, and
    `standard_error`, over sequences; and a row for each sequence.
  """
  parts = [
    model.log_likelihood(x, num_samples, seed=[seed, i]).numpy() for i, x in enumerate(batches)
  ]
  values = np.concatenate(parts).astype(np.float64)
  summary = {
    "num_images": len(values),
    "log_likelihood": float(values.mean()),
    "standard_error": float(values.std(ddof=1) / math.sqrt(len(values))),
  }
  rows = [{"image": i, "log_likelihood": float(value)} for i, value in enumerate(values)]
  return summary, rows


def report(result: dict) -> str:
  """Returns the line that an evaluation prints of its result."""
  return (
    f"log p(x) of the {result['split']} set ({result['num_images']} sequences, step "
    f"{result['step']}, particle filter with {result['num_samples']} particles): "
    f"{result['log_likelihood']:.3f} +- {result['standard_error']:.3f} nats (standard error over "
    "sequences)."
  )
