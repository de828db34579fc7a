"""Tests of the VAE: its three distributions, its training step, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, models
from tests.models import helpers

tfd = tfp.distributions

X = helpers.binary(10, 6)


def _normal_log_prob(z, loc, scale):
  return np.sum(-0.5 * ((z - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi), axis=-1)


def test_shapes_of_the_distributions():
  model = helpers.vae()
  proposal = model.proposal(tf.constant(X))
  likelihood = model.likelihood(tf.zeros([7, 10, 3]))
  assert (model.prior().batch_shape, model.prior().event_shape) == ([], [3])
  assert (proposal.batch_shape, proposal.event_shape) == ([10], [3])
  assert (likelihood.batch_shape, likelihood.event_shape) == ([7, 10], [6])
  assert proposal.reparameterization_type == tfd.FULLY_REPARAMETERIZED


def test_prior_is_standard_normal_and_has_no_parameters():
  model = helpers.vae()
  z = np.random.RandomState(0).normal(size=(4, 3)).astype("float32")
  np.testing.assert_allclose(model.prior().log_prob(z), _normal_log_prob(z, 0, 1), rtol=1e-5)
  encoder, decoder = model.encoder, model.decoder
  assert len(model.variables) == len(encoder.variables) + len(decoder.variables) == 12


def test_encoder_sees_x_less_the_mean():
  model = helpers.vae(dtype="float64")
  helpers.perturb(model)
  x = tf.constant(X, tf.float64)
  # The mean is kept as float32.
  shifted = x - tf.constant(helpers.DATA_MEAN.astype("float32"), tf.float64)
  expected = model.encoder.distribution(shifted)
  np.testing.assert_allclose(model.proposal(x).mean(), expected.mean(), rtol=1e-12)
  np.testing.assert_allclose(model.proposal(x).stddev(), expected.stddev(), rtol=1e-12)
  # An untrained encoder of an x that is the mean is at the origin, softplus(0.25) wide.
  at_mean = helpers.vae().proposal(tf.constant(helpers.DATA_MEAN[None], tf.float32))
  np.testing.assert_allclose(at_mean.mean(), np.zeros([1, 3]), atol=1e-6)
  np.testing.assert_allclose(at_mean.stddev(), np.full([1, 3], np.log1p(np.exp(0.25))), rtol=1e-6)


def test_untrained_decoder_at_the_origin_predicts_the_mean():
  likelihood = helpers.vae().likelihood(tf.zeros([2, 3]))
  np.testing.assert_allclose(likelihood.mean(), [helpers.DATA_MEAN] * 2, rtol=1e-5)


def test_target_log_prob_is_prior_plus_likelihood():
  model = helpers.vae(dtype="float64")
  helpers.perturb(model)
  z = np.random.RandomState(0).normal(size=(7, 10, 3))
  mean = model.likelihood(tf.constant(z)).mean().numpy()
  log_likelihood = np.sum(X * np.log(mean) + (1 - X) * np.log(1 - mean), axis=-1)
  actual = model.target_log_prob(tf.constant(X, tf.float64), tf.constant(z))
  assert actual.shape == [7, 10]
  np.testing.assert_allclose(actual, log_likelihood + _normal_log_prob(z, 0, 1), rtol=1e-9)


@pytest.mark.parametrize("bound", sorted(helpers.BY_HAND))
def test_gradient_of_a_step_is_the_papers(bound):
  model = helpers.compiled(
    helpers.vae(dtype="float64"), optimizer=keras.optimizers.SGD(1.0), bound=bound
  )
  helpers.perturb(model)
  x = tf.constant(X, tf.float64)
  before = helpers.values(model)
  step, seed = helpers.gradient_of_step(model, x)
  for variable, value in zip(model.trainable_variables, before, strict=True):
    variable.assign(value)
  expected = helpers.gradient_by_hand(model, x, None, seed, 5, helpers.BY_HAND[bound])
  for actual, by_hand in zip(step, expected, strict=True):
    np.testing.assert_allclose(actual, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
  "bound", [bounds.get("dreg_alpha", alpha=0.3), bounds.get("jvi", order=2), "stl"], ids=str
)
def test_gradient_of_a_step_is_that_of_estimate(bound):
  model = helpers.compiled(helpers.vae(), optimizer=keras.optimizers.SGD(1.0), bound=bound)
  helpers.perturb(model)
  before = helpers.values(model)
  step, seed = helpers.gradient_of_step(model, X)
  for variable, value in zip(model.trainable_variables, before, strict=True):
    variable.assign(value)
  with tf.GradientTape() as tape:
    estimate = bounds.estimate(
      bound,
      lambda z: model.likelihood(z).log_prob(X) + model.prior().log_prob(z),
      model.proposal(tf.constant(X)),
      5,
      seed=seed,
    )
    objective = tf.reduce_mean(estimate.objective)
  expected = tape.gradient(objective, model.trainable_variables)
  for actual, gradient in zip(step, expected, strict=True):
    np.testing.assert_allclose(actual, gradient, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def trained_on_arrays():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  model.fit(X, batch_size=4, shuffle=False, verbose=0)
  return model


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_traced_steps_are_the_eager_steps(trained_on_arrays, steps_per_execution):
  model = helpers.compiled(helpers.vae(), steps_per_execution=steps_per_execution)
  history = model.fit(X, batch_size=4, shuffle=False, verbose=0).history
  assert history.keys() == trained_on_arrays.history.history.keys()
  assert model.optimizer.iterations == trained_on_arrays.optimizer.iterations == 3
  reference = helpers.values(trained_on_arrays)
  for actual, expected in zip(helpers.values(model), reference, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_jit_compile():
  model = helpers.compiled(helpers.vae(), jit_compile=True)
  before = helpers.values(model)
  assert np.isfinite(model.train_on_batch(X)).all()
  assert all((new != old).any() for new, old in zip(helpers.values(model), before, strict=True))
  assert np.isfinite(model.test_on_batch(X)).all()


@pytest.mark.parametrize("form", ["dataset", "dataset_of_tuples", "uint8", "bool"])
def test_forms_of_data_are_the_same_data(form, trained_on_arrays):
  data = {
    "dataset": lambda: {"x": tf.data.Dataset.from_tensor_slices(X).batch(4)},
    "dataset_of_tuples": lambda: {"x": tf.data.Dataset.from_tensor_slices((X,)).batch(4)},
    "uint8": lambda: {"x": tf.data.Dataset.from_tensor_slices(X.astype("uint8")).batch(4)},
    "bool": lambda: {"x": X.astype(bool), "batch_size": 4},
  }
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  model.fit(**data[form](), shuffle=False, verbose=0)
  reference = helpers.values(trained_on_arrays)
  for actual, expected in zip(helpers.values(model), reference, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
  evaluated = model.evaluate(**data[form](), verbose=0)
  np.testing.assert_allclose(evaluated, model.evaluate(X, batch_size=4, verbose=0), rtol=1e-6)


def test_methods_take_observations_that_are_not_floats():
  model = helpers.vae()

  def results(x):
    return (
      model.proposal(tf.constant(x)).mean(),
      model.estimate(tf.constant(x), bound="iwae", num_samples=2, seed=0).objective,
      model.log_likelihood(x, num_samples=2),
    )

  expected = results(X)
  for dtype in ("uint8", "bool", "int64"):
    actual = results(X.astype(dtype))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, err_msg=dtype)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, err_msg=dtype)
    np.testing.assert_array_equal(actual[2], expected[2], err_msg=dtype)


def test_methods_take_numpy_arrays():
  model = helpers.vae()
  expected = model.proposal(tf.constant(X))
  np.testing.assert_array_equal(model.proposal(X).mean(), expected.mean())
  z = expected.sample(7, seed=[0, 0])
  expected = model.target_log_prob(tf.constant(X), z)
  np.testing.assert_array_equal(model.target_log_prob(X, z.numpy()), expected)
  estimate = model.estimate(X, bound="iwae", num_samples=2, seed=0)
  assert estimate.objective.shape == [10]


def test_fit_learns():
  patterns = helpers.binary(3, 6, seed=4)
  x = np.tile(patterns, [10, 1])
  model = helpers.compiled(helpers.vae(), optimizer=keras.optimizers.Adam(0.02))
  data = tf.data.Dataset.from_tensors(x[:12]).repeat()
  history = model.fit(data, steps_per_epoch=20, epochs=8, verbose=0).history["bound"]
  model.run_eagerly = True
  before, after = history[0], model.evaluate(x, verbose=0, return_dict=True)["bound"]
  # Three equally likely patterns: no model of these data has more than -log 3 nats.
  assert before < -3.5
  assert history[-1] > before + 1
  assert before + 1 < after < -np.log(3)


def test_evaluate_is_deterministic_whatever_was_evaluated_before():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  first = model.evaluate(X, batch_size=5, verbose=0)
  model.evaluate(helpers.binary(5, 6, seed=3), batch_size=4, verbose=0)
  model.test_on_batch(X[:3])
  assert model.evaluate(X, batch_size=5, verbose=0) == first


def test_evaluate_does_not_change_training():
  parameters = []
  for validation_data in (None, X[:5]):
    model = helpers.compiled(helpers.vae(), run_eagerly=True)
    model.fit(X, batch_size=10, epochs=2, verbose=0, validation_data=validation_data, shuffle=False)
    parameters.append(helpers.values(model))
  for actual, expected in zip(*parameters, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_evaluate_averages_over_examples():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  seeds = helpers.record_seeds(model)
  actual = model.evaluate(X, batch_size=4, verbose=0, return_dict=True)
  each = [
    models.VAE.estimate(model, tf.constant(x), bound="iwae", num_samples=5, seed=seed).objective
    for x, seed in zip(np.split(X, [4, 8]), seeds, strict=True)
  ]
  assert len({tuple(seed) for seed in seeds}) == 3
  np.testing.assert_allclose(actual["bound"], np.concatenate(each).mean(), rtol=1e-5)
  # The mean of the batches' means is another number: this test can tell them apart.
  assert abs(np.mean([np.mean(batch) for batch in each]) - actual["bound"]) > 1e-3


def test_seed_decides_the_noise():
  def trained(seed):
    model = helpers.compiled(helpers.vae(), seed=seed, run_eagerly=True)
    for _ in range(2):
      model.train_on_batch(X)
    return helpers.values(model)

  for first, second, other in zip(trained(3), trained(3), trained(4), strict=True):
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_without_a_seed_set_random_seed_decides():
  def seed_after(global_seed):
    return helpers.compiled(helpers.vae(seed=global_seed), seed=None).seed

  assert seed_after(5) == seed_after(5) != seed_after(6)


def test_no_two_steps_share_noise():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  seeds = helpers.record_seeds(model)
  model.fit(X, batch_size=5, epochs=3, validation_data=X[:4], verbose=0)
  trained = [seed for i, seed in enumerate(seeds) if i % 3 != 2]
  evaluated = seeds[2::3]
  assert len({tuple(seed) for seed in trained}) == 6
  assert evaluated == [evaluated[0]] * 3
  assert evaluated[0] not in trained


def test_no_two_steps_share_noise_when_gradients_are_accumulated():
  optimizer = keras.optimizers.Adam(gradient_accumulation_steps=3)
  model = helpers.compiled(helpers.vae(), run_eagerly=True, optimizer=optimizer)
  seeds = helpers.record_seeds(model)
  model.fit(X, batch_size=2, verbose=0)
  assert len({tuple(seed) for seed in seeds}) == 5


def test_other_batch_sizes_are_not_traced_again():
  model = helpers.compiled(helpers.vae())
  calls = []
  original = model.proposal
  model.proposal = lambda *args: calls.append(args[0].shape.as_list()) or original(*args)
  model.fit(tf.data.Dataset.from_tensor_slices(X).batch(4), verbose=0)
  traced = len(calls)
  model.fit(tf.data.Dataset.from_tensor_slices(X).batch(3), verbose=0)
  assert calls == [[None, 6]] * traced


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      {"data_mean": [0.5, 1.5]},
      r"data_mean must be a vector of gray values in \[0, 1\].* 0.5 to 1.5",
    ),
    ({"data_mean": [-0.1, 0.5]}, "data_mean must be a vector of gray values"),
    ({"data_mean": [0.5, np.nan]}, "data_mean must be a vector of gray values"),
    ({"data_mean": np.full([2, 3], 0.5)}, r"data_mean must be a vector.* got shape \[2, 3\]"),
    ({"data_mean": 0.5}, r"data_mean must be a vector.* got shape \[\]"),
    ({"data_mean": []}, r"data_mean must be a vector.* got shape \[0\]"),
    ({"data_mean": [0.5], "latent_dim": 0}, "latent_dim must be at least 1, got 0"),
    ({"data_mean": [0.5], "latent_dim": 2.0}, "latent_dim must be an int, got 2.0"),
    ({"data_mean": [0.5], "hidden_units": (5, -1)}, "hidden_units must be at least 1, got -1"),
  ],
)
def test_bad_arguments_are_refused(arguments, message):
  with pytest.raises((TypeError, ValueError), match=message):
    models.VAE(**arguments)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"bound": "iwea"}, "bound must be one of elbo, .*got 'iwea'"),
    ({"bound": "jvi", "num_samples": 1}, "num_samples must be at least 2 for jvi, got 1"),
    ({"num_samples": 0}, "num_samples must be at least 1 for iwae_dreg, got 0"),
    ({"loss": "mse"}, "loss has no meaning here: the objective is the bound"),
    ({"metrics": ["mae"]}, "metrics has no meaning here"),
  ],
)
def test_bad_arguments_of_compile_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    helpers.vae().compile(**arguments)


def test_bound_of_another_type_is_refused():
  with pytest.raises(TypeError, match="bound must be a Bound or one of elbo"):
    helpers.vae().compile(bound=3)
  with pytest.raises(TypeError, match="num_samples must be an int, got 2.5"):
    helpers.vae().compile(num_samples=2.5)


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_data_of_the_wrong_shape_are_refused(run_eagerly):
  model = helpers.compiled(helpers.vae(), run_eagerly=run_eagerly)
  with pytest.raises(ValueError, match=r"x must have shape \[batch_size, 6\], got"):
    model.fit(X[:, :5], verbose=0)
  with pytest.raises(ValueError, match=r"x must have shape \[batch_size, 6\], got"):
    model.evaluate(X[:, :, None], verbose=0)
  with pytest.raises(ValueError, match="takes batches of observations alone.*drop the labels"):
    model.fit(X, np.arange(10), verbose=0)
  with pytest.raises(ValueError, match="takes batches of observations alone"):
    model.log_likelihood(X, context=X)


def test_too_many_parts_of_a_batch_are_refused():
  model = helpers.compiled(helpers.vae())
  with pytest.raises(ValueError, match="got 4 parts"):
    model.fit(tf.data.Dataset.from_tensors((X, X, X, X)), verbose=0)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
  model = helpers.compiled(helpers.vae(dtype=policy), run_eagerly=policy == "mixed_float16")
  before = helpers.values(model)
  history = model.fit(X, batch_size=5, verbose=0).history
  assert np.isfinite(history["bound"][0])
  assert all((new != old).any() for new, old in zip(helpers.values(model), before, strict=True))
  estimate = model.estimate(tf.constant(X), bound="iwae_dreg", num_samples=4, seed=0)
  assert estimate.log_weights.dtype == estimate.objective.dtype == tf.float32
  assert model.encoder.compute_dtype == keras.DTypePolicy(policy).compute_dtype
  assert model.log_likelihood(X, num_samples=3).dtype == tf.float32


def test_mixed_precision_bound_is_close_to_float32s():
  estimates = [
    helpers.vae(dtype=policy).estimate(tf.constant(X), bound="iwae", num_samples=50, seed=0)
    for policy in ("float32", "mixed_bfloat16")
  ]
  np.testing.assert_allclose(estimates[0].objective, estimates[1].objective, atol=0.05)


def test_sample_draws_observations():
  model = helpers.vae()
  draws = model.sample(8, seed=0)
  assert draws.shape == [8, 6]
  assert set(np.unique(draws)) <= {0, 1}
  np.testing.assert_array_equal(draws, model.sample(8, seed=0))
  assert (draws.numpy() != model.sample(8, seed=1).numpy()).any()
  assert (model.sample(8).numpy() != model.sample(8).numpy()).any()


def test_sample_returns_means():
  model = helpers.vae()
  means = model.sample(4000, seed=0, mean=True)
  assert means.shape == [4000, 6]
  assert 0 < means.numpy().min() < means.numpy().max() < 1
  # The same z, drawn from: 4000 draws differ from their means by 5 standard errors at most.
  draws = model.sample(4000, seed=0)
  np.testing.assert_allclose(
    np.mean(draws, axis=0), np.mean(means, axis=0), atol=5 * 0.5 / 4000**0.5
  )


def test_reconstruct():
  model = helpers.vae()
  means = model.reconstruct(X, seed=0)
  assert means.shape == [10, 6]
  assert 0 < means.numpy().min() < means.numpy().max() < 1
  np.testing.assert_array_equal(means, model.reconstruct(X, seed=0))
  assert (means.numpy() != model.reconstruct(X, seed=1).numpy()).any()
  assert model(X).shape == [10, 6]
  assert helpers.compiled(model).predict(X, batch_size=4, verbose=0).shape == (10, 6)


def test_uncompiled_model_says_so():
  with pytest.raises(ValueError, match="compile"):
    helpers.vae().fit(X)
