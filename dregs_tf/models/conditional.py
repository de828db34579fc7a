"""Makes distributions whose parameters a network computes, as in the authors' code."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import seeds

tfd = tfp.distributions

# softplus(raw + 0.25): the scale of an untrained net is about 0.8.
_SCALE_OFFSET = 0.25


class Normal(tfd.Normal):
  """Draws the samples of a Normal with the Philox generator.

  On a CPU it is ten times faster than XLA's default generator. On replicas of a model, the noise is
  that of the whole batch, split along the first axis of the batch shape.
  """

  draws_for_whole_batch = True

  def _sample_n(self, n, seed=None):
    loc, scale = tf.convert_to_tensor(self.loc), tf.convert_to_tensor(self.scale)
    shape = tf.concat([[n], self._batch_shape_tensor(loc=loc, scale=scale)], axis=0)
    seed = tfp.random.sanitize_seed(seed)

    def sampler(shape):
      return tf.random.stateless_normal(shape, seed, dtype=loc.dtype, alg="philox")

    return loc + scale * seeds.draw(sampler, shape, axis=1)


def draws_for_whole_batch(distribution: tfd.Distribution) -> bool:
  """Returns whether the distribution, on replicas, draws its noise with `seeds.draw`."""
  while isinstance(distribution, tfd.Independent):
    distribution = distribution.distribution
  return getattr(distribution, "draws_for_whole_batch", False)


class Bernoulli(tfd.Bernoulli):
  """Draws the samples of a Bernoulli with the Philox generator, as `Normal` does."""

  draws_for_whole_batch = True

  def _sample_n(self, n, seed=None):
    probs = self.probs_parameter()
    seed = tfp.random.sanitize_seed(seed)

    def sampler(shape):
      return tf.random.stateless_uniform(shape, seed, dtype=probs.dtype, alg="philox")

    shape = tf.concat([[n], tf.shape(probs)], axis=0)
    return tf.cast(seeds.draw(sampler, shape, axis=1) < probs, self.dtype)


class IndependentBernoulli(tfd.Independent):
  """Makes Bernoullis along the last axis, with a log-density that costs little more than one exp.

  log p(x) = sum_d x_d logit_d - softplus(logit_d).
  """

  def __init__(self, logits: tf.Tensor, name: str = "IndependentBernoulli"):
    super().__init__(Bernoulli(logits), reinterpreted_batch_ndims=1, name=name)
    self._parameters = {"logits": logits, "name": name}

  @property
  def logits(self) -> tf.Tensor:
    """Returns the logits, of the batch shape and the event shape."""
    return self.distribution.logits

  @classmethod
  def _parameter_properties(cls, dtype, num_classes=None):
    return {"logits": tfp.util.ParameterProperties(event_ndims=1)}

  def _log_prob(self, event):
    logits = self.distribution.logits_parameter()
    event = tf.cast(event, logits.dtype)
    return tf.reduce_sum(event * logits, axis=-1) - sum_softplus(logits)

  def observed_log_prob(self, event: tf.Tensor, is_missing: tf.Tensor) -> tf.Tensor:
    """Returns log p of the features that are not missing, of the batch shape.

    Args:
      event: the observations, a Tensor of floats whose missing features may be anything.
      is_missing: whether a feature is missing, of the shape of the event.
    """
    logits = self.distribution.logits_parameter()
    zero, impossible = tf.zeros([], logits.dtype), tf.constant(-float("inf"), logits.dtype)
    # What can only be 0 is 0 with the density 1.
    event = tf.where(is_missing, zero, tf.cast(event, logits.dtype))
    products = tf.where(is_missing, zero, event * logits)
    return tf.reduce_sum(products, axis=-1) - sum_softplus(tf.where(is_missing, impossible, logits))


# exp(-|x|) + 1 is at most 2, and float32 ends at 2^128, which limits the number of factors.
_FACTORS_AT_MOST = 120


@tf.custom_gradient
def sum_softplus(logits: tf.Tensor):
  """Sums log(1 + exp(logits_d)) over the last axis, with one logarithm for many terms.

  softplus(x) = max(x, 0) + log(1 + exp(-|x|)), and a sum of logarithms is the logarithm of a
  product. The gradient is a sigmoid.
  """
  size = logits.shape[-1]
  at_a_time = max(n for n in range(1, _FACTORS_AT_MOST + 1) if size % n == 0)
  shape = tf.concat([tf.shape(logits)[:-1], [size // at_a_time, at_a_time]], axis=0)
  products = tf.reduce_prod(tf.reshape(1 + tf.exp(-tf.abs(logits)), shape), axis=-1)
  total = tf.reduce_sum(tf.nn.relu(logits), axis=-1) + tf.reduce_sum(tf.math.log(products), axis=-1)
  return total, lambda upstream: upstream[..., tf.newaxis] * tf.sigmoid(logits)


@keras.saving.register_keras_serializable("dregs_tf")
class MLP(keras.layers.Layer):
  """Applies dense layers to the last axis: tanh hidden layers, then a linear one.

  Its inputs are a Tensor [..., size], or a list of Tensors that are treated as concatenated along
  the last axis. They may differ in rank: a Tensor with fewer leading axes is shared along the
  others.
  """

  def __init__(
    self,
    output_size: int,
    hidden_units: Sequence[int] = (200, 200),
    activation: str | Callable = "tanh",
    **kwargs: Any,
  ):
    super().__init__(**kwargs)
    self.output_size = output_size
    self.hidden_units = tuple(hidden_units)
    self.activation = keras.activations.get(activation)
    options = {"kernel_initializer": "glorot_uniform", "dtype": self.dtype_policy}
    self._layers_in_order = [
      keras.layers.Dense(units, activation=activation, **options) for units in self.hidden_units
    ] + [keras.layers.Dense(output_size, **options)]

  def build(self, input_shape: Any):
    shapes = _as_list_of_shapes(input_shape)
    size = sum(shape[-1] for shape in shapes)
    for layer in self._layers_in_order:
      layer.build((None, size))
      size = layer.units
    self.built = True

  def compute_output_shape(self, input_shape: Any):
    shapes = _as_list_of_shapes(input_shape)
    return (*max(shapes, key=len)[:-1], self.output_size)

  def call(self, inputs: tf.Tensor):
    first, *others = self._layers_in_order
    if isinstance(inputs, (list, tuple)):
      outputs = self._first_layer(first, inputs)
    else:
      outputs, others = inputs, self._layers_in_order
    leading = tf.shape(outputs)[:-1]
    static = outputs.shape[:-1]
    # Products of matrices are faster than batched products of more axes.
    outputs = tf.reshape(outputs, [-1, outputs.shape[-1]])
    for layer in others:
      outputs = layer(outputs)
    outputs = tf.reshape(outputs, tf.concat([leading, [self.output_size]], axis=0))
    return tf.ensure_shape(outputs, [*static, self.output_size])

  def _first_layer(self, layer, inputs):
    """Applies the layer to the concatenated inputs, each multiplied before it is broadcast."""
    sizes = [part.shape[-1] for part in inputs]
    kernels = tf.split(tf.convert_to_tensor(layer.kernel), sizes, axis=0)
    parts = []
    for part, kernel in zip(inputs, kernels, strict=True):
      product = tf.matmul(tf.reshape(part, [-1, part.shape[-1]]), kernel)
      shape = tf.concat([tf.shape(part)[:-1], [layer.units]], axis=0)
      parts.append(tf.ensure_shape(tf.reshape(product, shape), [*part.shape[:-1], layer.units]))
    return layer.activation(sum(parts[1:], parts[0]) + layer.bias)

  def get_config(self):
    return super().get_config() | {
      "output_size": self.output_size,
      "hidden_units": list(self.hidden_units),
      "activation": keras.activations.serialize(self.activation),
    }


def _as_list_of_shapes(shape) -> list:
  """Returns the shapes of a list or tuple of inputs, or of one input."""
  return list(shape) if isinstance(shape[0], (list, tuple)) else [shape]


class _Conditional(MLP):
  """Makes a distribution of a network's outputs; a model calls `distribution`."""

  def __init__(self, event_size: int, parameters_per_event: int, **kwargs):
    super().__init__(output_size=event_size * parameters_per_event, **kwargs)
    self.event_size = event_size

  def get_config(self):
    config = super().get_config()
    del config["output_size"]
    return config | {"event_size": self.event_size}

  def parameters(self, inputs) -> tf.Tensor:
    """Computes the net's outputs in float32 or better, whatever its layers compute in."""
    outputs = self(inputs)
    return tf.cast(outputs, tf.float32) if outputs.dtype.size < 4 else outputs


@keras.saving.register_keras_serializable("dregs_tf")
class ConditionalNormal(_Conditional):
  """Makes a factorized Normal; a network computes its location and scale = softplus(raw + 0.25).

  Args:
    event_size: the Normal's number of coordinates.
    hidden_units: the sizes of the hidden layers.
    **kwargs: `activation` of the hidden layers ("tanh"), and those of a Keras layer.
  """

  def __init__(self, event_size: int, hidden_units: Sequence[int] = (200, 200), **kwargs: Any):
    super().__init__(event_size, 2, hidden_units=hidden_units, **kwargs)

  def distribution(self, inputs: tf.Tensor) -> tfd.Distribution:
    """Returns the Normal given inputs [..., size]: batch shape [...], event shape [event_size]."""
    loc, raw = tf.split(self.parameters(inputs), 2, axis=-1)
    return tfd.Independent(Normal(loc, tf.math.softplus(raw + _SCALE_OFFSET)), 1)


@keras.saving.register_keras_serializable("dregs_tf")
class ConditionalBernoulli(_Conditional):
  """Makes independent Bernoullis whose logits a network computes.

  Args:
    mean: the training data's mean, [event_size]. Its logit is a constant added to the logits, in
      addition to the trainable bias, which starts at 0. None adds nothing.
    event_size: the number of Bernoullis; needed without a mean.
    hidden_units: the sizes of the hidden layers.
    **kwargs: `activation` of the hidden layers ("tanh"), and those of a Keras layer.
  """

  def __init__(
    self,
    mean: np.ndarray | tf.Tensor = None,
    event_size: int | None = None,
    hidden_units: Sequence[int] = (200, 200),
    **kwargs: Any,
  ):
    if mean is None and event_size is None:
      raise ValueError("ConditionalBernoulli needs mean or event_size, got neither.")
    self._mean = None if mean is None else np.asarray(mean, np.float64).ravel()
    size = event_size if mean is None else self._mean.size
    if event_size not in (None, size):
      raise ValueError(f"event_size must be the size of mean, {size}, got {event_size}.")
    super().__init__(size, 1, hidden_units=hidden_units, **kwargs)
    clipped = np.clip(0.5 if mean is None else self._mean, 1e-3, 1 - 1e-3)
    self._offset = np.log(clipped) - np.log1p(-clipped)

  def distribution(self, inputs: tf.Tensor) -> tfd.Distribution:
    """Returns the Bernoullis given inputs [..., size]: batch shape [...], event [event_size]."""
    logits = self.parameters(inputs)
    return IndependentBernoulli(logits + tf.constant(self._offset, logits.dtype))

  def get_config(self):
    return super().get_config() | {"mean": None if self._mean is None else self._mean.tolist()}
