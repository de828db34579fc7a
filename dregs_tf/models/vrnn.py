"""Defines a variational recurrent neural net, as in the experiments of FIVO."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation
from dregs_tf.models import specs, vae
from dregs_tf.models.conditional import MLP, ConditionalBernoulli, ConditionalNormal
from dregs_tf.models.state_space import StateSpaceModel

tfd = tfp.distributions


@keras.saving.register_keras_serializable("dregs_tf")
class VRNN(StateSpaceModel):
  """Models sequences with latents and an LSTM over all earlier observations and latents.

  Chung et al. 2015 (https://arxiv.org/abs/1506.02216), with the nets of Maddison et al. 2017:
  p(z_t | h), q(z_t | x_t, h) factorized Normals, p(x_t | z_t, h) Bernoulli or Normal, and
  h' = LSTM(features of x_t, features of z_t; h). The nets have tanh layers.

  Args:
    data_mean: the mean of the training data over sequences and steps, [D]; gray values in [0, 1]
      unless the likelihood is Normal. The nets see the observations minus this mean.
    latent_dim: the number of latent variables of a step.
    hidden_units: the sizes of each net's hidden layers.
    rnn_units: the size of the LSTM.
    likelihood: "bernoulli" or "normal".
    **kwargs: arguments of a Keras model, such as `name` and `dtype`.

  Raises:
    ValueError: if the mean, the sizes or the likelihood are not valid.
  """

  def __init__(
    self,
    data_mean: np.ndarray | tf.Tensor,
    latent_dim: int = 16,
    hidden_units: Sequence[int] = (64,),
    rnn_units: int = 64,
    likelihood: str = "bernoulli",
    **kwargs: Any,
  ):
    super().__init__(**kwargs)
    if likelihood not in ("bernoulli", "normal"):
      raise ValueError(f"likelihood must be bernoulli or normal, got {likelihood!r}.")
    self.observed = likelihood
    self.binary_observations = likelihood == "bernoulli"
    self.data_mean = _check_mean(data_mean, likelihood)
    self.latent_dim = evaluation.check_int("latent_dim", latent_dim, at_least=1)
    self.hidden_units = vae.check_sizes("hidden_units", hidden_units)
    self.rnn_units = evaluation.check_int("rnn_units", rnn_units, at_least=1)
    sizes = {"hidden_units": self.hidden_units, "dtype": self.dtype_policy}
    size = self.data_mean.size
    self.transition = ConditionalNormal(self.latent_dim, name="transition", **sizes)
    self.encoder = ConditionalNormal(self.latent_dim, name="encoder", **sizes)
    if self.binary_observations:
      self.decoder = ConditionalBernoulli(self.data_mean, name="decoder", **sizes)
    else:
      self.decoder = ConditionalNormal(size, name="decoder", **sizes)
    # Feature nets have the same hidden layers as the other nets, and a linear last layer.
    units = self.hidden_units[-1] if self.hidden_units else self.rnn_units
    self.x_features = MLP(units, name="x_features", **sizes)
    self.z_features = MLP(units, name="z_features", **sizes)
    self.cell = keras.layers.LSTMCell(self.rnn_units, dtype=self.dtype_policy, name="cell")
    state = (None, self.rnn_units)
    self.transition.build(state)
    self.x_features.build((None, size))
    self.z_features.build((None, self.latent_dim))
    self.encoder.build([(None, units), state])
    self.decoder.build([(None, units), state])
    self.cell.build((None, 2 * units))
    self._specs = specs.from_shape((None, 1, size), self.float_dtype)
    self.built = True

  @property
  def model_layers(self) -> list[keras.layers.Layer]:
    """Returns the layers of p(x, z): all but the encoder."""
    return [self.transition, self.decoder, self.x_features, self.z_features, self.cell]

  def initial_state(self, batch_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the LSTM's output and memory, zeros [batch_size, rnn_units]."""
    zeros = tf.zeros([batch_size, self.rnn_units], self.float_dtype)
    return zeros, zeros

  def prior(self, z_previous: tf.Tensor | None, state: Any) -> tfd.Distribution:
    """Returns p(z_t | h) for h [..., rnn_units]: batch shape [...]; z_{t-1} is in the state."""
    return self.transition.distribution(state[0])

  def proposal(self, x: tf.Tensor, z_previous: tf.Tensor | None, state: Any) -> tfd.Distribution:
    """Returns q(z_t | x_t, h) for x [batch_size, D]."""
    return self.encoder.distribution([self._features_of(x), state[0]])

  def likelihood(self, z: tf.Tensor, state: Any) -> tfd.Distribution:
    """Returns p(x_t | z_t, h) for z [..., latent_dim]: batch shape [...], event shape [D]."""
    return self._shifted(self.decoder.distribution([self._as_floats(self.z_features(z)), state[0]]))

  def next_state(self, state: Any, z: tf.Tensor, x: tf.Tensor) -> Any:
    """Returns the LSTM's output and memory after a step, [num_particles, batch_size, rnn_units]."""
    of_z = self._as_floats(self.z_features(z))
    of_x = self._features_of(x) + tf.zeros_like(of_z)
    inputs = tf.concat([of_x, of_z], axis=-1)
    rows = [tf.reshape(leaf, [-1, leaf.shape[-1]]) for leaf in (inputs, *state)]
    _, after = self.cell(rows[0], rows[1:])
    return tuple(
      tf.reshape(self._as_floats(new), tf.shape(old)) for new, old in zip(after, state, strict=True)
    )

  def _features_of(self, x) -> tf.Tensor:
    x = vae.as_vectors("x", x, self.data_mean.size, self.float_dtype)
    return self._as_floats(self.x_features(x - tf.constant(self.data_mean, x.dtype)))

  def _as_floats(self, tensor) -> tf.Tensor:
    """Returns a layer's output in the dtype of the data, whatever the layers compute in."""
    return tf.cast(tensor, self.float_dtype)

  def _shifted(self, distribution):
    """Returns the likelihood shifted by the data's mean, which a Bernoulli's logits contain."""
    if self.binary_observations:
      return distribution
    normal = distribution.distribution
    return tfd.Independent(
      type(normal)(normal.loc + tf.constant(self.data_mean, normal.dtype), normal.scale), 1
    )

  def get_config(self):
    return super().get_config() | {
      "data_mean": self.data_mean.tolist(),
      "latent_dim": self.latent_dim,
      "hidden_units": list(self.hidden_units),
      "rnn_units": self.rnn_units,
      "likelihood": self.observed,
    }


def _check_mean(mean, likelihood: str) -> np.ndarray:
  if likelihood == "bernoulli":
    return vae.check_mean("data_mean", mean)
  mean = np.asarray(mean, np.float32)
  if mean.ndim != 1 or not mean.size or not np.all(np.isfinite(mean)):
    raise ValueError(f"data_mean must be a vector of numbers, got shape {list(mean.shape)}.")
  return mean
