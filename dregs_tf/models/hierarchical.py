"""Defines a generative model with layers of latents, joined by learned conditional Normals."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf.models import batches, specs, vae
from dregs_tf.models.base import LatentVariableModel
from dregs_tf.models.conditional import ConditionalBernoulli, ConditionalNormal, Normal

tfd = tfp.distributions

# The hidden layers of Burda et al.: between x and z1, and between any z and the next.
_FIRST, _OTHERS = (200, 200), (100, 100)


@keras.saving.register_keras_serializable("dregs_tf")
class HierarchicalVAE(LatentVariableModel):
  """Models binary data by layers of latents z1, ..., zL (Burda et al. 2015, two layers).

  p(zL) = N(0, I), p(z1 | z2), ..., q(z1 | x), q(z2 | z1), ... factorized Normals, p(x | z1)
  Bernoulli; nets of tanh layers. https://arxiv.org/abs/1509.00519

  The latents are a dict {"z1": [..., latent_dims[0]], ...}. The conditionals of the prior are
  learned, so `compile(prior_gradient="dreg")` may lower the variance of their gradient.

  Args:
    data_mean: as `VAE` takes it, [D].
    latent_dims: the number of latent variables in each layer, the one next to x first.
    hidden_units: the sizes of hidden layers, for all nets, or one sequence per layer of latents for
      the nets between that layer and the one below, in either direction. By default (200, 200) for
      the first layer and (100, 100) for the others.
    **kwargs: arguments of a Keras model, such as `name` and `dtype`.

  Raises:
    ValueError: if the sizes or the mean are not valid.
  """

  binary_observations = True

  def __init__(
    self,
    data_mean: np.ndarray | tf.Tensor,
    latent_dims: Sequence[int] = (100, 50),
    hidden_units: Sequence[int] | Sequence[Sequence[int]] | None = None,
    **kwargs: Any,
  ):
    super().__init__(**kwargs)
    self.data_mean = vae.check_mean("data_mean", data_mean)
    self.latent_dims = vae.check_sizes("latent_dims", latent_dims)
    if not self.latent_dims:
      raise ValueError("latent_dims must hold at least one int, got none.")
    self.hidden_units = _by_layer(hidden_units, len(self.latent_dims))
    sizes = [self.data_mean.size, *self.latent_dims]
    nets = {"encoder": [], "prior": []}
    for layer, units in enumerate(self.hidden_units, start=1):
      options = {"hidden_units": units, "dtype": self.dtype_policy}
      encoder = ConditionalNormal(sizes[layer], name=f"encoder_z{layer}", **options)
      encoder.build((None, sizes[layer - 1]))
      nets["encoder"].append(encoder)
      if layer > 1:
        prior = ConditionalNormal(sizes[layer - 1], name=f"prior_z{layer - 1}", **options)
        prior.build((None, sizes[layer]))
        nets["prior"].append(prior)
    self.encoders, self.conditional_priors = nets["encoder"], nets["prior"]
    options = {"hidden_units": self.hidden_units[0], "dtype": self.dtype_policy}
    self.decoder = ConditionalBernoulli(self.data_mean, name="decoder", **options)
    self.decoder.build((None, self.latent_dims[0]))
    self._specs = specs.from_shape((None, self.data_mean.size), self.float_dtype)
    self.built = True

  def _check_parts(self, context, x) -> None:
    vae.refuse_context(self, context)

  @property
  def model_layers(self) -> list[keras.layers.Layer]:
    """Returns the nets of the prior and the decoder."""
    return [*self.conditional_priors, self.decoder]

  def proposal_input(self, x: Any):
    """Returns x with its missing features, if `compile` allows any, set to the data's mean."""
    return self._filled(x, self.data_mean)

  def prior(self, context: Any = None) -> tfd.Distribution:
    """Returns p(z1, ..., zL), a joint distribution of batch shape []."""
    vae.refuse_context(self, context)
    zeros = tf.zeros([self.latent_dims[-1]], self.float_dtype)
    top = len(self.latent_dims)
    parts = {f"z{top}": tfd.Independent(Normal(zeros, tf.ones_like(zeros)), 1)}
    for layer in range(top - 1, 0, -1):
      parts[f"z{layer}"] = _given(f"z{layer + 1}", self.conditional_priors[layer - 1])
    return tfd.JointDistributionNamed(parts)

  def proposal(self, x: tf.Tensor, context: Any = None) -> tfd.Distribution:
    """Returns q(z1, ..., zL | x) for x [batch_size, D]: a joint distribution."""
    vae.refuse_context(self, context)
    x = vae.as_vectors("x", x, self.data_mean.size, self.float_dtype)
    x = x - tf.constant(self.data_mean, x.dtype)
    parts = {"z1": self.encoders[0].distribution(x)}
    for layer, encoder in enumerate(self.encoders[1:], start=2):
      parts[f"z{layer}"] = _given(f"z{layer - 1}", encoder)
    joint = tfd.JointDistributionNamed(parts)
    joint.draws_for_whole_batch = True  # As its parts do, see `conditional.Normal`.
    return joint

  def likelihood(self, z: dict[str, tf.Tensor], context: Any = None) -> tfd.Distribution:
    """Returns p(x | z1) for z1 of shape [..., latent_dims[0]]: batch shape [...], event [D]."""
    vae.refuse_context(self, context)
    return self.decoder.distribution(batches.as_floats(z["z1"], self.float_dtype))

  def get_config(self):
    return super().get_config() | {
      "data_mean": self.data_mean.tolist(),
      "latent_dims": list(self.latent_dims),
      "hidden_units": [list(units) for units in self.hidden_units],
    }


def _given(parent: str, net: ConditionalNormal) -> Callable[..., tfd.Distribution]:
  """Returns a function, for a joint distribution, from the layer `parent` to a conditional."""
  return lambda **layers: net.distribution(layers[parent])


def _by_layer(hidden_units, num_layers: int) -> tuple[tuple[int, ...], ...]:
  """Returns the sizes of the hidden layers for each layer of latents."""
  if hidden_units is None:
    return (_FIRST, *[_OTHERS] * (num_layers - 1))
  is_sequence = isinstance(hidden_units, (list, tuple)) and len(hidden_units) > 0
  if is_sequence and all(isinstance(units, (list, tuple)) for units in hidden_units):
    units = tuple(vae.check_sizes("hidden_units", each) for each in hidden_units)
    if len(units) != num_layers:
      raise ValueError(
        f"hidden_units must have a sequence for each of the {num_layers} layers of latents, or be "
        f"one sequence for all, got {len(units)} of them."
      )
    return units
  return (vae.check_sizes("hidden_units", hidden_units),) * num_layers
