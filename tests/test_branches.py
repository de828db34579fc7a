"""Several branches behind one gate, and samples as functions of a distribution's parameters."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import gradients

tfb = tfp.bijectors
tfd = tfp.distributions

D = tf.float64


def test_each_branch_receives_its_own_share_of_the_gradient():
  samples = {
    "a": tf.constant([[1.0, 2.0, 0.5], [3.0, -1.0, 0.1]], D),
    "b": tf.constant([4.0, 5.0], D),
  }
  ratios = tf.constant([0.25, 2.0], D), tf.constant([0.0, -1.0], D)
  with tf.GradientTape() as tape:
    branches = [tf.nest.map_structure(tf.identity, samples) for _ in ratios]
    tape.watch(tf.nest.flatten(branches))
    gated, set_ratios = gradients.gate(*branches)
    total = tf.reduce_sum(tf.sin(gated["a"])) + tf.reduce_sum(tf.sin(gated["b"]))
    set_ratios(*ratios)
  for shares, ratio in zip(tape.gradient(total, branches), ratios, strict=True):
    np.testing.assert_allclose(shares["a"], ratio[:, None] * tf.cos(samples["a"]))
    np.testing.assert_allclose(shares["b"], ratio * tf.cos(samples["b"]))


# --- samples as functions of parameters ---------------------------------------------------------


def _affine_flow(loc, scale):
  base = tfd.Independent(tfd.Logistic(loc[:, tf.newaxis] * tf.ones([1, 2], loc.dtype), 1.5), 1)
  return tfd.TransformedDistribution(base, tfb.Chain([tfb.Shift(scale[:, tf.newaxis]), tfb.Exp()]))


def _network_flow(loc, scale):
  """A flow that is no CompositeTensor, as those with a network."""
  base = tfd.Independent(tfd.Normal(loc[:, tf.newaxis], scale[:, tf.newaxis]), 1)
  return tfb.MaskedAutoregressiveFlow(lambda y: (0 * y + 0.5, 0 * y - 0.3))(base)


@pytest.mark.parametrize(
  "make",
  [
    lambda loc, scale: tfd.Independent(tfd.Laplace(loc, scale), 1),
    lambda loc, scale: tfd.MultivariateNormalDiag(tf.stack([loc, scale], 1), tf.ones([4, 2], D)),
    lambda loc, scale: tfd.LogNormal(loc, scale),
    _affine_flow,
    _network_flow,
  ],
)
def test_reparameterized_samples_differentiate_as_the_samples_drawn(make):
  loc = tf.constant([0.1, -0.4, 0.9, 0.2], D)
  scale = tf.constant([0.3, 0.5, 1.1, 0.8], D)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([loc, scale])
    distribution = make(loc, scale)
    drawn = distribution.sample(3, seed=[1, 2])
    again = gradients.reparameterize(distribution, tf.identity(drawn))
    objectives = [tf.reduce_sum(tf.sin(samples) ** 2) for samples in (drawn, again)]
  np.testing.assert_allclose(drawn, again, rtol=1e-12)
  for source in (loc, scale):
    np.testing.assert_allclose(*(tape.gradient(o, source) for o in objectives), rtol=1e-10)


def test_reparameterized_parts_of_a_joint_distribution_hold_their_parents_fixed():
  loc, slope = tf.constant(0.3, D), tf.constant(1.7, D)
  samples = (tf.constant([0.2, -1.0], D), tf.constant([0.9, 0.4], D))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([loc, slope, *samples])
    joint = tfd.JointDistributionSequential(
      [tfd.Normal(loc, 1), lambda z: tfd.Normal(slope * z + loc, 2)], batch_ndims=0
    )
    first, second = gradients.reparameterize(joint, samples)
  np.testing.assert_allclose(tape.jacobian(second, slope), samples[0])
  np.testing.assert_allclose(tape.jacobian(second, loc), [1, 1])
  np.testing.assert_allclose(tape.jacobian(first, loc), [1, 1])
  assert tape.gradient(first, slope) is None
  assert tape.gradient(second, samples[0]) is None


def test_a_distribution_without_a_known_transformation_is_refused():
  with pytest.raises(ValueError, match="Gamma"):
    gradients.reparameterize(tfd.Gamma(1.0, 2.0), tf.ones([3]))
