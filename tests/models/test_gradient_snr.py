"""Tests of the signal-to-noise ratio of gradients that a run reports."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from dregs_tf.models import gradient_snr
from tests.models import helpers
from tests.seeding import seed_layers

tfd = tfp.distributions

X = helpers.binary(512, 6)
FOLLOWING = {"gradient_statistics": True, "track_variance": ["iwae"]}


def batches_of(num_batches, batch_size):
  """A function of the step that draws batches independently."""

  def batches(step):
    random = np.random.RandomState(step)
    indices = random.randint(len(X), size=[num_batches, batch_size])
    return tf.data.Dataset.from_tensor_slices(X[indices])

  return batches


def standard_error(snr, count):
  """The bound on that of SNR^2 which GradientSNR states."""
  return math.sqrt(2 / (count * (count - 1)) + (4 * snr**2 + 2 * snr**4) / count)


def snr_of(gradients):
  """The definition, read literally: products of different gradients, deviations from the mean."""
  count = len(gradients)
  products = gradients @ gradients.T
  signal = (products.sum() - np.trace(products)) / (count * (count - 1))
  return math.sqrt(max(signal, 0.0) / gradients.var(axis=0, ddof=1).sum())


def test_the_logs_are_the_definition():
  """A tracked bound's gradients are those of a model that is trained on it, on the same noise."""
  expected, tracked = {}, ["rws", "jvi_dreg"]
  for bound, followed in (("iwae", tracked), ("rws", []), ("jvi_dreg", [])):
    model = helpers.compiled(
      helpers.vae(),
      bound=bound,
      track_variance=followed,
      gradient_statistics=True,
      run_eagerly=True,
      optimizer=keras.optimizers.SGD(0.0),
    )
    batches = batches_of(4, 5)
    callback = models.GradientSNR(batches, 4)
    history = model.fit(X[:6], batch_size=3, verbose=0, callbacks=[callback]).history
    drawn = [model.gradient_step(batch, tf.constant([2, i])) for i, batch in enumerate(batches(2))]
    for name in drawn[0]:
      gradients = np.array([gradient[name] for gradient in drawn], np.float64)
      size = {"model": sum(v.shape.num_elements() for v in model.decoder.variables)}
      assert gradients.shape[1] == size.get(name, gradients.shape[1])
      assert history[f"{name}_gradient_snr"] == pytest.approx([snr_of(gradients)], rel=1e-3)
      expected.setdefault((bound, name), gradients)
  for name in tracked:
    assert (name, "model") in expected
    np.testing.assert_allclose(
      expected["iwae", name], expected[name, "proposal"], rtol=1e-3, atol=1e-6
    )


def test_it_does_not_depend_on_which_estimator_is_trained_on():
  """It agrees with gradients at the last parameters; averages along the run had the order reversed.

  At this learning rate the parameters wander about the optimum, driven by the gradients' noise.
  """
  model = helpers.compiled(helpers.vae(), optimizer=keras.optimizers.Adam(0.02), **FOLLOWING)
  train = tf.data.Dataset.from_tensor_slices(X).shuffle(512, seed=1).batch(16).repeat()
  callback = models.GradientSNR(batches_of(200, 16), 200)
  fit = {"steps_per_epoch": 400, "verbose": 0, "callbacks": [callback]}
  history = model.fit(train, **fit).history

  variables = model.encoder.trainable_variables

  @tf.function(autograph=False)
  def gradient(batch, seed, bound):
    with tf.GradientTape() as tape:
      objective = model.estimate(batch, bound=bound, num_samples=5, seed=seed).objective
      mean = tf.reduce_mean(objective)
    return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(mean, variables)], axis=0)

  measured = {}
  drawn = list(batches_of(200, 16)(99))
  for name, bound in (("proposal", "iwae_dreg"), ("iwae", "iwae")):
    gradients = [gradient(batch, tf.constant([i, 7]), bound) for i, batch in enumerate(drawn)]
    expected = snr_of(np.array(gradients, np.float64))
    (measured[name],) = history[f"{name}_gradient_snr"]
    limit = 3 * math.hypot(*[standard_error(expected, 200)] * 2)
    assert abs(measured[name] ** 2 - expected**2) < limit, (name, measured[name], expected)
  assert measured["proposal"] > 2 * measured["iwae"]


@pytest.mark.parametrize("dimensions", [1, 40])
@pytest.mark.parametrize("snr", [0.0, 0.2, 1.0])
def test_the_stated_error_holds(snr, dimensions):
  """It bounds the error of normal gradients, and is reached if all noise has one direction."""
  random = np.random.default_rng(3)
  draws = random.normal(size=[4000, 50, dimensions])
  draws[..., 0] += snr * math.sqrt(dimensions)
  totals = np.sum(draws.sum(axis=1) ** 2, axis=-1)
  squares = np.sum(draws**2, axis=(1, 2))
  noise = (squares - totals / 50) / 49
  signed = (totals - squares) / (50 * 49) / noise
  reported = [gradient_snr._snr(*pair, 50) for pair in zip(totals, squares, strict=True)]
  np.testing.assert_allclose(np.square(reported), np.maximum(signed, 0.0), atol=1e-12)
  error = np.std(signed)
  if dimensions == 1:
    assert error == pytest.approx(standard_error(snr, 50), rel=0.15)
  elif snr == 0.0:
    assert error == pytest.approx(standard_error(snr, 50) / math.sqrt(dimensions), rel=0.1)
  else:
    assert error < standard_error(snr, 50)


class Normalized(models.LatentVariableModel):
  """A model with statistics that training moves."""

  def __init__(self):
    super().__init__()
    self.normalization, self.encoder = keras.layers.BatchNormalization(), keras.layers.Dense(2)
    self.decoder = keras.layers.Dense(6)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2))

  def proposal(self, x, context):
    return tfd.MultivariateNormalDiag(self.encoder(self.normalization(x)), tf.ones(2))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.decoder(z)), 1)


def test_a_measurement_changes_nothing():
  trained = []
  for callbacks in ([], [models.GradientSNR(batches_of(3, 4), 3)]):
    seed_layers(0)
    model = helpers.compiled(Normalized(), run_eagerly=True, gradient_statistics=True)
    fit = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    history = model.fit(X[:8], **fit, callbacks=callbacks).history
    trained.append([*model.get_weights(), *(v.numpy() for v in model.followers.variables)])
    trained[-1] += [history["bound"], history["proposal_gradient_variance"]]
  for actual, expected in zip(*trained, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_it_measures_with_the_number_of_backward_samples_in_use():
  options = {"gradient_statistics": True, "num_backward_samples": "auto"}
  model = helpers.compiled(helpers.vae(), optimizer=keras.optimizers.SGD(0.0), **options)
  callback = models.GradientSNR(lambda step: batches_of(3, 4)(0), 3)
  callback.set_model(model)
  found = []
  for number in (5, 1):
    model.num_backward_samples = number
    callback.on_epoch_end(0, logs := {})
    found.append(logs["model_gradient_snr"])
  assert found[0] != found[1]


def test_what_cannot_be_measured_is_refused():
  with pytest.raises(ValueError, match="num_batches.*1"):
    models.GradientSNR(batches_of(3, 4), num_batches=1)
  plain = helpers.compiled(helpers.vae(), run_eagerly=True)
  with pytest.raises(ValueError, match="gradient_statistics or track_variance"):
    plain.fit(X[:4], verbose=0, callbacks=[models.GradientSNR(batches_of(3, 4))])
  sequences = helpers.compiled(models.VRNN(np.full(6, 0.5), 2, (3,), 3), run_eagerly=True)
  with pytest.raises(ValueError, match="gradient_statistics or track_variance"):
    sequences.fit(X[:4, None], verbose=0, callbacks=[models.GradientSNR(batches_of(3, 4))])
  model = helpers.compiled(helpers.vae(), run_eagerly=True, **FOLLOWING)
  with pytest.raises(ValueError, match="at least 2 batches, got 1"):
    model.fit(X[:4], verbose=0, callbacks=[models.GradientSNR(batches_of(1, 4))])
