"""A convolutional VAE with BatchNormalization and Dropout in both of its nets."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.examples import digits, layouts

tfd = tfp.distributions

_LATENT_DIM = 6


@keras.saving.register_keras_serializable("examples")
class ConvolutionalVAE(models.LatentVariableModel):
  """Images [8, 8, 1] of gray values; layers that train and evaluate in different ways."""

  def __init__(self, dropout: float = 0.1, **kwargs):
    super().__init__(**kwargs)
    self.dropout = dropout
    dtype = self.dtype_policy
    options = {"padding": "same", "use_bias": False, "dtype": dtype}
    self.encoder = keras.Sequential(
      [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(8, 3, strides=2, **options),
        keras.layers.BatchNormalization(momentum=0.9, dtype=dtype),
        keras.layers.Activation("relu", dtype=dtype),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dropout(dropout, dtype=dtype),
        keras.layers.Dense(2 * _LATENT_DIM, dtype="float32"),
      ]
    )
    self.decoder = keras.Sequential(
      [
        keras.Input((_LATENT_DIM,)),
        keras.layers.Dense(4 * 4 * 8, dtype=dtype),
        keras.layers.Dropout(dropout, dtype=dtype),
        keras.layers.Reshape((4, 4, 8), dtype=dtype),
        keras.layers.Conv2DTranspose(8, 3, strides=2, **options),
        keras.layers.BatchNormalization(momentum=0.9, dtype=dtype),
        keras.layers.Activation("relu", dtype=dtype),
        keras.layers.Conv2D(1, 3, padding="same", dtype="float32"),
      ]
    )

  def prior(self, context):
    return tfd.Sample(tfd.Normal(0.0, 1.0), [_LATENT_DIM])

  def proposal(self, x, context):
    loc, raw_scale = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.Independent(tfd.Normal(loc, tf.nn.softplus(raw_scale)), 1)

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(layouts.apply_to_rows(self.decoder, z)), 3)

  def get_config(self):
    return super().get_config() | {"dropout": self.dropout}


def make(dtype: str, **options) -> ConvolutionalVAE:
  """Returns a new model, compiled with these options besides."""
  model = ConvolutionalVAE(dtype=dtype)
  model.compile(keras.optimizers.Adam(1e-2), num_samples=4, seed=3, jit_compile=False, **options)
  return model


def data() -> tuple[tuple, tuple]:
  """Returns what to train and to validate on, each the positional arguments of `fit`."""
  (train, _), (valid, _) = digits.load()
  return (train,), (valid,)
