"""Properties of every bound, on 10,000 generated sets of log-weights each, and on hypothesis'."""

import functools
import itertools
import math

import hypothesis
import mpmath
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dregs_tf import bounds
from tests import problems

INF = math.inf

_WITH_OPTIONS = {"dreg_alpha", "jvi", "jvi_dreg"}
VARIANTS = [(name, {}) for name in bounds.names() if name not in _WITH_OPTIONS | problems.BEYOND]
VARIANTS += [("dreg_alpha", {"alpha": alpha}) for alpha in (0.0, 0.3, 0.9, 1.0)]
VARIANTS += [(name, {"order": order}) for name in ("jvi", "jvi_dreg") for order in (1, 2)]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]
every_variant = pytest.mark.parametrize("name,options", VARIANTS, ids=IDS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])

# x87's 64 binary digits where the machine has them; elsewhere float64, which the tolerances allow.
EXACT = np.longdouble

NUM_EXAMPLES = 10_000
SIZES = {0: (1, 2, 5, 16, 40), 1: (2, 3, 5, 16, 40), 2: (3, 4, 5, 8, 13)}  # by order: the K


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


def check(name, options, log_weights, compute=None):
  """Compares a bound's values and coefficients with the oracle's."""
  bound = bounds.get(name, **options)
  compute = compute or bound.value_and_coefficients
  value, coefficients = compute(tf.constant(log_weights))
  actual = [value.numpy(), *(part.numpy() for part in coefficients)]
  assert all(part.dtype == log_weights.dtype for part in actual)
  assert all(np.isfinite(part).all() for part in actual[1:])
  exact = Exact(log_weights, options.get("order", 0))
  row = exact.row(name, options)
  allowed = tolerances(name, exact, row, log_weights.dtype)
  if name == "rws_dreg_norm":
    # A quotient of numbers that vanish when one weight holds all the mass: then 0 is right too.
    vanished = exact.difference.sum(axis=0) < np.finfo(log_weights.dtype).smallest_subnormal / 4
    assert (actual[2][:, vanished] == 0).all()
    assert ((actual[2] >= 0) & (actual[2] <= 1)).all()
  for part, expected, tolerance in zip(actual, row, allowed, strict=True):
    assert_close(part, expected, tolerance)


# --- 10,000 examples for every bound ------------------------------------------------------------


@every_variant
@every_dtype
def test_ten_thousand_examples(name, options, dtype):
  sizes = SIZES[options.get("order", 0)]
  for num_samples in sizes:
    check(name, options, generated(num_samples, NUM_EXAMPLES // len(sizes), dtype))


@functools.cache
def under_xla(dtype):
  """Log-weights for every variant, and its results, of one program: compiling takes long."""
  place = 2 if dtype == "float32" else 3
  sizes = [SIZES[options.get("order", 0)][place] for _, options in VARIANTS]
  log_weights = [generated(num_samples, 900, dtype, seed=1) for num_samples in sizes]

  @tf.function(jit_compile=True)
  def compute(inputs):
    return [
      bounds.get(name, **options).value_and_coefficients(l)
      for (name, options), l in zip(VARIANTS, inputs, strict=True)
    ]

  return list(zip(log_weights, compute([tf.constant(l) for l in log_weights]), strict=True))


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=IDS)
@every_dtype
def test_under_xla(variant, dtype):
  log_weights, results = under_xla(dtype)[variant]
  check(*VARIANTS[variant], log_weights, lambda _: results)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("num_samples", [3, 6])
def test_the_oracle_in_many_digits(order, num_samples):
  """The oracle itself, against mpmath with 60 digits, on examples of every kind."""
  log_weights = generated(num_samples, 5 * len(KINDS), "float64", seed=2)
  exact = Exact(log_weights, order)
  size = 1 + largest_finite(log_weights)
  tolerance = 16 * num_samples * np.finfo(EXACT).eps * exact.sum_of_scales * size
  with mpmath.workdps(60):
    columns = [in_many_digits(column, order) for column in log_weights.T.tolist()]
  for part, expected in zip(
    (exact.value, exact.u, exact.v, exact.difference), zip(*columns, strict=True), strict=True
  ):
    assert_close(part, np.array(expected, EXACT).T, tolerance)


def in_many_digits(column, order):
  """value, u, v and (of the full sum) u - v of one example, by listing the subsets."""
  num_samples = len(column)
  weights = [mpmath.exp(x) for x in column]
  value = mpmath.mpf(0)
  u, v = [mpmath.mpf(0)] * num_samples, [mpmath.mpf(0)] * num_samples
  difference = [mpmath.mpf(0)] * num_samples
  for j in range(order + 1):
    scale = mpmath.mpf((-1) ** j * (num_samples - j) ** order)
    scale /= mpmath.factorial(order - j) * mpmath.factorial(j)
    for subset in itertools.combinations(range(num_samples), num_samples - j):
      share = scale / mpmath.binomial(num_samples, j)
      total = mpmath.fsum(weights[i] for i in subset)
      value += share * (mpmath.log(total / len(subset)) if total else -mpmath.inf)
      for i in subset if total else ():
        u[i] += share * weights[i] / total
        v[i] += share * (weights[i] / total) ** 2
        if j == 0:
          others = mpmath.fsum(weights[k] for k in subset if k != i)
          difference[i] = weights[i] * others / total**2
  if not any(weights):
    value = -mpmath.inf
  return to_exact(value), *([to_exact(x) for x in part] for part in (u, v, difference))


def to_exact(number):
  first = float(number)
  return EXACT(first) + (EXACT(float(number - first)) if math.isfinite(first) else 0)


@pytest.mark.parametrize("order,num_left,expected", [(1, 1, INF), (2, 1, math.nan), (2, 2, -INF)])
def test_where_the_jackknife_is_infinite(order, num_left, expected):
  """Where so few weights are left that subsets have none: their -inf times scales of both signs."""
  log_weights = np.full([5, 1], -INF)
  log_weights[:num_left] = 0.5
  for name in ("jvi", "jvi_dreg"):
    value = bounds.get(name, order=order).value(tf.constant(log_weights))
    np.testing.assert_array_equal(value, [expected])


# --- what hypothesis finds ----------------------------------------------------------------------

# Quarters: exact in float32 at every offset that is drawn, so that a shift rounds nothing.
_quarters = st.integers(-120, 120).map(lambda n: n / 4)
_elements = st.one_of(
  _quarters, st.sampled_from([0.0, 0.25, 8.0, 30.0, 90.0, 1e4, -1e4]), st.just(-INF)
)


@st.composite
def matrices(draw, order=0, elements=_elements, least=1):
  """Log-weights [K] or [K, B] of either dtype."""
  most = {0: 40, 1: 40, 2: 9}[order]
  num_samples = draw(st.integers(max(least, order + 1), most))
  batch = draw(st.sampled_from([(), (1,), (3,)]))
  dtype = draw(st.sampled_from(["float32", "float64"]))
  offset = draw(st.sampled_from([0.0, 1e4, -1e4]))
  return draw(hnp.arrays(dtype, (num_samples, *batch), elements=elements)) + np.dtype(dtype).type(
    offset
  )


def evaluated(name, log_weights, **options):
  value, (a, b, c) = bounds.get(name, **options).value_and_coefficients(tf.constant(log_weights))
  return value.numpy(), a.numpy(), b.numpy(), c.numpy()


def slack(log_weights, order=0):
  """Tolerance of a comparison of two results, each as far off as `tolerances` says."""
  num_samples = len(log_weights)
  size = 1 + largest_finite(log_weights) + math.log(num_samples)
  dtype_eps = np.finfo(log_weights.dtype).eps
  if not order:
    return 2 * (num_samples + 8) * dtype_eps * size, 8 * (num_samples + 8) * dtype_eps
  scales = 2.0 * num_samples**order
  unit = 2 * (num_samples + 8) * np.finfo("float64").eps * scales * size
  return unit + 2 * dtype_eps * scales * size, np.max(unit) + 2 * dtype_eps * scales


few_examples = hypothesis.settings(
  max_examples=25,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)


@every_variant
@few_examples
@hypothesis.given(data=st.data())
def test_any_shape_is_right(name, options, data):
  log_weights = data.draw(matrices(options.get("order", 0)))
  if log_weights.ndim == 2:
    check(name, options, log_weights)
  else:
    # A vector is one example: the numbers are those of a matrix of one column.
    column = evaluated(name, log_weights[:, None], **options)
    check(name, options, log_weights[:, None])
    of_value, of_weights = slack(log_weights, options.get("order", 0))
    value, *coefficients = evaluated(name, log_weights, **options)
    assert_close(value, column[0][0], of_value)
    for one, other in zip(coefficients, column[1:], strict=True):
      assert_close(one, other[:, 0], of_weights)


@every_variant
@few_examples
@hypothesis.given(data=st.data())
def test_weights_of_the_model_sum_to_one(name, options, data):
  order = options.get("order", 0)
  log_weights = data.draw(matrices(order))
  num_left = np.isfinite(log_weights).sum(axis=0)
  _, a, _, c = evaluated(name, log_weights, **options)
  expected = num_left / len(log_weights) if name.startswith("elbo") else (num_left > 0) * 1.0
  # With no more than `order` weights left, subsets of the jackknife have none.
  known = (num_left > order) | (num_left == 0)
  total = np.where(known, a.sum(axis=0), expected)
  np.testing.assert_allclose(total, expected, rtol=0, atol=slack(log_weights, order)[1])
  assert (a[np.isneginf(log_weights)] == 0).all()
  np.testing.assert_array_equal(np.abs(c), np.abs(a) if c.any() else np.zeros_like(a))


@every_variant
@few_examples
@hypothesis.given(data=st.data())
def test_the_order_of_the_samples_does_not_matter(name, options, data):
  log_weights = data.draw(matrices(options.get("order", 0)))
  permutation = np.array(data.draw(st.permutations(range(len(log_weights)))))
  value, *coefficients = evaluated(name, log_weights, **options)
  permuted_value, *permuted = evaluated(name, log_weights[permutation], **options)
  of_value, of_weights = slack(log_weights, options.get("order", 0))
  assert_close(permuted_value, value, of_value)
  for one, other in zip(permuted, coefficients, strict=True):
    assert_close(one, other[permutation], of_weights)


@every_variant
@few_examples
@hypothesis.given(data=st.data(), shift=st.sampled_from([-1e4, -0.25, 50.0, 1e4]))
def test_a_common_factor_moves_the_value_alone(name, options, data, shift):
  order = options.get("order", 0)
  log_weights = data.draw(matrices(order))
  shifted = log_weights + log_weights.dtype.type(shift)
  hypothesis.assume(np.array_equal(shifted.astype(float), log_weights.astype(float) + shift))
  value, *coefficients = evaluated(name, log_weights, **options)
  shifted_value, *others = evaluated(name, shifted, **options)
  larger = np.maximum(np.abs(shifted), np.abs(log_weights))
  of_value, of_weights = slack(larger, order)
  assert_close(shifted_value, value.astype(EXACT) + shift, of_value)
  for one, other in zip(others, coefficients, strict=True):
    assert_close(one, other, of_weights)


@few_examples
@hypothesis.given(log_weights=matrices(), alpha=st.floats(0, 1))
def test_identities_between_the_estimators(log_weights, alpha):
  path = {name: evaluated(name, log_weights)[2] for name in ("stl", "iwae_dreg", "rws_dreg")}
  close = functools.partial(assert_close, tolerance=slack(log_weights)[1])
  close(path["iwae_dreg"] + path["rws_dreg"], path["stl"])
  mixed = evaluated("dreg_alpha", log_weights, alpha=alpha)[2]
  close(mixed, (1 - alpha) * path["iwae_dreg"] + alpha * path["rws_dreg"])
  value, a, _, _ = evaluated("iwae", log_weights)
  for name in ("iwae_dreg", "rws", "rws_dreg", "stl", "dreg_alpha"):
    other_value, other_a, _, _ = evaluated(name, log_weights)
    np.testing.assert_array_equal(other_value, value)
    np.testing.assert_array_equal(other_a, a)


@few_examples
@hypothesis.given(log_weights=matrices(least=2))
def test_bounds_are_in_order(log_weights):
  """ELBO <= mean of the bounds without a sample <= IWAE <= first-order jackknife; IWAE <= max."""
  of_value, _ = slack(log_weights, order=1)
  iwae = evaluated("iwae", log_weights)[0]
  without = [
    evaluated("iwae", np.delete(log_weights, i, axis=0))[0] for i in range(len(log_weights))
  ]
  without = np.mean(without, axis=0)
  assert (evaluated("elbo", log_weights)[0] <= without + of_value).all()
  assert (without <= iwae + of_value).all()
  assert (iwae <= evaluated("jvi", log_weights)[0] + of_value).all()
  assert (iwae <= log_weights.max(axis=0) + of_value).all()
  assert (iwae >= log_weights.max(axis=0) - math.log(len(log_weights)) - of_value).all()


@few_examples
@hypothesis.given(log_weights=matrices())
def test_each_sample_twice_is_the_same_bound(log_weights):
  twice = np.concatenate([log_weights, log_weights])
  of_value, of_weights = slack(twice)
  for name in ("elbo", "iwae"):
    value, a, b, _ = evaluated(name, log_weights)
    value_of_twice, a_of_twice, b_of_twice, _ = evaluated(name, twice)
    assert_close(value_of_twice, value, of_value)
    for one, other in ((a_of_twice, a), (b_of_twice, b)):
      assert_close(one, np.concatenate([other, other]) / 2, of_weights)


@every_variant
@few_examples
@hypothesis.given(data=st.data(), bad=st.sampled_from([math.nan, INF]))
def test_nan_and_infinity_are_not_hidden(name, options, data, bad):
  """The value of that example is NaN or +inf, what stops a run; the others are untouched."""
  log_weights = data.draw(matrices(options.get("order", 0)))
  place = tuple(data.draw(st.integers(0, n - 1)) for n in log_weights.shape)
  good = evaluated(name, log_weights, **options)
  log_weights[place] = bad
  poisoned = evaluated(name, log_weights, **options)
  value = poisoned[0][place[1:]]
  assert np.isnan(value) or value == INF
  if log_weights.ndim == 2:
    others = np.arange(log_weights.shape[1]) != place[1]
    for one, other in zip(poisoned, good, strict=True):
      np.testing.assert_array_equal(one[..., others], other[..., others])
