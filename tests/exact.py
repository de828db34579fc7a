"""Generated log-weights of every kind, and values and coefficients of them in more digits."""

import functools
import itertools
import math

import numpy as np
import tensorflow as tf

from dregs_tf import bounds

INF = math.inf

# x87's 64 binary digits where the machine has them; elsewhere float64, which the tolerances allow.
EXACT = np.longdouble


# --- log-weights --------------------------------------------------------------------------------


def ordinary(shape, rng):
  return rng.normal(size=shape) * 10 ** rng.uniform(-3, 1, size=shape[1])


def far_off(shape, rng):
  return ordinary(shape, rng) + rng.choice([-1e4, 1e4], size=shape[1])


def dominated(shape, rng):
  """One is ahead of the others by up to 1e4 nats."""
  log_weights = ordinary(shape, rng)
  ahead = 10 ** rng.uniform(0, 4, size=shape[1])
  log_weights[rng.integers(shape[0], size=shape[1]), np.arange(shape[1])] += ahead
  return log_weights


def scattered(shape, rng):
  return rng.uniform(-1e4, 1e4, size=shape)


def tied(shape, rng):
  return np.round(ordinary(shape, rng)) + rng.choice([-1e4, 0.0, 1e4], size=shape[1])


def all_equal(shape, rng):
  return np.broadcast_to(rng.uniform(-1e4, 1e4, size=shape[1]), shape).copy()


def some_zero(shape, rng):
  kept = rng.uniform(size=shape) < rng.uniform(size=shape[1])
  return np.where(kept, rng.choice([ordinary, dominated, far_off])(shape, rng), -INF)


def one_left(shape, rng):
  log_weights = np.full(shape, -INF)
  place = rng.integers(shape[0], size=shape[1]), np.arange(shape[1])
  log_weights[place] = rng.uniform(-1e4, 1e4, size=shape[1])
  return log_weights


def all_zero(shape, rng):
  del rng
  return np.full(shape, -INF)


KINDS = (
  *(ordinary, far_off, dominated, scattered, tied, all_equal, some_zero, one_left),
  all_zero,
)


def generated(num_samples, num_examples, dtype, seed=0):
  """[num_samples, num_examples] log-weights of every kind, the examples independent of each other.

  They are exact as given: rounding them to `dtype` is no error of the function under test.
  """
  rng = np.random.default_rng([seed, num_samples])
  sizes = [len(part) for part in np.array_split(np.arange(num_examples), len(KINDS))]
  parts = [kind((num_samples, n), rng) for kind, n in zip(KINDS, sizes, strict=True)]
  return np.concatenate(parts, axis=1).astype(dtype)


# --- the oracle, and how far from it rounding may lead ------------------------------------------


class Exact:
  """Values and coefficients of log-weights [K, N], each subset of samples on its own.

  A sum over subsets that leave out up to `order` samples; in each one the weights are taken
  relative to its own largest, so nothing cancels or underflows that matters.
  """

  def __init__(self, log_weights, order=0):
    self.log_weights = log_weights.astype(EXACT)
    num_samples = len(log_weights)
    self.value = np.zeros(log_weights.shape[1:], EXACT)
    self.u, self.v, self.difference = (np.zeros(log_weights.shape, EXACT) for _ in range(3))
    self.sum_of_scales = 0.0
    for j in range(order + 1):
      scale = EXACT((-1) ** j * (num_samples - j) ** order)
      scale /= math.factorial(order - j) * math.factorial(j)
      self.sum_of_scales += abs(float(scale))
      subsets = list(itertools.combinations(range(num_samples), num_samples - j))
      for subset in subsets:
        self._add(list(subset), scale / len(subsets))
    self.none_left = np.isneginf(log_weights).all(axis=0)
    self.value = np.where(self.none_left, -INF, self.value)

  def _add(self, subset, scale):
    inside = self.log_weights[subset]
    largest = inside.max(axis=0)
    largest = np.where(np.isneginf(largest), 0, largest)
    weights = np.exp(inside - largest)
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
      self.value += scale * (largest + np.log(total / len(subset)))
    weights /= np.where(total == 0, 1, total)
    self.u[subset] += scale * weights
    self.v[subset] += scale * weights**2
    if len(subset) == len(self.log_weights):
      for i in subset:
        others = np.delete(weights, i, axis=0)
        self.difference[i] = weights[i] * others.sum(axis=0)

  def row(self, name, options):
    """value, a, b, c as the paper's table has them."""
    x, u, v, d, none = self.log_weights, self.u, self.v, self.difference, 0 * self.u
    if name in ("elbo", "elbo_stl"):
      uniform = np.where(np.isneginf(x), 0, EXACT(1) / len(x))
      return x.mean(axis=0), uniform, uniform, -uniform if name == "elbo" else none
    alpha = EXACT(options.get("alpha", 0))
    b, c = {
      "iwae": (u, -u),
      "iwae_dreg": (v, none),
      "rws": (none, u),
      "rws_dreg": (d, none),
      "stl": (u, none),
      "dreg_alpha": ((1 - alpha) * v + alpha * d, none),
      "jvi": (u, -u),
      "jvi_dreg": (v, none),
      "iwae_dreg_norm": (shared_out(v), none),
      "rws_dreg_norm": (shared_out(d), none),
    }[name]
    return self.value, u, b, c


def shared_out(b):
  total = b.sum(axis=0)
  return b / np.where(total == 0, 1, total)


def largest_finite(log_weights):
  return np.abs(np.where(np.isfinite(log_weights), log_weights, 0)).max(axis=0)


def tolerances(name, exact, row, dtype):
  """How far value, a, b, c may be from `row`.

  With eps the distance of 1 to the next number: a sum of K terms is off by up to K eps / 2 of
  itself, and exp, log and log1p by a few eps more: (K + 8) eps, here called `unit`. A logarithm x
  is off by eps |x|, and its exponential by that factor. So a weight w is off by
  unit (1 + |log w|) w, which the product of two or three such factors multiplies by at most 4; what
  is less than the smallest normal number may be lost. The jackknife is a sum of means over subsets,
  in float64, times scales of both signs: the errors of its terms count with the absolute scales,
  and its logarithms keep the offset: an offset x costs a further eps |x|. Then its sum is rounded
  to `dtype`.
  """
  info, num_samples = np.finfo(dtype), len(exact.log_weights)
  size = 1 + largest_finite(exact.log_weights) + math.log(num_samples)
  if name.startswith("jvi"):
    unit = (num_samples + 8) * np.finfo("float64").eps * exact.sum_of_scales * size
    with np.errstate(invalid="ignore"):
      rounded = [np.where(np.isfinite(part), info.eps * np.abs(part), 0) for part in row]
    return [unit + part + info.tiny for part in rounded]
  unit = (num_samples + 8) * info.eps

  def of_product(part):
    part = np.abs(part)
    return 4 * unit * part * (1 - np.log(np.where(part == 0, 1, part))) + 2 * info.tiny

  allowed = [unit * size, *map(of_product, row[1:])]
  if name.endswith("_norm"):
    # The relative errors of the terms before they are divided, and of their sum; what is lost
    # of each of them is divided too.
    b, terms = row[2], exact.v if name == "iwae_dreg_norm" else exact.difference
    relative = 4 * unit * (1 - np.log(np.where(terms == 0, 1, terms)))
    total = np.maximum(terms.sum(axis=0), info.tiny)
    allowed[2] = b * (relative + (b * relative).sum(axis=0)) + (num_samples + 2) * info.tiny / total
  return allowed


def assert_close(actual, expected, tolerance):
  """Within the tolerance; infinities and NaN in the same places."""
  actual, expected = np.asarray(actual).astype(EXACT), np.asarray(expected)
  finite = np.isfinite(expected)
  np.testing.assert_array_equal(actual[~finite], expected[~finite])
  error = np.abs(actual - np.where(finite, expected, 0))
  wrong = finite & ~(error <= tolerance)
  if wrong.any():
    first = tuple(np.argwhere(wrong)[0])
    allowed = np.broadcast_to(tolerance, wrong.shape)[first]
    raise AssertionError(
      f"{wrong.sum()} of {wrong.size} differ; at {first}: {actual[first]} where "
      f"{expected[first]} +- {allowed} was expected."
    )


@functools.cache
def known(num_samples, num_examples, dtype, order, seed=0):
  """Generated log-weights and their `Exact`, which the bounds of an order share."""
  log_weights = generated(num_samples, num_examples, dtype, seed)
  return log_weights, Exact(log_weights, order)


def check(name, options, log_weights, compute=None, exact=None):
  """Compares a bound's values and coefficients with the oracle's, `exact` if it is known."""
  bound = bounds.get(name, **options)
  compute = compute or bound.value_and_coefficients
  value, coefficients = compute(tf.constant(log_weights))
  actual = [value.numpy(), *(part.numpy() for part in coefficients)]
  assert all(part.dtype == log_weights.dtype for part in actual)
  assert all(np.isfinite(part).all() for part in actual[1:])
  exact = exact or Exact(log_weights, options.get("order", 0))
  row = exact.row(name, options)
  allowed = tolerances(name, exact, row, log_weights.dtype)
  if name == "rws_dreg_norm":
    # A quotient of numbers that vanish when one weight holds all the mass: then 0 is right too.
    vanished = exact.difference.sum(axis=0) < np.finfo(log_weights.dtype).smallest_subnormal / 4
    assert (actual[2][:, vanished] == 0).all()
    assert ((actual[2] >= 0) & (actual[2] <= 1)).all()
  for part, expected, tolerance in zip(actual, row, allowed, strict=True):
    assert_close(part, expected, tolerance)
