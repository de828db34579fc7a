"""Importance-weight arithmetic against 50-digit sums, on ordinary and on degenerate weights."""

import math

import mpmath
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import importance_weights

INF = math.inf
NUM_SAMPLES = 5
# Log-weights of one example each. No two axes of any test have the same size.
CASES = {
  "random": [0.3, -1.2, 2.1, 0.7, -0.4],
  "far_below_zero": [-1e4, -1e4 - 1.5, -1e4 + 0.5, -1e4 - 3.0, -1e4 + 2.0],
  "far_above_zero": [1e4, 1e4 - 1.5, 1e4 + 0.5, 1e4 - 3.0, 1e4 + 2.0],
  "first_dominates": [1e4, 0.5, -0.25, 1.0, 2.0],
  "middle_dominates": [0.5, -0.25, 1e4, 1.0, 2.0],
  "last_dominates": [0.5, -0.25, 1.0, 2.0, 1e4],
  "one_far_below": [0.5, -1e4, 1.0, 2.0, 0.25],
  "all_equal": [1.5] * 5,
  "two_tied": [2.5, 0.5, 2.5, -1.0, 0.25],
  "two_tied_dominate": [0.0, 1e4, -2.0, 1e4, 1.0],
  "some_zero": [-INF, 0.5, -INF, 1.5, 2.0],
  "zero_and_dominated": [-INF, 0.5, 1e4, 1.5, -INF],
  "one_left": [-INF, -INF, -INF, 0.75, -INF],
  "all_zero": [-INF] * 5,
}
DTYPES = {"float32": (tf.float32, 2e-6), "float64": (tf.float64, 1e-13)}


def exact(log_weights):
  """Every quantity of one example, a list of K log-weights, in 50 digits."""
  with mpmath.workdps(50):
    weights = [
      mpmath.mpf(0) if lw == -INF else mpmath.exp(mpmath.mpf(float(lw))) for lw in log_weights
    ]
    total = mpmath.fsum(weights)

    def log(x):
      return float(mpmath.log(x)) if x > 0 else -INF

    normalized = [w / total if total > 0 else mpmath.mpf(0) for w in weights]
    squares = mpmath.fsum(w**2 for w in normalized)
    return {
      "log_sum": log(total),
      "log_mean": log(total / len(weights)),
      "log_normalize": [log(w) for w in normalized],
      "normalize": [float(w) for w in normalized],
      "effective_sample_size": float(1 / squares) if total > 0 else 0.0,
      "leave_one_out_log_sum": [
        log(mpmath.fsum(w for j, w in enumerate(weights) if j != i)) for i in range(len(weights))
      ],
    }


FUNCTIONS = tuple(exact([0.0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_example(function, case, dtype):
  dtype, tolerance = DTYPES[dtype]
  log_weights = np.array(CASES[case], dtype.as_numpy_dtype)
  actual = getattr(importance_weights, function)(tf.constant(log_weights))
  assert actual.dtype == dtype
  np.testing.assert_allclose(
    actual, exact(log_weights)[function], rtol=tolerance, atol=1e-30, err_msg=case
  )


@pytest.mark.parametrize("trailing", [[len(CASES)], [2, len(CASES) // 2]], ids=["KB", "KBC"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_examples_are_independent_columns(function, trailing):
  columns = np.array(list(CASES.values())).T
  actual = getattr(importance_weights, function)(
    tf.constant(columns.reshape([NUM_SAMPLES, *trailing]))
  ).numpy()
  expected = np.stack([exact(column)[function] for column in columns.T], axis=-1)
  assert actual.shape[-len(trailing) :] == tuple(trailing)
  np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=1e-13, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
  "gap", [0.0, 1e-7, 1e-3, 0.5, 5.0, 15.0, 17.0, 30.0, 36.5, 40.0, 700.0, 9e3]
)
def test_leave_one_out_keeps_its_digits_when_one_weight_dominates(gap, dtype):
  """log(sum - w_i) would lose all its digits from a gap of 16 nats (float32) or 36 (float64) on."""
  dtype, tolerance = DTYPES[dtype]
  log_weights = np.array([-0.5, -1.0, gap, 0.0, -2.0], dtype.as_numpy_dtype)
  actual = importance_weights.leave_one_out_log_sum(tf.constant(log_weights))
  expected = exact(log_weights)["leave_one_out_log_sum"]
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_leave_one_out_of_two_is_the_other_one():
  log_weights = tf.constant([[3.0, 1.0, -INF, 1e4], [1.5, 1.0, 2.0, -1e4]], tf.float64)
  actual = importance_weights.leave_one_out_log_sum(log_weights)
  np.testing.assert_allclose(actual, log_weights[::-1], rtol=1e-15)


def test_leave_one_out_of_one_is_an_empty_sum():
  actual = importance_weights.leave_one_out_log_sum(tf.constant([[1.0, 2.0, 3.0]]))
  np.testing.assert_array_equal(actual, np.full([1, 3], -INF))


def test_leave_one_out_takes_linear_memory():
  """No tensor of the traced graph has more than the 1000 * 3 elements of the log-weights."""
  function = tf.function(importance_weights.leave_one_out_log_sum, autograph=False)
  graph = function.get_concrete_function(tf.TensorSpec([1000, 3])).graph
  sizes = [out.shape.num_elements() for op in graph.get_operations() for out in op.outputs]
  assert None not in sizes
  assert max(sizes) == 3000


@pytest.mark.parametrize("position", [0, 2, 4])
@pytest.mark.parametrize("bad", [math.nan, INF], ids=["nan", "inf"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_and_infinity_are_not_hidden(function, bad, position):
  log_weights = np.stack([CASES["random"], CASES["some_zero"]], axis=1)
  log_weights[position, 0] = bad
  actual = getattr(importance_weights, function)(tf.constant(log_weights)).numpy()
  # The right answer is +inf or undefined, but it is not a number; the other example is untouched.
  assert np.isnan(actual[..., 0]).any() or (actual[..., 0] == INF).any()
  np.testing.assert_allclose(
    actual[..., 1], exact(CASES["some_zero"])[function], rtol=1e-13, atol=1e-30
  )


def test_leave_one_out_shows_an_infinite_weight_to_every_other_sample():
  actual = importance_weights.leave_one_out_log_sum(tf.constant([0.5, INF, 1.0], tf.float64))
  np.testing.assert_allclose(actual, [INF, np.logaddexp(0.5, 1.0), INF], rtol=1e-15)
