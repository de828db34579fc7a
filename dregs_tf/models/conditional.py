"""Makes distributions whose parameters a network computes, as in the authors' code."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import gradients, seeds
from dregs_tf.mixtures import StratifiedMixture
from dregs_tf.models import keras_privates, products
from dregs_tf.models.bernoulli import IndependentBernoulli, LinearLogits

tfd = tfp.distributions

# softplus(raw + 0.25): the scale of an untrained net is about 0.8.
_SCALE_OFFSET = 0.25


class Normal(tfd.Normal):
  """Draws the samples of a Normal with the Philox generator.

  On a CPU it is ten times faster than XLA's default generator. On replicas of a model, the noise of
  the whole batch is split along the axis of the examples, the last but one.
  """

  draws_for_whole_batch = True

  def _sample_n(self, n, seed=None):
    loc, scale = tf.convert_to_tensor(self.loc), tf.convert_to_tensor(self.scale)
    batch_shape = tf.broadcast_dynamic_shape(tf.shape(loc), tf.shape(scale))
    shape = tf.concat([[n], batch_shape], axis=0)
    seed = tfp.random.sanitize_seed(seed)

    def sampler(shape):
      return tf.random.stateless_normal(shape, seed, dtype=loc.dtype, alg="philox")

    return loc + scale * seeds.draw(sampler, shape, axis=_batch_axis(loc))


def draws_for_whole_batch(distribution: tfd.Distribution) -> bool:
  """Returns whether the distribution, on replicas, draws its noise with `seeds.draw`."""
  if isinstance(distribution, StratifiedMixture):
    return all(map(draws_for_whole_batch, distribution.components))
  while isinstance(distribution, gradients.INDEPENDENT):
    distribution = distribution.distribution
  return getattr(distribution, "draws_for_whole_batch", False)


def _batch_axis(parameter: tf.Tensor) -> int:
  """Returns the axis of the examples in samples of a net's outputs, [..., batch_size, size].

  Outputs computed from another latent have a sample axis already; samples have one more.
  """
  return max(1, parameter.shape.rank - 1)


@keras.saving.register_keras_serializable("dregs_tf")
class MLP(keras.layers.Layer):
  """Applies dense layers to the last axis: tanh hidden layers, then a linear one.

  Its inputs are a Tensor [..., size], or a list of Tensors that are treated as concatenated along
  the last axis. They may differ in rank: a Tensor with fewer leading axes is broadcast along the
  missing ones.
  """

  def __init__(
    self,
    output_size: int,
    hidden_units: Sequence[int] = (200, 200),
    activation: str | Callable = "tanh",
    **kwargs: Any,
  ):
    super().__init__(**kwargs)
    self.autocast = False  # Only products round; sums and activations are in float32 or better.
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

  def call(self, inputs: tf.Tensor, hidden: bool = False, wide: bool = False):
    """Computes the outputs, or those of the last hidden layer.

    Args:
      inputs: a Tensor [..., size], or a list of them.
      hidden: whether to return the last hidden layer's outputs.
      wide: whether to return float32 or better even if the layers' products are narrower.
    """
    inputs = tf.nest.map_structure(lambda part: tf.cast(part, self._wide_dtype), inputs)
    layers = self._layers_in_order[:-1] if hidden else self._layers_in_order
    if isinstance(inputs, (list, tuple)):
      outputs, layers = self._first_layer(layers[0], inputs), layers[1:]
    else:
      outputs = inputs
    leading = tf.shape(outputs)[:-1]
    static = outputs.shape[:-1]
    # A product of two matrices is faster than a batched product over more axes.
    outputs = tf.reshape(outputs, [-1, outputs.shape[-1]])
    for layer in layers:
      outputs = self._apply(layer, outputs)
    outputs = tf.cast(outputs, self._wide_dtype if wide else self.compute_dtype)
    size = outputs.shape[-1]
    return tf.ensure_shape(
      tf.reshape(outputs, tf.concat([leading, [size]], axis=0)), [*static, size]
    )

  @property
  def _product_dtype(self) -> tf.DType:
    return tf.as_dtype(self.compute_dtype)

  @property
  def _wide_dtype(self) -> tf.DType:
    return self._product_dtype if self._product_dtype.size >= 4 else tf.float32

  def _apply(self, layer, rows):
    """Applies a layer; under mixed precision it rounds only the factors of its product."""
    if layer.quantization_mode is not None or self._product_dtype.size >= 4:
      return layer(rows)
    kernel, bias = _weights(layer)
    product = products.multiply(rows, kernel, self._product_dtype)
    return layer.activation(product + tf.cast(bias, product.dtype))

  def _first_layer(self, layer, inputs):
    """Applies the layer to the concatenated inputs, each multiplied before it is broadcast."""
    if layer.quantization_mode is not None:
      return layer(_concatenated(inputs))
    sizes = [part.shape[-1] for part in inputs]
    kernel, bias = _weights(layer)
    kernels = tf.split(kernel, sizes, axis=0)
    parts = []
    for part, kernel in zip(inputs, kernels, strict=True):
      rows = tf.reshape(part, [-1, part.shape[-1]])
      product = products.multiply(rows, kernel, self._product_dtype)
      shape = tf.concat([tf.shape(part)[:-1], [layer.units]], axis=0)
      parts.append(tf.ensure_shape(tf.reshape(product, shape), [*part.shape[:-1], layer.units]))
    return layer.activation(sum(parts[1:], parts[0]) + tf.cast(bias, parts[0].dtype))

  def get_config(self):
    return super().get_config() | {
      "output_size": self.output_size,
      "hidden_units": list(self.hidden_units),
      "activation": keras.activations.serialize(self.activation),
    }


def _concatenated(inputs: Sequence[tf.Tensor]) -> tf.Tensor:
  """Concatenates Tensors along the last axis, broadcast along their other axes."""
  shape = tf.shape(inputs[0])[:-1]
  for part in inputs[1:]:
    shape = tf.broadcast_dynamic_shape(shape, tf.shape(part)[:-1])
  parts = [tf.broadcast_to(part, tf.concat([shape, part.shape[-1:]], axis=0)) for part in inputs]
  return tf.concat(parts, axis=-1)


def _weights(layer: keras.layers.Dense) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the kernel and the bias in the dtype that they are stored in."""
  with keras_privates.without_autocast():
    return tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)


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
    return self(inputs, wide=True)


@keras.saving.register_keras_serializable("dregs_tf")
class ConditionalNormal(_Conditional):
  """Makes a factorized Normal; a network computes its location and scale = softplus(raw + 0.25).

  Args:
    event_size: the Normal's number of coordinates.
    hidden_units: the sizes of the hidden layers.
    **kwargs: `activation` of the hidden layers ("tanh"), and arguments of a Keras layer.
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
    event_size: the number of Bernoullis; required if there is no mean.
    hidden_units: the sizes of the hidden layers.
    **kwargs: `activation` of the hidden layers ("tanh"), and arguments of a Keras layer.

  Raises:
    ValueError: if neither mean nor event_size is given, or if they disagree.
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
    if self._is_of_samples(inputs):
      return IndependentBernoulli(self._linear_logits(inputs))
    logits = self.parameters(inputs)
    return IndependentBernoulli(logits + tf.constant(self._offset, logits.dtype))

  def _linear_logits(self, inputs) -> LinearLogits:
    """Returns the logits as a function of the last hidden layer's outputs."""
    hidden = self(inputs, hidden=True, wide=True)
    kernel, bias = _weights(self._layers_in_order[-1])
    bias = tf.cast(bias, hidden.dtype) + tf.constant(self._offset, hidden.dtype)
    return LinearLogits(hidden, kernel, bias, self._product_dtype)

  def _is_of_samples(self, inputs) -> bool:
    """Returns whether inputs have a sample axis, and the last layer is a plain Dense."""
    parts = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    ranks = [tf.TensorShape(part.shape).rank for part in parts]
    is_ordinary = self.hidden_units and self._layers_in_order[-1].quantization_mode is None
    return bool(is_ordinary) and None not in ranks and max(ranks) > 2

  def get_config(self):
    return super().get_config() | {"mean": None if self._mean is None else self._mean.tolist()}
