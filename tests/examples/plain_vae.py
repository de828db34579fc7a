"""A VAE that is a keras.Model of one's own: `bounds.estimate` in its train_step and test_step."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds
from tests.examples import digits

tfd = tfp.distributions

_LATENT_DIM = 4


@keras.saving.register_keras_serializable("examples")
class PlainVAE(keras.Model):
  """Binary pixels [64]; Keras' own class, so everything but the bound is Keras' usual code."""

  def __init__(self, num_samples: int = 4, **kwargs):
    super().__init__(**kwargs)
    self.num_samples = num_samples
    dtype = self.dtype_policy
    self.encoder = keras.Sequential(
      [
        keras.layers.Dense(24, "tanh", dtype=dtype),
        keras.layers.Dense(2 * _LATENT_DIM, dtype="float32"),
      ]
    )
    self.decoder = keras.Sequential(
      [
        keras.layers.Dense(24, "tanh", dtype=dtype),
        keras.layers.Dense(64, dtype="float32"),
      ]
    )
    self.bound = keras.metrics.Mean(name="bound")

  def call(self, inputs):
    """Returns the mean reconstruction at the proposal's location."""
    z = self._proposal(inputs).mean()
    # With the samples' axis that it has in training: a Sequential keeps the rank of its first call.
    return tf.sigmoid(self.decoder(z[tf.newaxis]))[0]

  def train_step(self, data):
    x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    seed = tf.stack([0, tf.cast(self.optimizer.iterations, tf.int32)])
    with tf.GradientTape() as tape:
      objective = self._estimate(x, seed).objective
      loss = self.optimizer.scale_loss(-tf.reduce_mean(objective))
    variables = self.trainable_variables
    self.optimizer.apply(tape.gradient(loss, variables), variables)
    return self._logs(objective)

  def test_step(self, data):
    x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    return self._logs(self._estimate(x, seed=[1, 0]).objective)

  def get_config(self):
    return super().get_config() | {"num_samples": self.num_samples}

  def _proposal(self, x) -> tfd.Distribution:
    loc, raw_scale = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.MultivariateNormalDiag(loc, tf.nn.softplus(raw_scale))

  def _estimate(self, x, seed) -> bounds.Estimate:
    prior = tfd.MultivariateNormalDiag(tf.zeros([_LATENT_DIM]))

    def log_joint(z):
      return prior.log_prob(z) + tfd.Independent(tfd.Bernoulli(self.decoder(z)), 1).log_prob(x)

    return bounds.estimate("iwae_dreg", log_joint, self._proposal(x), self.num_samples, seed=seed)

  def _logs(self, objective) -> dict[str, tf.Tensor]:
    self.bound.update_state(objective)
    return {"bound": self.bound.result()}


def make(dtype: str, **options) -> PlainVAE:
  """Returns a new model, compiled with these options besides."""
  model = PlainVAE(dtype=dtype)
  model.compile(keras.optimizers.Adam(1e-2), jit_compile=False, **options)
  return model


def data() -> tuple[tuple, tuple]:
  """Returns what to train and to validate on, each the positional arguments of `fit`."""
  return tuple(((images.reshape([-1, 64]) > 0.5).astype("float32"),) for images, _ in digits.load())
