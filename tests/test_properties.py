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
from tests.exact import (
  EXACT,
  INF,
  KINDS,
  Exact,
  assert_close,
  check,
  generated,
  known,
  largest_finite,
)

_WITH_OPTIONS = {"dreg_alpha", "jvi", "jvi_dreg"}
VARIANTS = [(name, {}) for name in bounds.names() if name not in _WITH_OPTIONS | problems.BEYOND]
VARIANTS += [("dreg_alpha", {"alpha": alpha}) for alpha in (0.0, 0.3, 0.9, 1.0)]
VARIANTS += [(name, {"order": order}) for name in ("jvi", "jvi_dreg") for order in (1, 2)]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]
every_variant = pytest.mark.parametrize("name,options", VARIANTS, ids=IDS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])

NUM_EXAMPLES = 10_000
SIZES = {0: (1, 2, 5, 16, 40), 1: (2, 3, 5, 16, 40), 2: (3, 4, 5, 8, 13)}  # by order: the K


# --- 10,000 examples for every bound ------------------------------------------------------------


@every_variant
@every_dtype
def test_ten_thousand_examples(name, options, dtype):
  order = options.get("order", 0)
  sizes = SIZES[order]
  for num_samples in sizes:
    log_weights, exact = known(num_samples, NUM_EXAMPLES // len(sizes), dtype, order)
    check(name, options, log_weights, exact=exact)


@functools.cache
def under_xla(dtype):
  """Log-weights for every variant, and its results, of one program: compiling takes long."""
  place = 2 if dtype == "float32" else 3
  orders = [options.get("order", 0) for _, options in VARIANTS]
  # Subsets of the second order are written out one by one.
  sizes = [SIZES[order][min(place, 4 - order)] for order in orders]
  cases = [known(k, 900, dtype, order, seed=1) for k, order in zip(sizes, orders, strict=True)]

  @tf.function(jit_compile=True, autograph=False)
  def compute(inputs):
    return [
      bounds.get(name, **options).value_and_coefficients(l)
      for (name, options), l in zip(VARIANTS, inputs, strict=True)
    ]

  return list(zip(cases, compute([tf.constant(l) for l, _ in cases]), strict=True))


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=IDS)
@every_dtype
def test_under_xla(variant, dtype):
  (log_weights, exact), results = under_xla(dtype)[variant]
  check(*VARIANTS[variant], log_weights, lambda _: results, exact)


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
  most = {0: 12, 1: 12, 2: 7}[order]  # drawing takes long; the 10,000 examples have 40
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
  max_examples=15,
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
