"""Tests of observations with missing features: densities, imputations, training, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from dregs_tf.models import missing
from dregs_tf.models.conditional import IndependentBernoulli
from tests.models import conjugate, helpers
from tests.seeding import seed_layers

tfd = tfp.distributions

NAN = np.nan
BATCH_SIZE, NUM_SAMPLES = 4, 20_000


def independent_bernoullis(logits):
  return tfd.Independent(tfd.Bernoulli(logits), 1)


@pytest.fixture(scope="module")
def model():
  return helpers.compiled(conjugate.Conjugate(), missing="nan")


@pytest.fixture(scope="module")
def x():
  x = conjugate.observations(BATCH_SIZE, missing_share=0.4)
  x[-1] = NAN  # Nothing is known of the last one.
  assert 5 < np.isnan(x[:-1]).sum() < 10
  return x


@pytest.fixture(scope="module")
def figures(model, x):
  return model.log_likelihood(x, NUM_SAMPLES, return_diagnostics=True)


def test_log_likelihood_of_what_is_observed(x, figures):
  exact = [conjugate.exact(row)[2] for row in x]
  # 4 values, 4 standard errors: a false failure in 1 of 4,000 seeds.
  assert np.all(np.abs(figures.value - exact) < 4 * figures.standard_error)
  assert np.all(figures.standard_error < 0.05)
  assert exact[-1] == 0


def test_imputation_is_the_expectation_given_what_is_observed(model, x, figures):
  actual = model.impute(x, NUM_SAMPLES)
  assert actual.dtype == tf.float64
  np.testing.assert_array_equal(actual[~np.isnan(x)], x[~np.isnan(x)])
  for i, row in enumerate(x):
    mean, variance = conjugate.imputed(row)
    # 5 standard errors, and at least that of the posterior's part of the variance.
    tolerance = 5 * 1.4 * np.sqrt(variance / figures.effective_sample_size[i])
    np.testing.assert_array_less(np.abs(actual[i] - mean), tolerance + 1e-12)
    assert np.all(tolerance < 0.55)


def test_multiple_imputations_have_the_conditional_moments(model, x):
  draws = model.impute(x, NUM_SAMPLES, multiple=1000)
  assert draws.shape == [1000, *x.shape]
  for i, row in enumerate(x):
    mean, variance = conjugate.imputed(row)
    # Standard errors of 1000 draws, a tenth more for those that share a sample: 5 of them.
    tolerance = 5 * 1.1 / np.sqrt(1000)
    error = np.abs(np.mean(draws[:, i], axis=0) - mean)
    np.testing.assert_array_less(error, tolerance * np.sqrt(variance) + 1e-12)
    spread = np.abs(np.var(draws[:, i], axis=0) - variance)
    np.testing.assert_array_less(spread, tolerance * 1.5 * variance + 1e-12)
  np.testing.assert_array_equal(draws[0][~np.isnan(x)], x[~np.isnan(x)])


@pytest.mark.parametrize("num_missing", [0, 1, 5])
def test_density_and_gradient_of_bernoullis(num_missing):
  random = np.random.RandomState(0)
  logits = tf.constant(random.normal(size=(3, 2, 5)) * 20)
  x = random.binomial(1, 0.5, (2, 5)).astype("float64")
  x[:, :num_missing] = NAN
  values = []
  for likelihood in (IndependentBernoulli, independent_bernoullis):
    with tf.GradientTape() as tape:
      tape.watch(logits)
      log_prob = missing.log_prob("Model", likelihood(logits), tf.constant(x))
    values.append((log_prob, tape.gradient(log_prob, logits)))
  seen = x[:, num_missing:]
  expected = tfd.Bernoulli(logits[..., num_missing:]).log_prob(seen).numpy().sum(axis=-1)
  slopes = np.where(np.isnan(x), 0, x - 1 / (1 + np.exp(-logits)))
  for log_prob, gradient in values:
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, slopes, atol=1e-12)


@pytest.mark.parametrize(
  "make",
  [
    lambda p: tfd.LogNormal(p, 1.0),
    lambda p: tfd.Gamma(tf.exp(p), 2.0),
    lambda p: tfd.Beta(tf.exp(p), 2.0),
    lambda p: tfd.Uniform(p + 3.0, p + 5.0),
    lambda p: tfd.Poisson(tf.exp(p)),
    lambda p: tfd.Independent(tfd.Normal(p[..., tf.newaxis], 1.0), 1),
  ],
)
def test_gradients_are_finite_on_any_support(make):
  """A missing feature is outside of many supports if it counts as 0, and a mask comes too late."""
  parameter = tf.constant([[[0.1, 0.2, 0.3]], [[-0.3, -0.2, -0.1]]], tf.float64)
  likelihood = tfd.Independent(make(parameter), 1)
  x = np.array(likelihood.sample(seed=1)[:1, 0])
  whole = missing.log_prob("Model", likelihood, tf.constant(x))
  np.testing.assert_array_equal(whole, likelihood.log_prob(x))
  x[0, 1] = NAN
  with tf.GradientTape() as tape:
    tape.watch(parameter)
    log_prob = missing.log_prob("Model", tfd.Independent(make(parameter), 1), tf.constant(x))
  gradient = tape.gradient(log_prob, parameter).numpy()
  assert np.all(np.isfinite(gradient))
  np.testing.assert_array_equal(gradient[..., 1], 0)
  rest = tfd.Independent(make(parameter[..., ::2]), 1)
  np.testing.assert_allclose(log_prob, rest.log_prob(x[:, ::2]), rtol=1e-12)


# --- in training ---------------------------------------------------------------------------------


def _outcome(model, data, **options):
  """Every number that comes of a step of training, one of evaluation, and of using a model."""
  helpers.compiled(model, **options)
  batch = tf.nest.map_structure(tf.constant, data)
  context, x = batch if isinstance(batch, tuple) else (None, batch)
  logs = [*model.train_step(batch).values(), *model.test_step(batch).values()]
  reconstructed = model.reconstruct(x, context, seed=0)
  return [*helpers.values(model), *logs, model.log_likelihood(x, 7, context), reconstructed]


@pytest.mark.parametrize("kind", ["vae", "structured"])
def test_nothing_missing_is_bit_identical(kind):
  data = helpers.binary(8, 6)
  if kind == "structured":
    data = (helpers.binary(8, 4, seed=1), data)
  make = getattr(helpers, kind)
  plain = _outcome(make(), data)
  masked = _outcome(make(), data, missing="nan")
  for one, other in zip(plain, masked, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", [IndependentBernoulli, independent_bernoullis])
def test_nothing_missing_is_bit_identical_with_xla(make):
  random = np.random.RandomState(0)
  logits = tf.constant(random.normal(size=(3, 2, 37)).astype("float32") * 5)
  x = tf.constant(random.binomial(1, 0.5, (2, 37)).astype("float32"))

  @tf.function(jit_compile=True, autograph=False)
  def value_and_gradient(logits, x, is_masked):
    log_prob = (
      (lambda d: missing.log_prob("Model", d, x)) if is_masked else (lambda d: d.log_prob(x))
    )
    with tf.GradientTape() as tape:
      tape.watch(logits)
      value = log_prob(make(logits))
    return value, tape.gradient(value, logits)

  for one, other in zip(*(value_and_gradient(logits, x, b) for b in (False, True)), strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_step_is_that_of_the_observed_features():
  """The gradient is that of the literal surrogate with the density of what is observed."""
  model = helpers.compiled(
    helpers.vae(dtype="float64"), optimizer=keras.optimizers.SGD(1.0), missing="nan"
  )
  helpers.perturb(model)
  x = helpers.binary(4, 6, dtype="float64")
  x[::2, 1:4] = NAN
  x[1, 5] = NAN
  before = helpers.values(model)
  actual, seed = helpers.gradient_of_step(model, x)
  for variable, value in zip(model.trainable_variables, before, strict=True):
    variable.assign(value)
  filled = np.where(np.isnan(x), np.float32(helpers.DATA_MEAN), x)

  class Observed:
    trainable_variables = model.trainable_variables

    def proposal(self, x, context):
      return models.VAE.proposal(model, filled)

    def target_log_prob(self, x, z, context):
      logits = model.decoder.distribution(z).logits
      terms = np.nan_to_num(x) * logits - tf.math.softplus(logits)
      log_p = tf.reduce_sum(tf.where(np.isnan(x), np.float64(0), terms), axis=-1)
      return log_p + model.prior().log_prob(z)

  expected = helpers.gradient_by_hand(Observed(), x, None, seed, 5, helpers.iwae_dreg)
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
  assert all(np.any(one != 0) for one in actual)


class WithMask(models.VAE):
  """A VAE whose proposal is told which pixels are missing."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.masked_encoder = models.ConditionalNormal(self.latent_dim, hidden_units=(4,))
    self.masked_encoder.build([(None, self.data_mean.size)] * 2)

  def proposal_input(self, x):
    return [super().proposal_input(x), tf.cast(tf.math.is_nan(x), x.dtype)]

  def proposal(self, x, context=None):
    return self.masked_encoder.distribution(x)


keras.saving.register_keras_serializable("tests_missing")(WithMask)


def test_saved_and_loaded(tmp_path):
  seed_layers(0)
  model = helpers.compiled(
    WithMask(helpers.DATA_MEAN, latent_dim=3, hidden_units=(4,)), missing="nan", num_samples=2
  )
  x = helpers.binary(8, 6)
  x[::2, 1:4] = NAN
  dataset = tf.data.Dataset.from_tensor_slices(x).batch(4)
  losses = model.fit(dataset, epochs=2, verbose=0).history["loss"]
  assert np.all(np.isfinite(losses))
  model.save(tmp_path / "m.keras")
  loaded = keras.models.load_model(tmp_path / "m.keras")
  assert loaded.missing == "nan"
  for one, other in zip(helpers.values(model), helpers.values(loaded), strict=True):
    np.testing.assert_array_equal(one, other)
  imputed = loaded.impute(x, 50)
  np.testing.assert_array_equal(model.impute(x, 50), imputed)
  assert np.all((imputed >= 0) & (imputed <= 1))
  # It sees the mask.
  told = [model.encode(np.where(np.isnan(x), value, x)) for value in (NAN, helpers.DATA_MEAN)]
  assert np.all((told[0] != told[1]).numpy().any(axis=1) == np.isnan(x).any(axis=1))


def test_ranges_are_checked_of_what_is_there():
  model = helpers.compiled(helpers.vae(), missing="nan", run_eagerly=True)
  x = helpers.binary(4, 6)
  x[0, 0] = NAN
  x[1, 1] = 2.0
  for data in (x, tf.data.Dataset.from_tensor_slices(x).batch(4)):
    with pytest.raises(ValueError, match=r"\[0, 1\].* to 2"):
      model.fit(data, verbose=0)
  with pytest.raises(ValueError, match=r"\[0, 1\].* to 2"):
    model.log_likelihood(x, 5)


def test_nan_is_an_error_unless_it_is_asked_for():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  x = helpers.binary(4, 6)
  x[0, 0] = NAN
  for data in (x, tf.data.Dataset.from_tensor_slices(x).batch(4)):
    with pytest.raises(ValueError, match="nan to nan"):
      model.fit(data, verbose=0)
  with pytest.raises(ValueError, match="nan to nan"):
    model.log_likelihood(x, 5)
  with pytest.raises(ValueError, match=r"impute .*missing='nan'.* None"):
    model.impute(x, 5)


@pytest.mark.parametrize(
  ("likelihood", "name"),
  [
    (lambda z: tfd.MultivariateNormalDiag(tf.zeros([*z.shape[:2], 6])), "MultivariateNormalDiag"),
    (lambda z: tfd.Independent(tfd.Dirichlet(tf.ones([*z.shape[:2], 1, 6])), 1), "Independent"),
    (
      lambda z: tfd.JointDistributionSequential([tfd.Normal(tf.zeros(z.shape[:2]), 1.0)] * 2),
      "JointDistributionSequential",
    ),
  ],
)
def test_likelihoods_that_do_not_factorize_are_refused(likelihood, name):
  with pytest.raises(ValueError, match=f"missing='nan' .* got {name} of event shape"):
    missing.log_prob("Model", likelihood(np.zeros([3, 2, 4])), tf.zeros([2, 6]))


def test_wrong_arguments(model, x):
  with pytest.raises(ValueError, match="missing .*got 'zero'"):
    helpers.vae().compile(missing="zero")
  for arguments in ({"num_samples": 0}, {"multiple": 0}, {"multiple": 1.5}):
    with pytest.raises((ValueError, TypeError), match=f"got {list(arguments.values())[0]}"):
      model.impute(x, **arguments)


def test_every_model_of_images_fills_in_the_mean():
  x = np.array([[NAN, 1, 0, NAN, 1, 0]], np.float32)
  filled = np.where(np.isnan(x), np.float32(helpers.DATA_MEAN), x)
  hierarchical = models.HierarchicalVAE(
    helpers.DATA_MEAN, latent_dims=(3, 2), hidden_units=((4,), (4,))
  )
  discrete = models.DiscreteVAE(helpers.DATA_MEAN, latent_dim=2, hidden_units=(4,))
  for model in (helpers.vae(), helpers.structured(), hierarchical, discrete):
    np.testing.assert_array_equal(model.proposal_input(x), x)
    bound = "vimco_star" if model is discrete else "iwae_dreg"
    helpers.compiled(model, bound=bound, missing="nan")
    np.testing.assert_array_equal(model.proposal_input(tf.constant(x)), filled)
