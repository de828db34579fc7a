"""Tests on the linear-Gaussian model, whose likelihood and posterior are known."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import sequential

tfd = tfp.distributions

# Latents, observed coordinates, sequences, steps, particles.
D, X, B, T, K = 2, 3, 4, 5, 6

MATRICES = {
  "transition_matrix": np.array([[0.8, 0.3], [-0.2, 0.7]]),
  "transition_covariance": np.array([[0.5, 0.1], [0.1, 0.3]]),
  "observation_matrix": np.array([[1.0, 0.0], [0.5, -0.5], [0.2, 1.0]]),
  "observation_covariance": np.diag([0.4, 0.6, 0.5]),
  "initial_mean": np.array([0.5, -0.5]),
  "initial_covariance": np.array([[1.0, 0.2], [0.2, 0.8]]),
}


@pytest.fixture(scope="module")
def x():
  return sequential.LinearGaussianSSM(**MATRICES).sample(B, T, seed=[1, 2])


def _joint():
  """Mean and covariance of z_1, ..., z_T, x_1, ..., x_T, in NumPy."""
  a, q, c, r, m, p = MATRICES.values()
  mean, cov = [m], [p]
  powers = [np.linalg.matrix_power(a, t) for t in range(T)]
  z_cov = np.zeros([T, D, T, D])
  for t in range(T):
    if t:
      mean.append(a @ mean[-1])
      cov.append(a @ cov[-1] @ a.T + q)
    for s in range(t + 1):
      z_cov[t, :, s] = powers[t - s] @ cov[s]
      z_cov[s, :, t] = z_cov[t, :, s].T
  z_cov, big_c = z_cov.reshape(T * D, T * D), np.kron(np.eye(T), c)
  x_cov = big_c @ z_cov @ big_c.T + np.kron(np.eye(T), r)
  z_mean = np.concatenate(mean)
  return z_mean, z_cov, big_c, big_c @ z_mean, x_cov


def test_kalman_is_the_joint_normal(x):
  model = sequential.LinearGaussianSSM(**MATRICES)
  z_mean, z_cov, big_c, x_mean, x_cov = _joint()
  centered = x.numpy().reshape(B, -1) - x_mean
  squares = np.sum(centered * np.linalg.solve(x_cov, centered.T).T, axis=1)
  expected = -(squares + np.linalg.slogdet(2 * math.pi * x_cov)[1]) / 2
  np.testing.assert_allclose(model.log_likelihood(x), expected, rtol=1e-10)
  posterior = z_mean + centered @ np.linalg.solve(x_cov, big_c @ z_cov)
  means, _ = model.posterior_marginals(x)
  np.testing.assert_allclose(np.reshape(means, [B, -1]), posterior, rtol=1e-9)
  # At the last step the filter knows as much.
  np.testing.assert_allclose(model.filter(x)[0][:, -1], means[:, -1], rtol=1e-9)


@pytest.mark.parametrize("num_particles", [1, K])
def test_with_the_posterior_for_a_proposal_iwae_is_the_log_likelihood(x, num_particles):
  model = sequential.LinearGaussianSSM(**MATRICES)
  estimate = sequential.estimate("iwae", model.given(x), x, num_particles, seed=1)
  np.testing.assert_allclose(estimate.objective, model.log_likelihood(x), rtol=1e-10)


def test_of_one_step_the_filtering_proposal_is_the_posterior(x):
  model = sequential.LinearGaussianSSM(**MATRICES)
  estimate = sequential.estimate("fivo", model, x[:, :1], K, seed=1)
  np.testing.assert_allclose(estimate.objective, model.log_likelihood(x[:, :1]), rtol=1e-10)


class Shifted(sequential.LinearGaussianSSM):
  """The same with a learned shift of the proposal at each step, 0 at the optimum."""

  def __init__(self, proposal_of=None):
    super().__init__(**MATRICES)
    self.shifts = tf.Variable(np.zeros([T, D]))
    self._proposal_of = proposal_of

  def initial_state(self, batch_size):
    return tf.zeros([batch_size], tf.int32)

  def next_state(self, state, z, x):
    return state + 1

  def proposal(self, x, z_previous, state):
    best = super().proposal(x, z_previous, state)
    if self._proposal_of is not None:
      best = self._proposal_of.proposal(x, z_previous, state)
    shift = tf.gather(self.shifts, tf.reduce_max(state))
    return tfd.MultivariateNormalTriL(best.loc + shift, best.scale_tril)


def _gradient(bound, model, x):
  with tf.GradientTape() as tape:
    estimate = sequential.estimate(bound, model, x, K, seed=1)
  return tf.convert_to_tensor(tape.gradient(estimate.objective, model.shifts)).numpy()


def test_at_the_optimum_dreg_has_no_gradient_but_through_the_past(x):
  """The last step is in nobody's past; with the whole posterior no step is in a later block's."""
  dreg, plain = (_gradient(bound, Shifted(), x) for bound in ("fivo_dreg", "fivo"))
  np.testing.assert_allclose(dreg[-1], 0, atol=1e-12)
  assert np.all(np.abs(dreg[:-1]) > 1e-3)
  assert np.all(np.abs(plain) > 1e-3)
  given = sequential.LinearGaussianSSM(**MATRICES).given(x)
  np.testing.assert_allclose(_gradient("iwae_dreg", Shifted(given), x), 0, atol=1e-12)
  assert np.all(np.abs(_gradient("iwae", Shifted(given), x)) > 1e-3)


def test_the_bound_of_the_bootstrap_filter_rises_to_the_log_likelihood(x):
  """Means of 400 runs, within 4 standard errors: fails falsely once in 10^4 fixed seeds.

  The estimate of the likelihood is unbiased for every number of particles, which the standard error
  resolves to a few percent.
  """
  model = sequential.LinearGaussianSSM(**MATRICES, proposal="bootstrap")
  exact = model.log_likelihood(x)[0]
  many = tf.repeat(x[:1], 400, axis=0)
  means, errors = [], []
  for num_particles in (4, 16, 64):
    value = sequential.estimate("fivo", model, many, num_particles, seed=3).objective - exact
    ratio = np.exp(value)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 20
    means.append(np.mean(value))
    errors.append(np.std(value) / 20)
  assert np.all(np.diff(means) > 4 * np.array(errors[:-1]))
  assert -0.15 < means[-1] < 0


@pytest.mark.parametrize("options", [{}, {"resample_when": 0.5}])
def test_filtering_means_are_kalmans(x, options):
  """With 4000 particles, within 5 standard errors of importance sampling."""
  model = sequential.LinearGaussianSSM(**MATRICES)
  estimate = sequential.estimate("fivo", model, x, 4000, seed=2, **options)
  weights = tf.nn.softmax(estimate.log_weights, axis=1)[..., tf.newaxis]
  means, covariances = model.filter(x)
  found = tf.transpose(tf.reduce_sum(weights * estimate.samples, axis=1), [1, 0, 2])
  errors = tf.sqrt(tf.linalg.diag_part(covariances) / 4000) * math.sqrt(T)
  assert np.all(np.abs(found - means) < 5 * errors)


def test_another_proposal_is_refused():
  with pytest.raises(ValueError, match=r"proposal .*got 'optimal'"):
    sequential.LinearGaussianSSM(**MATRICES, proposal="optimal")
