"""Tests of the gradients of particle filters, sample by sample, against formulas written out."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds
from tests.sequential import helpers

tfd = tfp.distributions

K, B, T = 3, 2, 4


@pytest.mark.parametrize(
  ("resample_when", "begins"),
  [("never", [0]), ("always", [0, 1, 2, 3]), (2, [0, 2]), ([3], [0, 3])],
)
@pytest.mark.parametrize("bound", ["fivo", "fivo_dreg"])
def test_blocks_are_joint_latents_given_their_past(bound, resample_when, begins):
  model = helpers.Nonlinear(helpers.variables())
  x = helpers.observations(B, T, K)
  estimate, gradient = helpers.gradient_of(bound, model, x, K, resample_when=resample_when)
  expected = helpers.literal_gradient(
    helpers.Nonlinear,
    helpers.VALUES,
    x,
    K,
    estimate.ancestors,
    begins,
    squared="own" if bound == "fivo_dreg" else "nothing",
  )
  np.testing.assert_allclose(gradient, expected, rtol=1e-10)


@pytest.mark.parametrize("resample_when", ["never", "always", [2]])
@pytest.mark.parametrize("kind", [helpers.Stateless, helpers.Nonlinear])
def test_parameters_may_be_tensors(kind, resample_when):
  """The first step's latents then depend on nothing that the step receives."""
  x = helpers.observations(B, T, K)
  by_variables, by_tensors = (
    helpers.gradient_of("fivo_dreg", kind(parameters), x, K, resample_when=resample_when)[1]
    for parameters in (helpers.variables(), list(map(tf.constant, helpers.variables())))
  )
  np.testing.assert_allclose(by_tensors, by_variables, rtol=1e-12)


def _joint(model, x):
  """The proposal of the joint latent z_1, ..., z_T, and log p of it."""

  @tfd.JointDistributionCoroutine
  def proposal():
    z, state = None, model.initial_state(x.shape[0])
    for t in range(x.shape[1]):
      q = tfd.Independent(model.proposal(x[:, t], z, state), 0, name=f"z{t}")
      z = yield tfd.JointDistributionCoroutine.Root(q) if t == 0 else q
      state = model.next_state(state, z, x[:, t])

  def log_prob(z):
    total, before, state = 0.0, None, model.initial_state(x.shape[0])
    for t, latent in enumerate(z):
      total += model.prior(before, state).log_prob(latent)
      total += model.likelihood(latent, state).log_prob(x[:, t])
      before, state = latent, model.next_state(state, latent, x[:, t])
    return total

  return proposal, log_prob


def _of_joint(bound, model, x, num_samples):
  with tf.GradientTape() as tape:
    proposal, log_prob = _joint(model, x)
    estimate = bounds.estimate(bound, log_prob, proposal, num_samples, seed=1)
  gradient = tape.gradient(
    estimate.objective, model.parameters, helpers.upstream(x.shape[0]), unconnected_gradients="zero"
  )
  return estimate, np.array(gradient)


@pytest.mark.parametrize("bound", ["iwae", "iwae_dreg"])
def test_without_resampling_it_is_the_bound_of_the_joint_latent(bound):
  model = helpers.Nonlinear(helpers.variables())
  x = helpers.observations(B, 3, K)
  estimate, gradient = helpers.gradient_of(bound, model, x, K)
  expected, of_joint = _of_joint(bound, model, x, K)
  np.testing.assert_allclose(estimate.objective, expected.objective, rtol=1e-13)
  np.testing.assert_allclose(estimate.log_weights[-1], expected.log_weights, rtol=1e-12)
  np.testing.assert_allclose(estimate.samples, expected.samples, rtol=1e-13)
  np.testing.assert_allclose(gradient, of_joint, rtol=1e-10)


@pytest.mark.parametrize("bound", ["fivo_dreg", "iwae_dreg"])
def test_one_step_is_iwae_dreg(bound):
  model = helpers.Nonlinear(helpers.variables())
  x = helpers.observations(B, 1, K)
  _, gradient = helpers.gradient_of(bound, model, x, K)
  np.testing.assert_allclose(gradient, _of_joint("iwae_dreg", model, x, K)[1], rtol=1e-11)


def test_one_particle_is_elbo_stl():
  model = helpers.Nonlinear(helpers.variables())
  x = helpers.observations(B, 3, 1)
  estimate, gradient = helpers.gradient_of("iwae_dreg", model, x, 1)
  expected, of_joint = _of_joint("elbo_stl", model, x, 1)
  np.testing.assert_allclose(estimate.objective, expected.objective, rtol=1e-13)
  np.testing.assert_allclose(gradient, of_joint, rtol=1e-10)
  stateless = helpers.Stateless(helpers.variables())
  _, gradient = helpers.gradient_of("fivo_dreg", stateless, x[:1], 1)
  np.testing.assert_allclose(gradient, _of_joint("elbo_stl", stateless, x[:1], 1)[1], rtol=1e-10)
