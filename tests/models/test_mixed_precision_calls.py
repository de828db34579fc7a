"""Tests that a call, as `predict` and `export` make it, rounds no data that `fit` does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.models import helpers

tfd = tfp.distributions


class Scaled(models.LatentVariableModel):
  """Observations [batch_size, 2] around z, with scales that are given as contexts."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.location = self.add_weight(name="location", shape=(2,), initializer="ones")
    self.encoder = keras.layers.Dense(2, dtype=self.dtype_policy)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.convert_to_tensor(self.location), tf.ones([2]))

  def proposal(self, x, context):
    loc = tf.cast(self.encoder(x), tf.float32) + self.location
    return tfd.MultivariateNormalDiag(loc, tf.ones([2]))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Normal(0 * z + context, 1.0), 1)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_call_does_not_round_contexts(dtype):
  model = helpers.compiled(Scaled(dtype=dtype), run_eagerly=True)
  # 1001 and 4099 are no numbers of bfloat16 and of float16.
  context = np.array([[1001.0, 4099.0], [3.0, 1.0], [2.0, 5.0]], "float32")
  x = np.ones([3, 2], "float32")
  np.testing.assert_array_equal(model((context, x)), context)
  np.testing.assert_array_equal(model.predict((context, x), verbose=0), context)
  np.testing.assert_array_equal(model.reconstruct(x, context), context)
