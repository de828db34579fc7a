"""Tests that a model fitted on batches of unknown sizes is saved and loaded."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.models import helpers
from tests.models.test_state_space import AR

tfd = tfp.distributions

SEQUENCES = [helpers.binary(size, 3, seed=size) for size in (4, 6, 4, 5)]


@keras.saving.register_keras_serializable("tests")
class Pooled(models.LatentVariableModel):
  """Steps [T, 3] for any T of at least 2, which the encoder convolves and averages."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    layers = keras.layers
    # A single step would be too short for the convolution.
    self.encoder = keras.Sequential([layers.Conv1D(4, 2), layers.GlobalAveragePooling1D()])
    self.decoder = layers.Dense(3)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2))

  def proposal(self, x, context):
    loc, raw = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.MultivariateNormalDiag(loc, tf.nn.softplus(raw))

  def likelihood(self, z, context):
    return Steps(self.decoder(z))


class Steps:
  """Makes a distribution of steps [T, 3] that are independent given the same logits."""

  def __init__(self, logits):
    self._step = tfd.Independent(tfd.Bernoulli(logits[..., tf.newaxis, :]), 1)
    self.dtype, self.batch_shape = self._step.dtype, logits.shape[:-1]

  def log_prob(self, x):
    return tf.reduce_sum(self._step.log_prob(x), axis=-1)


@keras.saving.register_keras_serializable("tests")
class AnyLength(AR):
  """Sequences of real numbers, [T]."""


def padded(sequences):
  data = tf.data.Dataset.from_generator(
    lambda: iter(sequences), output_signature=tf.TensorSpec([None, *sequences[0].shape[1:]])
  )
  return data.padded_batch(2)


@pytest.mark.parametrize("make", [Pooled, AnyLength], ids=["pooled", "sequences"])
def test_it_is_saved_and_loaded(make, tmp_path):
  sequences = SEQUENCES if make is Pooled else [sequence[:, 0] for sequence in SEQUENCES]
  model, data = helpers.compiled(make(), num_samples=2), padded(sequences)
  model.fit(data, verbose=0)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  values = [each.log_likelihood(data, num_samples=3) for each in (model, loaded)]
  np.testing.assert_array_equal(*values)
