"""Makes independent Bernoullis whose log-density costs little next to the net's products."""

import itertools
import math

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import seeds
from dregs_tf.models import products

tfd = tfp.distributions

# A factor in `_log_lanes` is at least 1/2, and the smallest normal float32 is 2^-126.
_FACTORS_AT_MOST = 120

# The products are taken of vectors of at most this size: a few registers of a processor.
_LANES_AT_MOST = 64

# `LinearLogits.log_prob` computes this many logits at a time, to keep them in a processor's cache.
_LOGITS_AT_A_TIME = 2_000_000

# The number of rows per sample to assume if the batch size is not known.
_ASSUMED_BATCH_SIZE = 100


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

  def __init__(self, logits: "tf.Tensor | LinearLogits", name: str = "IndependentBernoulli"):
    super().__init__(Bernoulli(logits), reinterpreted_batch_ndims=1, name=name)
    self._parameters = {"logits": logits, "name": name}

  @property
  def logits(self) -> tf.Tensor:
    """Returns the logits, of the batch shape and the event shape."""
    return tf.convert_to_tensor(self.distribution.logits)

  @classmethod
  def _parameter_properties(cls, dtype, num_classes=None):
    return {"logits": tfp.util.ParameterProperties(event_ndims=1)}

  def _log_prob(self, event):
    return self._log_prob_where(event, None)

  def observed_log_prob(self, event: tf.Tensor, is_missing: tf.Tensor) -> tf.Tensor:
    """Returns log p of the features that are not missing, of the batch shape.

    Args:
      event: the observations, a Tensor of floats whose missing features may be anything.
      is_missing: whether a feature is missing, of the shape of the event.
    """
    return self._log_prob_where(event, is_missing)

  def _log_prob_where(self, event, is_missing) -> tf.Tensor:
    event = tf.cast(event, self.distribution.logits.dtype)
    if is_missing is not None:
      event = tf.where(is_missing, tf.zeros([], event.dtype), event)
    logits = self._parameters["logits"]
    if isinstance(logits, LinearLogits) and logits.covers(event):
      return logits.log_prob(event, is_missing)
    logits = self.distribution.logits_parameter()
    products, logits = _observed(logits, event, is_missing)
    return tf.reduce_sum(products, axis=-1) - sum_softplus(logits)


class LinearLogits(tfp.util.DeferredTensor):
  """Holds the logits hidden @ kernel + bias, computed only on demand.

  The log-density of Bernoullis does not need them: it treats the net's last layer and itself as
  one function. The backward pass is three products with the residual x - sigmoid(logits), which
  the forward pass computes anyway. The rows' weights multiply the narrow side of each product, so
  no pass over the logits is left.

  Args:
    hidden: the last hidden layer's outputs, [..., units].
    kernel: [units, event_size].
    bias: [event_size], in float32 or better.
    product_dtype: the dtype of the factors of matrix products.
  """

  def __init__(
    self, hidden: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, product_dtype: tf.DType
  ):
    self.kernel, self.bias, self.product_dtype = kernel, bias, product_dtype
    shape = hidden.shape[:-1].concatenate(bias.shape)

    def logits(hidden):
      return _dense(hidden, kernel, bias, product_dtype)

    super().__init__(hidden, logits, dtype=bias.dtype, shape=shape, name="logits")

  def covers(self, event: tf.Tensor) -> bool:
    """Returns whether events are known not to enlarge the logits' shape by broadcasting."""
    rank = event.shape.rank
    if rank is None or rank > self.shape.rank:
      return False
    sizes = zip(event.shape, self.shape[self.shape.rank - rank :], strict=True)
    return all(size in (1, None, own) or own is None for size, own in sizes)

  def log_prob(self, event: tf.Tensor, is_missing: tf.Tensor | None = None) -> tf.Tensor:
    """Computes log p(event) of Bernoullis with these logits: [..., event_size] -> [...].

    Args:
      event: Bernoullis' values, of the logits' dtype, 0 where they are missing.
      is_missing: which values are missing, of the same shape; None if none is.
    """
    hidden = self.pretransformed_input
    if not (hidden.shape.is_fully_defined() and event.shape.is_fully_defined()):
      shape = tf.broadcast_dynamic_shape(tf.shape(hidden)[:-1], tf.shape(event)[:-1])
      hidden = tf.broadcast_to(hidden, tf.concat([shape, tf.shape(hidden)[-1:]], axis=0))
      hidden = tf.ensure_shape(hidden, self.pretransformed_input.shape)
    last = (hidden, self.kernel, self.bias, self.product_dtype)
    value = _log_prob_of_linear(*last, event, is_missing)
    return value + self._slope_only(event, value)

  def _slope_only(self, event: tf.Tensor, log_prob: tf.Tensor) -> tf.Tensor:
    """Returns zeros whose gradient in the event is that of log p.

    It is a separate operation, so its matrix product is computed only if that gradient is needed.
    """

    @tf.custom_gradient
    def zeros(event):
      def backward(upstream):
        with tf.GradientTape() as tape:
          tape.watch(event)
          linear = tf.reduce_sum(event * tf.convert_to_tensor(self), axis=-1)
        return tape.gradient(linear, event, output_gradients=upstream)

      return tf.zeros_like(log_prob), backward

    return zeros(event)


def _log_prob_of_linear(hidden, kernel, bias, dtype, event, is_missing) -> tf.Tensor:
  """Computes log p(event) as a function of the last layer's inputs, [..., units] -> [...]."""
  pieces = _pieces(hidden.shape, kernel.shape[-1])
  is_shared = event.shape.rank < hidden.shape.rank or event.shape[0] == 1

  def take(values, piece):
    return values if is_shared or values is None else values[piece]

  @tf.custom_gradient
  def log_prob(hidden, kernel, bias):
    hiddens = [hidden[piece] for piece in pieces]
    values, residuals = [], []
    for part, piece in zip(hiddens, pieces, strict=True):
      logits = _dense(part, kernel, bias, dtype)
      value, residual = _log_prob_and_residual(logits, take(event, piece), take(is_missing, piece))
      values.append(value)
      residuals.append(_as_rows(residual))

    def backward(upstream):
      sums, slopes = [], []
      for part, residual, piece in zip(hiddens, residuals, pieces, strict=True):
        weight = tf.reshape(upstream[piece], [-1, 1])
        weighted = weight * _as_rows(part)
        # The bias is treated as the kernel's row for an input that is always 1.
        weighted = tf.concat([weighted, weight], axis=1)
        sums.append(products.multiply(weighted, residual, dtype, transpose_a=True))
        slopes.append(weight * products.multiply(residual, kernel, dtype, transpose_b=True))
      both = tf.add_n(sums)
      slope = tf.reshape(tf.concat(slopes, axis=0), tf.shape(hidden))
      return slope, tf.cast(both[:-1], kernel.dtype), both[-1]

    return tf.concat(values, axis=0), backward

  return log_prob(hidden, kernel, bias)


def _pieces(shape: tf.TensorShape, event_size: int) -> list[slice]:
  """Cuts axis 0 of hidden outputs so that a piece's logits fit in a processor's cache."""
  if shape[0] is None or tf.config.list_physical_devices("GPU"):
    return [slice(None)]
  rows = math.prod(size or _ASSUMED_BATCH_SIZE for size in shape[1:-1])
  at_a_time = max(1, _LOGITS_AT_A_TIME // (rows * event_size))
  number = max(1, -(-shape[0] // at_a_time))
  ends = [shape[0] * i // number for i in range(number + 1)]
  return [slice(*each) for each in itertools.pairwise(ends)]


def _dense(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
  """Computes inputs @ kernel + bias, [..., units] -> [..., event_size], in the bias' dtype."""
  rows = products.multiply(_as_rows(inputs), kernel, dtype) + bias
  shape = tf.concat([tf.shape(inputs)[:-1], tf.shape(bias)], axis=0)
  return tf.ensure_shape(tf.reshape(rows, shape), inputs.shape[:-1].concatenate(bias.shape))


def _as_rows(tensor: tf.Tensor) -> tf.Tensor:
  # A product of two matrices is faster than a batched product over more axes.
  return tf.reshape(tensor, [-1, tensor.shape[-1]])


def _log_prob_and_residual(logits, event, is_missing) -> tuple[tf.Tensor, tf.Tensor]:
  """Computes log p(event), [...], and its gradient in the logits, [..., event_size]."""
  products, logits = _observed(logits, event, is_missing)
  probs = tf.sigmoid(logits)
  lanes = tf.reduce_sum(_in_lanes(products - tf.nn.relu(logits)), axis=-2)
  return tf.reduce_sum(lanes + _log_lanes(probs), axis=-1), event - probs


def _observed(logits, event, is_missing) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns event * logits, and the logits, so that a missing value has log p = 0."""
  if is_missing is None:
    return event * logits, logits
  zero, impossible = tf.zeros([], logits.dtype), tf.constant(-math.inf, logits.dtype)
  products = tf.where(is_missing, zero, event * logits)
  return products, tf.where(is_missing, impossible, logits)


@tf.custom_gradient
def sum_softplus(logits: tf.Tensor):
  """Sums log(1 + exp(logits_d)), [..., size] -> [...]; its gradient is a sigmoid."""
  lanes = tf.reduce_sum(_in_lanes(tf.nn.relu(logits)), axis=-2) - _log_lanes(tf.sigmoid(logits))
  total = tf.reduce_sum(lanes, axis=-1)
  return total, lambda upstream: upstream[..., tf.newaxis] * tf.sigmoid(logits)


def _log_lanes(probs: tf.Tensor) -> tf.Tensor:
  """Sums log(max(p_d, 1 - p_d)) over factors, with one logarithm for each lane.

  For p = sigmoid(l), softplus(l) = max(l, 0) + log(1 + exp(-|l|)), and 1 / (1 + exp(-|l|)) is the
  larger one of p and 1 - p. A sum of logarithms is the logarithm of a product.
  """
  return tf.math.log(tf.reduce_prod(_in_lanes(tf.maximum(probs, 1 - probs)), axis=-2))


def _in_lanes(tensor: tf.Tensor) -> tf.Tensor:
  """Folds the last axis, [..., size] -> [..., factors, lanes], to reduce all lanes in parallel."""
  size = tensor.shape[-1]
  factors = [n for n in range(1, _FACTORS_AT_MOST + 1) if size % n == 0]
  number = next((n for n in factors if size // n <= _LANES_AT_MOST), factors[-1])
  shape = tf.concat([tf.shape(tensor)[:-1], [number, size // number]], axis=0)
  return tf.reshape(tensor, shape)
