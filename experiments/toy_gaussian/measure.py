"""Measures gradients of bounds on the Gaussian model.

Each trial draws a problem of `model`, then gradient samples ("measurements") of the bound's mean
over a batch of observations, with respect to the proposal's A and b. All bounds share their
samples, and a smaller K takes the first K of them. Coefficients are those of `dregs_tf.bounds`.

The batch stays the same throughout a trial: drawing it anew would add the variance between
observations, which falls only like K^-2 and would hide the K^-3 of IWAE-DReG.
"""

import concurrent.futures
import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from dregs_tf import bounds, catalogue, output
from experiments.toy_gaussian import model
from experiments.toy_gaussian.config import ToyConfig, parse, unparse
from experiments.toy_gaussian.statistics import Moments

# Samples times rows (observations times measurements) at a time: float32 noise of about 20 MB.
_PAIRS = 2**18


def bound_of(name: str) -> bounds.Bound:
  """Returns the bound that an element of --bounds stands for."""
  name, options = parse(name)
  return bounds.get(name, **options)


def reference(name: str) -> str:
  """Names the unbiased estimator, the total derivative, of the gradient of a bound's value."""
  total, (_, options) = bound_of(name).total.name, parse(name)
  taken = catalogue.BOUNDS[total].options
  return unparse(total, {option: value for option, value in options.items() if option in taken})


def is_defined(name: str, num_samples: int) -> bool:
  """Returns whether a bound is defined for so many samples."""
  bound = bound_of(name)
  return num_samples >= bound.min_samples and num_samples % bound.groups == 0


def measure(settings: ToyConfig) -> dict[tuple[str, int], Moments]:
  """Measures the gradients' moments, for each (bound, K) that the bound is defined for.

  Coordinates are those of [A, b], [D, D + 1], row by row. Sums are in float64. The gradients are
  float32: nothing in them cancels, and at K = 1000 rounding is at most 1e-4 of a measurement's
  standard deviation, for every bound.
  """
  names = tuple(dict.fromkeys([*settings.bounds, *map(reference, settings.bounds)]))
  gradients = tf.function(
    lambda noise, shift, x: estimate(noise, shift, x, names, settings.num_samples)
  )
  trials = []
  with output.Progress(settings.num_trials, "trials") as progress:
    for trial in range(settings.num_trials):
      trials.append(_measure_trial(settings, trial, gradients))
      progress.update()
      progress.write_without_bar(f"{trial + 1} of {settings.num_trials} trials")
  return {
    key: Moments(*map(np.stack, zip(*(moments[key] for moments in trials), strict=True)))
    for key in trials[0]
  }


def _measure_trial(settings, trial: int, gradients) -> dict[tuple[str, int], Moments]:
  """Measures one trial's moments, without the first axis."""
  generator = np.random.default_rng([settings.seed, trial])
  parameters, x = model.draw(generator, settings.latent_dim, settings.num_observations)
  x = x[: settings.batch_size]
  shift = model.shifts(parameters, x)
  keys = [
    (name, k) for name in settings.bounds for k in settings.num_samples if is_defined(name, k)
  ]
  exact = exact_gradients(shift, x, keys)
  sums = {key: np.zeros([4, exact[key].size]) for key in keys}
  shift, x = (tf.constant(part, tf.float32) for part in (shift, x))
  for noise in _noise(settings, generator):
    measured = {
      key: gradient.numpy().astype(np.float64)
      for key, gradient in gradients(noise, shift, x).items()
    }
    for (name, k), total in sums.items():
      error = measured[name, k] - exact[name, k]
      difference = measured[name, k] - measured[reference(name), k]
      for j, part in enumerate((error, error**2, difference, difference**2)):
        total[j] += part.sum(axis=0)
  return {key: Moments(exact[key], *sums[key]) for key in keys}


def _noise(settings, generator: np.random.Generator) -> Iterator[tf.Tensor]:
  """Yields a trial's noise, [some measurements, batch_size, largest K, D] at a time.

  Drawing it is most of the work, so the next part is drawn while one is used. NumPy's generator
  takes two thirds of the time of TensorFlow's here.
  """
  most = max(settings.num_samples)
  at_once = max(1, _PAIRS // (most * settings.batch_size))
  n = settings.num_measurements
  counts = [min(at_once, n - start) for start in range(0, n, at_once)]

  def draw(count):
    shape = [count, settings.batch_size, most, settings.latent_dim]
    return generator.standard_normal(shape, np.float32)

  with concurrent.futures.ThreadPoolExecutor(1) as ahead:
    following = ahead.submit(draw, counts[0])
    for count in [*counts[1:], None]:
      noise = following.result()
      following = count and ahead.submit(draw, count)
      yield tf.constant(noise)


def estimate(
  noise: tf.Tensor, shift: tf.Tensor, x: tf.Tensor, names: Sequence[str], all_num_samples
) -> dict[tuple[str, int], tf.Tensor]:
  """Returns gradients of the batch's mean bound in [A, b], for bounds and K's on the same samples.

  Args:
    noise: [num_measurements, batch_size, largest K, D], standard normal.
    shift: `model.shifts`, [batch_size, D].
    x: the observations, [batch_size, D].
    names: of the bounds.
    all_num_samples: the K's: each takes the first K samples.

  Returns:
    For each (name, K) that the bound is defined for, [num_measurements, D * (D + 1)].
  """
  num_measurements, batch_size, most, latent_dim = noise.shape
  rows = num_measurements * batch_size
  log_weights = model.log_weights(noise, shift[:, tf.newaxis])
  log_weights = tf.transpose(tf.reshape(log_weights, [rows, most]))
  noise = tf.reshape(noise, [rows, most, latent_dim])
  shift = tf.tile(shift, [num_measurements, 1])
  inputs = tf.concat([x, tf.ones_like(x[:, :1])], axis=-1)

  gradients = {}
  for k in all_num_samples:
    defined = [name for name in names if is_defined(name, k)]
    coefficients = [bound_of(name).coefficients(log_weights[:k]) for name in defined]
    if not defined:
      continue
    per_row = model.loc_gradients(noise[:, :k], shift, coefficients)
    per_row = tf.reshape(per_row, [len(defined), num_measurements, batch_size, latent_dim])
    # loc = A x + b: dloc_i / dA_ij = x_j, dloc_i / db_i = 1.
    mean = tf.einsum("jmbd,be->jmde", per_row, inputs) / batch_size
    flat = tf.reshape(mean, [len(defined), num_measurements, -1])
    gradients |= {(name, k): flat[j] for j, name in enumerate(defined)}
  return gradients


def exact_gradients(
  shift: np.ndarray, x: np.ndarray, keys: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], np.ndarray]:
  """Returns the exact gradient of each bound's value, not of its estimator, in [A, b].

  Args:
    shift: `model.shifts`, [batch_size, D].
    x: the observations, [batch_size, D].
    keys: (name, K) pairs.

  Returns:
    For each key, [D * (D + 1)] in float64.
  """

  def parts(name, k):
    """Returns (factor, K) pairs: the objective is the sum of factor * L_K, of tempered weights."""
    bound = bound_of(name)
    options = dict(bound.options)
    match catalogue.BOUNDS[bound.name].objective:
      case "elbo" | "iwae" | "vr_iwae":
        return [(1, k)]
      case "ciwae":
        return [(options["beta"], 1), (1 - options["beta"], k)]
      case "miwae":
        return [(1, k // options["groups"])]
    m = options["order"]  # Of the jackknife.
    return [
      ((-1) ** j * (k - j) ** m / (math.factorial(m - j) * math.factorial(j)), k - j)
      for j in range(m + 1)
    ]

  needed = {}
  for name, k in keys:
    needed.setdefault(_alpha(name), set()).update(of for _, of in parts(name, k))
  exact = {
    each: model.exact_loc_gradients(shift, sorted(all_k), each) for each, all_k in needed.items()
  }
  inputs = np.concatenate([x, np.ones_like(x[:, :1])], axis=-1)
  return {
    (name, k): sum(
      factor * exact[_alpha(name)][of].T @ inputs / len(x) for factor, of in parts(name, k)
    ).ravel()
    for name, k in keys
  }


def exact_variances(settings: ToyConfig) -> dict[tuple[str, int], np.ndarray]:
  """Returns the exact variance of a measurement, averaged over coordinates, of each trial.

  It is known for the total, dreg and stl gradients of the ELBO, L_K and VR-IWAE.

  Returns:
    For each (bound, K) that it is known for, [num_trials] in float64.
  """
  found = {}
  for trial in range(settings.num_trials):
    generator = np.random.default_rng([settings.seed, trial])
    parameters, x = model.draw(generator, settings.latent_dim, settings.num_observations)
    x = x[: settings.batch_size]
    shift = model.shifts(parameters, x)
    # loc = A x + b, and observations are independent.
    factor = (1 + np.sum(x**2, axis=-1)) / len(x) ** 2 / (x.shape[1] * (x.shape[1] + 1))
    for name in settings.bounds:
      row = catalogue.BOUNDS[bound_of(name).name]
      is_known = row.gradient in ("total", "dreg", "stl")
      if not (is_known and row.objective in ("elbo", "iwae", "vr_iwae")):
        continue
      of = model.estimator(row.gradient, _alpha(name))
      for k in settings.num_samples:
        variance = float(factor @ model.exact_variances(shift, k, of))
        found.setdefault((name, k), []).append(variance)
  return {key: np.array(variances) for key, variances in found.items()}


def _alpha(name: str) -> float:
  """Returns the alpha of VR-IWAE that the bound's weights are tempered by."""
  bound = bound_of(name)
  match catalogue.BOUNDS[bound.name].objective:
    case "vr_iwae":
      return dict(bound.options)["alpha"]
    case "elbo":
      return 1.0
  return 0.0
