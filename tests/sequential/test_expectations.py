"""Tests of expected gradients by quadrature over the noise and a sum over all ancestors."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import sequential
from dregs_tf.sequential import resample
from tests.sequential import helpers

# Two steps, two particles: four draws of noise, and four pairs of ancestors.
T, K = 2, 2
NODES = 14
ANCESTORS = np.array(list(itertools.product(range(K), repeat=K)))


@pytest.fixture(scope="module")
def grid():
  """Observations with noise at every node, the nodes' weights, and the ancestors of each."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
  weights = weights / weights.sum()
  noise = np.array(list(itertools.product(nodes, repeat=T * K)))
  weights = np.prod(list(itertools.product(weights, repeat=T * K)), axis=1)
  noise, weights = np.repeat(noise, 4, axis=0), np.repeat(weights, 4)
  ancestors = np.tile(ANCESTORS, (len(noise) // 4, 1)).T
  data = np.broadcast_to([0.9, -0.4], [len(noise), T])
  x = np.concatenate([data[..., np.newaxis], noise.reshape(-1, T, K)], axis=-1)
  return tf.constant(x), tf.constant(weights), tf.constant(ancestors, tf.int32)


@pytest.fixture
def expectation(grid, monkeypatch):
  """Returns the expected value and gradient, given the arguments of `estimate`."""
  x, weights, ancestors = grid
  monkeypatch.setattr(resample, "ancestors", lambda *_: ancestors)

  def of(bound, values=helpers.VALUES, **options):
    variables = [tf.Variable(value, dtype=tf.float64) for value in values]
    model = helpers.Stateless(variables)
    with tf.GradientTape() as tape:
      estimate = sequential.estimate(bound, model, x, K, "multinomial", seed=0, **options)
    wbar = tf.nn.softmax(estimate.log_weights[0], axis=0)
    weight = weights * tf.reduce_prod(tf.where(ancestors == 0, wbar[0], wbar[1]), axis=0)
    gradient = tape.gradient(estimate.objective, variables, weight, unconnected_gradients="zero")
    return float(tf.reduce_sum(weight * estimate.objective)), np.array(gradient), weight

  return of


def test_dreg_has_the_expectation_of_fivo(expectation, grid):
  _, fivo, weight = expectation("fivo")
  _, dreg, _ = expectation("fivo_dreg")
  np.testing.assert_allclose(dreg, fivo, atol=1e-6)
  x, _, ancestors = grid
  own, everything = (
    helpers.literal_gradient(
      helpers.Stateless, helpers.VALUES, x, K, [None, ancestors], [0, 1], squared, weight
    )
    for squared in ("own", "everything")
  )
  np.testing.assert_allclose(own, dreg, atol=1e-10)
  assert np.max(np.abs(everything - fivo)) > 0.01


def test_with_the_resampling_term_it_is_the_gradient_of_the_expectation(expectation):
  direction = np.array([0.5, 1.0, -0.7, 1.3, 0.4, -0.9]) * 1e-3
  up, down = (expectation("fivo", helpers.VALUES + sign * direction)[0] for sign in (1, -1))
  _, fivo, _ = expectation("fivo", resampling_gradient=True)
  _, dreg, _ = expectation("fivo_dreg", resampling_gradient=True)
  np.testing.assert_allclose(dreg, fivo, atol=1e-6)
  np.testing.assert_allclose(fivo @ direction, (up - down) / 2, rtol=1e-5)
  _, without, _ = expectation("fivo")
  assert abs(without @ direction / (up - down) * 2 - 1) > 0.01
