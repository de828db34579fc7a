"""Tests of the figures that say how far to trust a bound, whole and streamed."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, evaluation
from dregs_tf import importance_weights as iw
from tests import pareto

tfd = tfp.distributions

INF, NAN = math.inf, math.nan

# What arviz.psislw of ArviZ 0.21.0 gives for the first three of `pareto.random_log_weights(seed,
# num_samples)`. All 1,000 vectors of the ten settings agreed with `pareto.k_hat` to 2e-14.
ARVIZ = {
  (21, 0): [0.6525994793319092, 1.5224343809094125, 2.930093717058945],
  (22, 1): [0.9390214088900367, 1.2955923970539045, 0.2648363454524037],
  (37, 2): [0.8970781641983463, 0.466378196482821, 1.833573680277076],
  (100, 3): [1.2646855225539604, 2.1593172658782462, 0.8838060344128891],
  (225, 4): [2.5069243157809646, 2.764955532068824, 4.800155632492433],
  (226, 5): [0.5587711377761456, 3.4854136080537548, 1.5949131573692343],
  (500, 6): [1.929486985443516, 1.475887617355998, 6.1109510761870816],
  (1600, 7): [0.15378909218210907, 4.156791943852541, 7.26032319402362],
  (2003, 8): [1.969362312024367, 4.787781290756476, 6.6109957891428905],
  (5000, 9): [-0.014873099793846342, 2.968092457906396, 3.73320022284316],
}


def merged(parts, num_samples):
  """The summary of log-weights that arrive in parts."""
  first, *others = [iw.summarize(tf.constant(p), iw.tail_size(num_samples)) for p in parts]
  for other in others:
    first = iw.merge(first, other)
  return first


@pytest.mark.parametrize(("num_samples", "seed"), ARVIZ)
def test_pareto_k_is_that_of_arviz(num_samples, seed):
  log_weights = pareto.random_log_weights(seed, num_samples)
  actual = iw.pareto_k(tf.constant(log_weights)).numpy()
  np.testing.assert_allclose(actual[:3], ARVIZ[num_samples, seed], rtol=0, atol=1e-10)
  expected = [pareto.k_hat(column) for column in log_weights.T]
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)
  in_parts = merged(np.array_split(log_weights, 7), num_samples)
  np.testing.assert_array_equal(in_parts.pareto_k, actual)


@pytest.mark.parametrize("axes", [(), (3,), (2, 3)])
def test_examples_are_independent_columns(axes):
  log_weights = 2 * np.random.RandomState(0).normal(size=(50, *axes)).astype(np.float32)
  actual = iw.pareto_k(tf.constant(log_weights))
  assert actual.dtype == tf.float32
  assert actual.shape == axes
  expected = [pareto.k_hat(column) for column in log_weights.reshape([50, -1]).T]
  np.testing.assert_allclose(np.reshape(actual, [-1]), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 0.7, 0.9])
def test_a_narrow_proposal_has_a_known_tail(scale):
  """p = N(0, 1), q = N(0, s^2): the weights' tail has the shape k = 1 - s^2.

  One k-hat of K = 50,000 weights is off by 0.04 to 0.06, the mean of 100 by a tenth of that. The
  tail is a power up to a logarithm only, which lowers k-hat at this K: by 0.06, 0.03 and 0. The
  tolerance is a standard error of one k-hat and false failures are out of reach; 1 - s would be off
  by 0.09 to 0.25.
  """
  z = scale * np.random.RandomState(0).normal(size=(50_000, 100))
  log_weights = -(z**2) / 2 * (1 - scale**-2)
  k_hat = iw.pareto_k(tf.constant(log_weights)).numpy()
  np.testing.assert_allclose(k_hat.mean(), 1 - scale**2, rtol=0, atol=0.07)


def _cases():
  random = np.random.RandomState(0).normal(size=41)
  return {
    "random": random,
    "far_below": random - 1e4,
    "some_zero": np.where(np.arange(41) % 3, random, -INF),
    "dominated": np.where(np.arange(41) == 5, 1e3, random),
    "tied": np.round(random),
    "equal": np.full(41, 1.5),
  }


@pytest.mark.parametrize("case", _cases())
def test_figures_by_their_formulas(case):
  log_weights = _cases()[case]
  weights = np.exp(log_weights - log_weights.max())
  normalized = weights / weights.sum()
  expected = {
    "log_mean": log_weights.max() + np.log(weights.mean()),
    "standard_error": np.sqrt(np.sum((normalized - 1 / 41) ** 2)),
    "effective_sample_size": 1 / np.sum(normalized**2),
    "pareto_k": pareto.k_hat(log_weights),
    "cubo": log_weights.max() + np.log(np.mean(weights**2)) / 2,
  }
  parts = merged(np.split(log_weights, [4, 5, 30]), 41)
  for name, value in expected.items():
    whole = getattr(iw, name)(tf.constant(log_weights)).numpy()
    np.testing.assert_allclose(whole, value, rtol=1e-9, atol=1e-8, err_msg=name)
    np.testing.assert_allclose(getattr(parts, name), value, rtol=1e-9, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(
  ("log_weights", "error", "k_hat", "upper"),
  [
    ([0.5], 0, INF, 0.5),
    ([0.5] * 20, 0, INF, 0.5),  # M is 4
    ([-INF] * 30, INF, INF, -INF),
    ([-INF] * 28 + [0.5, 0.5], math.sqrt(1 / 2 - 1 / 30), INF, 0.5 - math.log(15) / 2),
    ([NAN] + [0.5] * 29, NAN, NAN, NAN),
    ([INF] + [0.5] * 29, NAN, NAN, INF),
  ],
)
def test_degenerate_weights(log_weights, error, k_hat, upper):
  log_weights = tf.constant(log_weights, tf.float64)
  figures = [f(log_weights) for f in (iw.standard_error, iw.pareto_k, iw.cubo)]
  np.testing.assert_allclose(figures, [error, k_hat, upper], rtol=1e-9, atol=1e-8)
  np.testing.assert_array_equal(iw.pareto_k(tf.reverse(log_weights, [0])), iw.pareto_k(log_weights))


def test_pareto_k_needs_to_know_k():
  function = tf.function(iw.pareto_k, input_signature=[tf.TensorSpec([None, 3])])
  with pytest.raises(ValueError, match=r"log_weights .*\(None, 3\)"):
    function.get_concrete_function()


# --- streamed ------------------------------------------------------------------------------------

X = np.array([0.5, -1.0, 2.0])


def log_joint(z):
  return tfd.Normal(np.float64(0), 1.0).log_prob(z) + tfd.Normal(z, 1.0).log_prob(X)


def proposal():
  return tfd.Normal(X / 2 + 0.2, 0.6)


@pytest.mark.parametrize("num_samples", [1, 7, 2003])
def test_streamed_figures_are_those_of_all_weights(num_samples, monkeypatch):
  monkeypatch.setattr(evaluation, "_ROWS_AT_A_TIME", 300)  # 100 samples of 3 examples
  log_weights = []

  def recorded(z):
    log_p = log_joint(z)
    log_weights.append(log_p - proposal().log_prob(z))
    return log_p

  actual = bounds.log_likelihood(recorded, proposal(), num_samples, 0, return_diagnostics=True)
  log_weights = tf.concat(log_weights, axis=0)
  assert log_weights.shape == [num_samples, 3]
  functions = (iw.log_mean, iw.standard_error, iw.effective_sample_size, iw.pareto_k, iw.cubo)
  for name, value, function in zip(actual._fields, actual, functions, strict=True):
    assert value.dtype == tf.float64
    np.testing.assert_allclose(value, function(log_weights), 1e-10, 1e-8, err_msg=name)
  plain = bounds.log_likelihood(log_joint, proposal(), num_samples, 0)
  np.testing.assert_array_equal(actual.value, plain)


def test_memory_does_not_grow_with_k():
  """No Tensor is larger than the 5,000 rows at a time and the 673 largest weights of examples."""
  num_samples = 50_000
  graphs = []

  @tf.function(autograph=False)
  def figures():
    def target(z):
      graphs.append(tf.compat.v1.get_default_graph())
      return log_joint(z)

    return bounds.log_likelihood(target, proposal(), num_samples, 0, return_diagnostics=True)

  value, error, size, k_hat, upper = figures()
  sizes = [
    out.shape.num_elements()
    for graph in {id(graph): graph for graph in graphs}.values()
    for operation in graph.get_operations()
    for out in operation.outputs
  ]
  assert len({id(graph) for graph in graphs}) == 2  # the first few, and the body of the loop
  assert max(size for size in sizes if size is not None) <= 3 * (5000 // 3 + 3 * 673)
  # Weights of about N(0.2, 0.6^2) against N(0, 0.5): k = 1 - 0.72, and finite variance.
  exact = tfd.Normal(np.float64(0), math.sqrt(2)).log_prob(X)
  assert np.all(error < 0.01)
  np.testing.assert_allclose((value - exact) / error, 0, atol=5)
  assert np.all(upper > exact)
  assert np.all((size > 1000) & (size < num_samples))
  np.testing.assert_allclose(k_hat, 0.28, atol=0.15)
