"""The Gaussian model's closed forms, against densities and other ways to compute them."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from experiments.toy_gaussian import model

tfd = tfp.distributions

BATCH_SIZE, LATENT_DIM, NUM_SAMPLES = 3, 2, 5
SCALE = math.sqrt(2 / 3)


def problem(latent_dim=LATENT_DIM, num_observations=BATCH_SIZE):
  return model.draw(np.random.default_rng(0), latent_dim, num_observations)


def test_the_parameters_are_close_to_the_optimum_and_not_at_it():
  parameters, x = problem(4, 50)
  optimum = model.Parameters(x.mean(axis=0), np.eye(4) / 2, x.mean(axis=0) / 2)
  offsets = [part - best for part, best in zip(parameters, optimum, strict=True)]
  assert [part.shape for part in offsets] == [(4,), (4, 4), (4,)]
  # 24 draws: outside of this once in 1e5.
  assert 0.003 < np.concatenate([part.ravel() for part in offsets]).std() < 0.018
  assert x.shape == (50, 4)
  assert np.var(x, axis=0) == pytest.approx(2, rel=0.9)


def test_log_weights_are_those_of_the_densities():
  parameters, x = problem()
  q = model.proposal(parameters, x)
  noise = np.random.default_rng(1).standard_normal([NUM_SAMPLES, BATCH_SIZE, LATENT_DIM])
  z = q.mean() + SCALE * noise
  evidence = tfd.MultivariateNormalDiag(parameters.theta, np.full(LATENT_DIM, math.sqrt(2)))
  expected = model.target_log_prob(parameters, x, z) - q.log_prob(z) - evidence.log_prob(x)
  actual = model.log_weights(tf.constant(noise), tf.constant(model.shifts(parameters, x)))
  np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_the_shift_is_from_the_posteriors_mean():
  parameters, x = problem()
  shift = model.shifts(parameters, x)
  posterior_mean = model.proposal(parameters, x).mean() - shift
  np.testing.assert_allclose(posterior_mean, (x + parameters.theta) / 2, rtol=1e-12)


def test_the_exact_gradient_of_the_elbo_is_in_closed_form():
  shift = model.shifts(*problem(20, 7))
  gradient = model.exact_loc_gradients(shift, [1])[1]
  np.testing.assert_allclose(gradient, -2 * shift, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("distance", [0.05, 0.4])
@pytest.mark.parametrize("latent_dim", [1, 2, 20])
def test_the_exact_gradient_is_the_same_before_and_after_the_second_reparameterization(
  latent_dim, distance, alpha
):
  arguments = (distance, latent_dim, (1, 2, 30, 1000))
  once = model.exact_slope(*arguments, doubly_reparameterized=False, alpha=alpha)
  twice = model.exact_slope(*arguments, alpha=alpha)
  for num_samples in once:
    assert once[num_samples] == pytest.approx(twice[num_samples], rel=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_exact_gradient_is_the_derivative_of_the_bound(alpha):
  """D = 1, K = 2: the bound by a product of Gauss-Hermite rules, its derivative by differences."""
  noise, mass = np.polynomial.hermite_e.hermegauss(60)
  mass = mass / mass.sum()

  def bound(shift):
    z = shift + SCALE * noise
    log_weight = stats.norm.logpdf(z, 0, math.sqrt(0.5)) - stats.norm.logpdf(z, shift, SCALE)
    log_weight = (1 - alpha) * log_weight
    value = (np.logaddexp(log_weight[:, None], log_weight) - math.log(2)) / (1 - alpha)
    return mass @ value @ mass

  shift, step = 0.3, 1e-4
  derivative = (bound(shift + step) - bound(shift - step)) / (2 * step)
  exact = -2 * shift * model.exact_slope(shift, 1, [2], alpha=alpha)[2]
  assert exact == pytest.approx(derivative, rel=1e-6)


def test_the_exact_gradient_at_the_limit_of_many_samples():
  """K L_K' tends to minus half the derivative of the weights' variance (Rainforth et al., Eq. 5).

  E w^2 / (E w)^2 is, for D = 1, proportional to exp(d^2 / (2 s^2 - 1/2)).
  """
  shift, width = 0.3, 2 * 2 / 3 - 0.5
  second_moment = (2 / 3) / (math.sqrt(0.5) * math.sqrt(width)) * math.exp(shift**2 / width)
  limit = -0.5 * second_moment * 2 * shift / width
  many = 100_000
  exact = -2 * shift * model.exact_slope(shift, 1, [many])[many]
  assert many * exact == pytest.approx(limit, rel=1e-4)


def test_the_interpolation_is_as_exact_as_the_quadrature():
  shift = model.shifts(*problem(6, 40))
  gradients = model.exact_loc_gradients(shift, (3, 50))
  for i in (0, 17, 39):
    distance = np.linalg.norm(shift[i])
    slopes = model.exact_slope(distance, 6, (3, 50))
    for num_samples, slope in slopes.items():
      np.testing.assert_allclose(gradients[num_samples][i], -2 * shift[i] * slope, rtol=1e-11)
