"""Defines a multi-modal model: an expert for each modality, whose mixture is the proposal."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, gradients, seeds
from dregs_tf.mixtures import StratifiedMixture
from dregs_tf.models import batches
from dregs_tf.models.base import LatentVariableModel
from dregs_tf.models.conditional import ConditionalBernoulli, Normal

tfd = tfp.distributions


@keras.saving.register_keras_serializable("dregs_tf")
class MixtureOfExpertsVAE(LatentVariableModel):
  """Models several modalities by the same latents (MMVAE; Shi et al. 2019).

  p(z) = N(0, I), p(x | z) is the product of p(x_m | z) over the modalities, and q(z | x) a mixture
  of experts q_m(z | x_m), each of which sees one modality. The mixture is a `StratifiedMixture`:
  num_samples is the number of samples of each expert, "iwae_dreg" trains the tight bound, and
  "miselbo_dreg" the looser one, in which every expert alone explains all modalities.
  https://arxiv.org/abs/1911.03393

  An observation is a dict of modalities, each [batch_size, ...]. A context, as in `fit(present,
  x)`, says which are present: a dict of masks [batch_size] for those that may be missing. A missing
  modality's expert has probability 0 and its likelihood is left out, so its values affect neither
  the bound nor gradients; those of a binary modality must still be in [0, 1]. `log_likelihood` is
  that of the modalities that are present.

  Args:
    encoders: Keras layers by modality, with a method `distribution(x)` that returns q_m(z | x) for
      x [batch_size, ...], of batch shape [batch_size], such as `ConditionalNormal`.
    decoders: Keras layers by modality, with a method `distribution(z)` that returns p(x_m | z) for
      z [..., batch_size, latent_dim], of batch shape [..., batch_size], such as
      `ConditionalBernoulli`.
    latent_dim: the number of latent variables; by default the `event_size` of the encoders.
    learn_probs: whether the experts' probabilities are learned; otherwise they are equal. If
      modalities are missing, the probabilities of the others are scaled to add up to 1.
    **kwargs: arguments of a Keras model, such as `name` and `dtype`.

  Raises:
    ValueError: if the names of encoders and decoders differ, or latent_dim is not known.
  """

  def __init__(
    self,
    encoders: Mapping[str, keras.layers.Layer],
    decoders: Mapping[str, keras.layers.Layer],
    latent_dim: int | None = None,
    learn_probs: bool = False,
    **kwargs: Any,
  ):
    super().__init__(**kwargs)
    _check_layers(encoders, decoders)
    first = next(iter(encoders.values()))
    latent_dim = getattr(first, "event_size", None) if latent_dim is None else latent_dim
    if latent_dim is None:
      raise ValueError("latent_dim must be given for encoders without an event_size, got None.")
    self.latent_dim = evaluation.check_int("latent_dim", latent_dim, at_least=1)
    self.modalities = tuple(sorted(encoders))
    self.encoders = {name: encoders[name] for name in self.modalities}
    self.decoders = {name: decoders[name] for name in self.modalities}
    self.learn_probs = bool(learn_probs)
    if self.learn_probs:
      self.logits = self.add_weight(
        shape=(len(self.modalities),), initializer="zeros", name="logits"
      )
    if all(isinstance(decoder, ConditionalBernoulli) for decoder in decoders.values()):
      self.binary_observations = True

  @property
  def model_layers(self) -> list[keras.layers.Layer]:
    """Returns the decoders; the prior has no parameters."""
    return list(self.decoders.values())

  def prior(self, context: Any = None) -> tfd.Distribution:
    """Returns p(z) = N(0, I): batch shape [], event shape [latent_dim]."""
    del context
    zeros = tf.zeros([self.latent_dim], self.float_dtype)
    return tfd.Independent(Normal(zeros, tf.ones_like(zeros)), 1)

  def proposal(self, x: Mapping[str, tf.Tensor], context: Any = None) -> StratifiedMixture:
    """Returns the mixture of the present modalities' experts, of batch shape [batch_size]."""
    self._check_parts(context, x)
    present = self._masks(context)
    experts = [
      self.encoders[name].distribution(_or_zero(x[name], present.get(name)))
      for name in self.modalities
    ]
    return StratifiedMixture(experts, self._probs(present, batches.size(x)))

  def likelihood(self, z: tf.Tensor, context: Any = None) -> "Modalities":
    """Returns p(x | z), with a dict of the modalities as its event, for z [..., batch_size, D]."""
    z = batches.as_floats(z, self.float_dtype)
    parts = {name: self.decoders[name].distribution(z) for name in self.modalities}
    return Modalities(parts, self._masks(context))

  def cross_generate(self, x: Mapping[str, Any], seed: seeds.Seed = None) -> dict[str, tf.Tensor]:
    """Generates all modalities from some: their means at a sample of one of the given experts.

    Args:
      x: a dict of one modality or more, each [batch_size, ...].
      seed: as `bounds.estimate` takes it.

    Returns:
      A dict of all modalities, each [batch_size, ...].

    Raises:
      ValueError: if x has no modality or an unknown one, or if the model has seen no batch yet.
    """
    if self._specs is None:
      raise ValueError("cross_generate needs a model that has seen a batch: fit or call it before.")
    if not isinstance(x, Mapping) or not x or not set(x) <= set(self.modalities):
      raise ValueError(
        f"x must be a dict of some of {', '.join(self.modalities)}, got {_names(x)}."
      )
    known = self._as_tensors(dict(x))
    size = batches.size(known)
    filled, present = dict(known), {}
    for name in set(self.modalities) - set(known):
      spec = self._specs["x"][name]
      filled[name] = tf.zeros([size, *spec.shape[1:]], spec.dtype)
      present[name] = tf.fill([size], False)
    return self.reconstruct(filled, present or None, seed)

  def _check_parts(self, context, x) -> None:
    if not isinstance(x, Mapping) or set(x) != set(self.modalities):
      raise ValueError(
        f"{type(self).__name__}: an observation must be a dict of {', '.join(self.modalities)}, "
        f"got {_names(x)}. Replace a missing modality by any numbers, and mask it in the context."
      )
    if context is not None and not (
      isinstance(context, Mapping) and set(context) <= set(self.modalities)
    ):
      raise ValueError(
        f"{type(self).__name__}: a context must be a dict of masks [batch_size] that say where "
        f"modalities are present, for some of {', '.join(self.modalities)}, got {_names(context)}."
      )

  def _masks(self, context) -> dict[str, tf.Tensor]:
    """Returns masks of the modalities, bools [batch_size], by name; others are always present."""
    masks = {name: tf.cast(mask, tf.bool) for name, mask in (context or {}).items()}
    for name, mask in masks.items():
      if mask.shape.rank != 1:
        raise ValueError(f"The mask of {name} must have the shape [batch_size], got {mask.shape}.")
    return masks

  def _probs(self, present: dict[str, tf.Tensor], size: tf.Tensor) -> tf.Tensor | None:
    """Returns the experts' probabilities, [M] or [batch_size, M], not normalized."""
    probs = tf.ones([len(self.modalities)], self.float_dtype)
    if self.learn_probs:
      probs = tf.nn.softmax(tf.cast(self.logits, self.float_dtype))
    if not present:
      return probs
    everywhere = tf.fill([size], True)
    masks = tf.stack([present.get(name, everywhere) for name in self.modalities], axis=1)
    # If all modalities are missing, p(x) = 1 is estimated with all experts.
    masks = tf.logical_or(masks, tf.logical_not(tf.reduce_any(masks, axis=1, keepdims=True)))
    return probs * tf.cast(masks, probs.dtype)

  def get_config(self):
    return super().get_config() | {
      "encoders": keras.saving.serialize_keras_object(dict(self.encoders)),
      "decoders": keras.saving.serialize_keras_object(dict(self.decoders)),
      "latent_dim": self.latent_dim,
      "learn_probs": self.learn_probs,
    }

  @classmethod
  def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None):
    config = dict(config)
    for name in ("encoders", "decoders"):
      config[name] = keras.saving.deserialize_keras_object(
        config[name], custom_objects=custom_objects
      )
    return cls(**config)


class Modalities:
  """Makes a distribution of a dict of independent modalities, some of which may be missing.

  Args:
    parts: distributions by name, all of batch shape [..., batch_size].
    present: masks, bools [batch_size], by name; modalities without a mask are always present.
  """

  def __init__(self, parts: dict[str, tfd.Distribution], present: dict[str, tf.Tensor]):
    self.parts, self._present = parts, present
    self.dtype = {name: part.dtype for name, part in parts.items()}
    self.event_shape = {name: part.event_shape for name, part in parts.items()}
    self.batch_shape = next(iter(parts.values())).batch_shape

  def log_prob(self, x: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns the sum of log p(x_m | z) over the present modalities, of the batch shape."""
    terms = []
    for name, part in self.parts.items():
      mask = self._present.get(name)
      log_prob = evaluation.at_least_float32(part.log_prob(_or_zero(x[name], mask)))
      terms.append(log_prob if mask is None else tf.where(mask, log_prob, tf.zeros_like(log_prob)))
    return sum(terms[1:], terms[0])

  def mean(self) -> dict[str, tf.Tensor]:
    """Returns the mean of every modality, including missing ones."""
    return {name: part.mean() for name, part in self.parts.items()}

  def sample(self, seed: seeds.Seed = None) -> dict[str, tf.Tensor]:
    """Draws every modality, including missing ones."""
    seed = seeds.stateless(seed)
    return {
      name: part.sample(seed=seeds.fold_in(seed, place))
      for place, (name, part) in enumerate(self.parts.items())
    }


def _or_zero(x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
  """Returns x with 0 where it is missing, since the value there may be NaN."""
  if mask is None:
    return x
  return tf.where(gradients.expand_to(mask, x), x, tf.zeros_like(x))


def _check_layers(encoders: Any, decoders: Any) -> None:
  """Raises unless both are dicts, with the same keys, of objects with a method `distribution`."""
  for argument, layers in (("encoders", encoders), ("decoders", decoders)):
    if not isinstance(layers, Mapping) or not layers:
      raise ValueError(f"{argument} must be a dict of layers by modality, got {layers!r}.")
    for name, layer in layers.items():
      if not callable(getattr(layer, "distribution", None)):
        raise ValueError(f"{argument} must have a method distribution, {name} is {layer!r}.")
  if set(encoders) != set(decoders):
    raise ValueError(
      "encoders and decoders must have the same names, got "
      f"{', '.join(encoders)} and {', '.join(decoders)}."
    )


def _names(structure: Any) -> str:
  """Returns the names in a dict, or the type of another object."""
  if isinstance(structure, Mapping):
    return ", ".join(map(str, structure)) or "an empty dict"
  return f"a {type(structure).__name__}"
