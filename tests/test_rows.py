"""Tests of the rows beyond the paper: coefficients, one pass, limits, from_function."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds, side_by_side
from tests import oracles, rows
from tests.problems import shared_problem

every_row = pytest.mark.parametrize("name,options", rows.ROWS, ids=rows.IDS)


def log_weights(num_samples, batch_size, seed=0, scale=2.0):
  return scale * np.random.default_rng(seed).normal(size=(num_samples, batch_size))


@every_row
@pytest.mark.parametrize("num_samples", [4, 12])
def test_value_and_coefficients_are_the_literal_ones(name, options, num_samples):
  l = log_weights(num_samples, 3)
  bound = bounds.get(name, **options)
  value, coefficients = bound.value_and_coefficients(tf.constant(l))
  np.testing.assert_allclose(value, rows.value(name, l, options), rtol=1e-12)
  for actual, expected in zip(coefficients, rows.coefficients(name, l, options), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-13)


@every_row
def test_one_weight_that_holds_all_the_mass(name, options):
  """In float32, against mpmath-free limits: the literal formulas in float64 with an offset."""
  l = np.array([[0.0, 100.0], [-200.0, 3.0], [-200.5, 2.0], [-201.0, 1.0]])
  value, coefficients = bounds.get(name, **options).value_and_coefficients(
    tf.constant(l, tf.float32)
  )
  np.testing.assert_allclose(value, rows.value(name, l, options), rtol=2e-6)
  for actual, expected in zip(coefficients, rows.coefficients(name, l, options), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@every_row
@pytest.mark.parametrize(
  "column",
  [[-math.inf] * 4, [0.0, -math.inf, 1.0, 2.0], [-math.inf, 3.0, -math.inf, -math.inf]],
  ids=["all", "one", "but one"],
)
def test_samples_of_weight_zero(name, options, column):
  l = tf.constant(np.array(column)[:, np.newaxis])
  value, coefficients = bounds.get(name, **options).value_and_coefficients(l)
  assert not np.isnan(value)
  assert all(np.isfinite(part).all() for part in coefficients)
  is_zero = np.isneginf(l)
  assert np.all(np.where(is_zero, coefficients.model, 0) == 0)
  assert np.all(np.where(is_zero, coefficients.path, 0) == 0)
  if is_zero.all():
    assert value == -math.inf
    assert np.all(coefficients.score == 0)


@functools.cache
def of_every_row(compiled):
  """Every row's value and coefficients; one XLA program computes all, as compiling takes long."""

  def compute(l):
    return [bounds.get(name, **options).value_and_coefficients(l) for name, options in rows.ROWS]

  if compiled:  # and converted by AutoGraph, as in a user's function
    compute = tf.function(compute, jit_compile=True)
  return compute(tf.constant(log_weights(6, 5), tf.float32))


@pytest.mark.parametrize("row", range(len(rows.ROWS)), ids=rows.IDS)
def test_rows_when_compiled(row):
  compiled, eager = (tf.nest.flatten(of_every_row(xla)[row]) for xla in (True, False))
  for actual, e in zip(compiled, eager, strict=True):
    np.testing.assert_allclose(actual, e, rtol=1e-5, atol=1e-6)


@every_row
def test_one_pass_gives_the_surrogates_gradient(name, options):
  """p and q share parameters."""
  problem = shared_problem([2])
  with tf.GradientTape(persistent=True) as tape:
    estimate = bounds.estimate(
      bounds.get(name, **options),
      functools.partial(problem.target, problem.parameters),
      problem.proposal(problem.parameters),
      6,
      seed=7,
    )
    z = estimate.samples
    l = problem.live(z).numpy()
    a, b, c = (tf.constant(part) for part in rows.coefficients(name, l, options))
    literal = tf.reduce_sum(
      a * problem.tilde_p(z) + b * problem.hat(z) + c * problem.tilde_q(z), axis=0
    )
  np.testing.assert_allclose(estimate.objective, rows.value(name, l, options), rtol=1e-10)
  actual = oracles.gradients(tape, estimate.objective, problem.parameters)
  expected = oracles.gradients(tape, literal, problem.parameters)
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_side_by_side_gives_what_estimate_gives():
  """All rows from one evaluation, at the same samples; the first one's model gradient as well."""
  problem = shared_problem([2])
  target = functools.partial(problem.target, problem.parameters)
  seed = tf.constant([3, 4])
  for first in (0, 5):
    asked = [bounds.get(name, **options) for name, options in rows.ROWS[first:] + rows.ROWS[:first]]
    result = side_by_side.differentiate(
      asked,
      target,
      functools.partial(problem.proposal, problem.parameters),
      problem.parameters,
      6,
      seed,
    )
    for i, bound in enumerate(asked):
      with tf.GradientTape() as tape:
        estimate = bounds.estimate(bound, target, problem.proposal(problem.parameters), 6, seed)
        objective = tf.reduce_sum(estimate.objective)
      np.testing.assert_allclose(result.values[i], estimate.objective, rtol=1e-12)
      expected = tape.gradient(objective, problem.parameters)
      if i == 0:
        for actual, e in zip(result.total(), expected, strict=True):
          np.testing.assert_allclose(actual, e, rtol=1e-9, atol=1e-10)
      # All have the model's gradient of a, and wbar is that of most rows.
      a = bound.coefficients(estimate.log_weights).model
      with tf.GradientTape() as tape:
        of_model = tf.reduce_sum(a * problem.tilde_p(estimate.samples))
      of_model = tape.gradient(of_model, problem.parameters, unconnected_gradients="zero")
      for actual, m, e in zip(result.proposal[i], of_model, expected, strict=True):
        actual = 0 if actual is None else actual
        np.testing.assert_allclose(actual + m, e, rtol=1e-9, atol=1e-10)


# --- limits -------------------------------------------------------------------------------------


def assert_equal_rows(one, other, num_samples=6):
  l = tf.constant(log_weights(num_samples, 3))
  pairs = zip(
    tf.nest.flatten(one.value_and_coefficients(l)),
    tf.nest.flatten(other.value_and_coefficients(l)),
    strict=True,
  )
  for actual, expected in pairs:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
  "one,other",
  [
    (("vr_iwae", {"alpha": 0.0}), "iwae"),
    (("vr_iwae_dreg", {"alpha": 0.0}), "iwae_dreg"),
    (("vr_iwae", {"alpha": 1.0}), "elbo"),
    (("vr_iwae_dreg", {"alpha": 1.0}), "elbo_stl"),
    (("ciwae", {"beta": 0.0}), "iwae"),
    (("ciwae_dreg", {"beta": 1.0}), "elbo_stl"),
    (("miwae", {"groups": 1}), "iwae"),
    (("miwae_dreg", {"groups": 6}), "elbo_stl"),
    (("piwae_dreg", {"groups": 1}), "iwae_dreg"),
    (("tvo", {"betas": (0.0, 1.0)}), "elbo"),
    (("ovis", {"gamma": 0.0}), "vimco_star"),
    (("iwae_cv", {"a": 0.0, "b": 1.0}), "iwae_dreg"),
    (("iwae_cv", {"a": 0.0, "b": 0.0, "d": 1.0}), "iwae"),
  ],
  ids=str,
)
def test_limits_of_the_options(one, other):
  name, options = one
  assert_equal_rows(bounds.get(name, **options), bounds.get(other))


def test_iwae_cv_with_the_score_alone_is_vimco_up_to_a_constant():
  l = tf.constant(log_weights(6, 3))
  cv = bounds.get("iwae_cv", a=1.0, b=0.0, g=0.0).coefficients(l)
  vimco = bounds.get("vimco").coefficients(l)
  np.testing.assert_allclose(cv.path, 0, atol=1e-15)
  difference = (cv.score - vimco.score).numpy()
  np.testing.assert_allclose(difference, difference[0, 0], rtol=1e-10)


def test_groups_are_samples_that_follow_each_other():
  """3 groups of 5: not 5 groups of 3, nor every third sample."""
  l = log_weights(15, 2)
  expected = [oracles.log_mean_exp(l[start : start + 5]) for start in (0, 5, 10)]
  value = bounds.get("miwae", groups=3).value(tf.constant(l))
  np.testing.assert_allclose(value, np.mean(expected, axis=0), rtol=1e-12)


@pytest.mark.parametrize("name", ["vr_iwae_dreg", "dreg_alpha", "ciwae_dreg", "ovis"])
def test_an_option_may_move(name):
  option = {"ciwae_dreg": "beta", "ovis": "gamma"}.get(name, "alpha")
  variable = tf.Variable(0.2)
  bound = bounds.get(name, **{option: variable})
  for value in (0.2, 0.7):
    variable.assign(value)
    assert_equal_rows_loosely(bound, bounds.get(name, **{option: value}))


def assert_equal_rows_loosely(one, other):
  l = tf.constant(log_weights(5, 2))
  for actual, expected in zip(one.coefficients(l), other.coefficients(l), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
  "name,options,given",
  [
    ("vr_iwae", {"alpha": 1.5}, "1.5"),
    ("ciwae", {"beta": -0.1}, "-0.1"),
    ("miwae", {"groups": 0}, "0"),
    ("miwae", {"groups": 2.0}, "2.0"),
    ("tvo", {"betas": (0, 0.5)}, r"\(0, 0.5\)"),
    ("tvo", {"betas": (0, 0.7, 0.3, 1)}, "0.7"),
    ("tvo", {"betas": 0.5}, "0.5"),
    ("ovis", {"gamma": "x"}, "'x'"),
    ("iwae_cv", {"a": "x"}, "'x'"),
  ],
)
def test_options_out_of_range_are_refused(name, options, given):
  (option,) = options
  with pytest.raises(ValueError, match=rf"{option} must be .*, got .*{given}"):
    bounds.get(name, **options)


def test_numbers_of_samples_that_do_not_fit_are_refused():
  problem = shared_problem([2])
  target = functools.partial(problem.target, problem.parameters)
  proposal = problem.proposal(problem.parameters)
  with pytest.raises(ValueError, match="num_samples must be a multiple of groups=4.*got 6"):
    bounds.estimate(bounds.get("miwae_dreg", groups=4), target, proposal, 6)
  for name in ("vimco", "vimco_star", "ovis", "elbo_loo", "iwae_cv"):
    with pytest.raises(ValueError, match=f"num_samples must be at least 2 for {name}, got 1"):
      bounds.estimate(name, target, proposal, 1)


# --- a stranger's bound -------------------------------------------------------------------------


@pytest.mark.parametrize("function", rows.FUNCTIONS)
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_from_function_equals_finite_differences(function, mode):
  l = log_weights(4, 3, scale=1.0)
  terms = bounds.from_function(function, "mine").objective
  if mode != "eager":
    terms = tf.function(terms, jit_compile=mode == "xla", autograph=False)
  actual = terms(tf.constant(l))
  step = 1e-4

  def shifted(i, by):
    moved = l.copy()
    moved[i] += by
    return function(tf.constant(moved)).numpy()

  value = function(tf.constant(l)).numpy()
  u = np.stack([(shifted(i, step) - shifted(i, -step)) / (2 * step) for i in range(4)])
  second = [(shifted(i, step) - 2 * value + shifted(i, -step)) / step**2 for i in range(4)]
  np.testing.assert_allclose(actual.value, value, rtol=1e-12)
  np.testing.assert_allclose(actual.u, u, atol=1e-7)
  np.testing.assert_allclose(actual.difference, np.stack(second), atol=2e-6)
  np.testing.assert_allclose(actual.v, u - np.stack(second), atol=2e-6)


@every_row
def test_from_function_equals_the_closed_forms(name, options):
  l = tf.constant(log_weights(6, 3))
  bound = bounds.get(name, **options)
  of_function = bounds.from_function(lambda x: bound.objective(x).value, "mine").objective(l)
  for actual, expected in zip(of_function, bound.objective(l), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_from_function_keeps_its_digits_in_float32():
  l = np.array([[0.0], [-9.0], [-200.0]])
  bound = bounds.from_function(lambda l: tf.reduce_logsumexp(l, 0), "mine")
  difference = bound.objective(tf.constant(l, tf.float32)).difference
  w = oracles.softmax(l)
  np.testing.assert_allclose(difference, w * (1 - w), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("gradient", ["total", "dreg", "stl"])
def test_from_function_of_l_k_is_the_row(gradient):
  name = {"total": "iwae", "dreg": "iwae_dreg", "stl": "stl"}[gradient]

  def l_k(l):
    return tf.reduce_logsumexp(l, 0) - math.log(l.shape[0])

  bound = bounds.from_function(l_k, "mine", gradient)
  assert_equal_rows(bound, bounds.get(name))
  assert bound.is_unbiased(5) == bounds.get(name).is_unbiased(5)
  assert_equal_rows(bound.total, bounds.get("iwae"))


@pytest.mark.parametrize(
  "arguments,named",
  [
    ((3, "mine"), "value_fn.*got 3"),
    ((rows.linear, "iwae"), "name.*got 'iwae'"),
    ((rows.linear, ""), "name.*got ''"),
    ((rows.linear, "mine", "score"), "gradient.*got 'score'"),
  ],
)
def test_from_function_refuses(arguments, named):
  with pytest.raises((TypeError, ValueError), match=named):
    bounds.from_function(*arguments)


@pytest.mark.parametrize(
  "function", [lambda l: l, lambda l: tf.reduce_sum(l), lambda l: tf.zeros_like(l[0])]
)
def test_from_function_names_a_wrong_result(function):
  with pytest.raises(ValueError, match=r"value_fn.*\[batch_size\] = \(3,\), got \("):
    bounds.from_function(function, "mine").value(tf.constant(log_weights(4, 3)))


@pytest.mark.parametrize("compiled", [False, True])
def test_from_function_says_what_a_function_that_fails_was_given(compiled):
  def of_float32(log_weights):
    return tf.reduce_logsumexp(log_weights, 0) - tf.math.log(4.0)

  value = bounds.from_function(of_float32, "mine").value
  value = tf.function(value, autograph=False) if compiled else value
  with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)) as raised:
    value(tf.zeros([4, 3]))
  assert "log-weights of float64, shape (4, 3)" in "".join(raised.value.__notes__)
