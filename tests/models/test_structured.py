"""Tests of the StructuredVAE: distributions given a context, pairs as batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import models
from tests.models import helpers

X = helpers.binary(10, 6)
CONTEXT = helpers.binary(10, 4, seed=1)


def _float64_model():
  model = helpers.structured(dtype="float64")
  helpers.perturb(model)
  return model, tf.constant(X, tf.float64), tf.constant(CONTEXT, tf.float64)


def test_shapes_of_the_distributions():
  model = helpers.structured()
  prior = model.prior(tf.constant(CONTEXT))
  proposal = model.proposal(tf.constant(X), tf.constant(CONTEXT))
  likelihood = model.likelihood(tf.zeros([7, 10, 3]), tf.constant(CONTEXT))
  assert (prior.batch_shape, prior.event_shape) == ([10], [3])
  assert (proposal.batch_shape, proposal.event_shape) == ([10], [3])
  assert (likelihood.batch_shape, likelihood.event_shape) == ([7, 10], [6])


def test_prior_and_proposal_see_inputs_less_their_means():
  model, x, context = _float64_model()
  # The means are kept as float32.
  centered_x = X - helpers.DATA_MEAN.astype("float32").astype("float64")
  centered_context = CONTEXT - helpers.CONTEXT_MEAN.astype("float32").astype("float64")
  expected = model.conditional_prior.distribution(tf.constant(centered_context))
  np.testing.assert_allclose(model.prior(context).mean(), expected.mean(), rtol=1e-12)
  together = tf.constant(np.concatenate([centered_x, centered_context], axis=-1))
  expected = model.encoder.distribution(together)
  np.testing.assert_allclose(model.proposal(x, context).mean(), expected.mean(), rtol=1e-12)
  np.testing.assert_allclose(model.proposal(x, context).stddev(), expected.stddev(), rtol=1e-12)


def test_decoder_sees_latents_and_the_context_as_it_is():
  model, _, context = _float64_model()
  z = np.random.RandomState(0).normal(size=(7, 10, 3))
  together = np.concatenate([z, np.broadcast_to(context, (7, 10, 4))], axis=-1)
  expected = model.decoder.distribution(tf.constant(together))
  np.testing.assert_allclose(
    model.likelihood(tf.constant(z), context).mean(), expected.mean(), rtol=1e-12
  )


def test_target_log_prob_is_conditional_prior_plus_likelihood():
  model, x, context = _float64_model()
  z = np.random.RandomState(0).normal(size=(7, 10, 3))
  prior = model.prior(context)
  loc, scale = prior.mean().numpy(), prior.stddev().numpy()
  log_prior = np.sum(
    -0.5 * ((z - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi), axis=-1
  )
  mean = model.likelihood(tf.constant(z), context).mean().numpy()
  log_likelihood = np.sum(X * np.log(mean) + (1 - X) * np.log(1 - mean), axis=-1)
  actual = model.target_log_prob(x, tf.constant(z), context)
  np.testing.assert_allclose(actual, log_prior + log_likelihood, rtol=1e-9)


@pytest.mark.parametrize("bound", sorted(helpers.BY_HAND))
def test_gradient_of_a_step_is_the_papers(bound):
  model, x, context = _float64_model()
  helpers.compiled(model, optimizer=keras.optimizers.SGD(1.0), bound=bound)
  before = helpers.values(model)
  step, seed = helpers.gradient_of_step(model, (context, x))
  for variable, value in zip(model.trainable_variables, before, strict=True):
    variable.assign(value)
  expected = helpers.gradient_by_hand(model, x, context, seed, 5, helpers.BY_HAND[bound])
  for actual, by_hand in zip(step, expected, strict=True):
    np.testing.assert_allclose(actual, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["arrays", "dataset of uint8"])
def test_fit_and_evaluate_take_pairs(form):
  pair = tuple(part.astype("uint8") for part in (CONTEXT, X))
  dataset = tf.data.Dataset.from_tensor_slices(pair).batch(5)
  data = {"x": CONTEXT, "y": X, "batch_size": 5} if form == "arrays" else {"x": dataset}
  model = helpers.compiled(
    helpers.structured(), gradient_statistics=form == "arrays", run_eagerly=True
  )
  before = helpers.values(model)
  history = model.fit(**data, verbose=0).history
  assert np.isfinite(history["bound"][0])
  assert all((new != old).any() for new, old in zip(helpers.values(model), before, strict=True))
  assert model.evaluate(**data, verbose=0) == model.evaluate(**data, verbose=0)


def test_fit_learns_to_use_the_context():
  context = np.repeat(np.eye(4, dtype="float32"), 5, axis=0)
  x = np.concatenate([context, 1 - context[:, :2]], axis=1)
  model = helpers.compiled(helpers.structured(), optimizer=keras.optimizers.Adam(0.03))
  model.run_eagerly = True
  before = model.evaluate(context, x, verbose=0, return_dict=True)["bound"]
  model.run_eagerly = False
  model.fit(tf.data.Dataset.from_tensors((context, x)).repeat(150), verbose=0)
  model.run_eagerly = True
  model.make_test_function(force=True)
  after = model.evaluate(context, x, verbose=0, return_dict=True)["bound"]
  # x is a function of the context: without one, no model has more than -log 4 nats.
  assert before < -3
  assert -np.log(4) < after < 0


def test_sample_and_reconstruct_given_contexts():
  model = helpers.structured()
  draws = model.sample(3, CONTEXT, seed=0)
  means = model.sample(3, CONTEXT, seed=0, mean=True)
  assert draws.shape == means.shape == [3, 10, 6]
  assert set(np.unique(draws)) <= {0, 1}
  assert 0 < means.numpy().min() < means.numpy().max() < 1
  np.testing.assert_array_equal(draws, model.sample(3, CONTEXT.astype("uint8"), seed=0))
  means = model.reconstruct(X, CONTEXT, seed=0)
  assert means.shape == [10, 6]
  np.testing.assert_array_equal(means, model.reconstruct(X, CONTEXT, seed=0))
  assert (means.numpy() != model.reconstruct(X, 1 - CONTEXT, seed=0).numpy()).all()
  assert model((CONTEXT, X)).shape == [10, 6]


def test_observations_alone_are_refused():
  model = helpers.compiled(helpers.structured())
  message = r"takes batches of \(context, observation\) pairs, got observations alone"
  for call in (
    lambda: model.fit(X, verbose=0),
    lambda: model.evaluate(X, verbose=0),
    lambda: model.log_likelihood(X, num_samples=2),
    lambda: model.reconstruct(X),
    lambda: model.sample(2),
  ):
    with pytest.raises(ValueError, match=message):
      call()


def test_data_of_the_wrong_shape_are_refused():
  model = helpers.compiled(helpers.structured())
  with pytest.raises(ValueError, match=r"context must have shape \[batch_size, 4\], got"):
    model.fit(CONTEXT[:, :3], X, verbose=0)
  with pytest.raises(ValueError, match=r"x must have shape \[batch_size, 6\], got"):
    model.fit(CONTEXT, X[:, :5], verbose=0)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"context_mean": [2.0], "data_mean": [0.5]}, "context_mean must be a vector of gray values"),
    ({"context_mean": [0.5], "data_mean": [2.0]}, "data_mean must be a vector of gray values"),
    (
      {"context_mean": [0.5], "data_mean": [0.5], "latent_dim": -1},
      "latent_dim must be at least 1, got -1",
    ),
  ],
)
def test_bad_arguments_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    models.StructuredVAE(**arguments)


def test_mixed_precision():
  model = helpers.compiled(helpers.structured(dtype="mixed_bfloat16"), run_eagerly=True)
  assert np.isfinite(model.fit(CONTEXT, X, batch_size=5, verbose=0).history["bound"][0])
  estimate = model.estimate(
    tf.constant(X), tf.constant(CONTEXT), bound="jvi_dreg", num_samples=4, seed=0
  )
  assert estimate.log_weights.dtype == tf.float32
