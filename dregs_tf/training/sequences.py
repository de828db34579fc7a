"""Builds, evaluates and compares models in runs of --model=vrnn."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dregs_tf import catalogue, data, diagnostics, models
from dregs_tf.training import checks, model_flags, optimizers
from dregs_tf.training.config import CompareConfig, TrainConfig
from dregs_tf.training.errors import ConfigError


def build(settings: TrainConfig, sequences: data.Sequences) -> models.VRNN:
  """Returns the compiled model of a new run, with the likelihood that fits the numbers."""
  model = models.VRNN(
    sequences.step_mean, latent_dim=settings.latent_dim, likelihood=sequences.likelihood
  )
  model.compile(
    optimizer=optimizers.optimizer(settings, len(sequences.train)),
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
    batches: batches of sequences, or of pairs (lengths, sequences).
    num_samples: the number of particles.
    seed: the seed of the particles.

  Returns:
    The content of the result file (`num_images`; `log_likelihood`, the mean in nats; its
    `standard_error` over sequences), and a row for each sequence.
  """
  parts = []
  for i, batch in enumerate(batches):
    lengths, x = batch if isinstance(batch, tuple) else (None, batch)
    parts.append(model.log_likelihood(x, num_samples, lengths, seed=[seed, i]).numpy())
  values = np.concatenate(parts).astype(np.float64)
  summary = {
    "num_images": len(values),
    "log_likelihood": float(values.mean()),
    "standard_error": float(values.std(ddof=1) / math.sqrt(len(values))),
  }
  rows = [{"image": i, "log_likelihood": float(value)} for i, value in enumerate(values)]
  return summary, rows


def comparison(
  model: models.StateSpaceModel, settings: CompareConfig, trained: TrainConfig
) -> Callable[[Any], diagnostics.Comparison]:
  """Returns the function that compares estimators on a batch, resampling as the run does.

  Raises:
    ConfigError: if flags do not fit the run.
  """
  names = settings.bounds or tuple(catalogue.SEQUENCE_BOUNDS)
  for name in names:
    checks.check_choice("bounds", name, tuple(catalogue.SEQUENCE_BOUNDS))
  if settings.gradient_of != "proposal":
    raise ConfigError(
      f"--gradient_of must be proposal with --model=vrnn, got {settings.gradient_of!r}."
    )
  jit_compile = trained.jit_compile if settings.jit_compile is None else settings.jit_compile
  return lambda batch: diagnostics.compare_sequences(
    model,
    batch,
    names,
    settings.num_samples,
    settings.num_measurements,
    seed=settings.seed,
    jit_compile=jit_compile,
    measure_cost=settings.measure_cost,
    resampling=trained.resampling,
    resample_when=model_flags.as_schedule(trained.resample_when),
  )


def report(result: dict) -> str:
  """Formats the result of an evaluation as a line."""
  return (
    f"log p(x) of the {result['split']} set ({result['num_images']} sequences, step "
    f"{result['step']}, particle filter with {result['num_samples']} particles): "
    f"{result['log_likelihood']:.3f} +- {result['standard_error']:.3f} nats (standard error over "
    "sequences)."
  )
