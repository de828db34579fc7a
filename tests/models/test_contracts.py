"""Tests of what the methods of a model are handed, and of what its distributions can do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from dregs_tf.models.conditional import IndependentBernoulli, Normal
from tests.models import helpers
from tests.seeding import seed_layers

tfd = tfp.distributions


def _random(*shape, dtype="float64", seed=0):
  return np.random.RandomState(seed).normal(size=shape).astype(dtype)


SLICES = {
  "first": 0,
  "last": (Ellipsis, slice(1, 2)),
  "range": slice(2, 5),
  "both": (3, slice(None)),
  "new axis": (slice(None), tf.newaxis),
}


@pytest.mark.parametrize("case", SLICES)
def test_conditional_bernoulli_is_sliced_along_its_batch(case):
  part = SLICES[case]
  logits, x = _random(7, 2, 5), helpers.binary(14, 5).reshape(7, 2, 5)
  distribution = IndependentBernoulli(tf.constant(logits))
  actual = distribution[part]
  event = (part if isinstance(part, tuple) else (part, Ellipsis)) + (slice(None),)
  expected = IndependentBernoulli(tf.constant(logits[event]))
  assert type(actual) is IndependentBernoulli
  assert (actual.batch_shape, actual.event_shape) == (expected.batch_shape, [5])
  np.testing.assert_array_equal(actual.mean(), expected.mean())
  np.testing.assert_allclose(actual.log_prob(x[event]), distribution.log_prob(x)[part], rtol=1e-14)
  assert actual[..., tf.newaxis].batch_shape == [*expected.batch_shape, 1]


def test_layers_distributions_are_sliced_and_copied():
  inputs = tf.constant(_random(4, 3, dtype="float32"))
  for layer in (models.ConditionalBernoulli(event_size=5), models.ConditionalNormal(5)):
    distribution = layer.distribution(inputs)
    x = distribution.sample(seed=1)
    for part in (2, slice(1, 3), Ellipsis):
      expected = distribution.log_prob(x)[part]
      np.testing.assert_allclose(distribution[part].log_prob(x[part]), expected, rtol=1e-6)
    np.testing.assert_array_equal(distribution.copy().log_prob(x), distribution.log_prob(x))
  copy = IndependentBernoulli(tf.zeros([2, 5])).copy(logits=tf.ones([7, 5]))
  assert (copy.batch_shape, copy.event_shape) == ([7], [5])
  np.testing.assert_array_equal(copy.logits, np.ones([7, 5]))


def test_slices_of_a_normal_draw_the_noise_of_a_whole_batch_as_well():
  distribution = tfd.Independent(Normal(tf.zeros([7, 2, 3]), tf.ones([3])), 1)[1:3]
  assert distribution.batch_shape == [2, 2]
  assert type(distribution.distribution) is Normal
  assert models.conditional.draws_for_whole_batch(distribution)


def test_bernoulli_passes_through_a_compiled_function(caplog):
  logits = tf.constant(_random(4, 5))
  distribution = IndependentBernoulli(logits)
  same = tf.function(lambda d: d)(distribution)
  np.testing.assert_array_equal(same.mean(), distribution.mean())
  assert "_parameter_properties" not in caplog.text  # TFP's warning about an unfinished subclass


class Convolutional(models.LatentVariableModel):
  """Images whose decoder flattens [num_samples, batch_size], as convolutions ask for."""

  def __init__(self, prior_batch_shape=(), **kwargs):
    super().__init__(**kwargs)
    self.prior_batch_shape = prior_batch_shape
    self.encoder = models.ConditionalNormal(3, (4,))
    self.decoder = keras.Sequential(
      [
        keras.layers.Dense(2 * 2 * 2, "tanh"),
        keras.layers.Reshape((2, 2, 2)),
        keras.layers.Conv2DTranspose(1, 3, strides=2, padding="same"),
      ]
    )

  def prior(self, context):
    zeros = tf.zeros([*self.prior_batch_shape, 3])
    return tfd.MultivariateNormalDiag(zeros, tf.ones_like(zeros))

  def proposal(self, x, context):
    return self.encoder.distribution(tf.reshape(x, [-1, 16]))

  def likelihood(self, z, context):
    num_samples, batch_size, _ = z.shape
    if context is not None:
      z += context["shift"][:, tf.newaxis]
    logits = self.decoder(tf.reshape(z, [-1, 3]))
    logits = tf.reshape(logits, [num_samples, batch_size, 4, 4, 1])
    return tfd.Independent(tfd.Bernoulli(logits), 3)


@pytest.mark.parametrize("mean", [False, True])
def test_sample_hands_the_likelihood_samples_of_a_batch(mean):
  seed_layers(0)
  model = helpers.compiled(Convolutional(), run_eagerly=True)
  x = helpers.binary(6, 16).reshape(6, 4, 4, 1)
  model.fit(x, batch_size=3, verbose=0)
  assert model.sample(5, seed=1, mean=mean).shape == [5, 4, 4, 1]
  assert model.reconstruct(x, seed=1).shape == x.shape
  context = {"shift": tf.constant([0.0, 1.0])}
  draws = model.sample(5, context, seed=1, mean=mean)
  assert draws.shape == [5, 2, 4, 4, 1]
  # A prior without a batch shape draws another z for each context.
  assert (draws[:, 0].numpy() != draws[:, 1].numpy()).any()
  with_batch = Convolutional(prior_batch_shape=(2,))
  with_batch.decoder = model.decoder
  assert with_batch.sample(5, context, seed=1, mean=mean).shape == [5, 2, 4, 4, 1]


def test_samples_are_those_of_the_prior_and_the_likelihood():
  model = helpers.vae()
  means = model.sample(5, seed=3, mean=True)
  seen = []
  original = model.likelihood
  model.likelihood = lambda z, context: seen.append(z) or original(z, context)
  np.testing.assert_array_equal(means, model.sample(5, seed=3, mean=True))
  (z,) = seen
  assert z.shape == [5, 1, 3]
  np.testing.assert_array_equal(means, original(z[:, 0], None).mean())


class Parts(models.LatentVariableModel):
  """Observations of two parts and latents of two layers, all joint distributions."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    options = {"hidden_units": (4,), "dtype": self.dtype_policy}
    self.first = models.ConditionalNormal(2, **options)
    self.second = models.ConditionalNormal(3, **options)
    self.image = models.ConditionalBernoulli(event_size=4, **options)
    self.label = keras.layers.Dense(5, dtype=self.dtype_policy)

  def prior(self, context):
    standard = [tfd.Normal(tf.zeros([n], self.float_dtype), 1.0) for n in (2, 3)]
    return tfd.JointDistributionSequential([tfd.Independent(d, 1) for d in standard])

  def proposal(self, x, context):
    features = tf.concat([x["image"], tf.one_hot(x["label"], 5, dtype=self.float_dtype)], axis=-1)
    return tfd.JointDistributionSequential(
      [self.first.distribution(features), self.second.distribution(features)]
    )

  def likelihood(self, z, context):
    logits = self.label(z[1])
    return tfd.JointDistributionNamed(
      {"image": self.image.distribution(list(z)), "label": tfd.Categorical(logits)}
    )


X_PARTS = {"image": helpers.binary(6, 4), "label": np.arange(6) % 5}


def test_observations_of_several_parts():
  seed_layers(0)
  model = helpers.compiled(Parts(), run_eagerly=True)
  dataset = tf.data.Dataset.from_tensor_slices(X_PARTS).batch(6)
  assert np.isfinite(model.fit(X_PARTS, batch_size=6, verbose=0).history["bound"][0])
  bound = model.evaluate(X_PARTS, batch_size=6, verbose=0, return_dict=True)["bound"]
  assert model.evaluate(dataset, verbose=0, return_dict=True)["bound"] == bound
  draws = model.sample(7, seed=1)
  assert {name: part.shape for name, part in draws.items()} == {"image": [7, 4], "label": [7]}
  assert model.log_likelihood(X_PARTS, num_samples=2).shape == [6]


@pytest.mark.parametrize("label_dtype", ["int64", "uint8"])
def test_parts_of_an_observation_are_cast_for_the_likelihood(label_dtype):
  model = Parts()
  x = X_PARTS | {"label": X_PARTS["label"].astype(label_dtype)}
  z = [tf.constant(_random(7, 6, n, dtype="float32")) for n in (2, 3)]
  actual = model.target_log_prob(x, z)
  likelihood = model.likelihood(z, None).model
  expected = likelihood["image"].log_prob(x["image"])
  expected += likelihood["label"].log_prob(x["label"].astype("int32"))
  expected += model.prior(None).log_prob(z)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
