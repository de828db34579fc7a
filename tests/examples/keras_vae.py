"""The convolutional VAE of Keras' documentation: two Functional models, a fixed Normal prior.

Written from its description at https://keras.io/examples/generative/vae.
"""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.examples import digits, layouts

tfd = tfp.distributions

_LATENT_DIM = 2


@keras.saving.register_keras_serializable("examples")
class KerasVAE(models.LatentVariableModel):
  """Images [8, 8, 1] of gray values, two latents."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.encoder = _encoder(self.dtype_policy)
    self.decoder = _decoder(self.dtype_policy)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros([_LATENT_DIM]))

  def proposal(self, x, context):
    z_mean, z_log_var = self.encoder(x)
    return tfd.MultivariateNormalDiag(z_mean, tf.exp(0.5 * z_log_var))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(layouts.apply_to_rows(self.decoder, z)), 3)


def _encoder(dtype) -> keras.Model:
  options = {"padding": "same", "activation": "relu", "dtype": dtype}
  images = keras.Input((8, 8, 1))
  x = keras.layers.Conv2D(8, 3, strides=2, **options)(images)
  x = keras.layers.Conv2D(16, 3, strides=2, **options)(x)
  x = keras.layers.Flatten(dtype=dtype)(x)
  x = keras.layers.Dense(16, activation="relu", dtype=dtype)(x)
  # Keras' advice for mixed precision: outputs in float32.
  z_mean = keras.layers.Dense(_LATENT_DIM, name="z_mean", dtype="float32")(x)
  z_log_var = keras.layers.Dense(_LATENT_DIM, name="z_log_var", dtype="float32")(x)
  return keras.Model(images, [z_mean, z_log_var], name="encoder")


def _decoder(dtype) -> keras.Model:
  options = {"padding": "same", "activation": "relu", "dtype": dtype}
  latents = keras.Input((_LATENT_DIM,))
  x = keras.layers.Dense(2 * 2 * 16, activation="relu", dtype=dtype)(latents)
  x = keras.layers.Reshape((2, 2, 16), dtype=dtype)(x)
  x = keras.layers.Conv2DTranspose(16, 3, strides=2, **options)(x)
  x = keras.layers.Conv2DTranspose(8, 3, strides=2, **options)(x)
  logits = keras.layers.Conv2DTranspose(1, 3, padding="same", dtype="float32")(x)
  return keras.Model(latents, logits, name="decoder")


def make(dtype: str, **options) -> KerasVAE:
  """Returns a new model, compiled with these options besides."""
  model = KerasVAE(dtype=dtype)
  model.compile(keras.optimizers.Adam(1e-2), num_samples=4, seed=3, jit_compile=False, **options)
  return model


def data() -> tuple[tuple, tuple]:
  """Returns what to train and to validate on, each the positional arguments of `fit`."""
  (train, _), (valid, _) = digits.load()
  return (train,), (valid,)
