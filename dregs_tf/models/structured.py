"""Defines the paper's structured prediction model: all its distributions have a context."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation
from dregs_tf.models import batches, specs, vae
from dregs_tf.models.base import LatentVariableModel
from dregs_tf.models.conditional import ConditionalBernoulli, ConditionalNormal

tfd = tfp.distributions


@keras.saving.register_keras_serializable("dregs_tf")
class StructuredVAE(LatentVariableModel):
  """Predicts x from a context c through latents (Sec. 6.3), such as half an image from the other.

  p(z | c) and q(z | x, c) are factorized Normals, p(x | z, c) is Bernoulli; nets of tanh layers.
  Its batches are (context, observation) pairs.

  Args:
    context_mean: the mean of the training contexts, gray values in [0, 1] of shape [C]. The nets of
      prior and proposal see the context minus this mean.
    data_mean: the mean of the observations, gray values in [0, 1] of shape [D].
    latent_dim: the number of latent variables.
    hidden_units: the sizes of each net's hidden layers.
    **kwargs: arguments of a Keras model, such as `name` and `dtype`.

  Raises:
    ValueError: if a mean or the sizes are not valid.
  """

  binary_observations = True

  def __init__(
    self,
    context_mean: np.ndarray | tf.Tensor,
    data_mean: np.ndarray | tf.Tensor,
    latent_dim: int = 50,
    hidden_units: Sequence[int] = (200, 200),
    **kwargs: Any,
  ):
    super().__init__(**kwargs)
    self.context_mean = vae.check_mean("context_mean", context_mean)
    self.data_mean = vae.check_mean("data_mean", data_mean)
    self.latent_dim = evaluation.check_int("latent_dim", latent_dim, at_least=1)
    self.hidden_units = vae.check_sizes("hidden_units", hidden_units)
    options = {"hidden_units": self.hidden_units, "dtype": self.dtype_policy}
    self.conditional_prior = ConditionalNormal(self.latent_dim, name="prior", **options)
    self.encoder = ConditionalNormal(self.latent_dim, name="encoder", **options)
    self.decoder = ConditionalBernoulli(self.data_mean, name="decoder", **options)
    context_shape = (None, self.context_mean.size)
    self.conditional_prior.build(context_shape)
    self.encoder.build([(None, self.data_mean.size), context_shape])
    self.decoder.build([(None, self.latent_dim), context_shape])
    shapes = (context_shape, (None, self.data_mean.size))
    self._specs = specs.from_shape(shapes, self.float_dtype)
    self.built = True

  def _check_parts(self, context, x) -> None:
    if context is None:
      raise ValueError(
        "StructuredVAE takes batches of (context, observation) pairs, got observations alone."
      )

  @property
  def model_layers(self) -> list[keras.layers.Layer]:
    """Returns the conditional prior and the decoder."""
    return [self.conditional_prior, self.decoder]

  def proposal_input(self, x: tf.Tensor):
    """Returns x with its missing features, if `compile` allows any, set to the data's mean."""
    return self._filled(x, self.data_mean)

  def prior(self, context: tf.Tensor) -> tfd.Distribution:
    """Returns p(z | c) for contexts [batch_size, C]: batch shape [batch_size]."""
    return self.conditional_prior.distribution(self._centered(context))

  def proposal(self, x: tf.Tensor, context: tf.Tensor) -> tfd.Distribution:
    """Returns q(z | x, c) for x [batch_size, D]: batch shape [batch_size]."""
    x = vae.as_vectors("x", x, self.data_mean.size, self.float_dtype)
    x = x - tf.constant(self.data_mean, x.dtype)
    return self.encoder.distribution([x, self._centered(context)])

  def likelihood(self, z: tf.Tensor, context: tf.Tensor) -> tfd.Distribution:
    """Returns p(x | z, c) for z [..., batch_size, latent_dim]: batch shape [..., batch_size]."""
    z = batches.as_floats(z, self.float_dtype)
    return self.decoder.distribution([z, tf.cast(self._checked(context), z.dtype)])

  def _centered(self, context) -> tf.Tensor:
    context = self._checked(context)
    return context - tf.constant(self.context_mean, context.dtype)

  def _checked(self, context) -> tf.Tensor:
    self._check_parts(context, None)
    return vae.as_vectors("context", context, self.context_mean.size, self.float_dtype)

  def get_config(self):
    return super().get_config() | {
      "context_mean": self.context_mean.tolist(),
      "data_mean": self.data_mean.tolist(),
      "latent_dim": self.latent_dim,
      "hidden_units": list(self.hidden_units),
    }
