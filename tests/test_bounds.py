"""The bounds' values and coefficients against the paper's equations, by hand; `get`."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from tests import oracles
from tests.problems import (
  PAPER,
  VARIANTS,
  all_operations,
  every_bound,
  every_variant,
  random_log_weights,
  standard,
)

INF = math.inf


# --- values and coefficients --------------------------------------------------------------------


@every_variant
def test_value_and_coefficients_are_the_tables(name, options):
  log_weights = random_log_weights(5, 3)
  bound = bounds.get(name, **options)
  value, coefficients = bound.value_and_coefficients(tf.constant(log_weights))
  for actual, expected in zip(
    (value, *coefficients), oracles.table(name, log_weights, options), strict=True
  ):
    assert actual.dtype == tf.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)
  np.testing.assert_array_equal(bound.value(tf.constant(log_weights)), value)
  for one, other in zip(bound.coefficients(tf.constant(log_weights)), coefficients, strict=True):
    np.testing.assert_array_equal(one, other)


@every_variant
def test_float32_values_and_coefficients(name, options):
  log_weights = random_log_weights(5, 3)
  value, coefficients = bounds.get(name, **options).value_and_coefficients(
    tf.constant(log_weights, tf.float32)
  )
  for actual, expected in zip(
    (value, *coefficients), oracles.table(name, log_weights, options), strict=True
  ):
    assert actual.dtype == tf.float32
    np.testing.assert_allclose(
      actual, expected, rtol=1e-5, atol=2e-4 if "order" in options else 1e-5
    )


@pytest.mark.parametrize("name", ["jvi", "jvi_dreg"])
@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("extra", [1, 2, 4])
def test_jackknife_by_listing_the_subsets(name, order, extra):
  """K = order + 1 is the smallest that there is: the last term averages single samples."""
  log_weights = random_log_weights(order + extra, 3, seed=order)
  value, (a, b, c) = bounds.get(name, order=order).value_and_coefficients(tf.constant(log_weights))
  expected, u, v = oracles.jackknife(log_weights, order)
  np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
  np.testing.assert_allclose(a, u, rtol=1e-10, atol=1e-10)
  np.testing.assert_allclose(b, u if name == "jvi" else v, rtol=1e-10, atol=1e-10)
  np.testing.assert_allclose(c, -u if name == "jvi" else 0 * u, rtol=1e-10, atol=1e-10)


DEGENERATE = {
  "one_dominates": [1e4, 0.5, -0.25, 1.0, 2.0],
  "two_dominate": [1e4, 0.5, 1e4, 1.0, 2.0],
  "all_equal": [2.0] * 5,
  "tied": [2.0, -1.0, 2.0, 0.5, 0.25],
  "some_zero": [-INF, 0.5, -INF, 1.0, 2.0],
  "far_below_zero": [-1e4, -1e4 + 1, -1e4 - 1.5, -1e4 + 2, -1e4],
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", DEGENERATE)
def test_jackknife_of_degenerate_weights(case, order):
  log_weights = np.array(DEGENERATE[case])[:, None] + np.zeros([1, 2])
  value, (u, v, _) = bounds.get("jvi_dreg", order=order).value_and_coefficients(
    tf.constant(log_weights)
  )
  for actual, expected in zip((value, u, v), oracles.jackknife(log_weights, order), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@every_variant
@pytest.mark.parametrize("case", ["one_dominates", "two_dominate", "far_below_zero"])
def test_coefficients_of_degenerate_weights(name, options, case):
  """Finite, and the table's, in whatever regime; 0/0 is 0 where the released code divides."""
  log_weights = np.array(DEGENERATE[case])[:, None]
  _, coefficients = bounds.get(name, **options).value_and_coefficients(tf.constant(log_weights))
  with np.errstate(invalid="ignore"):
    _, *expected = oracles.table(name, log_weights, options)
  for actual, e in zip(coefficients, expected, strict=True):
    np.testing.assert_allclose(actual, np.nan_to_num(e, nan=0.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [-1e4, -90.0, 0.0, 1e4])
def test_weights_of_the_model_sum_to_one(offset, dtype):
  """a sums to 1 for every bound of K samples: an offset of the log-weights must not change it.

  The log-weights are quarters, exact in float32 at every offset, so nothing but the function
  itself can lose digits.
  """
  log_weights = np.round(random_log_weights(5, 3) * 4) / 4 + offset
  tolerance = 2e-6 if dtype == "float32" else 1e-13
  for name, options in VARIANTS:
    if options.get("order", 1) == 1:
      a = bounds.get(name, **options).coefficients(tf.constant(log_weights, dtype)).model
      scale = 10.0 if "order" in options else 1.0
      np.testing.assert_allclose(
        tf.reduce_sum(a, axis=0), np.ones(3), atol=scale * tolerance, err_msg=name
      )


@pytest.mark.parametrize("dtype,gap", [("float32", 20.0), ("float64", 45.0)])
def test_normalized_rws_path_when_one_weight_dominates(dtype, gap):
  """(wbar - wbar^2) / sum is 1/2 for a weight that dominates: 1 - wbar must not cancel.

  With w_1 = 1 and the others small, wbar_1 - wbar_1^2 = sum of the others = their own sum.
  """
  log_weights = tf.constant([[gap], [0.0], [0.0], [0.0], [0.0]], dtype)
  b = bounds.get("rws_dreg_norm").coefficients(log_weights).path
  np.testing.assert_allclose(b[:, 0], [0.5, 0.125, 0.125, 0.125, 0.125], rtol=1e-4)


def test_identities_between_the_estimators():
  log_weights = tf.constant(random_log_weights(5, 3, seed=4))
  row = {name: bounds.get(name).value_and_coefficients(log_weights) for name in PAPER}
  path = {name: coefficients.path.numpy() for name, (_, coefficients) in row.items()}

  def alpha_path(alpha):
    return bounds.get("dreg_alpha", alpha=alpha).coefficients(log_weights).path

  exact = functools.partial(np.testing.assert_allclose, rtol=1e-14, atol=1e-15)
  exact(path["stl"], path["iwae_dreg"] + path["rws_dreg"])
  exact(alpha_path(0.0), path["iwae_dreg"])
  exact(alpha_path(1.0), path["rws_dreg"])
  exact(alpha_path(0.5), path["stl"] / 2)
  exact(alpha_path(0.9), path["dreg_alpha"])
  for name in ("iwae_dreg", "rws", "rws_dreg", "stl", "dreg_alpha"):
    value, coefficients = row[name]
    np.testing.assert_array_equal(value, row["iwae"][0])
    np.testing.assert_array_equal(coefficients.model, row["iwae"][1].model)
  for name in ("iwae_dreg_norm", "rws_dreg_norm"):
    exact(path[name].sum(axis=0), np.ones(3))
  # Order 0 of the jackknife is the bound itself.
  exact(bounds.get("jvi_dreg", order=0).coefficients(log_weights).path, path["iwae_dreg"])


def test_one_sample():
  log_weights = tf.constant(random_log_weights(1, 3))
  ones, zeros = np.ones([1, 3]), np.zeros([1, 3])
  expected = {"elbo": (1, 1, -1), "iwae": (1, 1, -1), "rws": (1, 0, 1), "rws_dreg": (1, 0, 0)}
  expected |= dict.fromkeys(("elbo_stl", "iwae_dreg", "stl", "iwae_dreg_norm"), (1, 1, 0))
  expected["rws_dreg_norm"] = (1, 0, 0)
  for name, row in expected.items():
    value, coefficients = bounds.get(name).value_and_coefficients(log_weights)
    np.testing.assert_allclose(value, log_weights[0], rtol=1e-15)
    for actual, e in zip(coefficients, row, strict=True):
      np.testing.assert_allclose(actual, e * ones + zeros, rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("name", ["jvi", "jvi_dreg"])
def test_first_order_jackknife_takes_linear_memory(name):
  """No Tensor of the traced graph has more than 4 K B elements; K^2 B would be 1000 times K B."""
  bound = bounds.get(name)
  function = tf.function(bound.value_and_coefficients, autograph=False)
  graph = function.get_concrete_function(tf.TensorSpec([1000, 3])).graph
  sizes = [out.shape.num_elements() for op in all_operations(graph) for out in op.outputs]
  assert None not in sizes
  assert 3000 <= max(sizes) <= 4 * 3000


def test_alpha_may_be_a_variable():
  log_weights = random_log_weights(5, 3)
  alpha = tf.Variable(0.25)
  bound = bounds.get("dreg_alpha", alpha=alpha)
  for new in (0.25, 0.75):
    alpha.assign(new)
    expected = oracles.table("dreg_alpha", log_weights, {"alpha": new})[2]
    b = bound.coefficients(tf.constant(log_weights)).path
    np.testing.assert_allclose(b, expected, rtol=1e-14)


def test_values_and_coefficients_are_stopped():
  log_weights = tf.constant(random_log_weights(6, 3))
  for bound in every_bound():
    with tf.GradientTape() as tape:
      tape.watch(log_weights)
      value, coefficients = bound.value_and_coefficients(log_weights)
      total = tf.reduce_sum(value) + sum(tf.reduce_sum(part) for part in coefficients)
    assert tape.gradient(total, log_weights) is None, bound


# --- get ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "name,options,message",
  [
    ("svi", {}, "bound must be one of elbo, .*jvi_dreg.*'svi'"),
    ("iwae", {"alpha": 0.5}, "iwae takes no options, got alpha"),
    ("jvi", {"alpha": 0.5}, "jvi takes only order, got alpha"),
    ("dreg_alpha", {"order": 1}, "dreg_alpha takes only alpha, got order"),
    ("dreg_alpha", {"alpha": math.nan}, r"alpha must be in \[0, 1\], got nan"),
    ("dreg_alpha", {"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0.1"),
    ("dreg_alpha", {"alpha": 1.1}, r"alpha must be in \[0, 1\], got 1.1"),
    ("dreg_alpha", {"alpha": "0.5"}, "alpha must be .*got '0.5'"),
    ("dreg_alpha", {"alpha": None}, "alpha must be .*got None"),
    ("jvi", {"order": -1}, "order must be an int of 0 or more, got -1"),
    ("jvi", {"order": 1.5}, "order must be an int of 0 or more, got 1.5"),
    ("jvi_dreg", {"order": True}, "order must be an int of 0 or more, got True"),
    ("jvi_dreg", {"order": None}, "order must be an int of 0 or more, got None"),
  ],
)
def test_get_refuses(name, options, message):
  with pytest.raises(ValueError, match=message):
    bounds.get(name, **options)


@pytest.mark.parametrize("betas", [[0, 0.25, 1], np.array([0.0, 0.25, 1.0])])
def test_a_ladder_may_be_any_sequence(betas):
  bound = bounds.get("tvo_dreg", betas=betas)
  assert bound == bounds.get("tvo_dreg", betas=(0, 0.25, 1))
  assert hash(bound.total) == hash(bounds.get("tvo", betas=(0, 0.25, 1)))


@pytest.mark.parametrize("name", ["vimco", "vimco_star", "ovis", "elbo_loo", "iwae_cv"])
def test_coefficients_of_an_unknown_number_of_samples(name):
  log_weights = tf.constant([[0.3, -1.0], [0.1, 2.0], [-0.4, 0.0]])

  @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, 2])])
  def coefficients(log_weights):
    return bounds.get(name).coefficients(log_weights)

  expected = bounds.get(name).coefficients(log_weights)
  for actual, of_static in zip(coefficients(log_weights), expected, strict=True):
    np.testing.assert_allclose(actual, of_static, rtol=1e-6)


def test_names_and_defaults():
  assert set(PAPER) == {
    *("elbo", "elbo_stl", "iwae", "iwae_dreg", "rws", "rws_dreg", "stl", "dreg_alpha"),
    *("jvi", "jvi_dreg", "iwae_dreg_norm", "rws_dreg_norm"),
  }
  assert bounds.get("jvi") == bounds.get("jvi", order=1)
  assert bounds.get("jvi") != bounds.get("jvi", order=2)
  assert bounds.get("dreg_alpha") == bounds.get("dreg_alpha", alpha=0.9)
  assert all(bounds.get(name).source for name in bounds.names())


@pytest.mark.parametrize("bound", [*every_bound(), bounds.get("jvi_dreg", order=2)], ids=str)
def test_the_unbiased_estimator_of_the_same_value(bound):
  log_weights = tf.constant(np.random.default_rng(0).normal(size=[6, 3]))
  np.testing.assert_allclose(bound.total.value(log_weights), bound.value(log_weights))
  assert bound.total.total is bound.total
  # d value / d log w_i, which the total derivative is made of: a = b = -c.
  a, b, c = bound.total.coefficients(log_weights)
  np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(a, -c)


def test_which_estimators_are_unbiased():
  """At K = 1 all that have the path, as every weight is 1 then."""
  every = [bounds.get(name) for name in PAPER]
  every += [bounds.get("dreg_alpha", alpha=0.0), bounds.get("jvi_dreg", order=2)]

  def unbiased(num_samples):
    defined = [bound for bound in every if bound.min_samples <= num_samples]
    return [bound.name for bound in defined if bound.is_unbiased(num_samples)]

  dreg = ["iwae", "iwae_dreg", "jvi", "jvi_dreg", "dreg_alpha", "jvi_dreg"]
  assert unbiased(5) == ["elbo", "elbo_stl", *dreg]
  single = ["elbo", "elbo_stl", "iwae", "iwae_dreg", "stl", "iwae_dreg_norm", "dreg_alpha"]
  assert unbiased(1) == single


@pytest.mark.parametrize("order,num_samples", [(1, 1), (2, 2), (3, 1)])
def test_jackknife_needs_more_samples_than_its_order(order, num_samples):
  bound = bounds.get("jvi", order=order)
  assert bound.min_samples == order + 1
  with pytest.raises(ValueError, match=f"at least {order + 1} for jvi, got {num_samples}"):
    bound.value(tf.zeros([num_samples, 3]))
  with pytest.raises(ValueError, match=f"num_samples must be at least {order + 1} for jvi"):
    bounds.estimate(bound, *standard(), num_samples=num_samples)


@pytest.mark.parametrize("name", bounds.names())
def test_no_samples_at_all_is_refused(name):
  with pytest.raises(ValueError, match="axis 0 of log_weights must be at least"):
    bounds.get(name).value(tf.zeros([0, 3]))
