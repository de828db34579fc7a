"""Trains mixtures of experts on the halves of digits, by the exact gradient and by the hook's."""

import pathlib
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dregs_tf import bounds, data, output
from dregs_tf.models import ConditionalBernoulli, ConditionalNormal, MixtureOfExpertsVAE, calls
from dregs_tf.training.errors import ConfigError
from experiments.mixture_of_experts import figure
from experiments.mixture_of_experts.config import ExpertsConfig
from experiments.mixture_of_experts.hook import estimate_with_hook

HALVES = ("top", "bottom")
HOOK = "hook"

# Samples of each expert for a log-likelihood, and repetitions for the mean of a gradient.
_NUM_SAMPLES = 500
_NUM_REPEATS = 400

# The number of test digits whose halves are drawn.
_NUM_DRAWN = 12


class HookedExperts(MixtureOfExpertsVAE):
  """Trains the same model with the gradient of public multi-modal code: see `hook.py`."""

  def estimate(self, x: Any, context: Any = None, **options: Any) -> bounds.Estimate:
    """Estimates a bound as `LatentVariableModel.estimate` does, with another gradient."""
    bound, num_samples, seed = (options.pop(name) for name in ("bound", "num_samples", "seed"))
    if any(value not in (None, 1.0, "direct") for value in options.values()):
      raise ValueError(f"The hook takes no further options, got {options}.")
    with calls.mode(self, None):
      mixture = self.proposal(x, context)
      return estimate_with_hook(
        bound, lambda z: self.target_log_prob(x, z, context), mixture, num_samples, seed
      )


def run(settings: ExpertsConfig) -> list[dict]:
  """Runs the experiment; writes results.csv and two figures into its directory.

  Returns:
    The rows of results.csv, one for each bound, gradient, K and seed.

  Raises:
    ConfigError: if the directory cannot be written.
  """
  directory = pathlib.Path(settings.output_dir)
  try:  # Before the work, not after it.
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f"--output_dir={directory} cannot be written: {error.strerror}.") from error
  images = data.load("digits")
  test = next(iter(_halves(data.eval_batches(images.test, len(images.test), **_task(images)))))
  rows, drawn = [], {}
  for name in settings.bounds:
    for hook in (False, True) if name.endswith("_dreg") else (False,):
      for num_samples in settings.num_samples:
        for seed in range(settings.num_seeds):
          row = {"bound": name, "gradient": HOOK if hook else "exact", "num_samples": num_samples}
          model, seconds = train(settings, images, name, num_samples, seed, hook=hook)
          row |= {"seed": seed, "seconds": seconds} | evaluate(model, test)
          is_measured = name.endswith("_dreg") and not hook
          share = share_of_hook(model, test, name, num_samples) if is_measured else None
          row["share_of_hook"] = share
          if num_samples == max(settings.num_samples) and seed == 0:
            drawn[name, row["gradient"]] = generate(model, test)
          rows.append(row)
          print(*(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
  output.write_csv(directory / "results.csv", rows, digits=6)
  figure.numbers(directory / "mixture_of_experts.png", rows)
  shown = {half: test[half][:_NUM_DRAWN].numpy() for half in HALVES}
  figure.cross_generation(directory / "cross_generation.png", shown, drawn, images.image_shape)
  return rows


def train(
  settings: ExpertsConfig,
  images: data.Images,
  bound: str,
  num_samples: int,
  seed: int,
  *,
  hook: bool,
) -> tuple[MixtureOfExpertsVAE, float]:
  """Trains a model; returns it with the seconds that it took."""
  keras.utils.set_random_seed(seed)
  means = dict(zip(HALVES, data.top_and_bottom(images.mean, images.image_shape), strict=True))
  nets = {"hidden_units": (settings.hidden_units,)}
  model = (HookedExperts if hook else MixtureOfExpertsVAE)(
    {half: ConditionalNormal(settings.latent_dim, **nets) for half in HALVES},
    {half: ConditionalBernoulli(means[half], **nets) for half in HALVES},
  )
  optimizer = keras.optimizers.Adam(settings.learning_rate)
  model.compile(optimizer, bound, num_samples, seed=seed, jit_compile=False)
  batches = data.train_batches(
    images.train, settings.batch_size, seed, num_steps=settings.max_steps, **_task(images)
  )
  start = time.perf_counter()
  model.fit(_halves(batches), shuffle=False, verbose=0)
  return model, time.perf_counter() - start


def evaluate(model: MixtureOfExpertsVAE, x: dict[str, tf.Tensor]) -> dict[str, float]:
  """Estimates log p of the test digits, and of each half given the other, in nats per digit."""

  def log_p(*missing: str) -> np.ndarray:
    present = {half: tf.fill([len(x[half])], False) for half in missing}
    return model.log_likelihood(x, _NUM_SAMPLES, context=present or None).numpy()

  both, top, bottom = log_p(), log_p("bottom"), log_p("top")
  return {
    "log_p": float(both.mean()),
    "log_p_bottom_given_top": float((both - top).mean()),
    "log_p_top_given_bottom": float((both - bottom).mean()),
  }


def share_of_hook(
  model: MixtureOfExpertsVAE, x: dict[str, tf.Tensor], bound: str, num_samples: int
) -> float:
  """Estimates the share of the encoders' gradient that the hook delivers: 1 if it is unbiased.

  It is the inner product of the hook's and the exact mean gradient of 8 digits, divided by the
  square of the exact one.
  """
  variables = [v for half in HALVES for v in model.encoders[half].trainable_variables]
  batch = {half: tf.tile(x[half][:8], [_NUM_REPEATS, 1]) for half in HALVES}

  def mean_gradient(estimate, seed) -> tf.Tensor:
    with tf.GradientTape() as tape:
      objective = tf.reduce_mean(estimate(seed).objective)
    found = tape.gradient(objective, variables)
    return tf.concat([tf.reshape(part, [-1]) for part in found], axis=0)

  def exact(seed):
    return model.estimate(batch, bound=bound, num_samples=num_samples, seed=seed)

  def hooked(seed):
    mixture = model.proposal(batch)
    return estimate_with_hook(
      bound, lambda z: model.target_log_prob(batch, z), mixture, num_samples, seed
    )

  # Two independent means, so that their noise does not add to the square.
  one, other = (mean_gradient(exact, seed) for seed in (0, 1))
  biased = mean_gradient(hooked, 2)
  return float(tf.reduce_sum(biased * (one + other)) / (2 * tf.reduce_sum(one * other)))


def generate(model: MixtureOfExpertsVAE, x: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
  """Generates each half of some digits from the other: the means at one sample."""
  given = {half: {half: x[half][:_NUM_DRAWN]} for half in HALVES}
  top, bottom = HALVES
  return {
    bottom: model.cross_generate(given[top], seed=0)[bottom].numpy(),
    top: model.cross_generate(given[bottom], seed=0)[top].numpy(),
  }


def _task(images: data.Images) -> dict[str, Any]:
  return {"image_shape": images.image_shape, "task": "structured"}


def _halves(batches: tf.data.Dataset) -> tf.data.Dataset:
  return batches.map(lambda top, bottom: dict(zip(HALVES, (top, bottom), strict=True)))
