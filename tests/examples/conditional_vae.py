"""A conditional VAE of digits given their labels, which are integers that an Embedding takes."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.examples import digits

tfd = tfp.distributions

_LATENT_DIM, _NUM_LABELS = 4, 10


@keras.saving.register_keras_serializable("examples")
class ConditionalVAE(models.LatentVariableModel):
  """Pixels [64] in [0, 1] given a label, an integer from 0 to 9: batches of (label, pixels)."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    dtype = self.dtype_policy
    self.embedding = keras.layers.Embedding(_NUM_LABELS, 5, dtype=dtype)
    self.encoder_hidden = keras.layers.Dense(24, "relu", dtype=dtype)
    self.encoder = keras.layers.Dense(2 * _LATENT_DIM, dtype="float32")
    self.decoder_hidden = keras.layers.Dense(24, "relu", dtype=dtype)
    self.decoder = keras.layers.Dense(64, dtype="float32")

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros([_LATENT_DIM]))

  def proposal(self, x, context):
    # The other usual code for a label, beside the decoder's embedding.
    one_hot = tf.one_hot(context, _NUM_LABELS, dtype=x.dtype)
    hidden = self.encoder_hidden(tf.concat([x, one_hot], axis=-1))
    loc, raw_scale = tf.split(self.encoder(hidden), 2, axis=-1)
    return tfd.MultivariateNormalDiag(loc, tf.nn.softplus(raw_scale))

  def likelihood(self, z, context):
    label = tf.cast(self.embedding(context), z.dtype)
    label = tf.broadcast_to(label, tf.concat([tf.shape(z)[:-1], [label.shape[-1]]], axis=0))
    hidden = self.decoder_hidden(tf.concat([z, label], axis=-1))
    return tfd.Independent(tfd.Bernoulli(self.decoder(hidden)), 1)


def make(dtype: str, **options) -> ConditionalVAE:
  """Returns a new model, compiled with these options besides."""
  model = ConditionalVAE(dtype=dtype)
  model.compile(keras.optimizers.Adam(1e-2), num_samples=4, seed=3, jit_compile=False, **options)
  return model


def data() -> tuple[tuple, tuple]:
  """Returns what to train and to validate on, each the positional arguments of `fit`."""
  return tuple((labels, images.reshape([-1, 64])) for images, labels in digits.load())
