"""Two stochastic layers, each pair of them joined by tanh layers, as in Burda et al. (2015)."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import models
from tests.examples import digits

tfd = tfp.distributions

_SIZES = (6, 3)


@keras.saving.register_keras_serializable("examples")
class TwoLayers(models.LatentVariableModel):
  """Binary pixels [64]; q(z1 | x) q(z2 | z1), and p(z2) p(z1 | z2) p(x | z1)."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    first, second = _SIZES
    self.first_encoder = self._net(2 * first)
    self.second_encoder = self._net(2 * second)
    self.prior_net = self._net(2 * first)
    self.decoder = self._net(64)

  def _net(self, size: int) -> list[keras.layers.Layer]:
    """Returns layers for inputs of any rank: a JointDistribution's samples have more than one."""
    return [
      keras.layers.Dense(16, "tanh", dtype=self.dtype_policy),
      keras.layers.Dense(size, dtype="float32"),
    ]

  def prior(self, context):
    return tfd.JointDistributionNamed(
      {
        # A batch of one: Keras' layers take no single vector.
        "z2": tfd.MultivariateNormalDiag(tf.zeros([1, _SIZES[1]])),
        "z1": lambda z2: _normal(_apply(self.prior_net, z2)),
      }
    )

  def proposal(self, x, context):
    return tfd.JointDistributionNamed(
      {
        "z1": _normal(_apply(self.first_encoder, x)),
        "z2": lambda z1: _normal(_apply(self.second_encoder, z1)),
      }
    )

  def stopped_proposal(self, proposal):
    return dregs_tf.PathOnly(proposal)

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(_apply(self.decoder, z["z1"])), 1)


def _apply(layers: list[keras.layers.Layer], inputs: tf.Tensor) -> tf.Tensor:
  for layer in layers:
    inputs = layer(inputs)
  return inputs


def _normal(outputs: tf.Tensor) -> tfd.Distribution:
  loc, raw_scale = tf.split(outputs, 2, axis=-1)
  return tfd.MultivariateNormalDiag(loc, tf.nn.softplus(raw_scale))


def make(dtype: str, **options) -> TwoLayers:
  """Returns a new model, compiled with these options besides."""
  model = TwoLayers(dtype=dtype)
  model.compile(keras.optimizers.Adam(1e-2), num_samples=4, seed=3, jit_compile=False, **options)
  return model


def data() -> tuple[tuple, tuple]:
  """Returns what to train and to validate on, each the positional arguments of `fit`."""
  return tuple(((images.reshape([-1, 64]) > 0.5).astype("float32"),) for images, _ in digits.load())
