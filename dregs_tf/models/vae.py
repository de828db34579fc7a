"""Defines the paper's generative model: a Normal prior, a Bernoulli decoder, one latent layer."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation
from dregs_tf.models import batches, specs
from dregs_tf.models.base import LatentVariableModel
from dregs_tf.models.conditional import ConditionalBernoulli, ConditionalNormal, Normal

tfd = tfp.distributions


@keras.saving.register_keras_serializable("dregs_tf")
class VAE(LatentVariableModel):
  """Models binary data by a variational autoencoder (Sec. 6.2; Burda et al. 2015, one layer).

  p(z) = N(0, I), p(x | z) Bernoulli, q(z | x) a factorized Normal; nets of tanh layers.

  Args:
    data_mean: the mean of the training data, gray values in [0, 1] of shape [D]. The encoder sees
      its input minus this mean, the decoder's logits start from its logit.
    latent_dim: the number of latent variables.
    hidden_units: the sizes of each net's hidden layers.
    **kwargs: arguments of a Keras model, such as `name` and `dtype`.

  Raises:
    ValueError: if the mean or the sizes are not valid.
  """

  binary_observations = True

  def __init__(
    self,
    data_mean: np.ndarray | tf.Tensor,
    latent_dim: int = 50,
    hidden_units: Sequence[int] = (200, 200),
    **kwargs: Any,
  ):
    super().__init__(**kwargs)
    self.data_mean = check_mean("data_mean", data_mean)
    self.latent_dim = evaluation.check_int("latent_dim", latent_dim, at_least=1)
    self.hidden_units = check_sizes("hidden_units", hidden_units)
    options = {"hidden_units": self.hidden_units, "dtype": self.dtype_policy}
    self.encoder = self._make_encoder(self.latent_dim, name="encoder", **options)
    self.decoder = ConditionalBernoulli(self.data_mean, name="decoder", **options)
    self.encoder.build((None, self.data_mean.size))
    self.decoder.build((None, self.latent_dim))
    self._specs = specs.from_shape((None, self.data_mean.size), self.float_dtype)
    self.built = True

  @staticmethod
  def _make_encoder(event_size: int, **options) -> keras.layers.Layer:
    return ConditionalNormal(event_size, **options)

  def _check_parts(self, context, x) -> None:
    refuse_context(self, context)

  @property
  def model_layers(self) -> list[keras.layers.Layer]:
    """Returns the decoder; the prior has no parameters."""
    return [self.decoder]

  def proposal_input(self, x: Any):
    """Returns x with its missing features, if `compile` allows any, set to the data's mean."""
    return self._filled(x, self.data_mean)

  def prior(self, context: Any = None) -> tfd.Distribution:
    """Returns p(z) = N(0, I): batch shape [], event shape [latent_dim]."""
    refuse_context(self, context)
    zeros = tf.zeros([self.latent_dim], self.float_dtype)
    return tfd.Independent(Normal(zeros, tf.ones_like(zeros)), 1)

  def proposal(self, x: tf.Tensor, context: Any = None) -> tfd.Distribution:
    """Returns q(z | x) for x [batch_size, D]: batch shape [batch_size], event [latent_dim]."""
    refuse_context(self, context)
    x = as_vectors("x", x, self.data_mean.size, self.float_dtype)
    return self.encoder.distribution(x - tf.constant(self.data_mean, x.dtype))

  def likelihood(self, z: tf.Tensor, context: Any = None) -> tfd.Distribution:
    """Returns p(x | z) for z of shape [..., latent_dim]: batch shape [...], event shape [D]."""
    refuse_context(self, context)
    return self.decoder.distribution(batches.as_floats(z, self.float_dtype))

  def get_config(self):
    return super().get_config() | {
      "data_mean": self.data_mean.tolist(),
      "latent_dim": self.latent_dim,
      "hidden_units": list(self.hidden_units),
    }


def check_mean(name: str, mean: np.ndarray | tf.Tensor) -> np.ndarray:
  """Returns `mean` as a float32 vector; raises a ValueError unless its values are in [0, 1]."""
  mean = np.asarray(mean, np.float32)
  if mean.ndim != 1 or not mean.size or not np.all((mean >= 0) & (mean <= 1)):
    values = f", values {mean.min()} to {mean.max()}" if mean.size else ""
    raise ValueError(
      f"{name} must be a vector of gray values in [0, 1], got shape {list(mean.shape)}{values}."
    )
  return mean


def check_sizes(name: str, values: Any) -> tuple[int, ...]:
  """Returns `values` as a tuple; raises a ValueError unless they are positive integers."""
  if not isinstance(values, (list, tuple)):
    raise ValueError(
      f"{name} must be a sequence of positive ints, such as (200, 200), got {values!r}."
    )
  return tuple(evaluation.check_int(name, value, at_least=1) for value in values)


def as_vectors(name: str, value: Any, size: int, dtype: tf.DType) -> tf.Tensor:
  """Converts an array to a Tensor of `dtype`; raises unless its shape is [batch_size, size]."""
  if isinstance(value, dict):
    raise ValueError(f"{name} must have shape [batch_size, {size}], got a dict.")
  value = batches.as_floats(value, dtype)
  if value.shape.rank != 2 or value.shape[-1] not in (None, size):
    raise ValueError(f"{name} must have shape [batch_size, {size}], got {value.shape}.")
  return value


def refuse_context(model: keras.Model, context: Any) -> None:
  """Raises a ValueError if a model that takes no context is given one."""
  if context is not None:
    raise ValueError(
      f"{type(model).__name__} takes batches of observations alone, got pairs: the first part of a "
      "pair is a context, the second the observation. If these are images and their labels, "
      "drop the labels: dataset.map(lambda image, label: image). A conditional model such as "
      "StructuredVAE takes (context, observation)."
    )
