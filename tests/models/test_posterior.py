"""Tests of what is estimated of the posterior: expectations, draws, figures of trust, activity."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, models
from dregs_tf import importance_weights as iw
from dregs_tf.models import parts, posterior
from tests.models import conjugate, helpers
from tests.seeding import seed_layers

tfd = tfp.distributions

BATCH_SIZE, NUM_SAMPLES = 3, 20_000


@pytest.fixture
def eager_functions():
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def model():
  return conjugate.Conjugate()


@pytest.fixture(scope="module")
def x():
  return conjugate.observations(BATCH_SIZE)


@pytest.fixture(scope="module")
def figures(model, x):
  return model.log_likelihood(x, NUM_SAMPLES, return_diagnostics=True)


def test_log_likelihood_with_its_figures(model, x, figures):
  exact = [conjugate.exact(row)[2] for row in x]
  assert all(figure.shape == [BATCH_SIZE] and figure.dtype == tf.float64 for figure in figures)
  # 3 values, 4 standard errors: a false failure in 1 of 5,000 seeds.
  assert np.all(np.abs(figures.value - exact) < 4 * figures.standard_error)
  assert np.all(figures.standard_error < 0.02)
  assert np.all(figures.upper > figures.value)
  assert np.all(figures.pareto_k < 0.5)
  np.testing.assert_array_equal(figures.value, model.log_likelihood(x, NUM_SAMPLES))
  dataset = tf.data.Dataset.from_tensor_slices(x).batch(100)
  again = model.log_likelihood(dataset, NUM_SAMPLES, return_diagnostics=True)
  np.testing.assert_array_equal(again, figures)
  none = model.log_likelihood(x[:0], 7, return_diagnostics=True)
  assert [figure.shape for figure in none] == [[0]] * 5


def test_moments_of_the_posterior(model, x, figures):
  """An average by weights has a variance of about that of the posterior over the sample size."""
  mean, square = model.posterior_expectation(
    lambda z: (z, z[..., :, tf.newaxis] * z[..., tf.newaxis, :]), x, NUM_SAMPLES
  )
  covariance = square - mean[:, :, tf.newaxis] * mean[:, tf.newaxis, :]
  for i, row in enumerate(x):
    exact_mean, exact_covariance, _ = conjugate.exact(row)
    deviation = np.sqrt(np.diag(exact_covariance))
    # 5 standard errors of 12 values, twice for what weights add to the sample size.
    tolerance = 5 * 1.4 / np.sqrt(figures.effective_sample_size[i])
    np.testing.assert_array_less(np.abs(mean[i] - exact_mean) / deviation, tolerance)
    scale = 1.5 * np.outer(deviation, deviation)
    np.testing.assert_array_less(np.abs(covariance[i] - exact_covariance) / scale, tolerance)
    assert np.all(deviation < 0.8)  # The proposal's own is not within the tolerance.
    assert tolerance < 0.1


def test_draws_have_the_moments_of_the_posterior(model, x):
  draws = model.posterior_sample(x, n=2000, num_samples=NUM_SAMPLES, seed=0)
  assert draws.shape == [2000, BATCH_SIZE, conjugate.LATENTS]
  for i, row in enumerate(x):
    exact_mean, exact_covariance, _ = conjugate.exact(row)
    deviation = np.sqrt(np.diag(exact_covariance))
    tolerance = 5 * 1.2 / np.sqrt(2000)  # 2000 of 20,000 samples: hardly more than 2000 draws have
    np.testing.assert_array_less(np.abs(np.mean(draws[:, i], 0) - exact_mean), tolerance)
    covariance = np.cov(np.transpose(draws[:, i]))
    scale = 1.5 * np.outer(deviation, deviation)
    np.testing.assert_array_less(np.abs(covariance - exact_covariance) / scale, tolerance)


def test_an_expectation_is_a_weighted_mean_of_all_samples(eager_functions, monkeypatch, model, x):
  monkeypatch.setattr(evaluation, "_ROWS_AT_A_TIME", 12)
  samples = []

  def recorded(z):
    samples.append(z.numpy())
    return z

  actual = model.posterior_expectation(recorded, x, num_samples=25)
  z = np.concatenate(samples)
  assert z.shape == (25, BATCH_SIZE, conjugate.LATENTS)
  log_weights = model.target_log_prob(x, z) - model.proposal(x, None).log_prob(z)
  weights = iw.normalize(log_weights).numpy()
  np.testing.assert_allclose(actual, np.sum(weights[..., np.newaxis] * z, axis=0), rtol=1e-12)
  draws = model.posterior_sample(x, n=7, num_samples=25, seed=0).numpy()
  assert draws.shape == (7, BATCH_SIZE, conjugate.LATENTS)
  for i in range(BATCH_SIZE):
    assert {tuple(draw) for draw in draws[:, i]} <= {tuple(sample) for sample in z[:, i]}


class Discrete(models.LatentVariableModel):
  """Three values with prior probabilities that the proposal has wrong, and no other data."""

  def __init__(self, log_likelihood=(0.0, 0.0, 0.0)):
    super().__init__()
    self.log_likelihood_of = tf.constant(log_likelihood)

  def prior(self, context):
    return tfd.Categorical(probs=[0.7, 0.1, 0.2])

  def proposal(self, x, context):
    return tfd.Categorical(probs=tf.broadcast_to([0.2, 0.3, 0.5], [x.shape[0], 3]))

  def likelihood(self, z, context):
    values = tf.gather(self.log_likelihood_of, z)[..., tf.newaxis]
    return tfd.Independent(Constant(values, 1.0), 1)


class Constant(tfd.Normal):
  """A distribution whose log-density is its location."""

  def _log_prob(self, value):
    return self.loc + 0 * value


def test_draws_come_by_weight_from_every_chunk(monkeypatch):
  monkeypatch.setattr(evaluation, "_ROWS_AT_A_TIME", 1000)
  draws = Discrete().posterior_sample(np.zeros([1, 1]), n=4000, num_samples=50_200, seed=1)
  assert draws.dtype == tf.int32
  frequencies = np.bincount(draws[:, 0]) / 4000
  # Standard errors: 0.0072, 0.0047, 0.0063, and of the weights 0.003; 4.5 of them.
  np.testing.assert_allclose(frequencies, [0.7, 0.1, 0.2], atol=0.035)


def test_no_weight_is_positive(model, x):
  # A sample that is impossible under the likelihood, whatever fn makes of it, counts for nothing.
  one = Discrete(log_likelihood=(0.0, -np.inf, -np.inf))
  odd = one.posterior_expectation(lambda z: 1 / (1 - tf.cast(z, tf.float32)), np.zeros([2, 1]), 50)
  np.testing.assert_allclose(odd, [1, 1], rtol=1e-6)
  assert np.all(one.posterior_sample(np.zeros([2, 1]), 9, 50, seed=0) == 0)
  nothing = Discrete(log_likelihood=(-np.inf,) * 3)
  assert np.all(np.isnan(nothing.posterior_expectation(lambda z: z, np.zeros([2, 1]), 50)))
  assert np.all(np.isnan(model.posterior_sample(np.full_like(x, np.inf), 3, 50)))


def test_contexts_and_data_sets(monkeypatch):
  monkeypatch.setattr(parts, "_EXAMPLES_AT_A_TIME", 6)
  model = helpers.structured()
  helpers.perturb(model)
  x, context = helpers.binary(12, 6), helpers.binary(12, 4, seed=1)
  dataset = tf.data.Dataset.from_tensor_slices((context, x)).batch(12)
  mean = model.posterior_expectation(lambda z: z, x, 50, context)
  assert mean.shape == [12, 3]
  np.testing.assert_array_equal(model.posterior_expectation(lambda z: z, dataset, 50), mean)
  draws = model.posterior_sample(x, 4, 50, context, seed=0)
  assert draws.shape == [4, 12, 3]
  np.testing.assert_array_equal(model.posterior_sample(dataset, 4, 50, seed=0), draws)
  assert np.any(draws != model.posterior_sample(x, 4, 50, context))
  # Examples have the posterior of their own context.
  swapped = model.posterior_expectation(lambda z: z, x, 50, context[::-1])
  assert np.all(np.any(swapped != mean, axis=1))


def test_wrong_arguments(model, x):
  with pytest.raises(ValueError, match=r"fn .*\[\d+, 3\].*\(3,\)"):
    model.posterior_expectation(lambda z: tf.reduce_sum(z, axis=[0, 2]), x, 50)
  for arguments in ({"n": 0}, {"n": 2.5}, {"n": 2, "num_samples": 0}):
    with pytest.raises((ValueError, TypeError), match=f"got {list(arguments.values())[-1]}"):
      model.posterior_sample(x, **arguments)
  with pytest.raises(ValueError, match="x must have examples"):
    model.posterior_expectation(lambda z: z, x[:0], 50)


def test_active_units():
  seed_layers(0)
  model = helpers.vae(hidden_units=(), latent_dim=4)
  scales = np.array([0.0, 1.0, 0.1, 0.5])
  (layer,) = model.encoder._layers_in_order
  kernel = np.zeros(layer.kernel.shape, np.float32)
  kernel[0, :4] = scales
  layer.kernel.assign(kernel)
  # The mean is the first pixel, of variance 1/4, times a scale: variances 0, .25, .0025, .0625.
  x = np.zeros([200, 6], np.float32)
  x[::2, 0] = 1
  assert model.active_units(x) == 2
  assert model.active_units(x, threshold=0.001) == 3
  assert model.active_units(x, threshold=0.2) == 1
  assert model.active_units(tf.data.Dataset.from_tensor_slices(x).batch(7)) == 2


def test_parts_of_a_joint_proposal_stay_together():
  """p(a, b) = N(a; 0, 1) N(b; 2 a, 1) with the proposal N(a; 0, 1.2) N(b; 2 a, 1.2)."""
  zeros = tf.zeros(3, tf.float64)

  def joint(scale):
    return tfd.JointDistributionNamed(
      {"a": tfd.Normal(zeros, scale), "b": lambda a: tfd.Normal(2 * a, scale)}
    )

  arguments = joint(1.0).log_prob, joint(1.2), 5000
  mean = posterior.expectation(
    lambda z: {"difference": z["b"] - 2 * z["a"], "square": z["b"] ** 2}, *arguments, seed=0
  )
  # The variances 1 and 5 are known to within 0.02 and 0.12 by 5000 weights of about 1; 4 of these.
  np.testing.assert_allclose(mean["difference"], 0, atol=0.08)
  np.testing.assert_allclose(mean["square"], 5, atol=0.48)
  draws = posterior.draws(*arguments[:2], n=1000, num_samples=5000, seed=0)
  assert draws["a"].shape == draws["b"].shape == [1000, 3]
  # If parts came from different samples, the variance of the difference would be 9, not 1.
  np.testing.assert_allclose(np.var(draws["b"] - 2 * draws["a"], axis=0), 1, atol=0.2)


def test_batch_of_unknown_size(monkeypatch, model, x):
  monkeypatch.setattr(evaluation, "_ROWS_AT_A_TIME", 3000)  # 30 samples of the 100 assumed

  @tf.function(
    input_signature=[tf.TensorSpec([None, conjugate.FEATURES], tf.float64)], autograph=False
  )
  def served(x):
    figures = model.log_likelihood(x, 70, return_diagnostics=True)
    return figures, model.posterior_sample(x, 4, 70, seed=0)

  for size in (2, 3):
    figures, draws = served(x[:size])
    assert all(figure.shape == [size] for figure in figures)
    assert draws.shape == [4, size, conjugate.LATENTS]
    assert np.all(np.isfinite(draws)) and np.all(np.isfinite(figures))
