"""The VAE of TensorFlow Probability's examples: its prior is a mixture of Gaussians, learned too.

Written from the description in tensorflow_probability/examples/vae.
"""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.examples import digits, layouts

tfd = tfp.distributions

_LATENT_DIM, _NUM_COMPONENTS = 4, 5


@keras.saving.register_keras_serializable("examples")
class TFPVAE(models.LatentVariableModel):
  """Binary images [8, 8, 1]; p(z) is a mixture of five Gaussians."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    options = {"padding": "same", "activation": "leaky_relu", "dtype": self.dtype_policy}
    self.encoder = keras.Sequential(
      [
        keras.layers.Conv2D(8, 5, **options),
        keras.layers.Conv2D(8, 5, strides=2, **options),
        keras.layers.Conv2D(16, 5, strides=2, **options),
        keras.layers.Flatten(dtype=self.dtype_policy),
        keras.layers.Dense(2 * _LATENT_DIM, dtype="float32"),
      ]
    )
    self.decoder = keras.Sequential(
      [
        keras.layers.Reshape((1, 1, _LATENT_DIM), dtype=self.dtype_policy),
        keras.layers.Conv2DTranspose(16, 2, **options | {"padding": "valid"}),
        keras.layers.Conv2DTranspose(8, 5, strides=2, **options),
        keras.layers.Conv2DTranspose(8, 5, strides=2, **options),
        keras.layers.Conv2D(1, 5, padding="same", dtype="float32"),
      ]
    )
    components = (_NUM_COMPONENTS, _LATENT_DIM)
    self.loc = self.add_weight(name="loc", shape=components, initializer="random_normal")
    self.raw_scale = self.add_weight(name="raw_scale", shape=components, initializer="zeros")
    self.mixture_logits = self.add_weight(
      name="mixture_logits", shape=(_NUM_COMPONENTS,), initializer="zeros"
    )

  def prior(self, context):
    components = tfd.MultivariateNormalDiag(
      tf.convert_to_tensor(self.loc), tf.nn.softplus(self.raw_scale)
    )
    return tfd.MixtureSameFamily(
      tfd.Categorical(tf.convert_to_tensor(self.mixture_logits)), components
    )

  def proposal(self, x, context):
    loc, raw_scale = tf.split(self.encoder(2 * x - 1), 2, axis=-1)
    scale = tf.nn.softplus(raw_scale + tfp.math.softplus_inverse(1.0))
    return tfd.MultivariateNormalDiag(loc, scale)

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(layouts.apply_to_rows(self.decoder, z)), 3)


def make(dtype: str, **options) -> TFPVAE:
  """Returns a new model, compiled with these options besides."""
  model = TFPVAE(dtype=dtype)
  model.compile(keras.optimizers.Adam(1e-2), num_samples=4, seed=3, jit_compile=False, **options)
  return model


def data() -> tuple[tuple, tuple]:
  """Returns what to train and to validate on, each the positional arguments of `fit`."""
  (train, _), (valid, _) = digits.load()
  return ((train > 0.5).astype("float32"),), ((valid > 0.5).astype("float32"),)
