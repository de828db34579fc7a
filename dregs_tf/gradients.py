"""Modifies autodiff: gates, stopped parameters, samples as functions of parameters."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf.objectives import Terms

tfb = tfp.bijectors
tfd = tfp.distributions

# Private base classes: where a part is no CompositeTensor, such as a flow with a network, TFP makes
# an instance of these, not of the public class. Checked in TFP 0.25.
INDEPENDENT, SAMPLE, TRANSFORMED, CHAIN = (
  kind.__mro__[1] for kind in (tfd.Independent, tfd.Sample, tfd.TransformedDistribution, tfb.Chain)
)


def gate(*branches: Any) -> tuple[Any, Callable[..., None]]:
  """Returns samples whose gradient is scaled, sample by sample, by ratios that are set later.

  So one evaluation of log p(x, z) is enough for both of its occurrences in the paper's Eqs. 11-17:
  weighed by `a`, the model's parameters receive a * dlog p/dtheta, and behind a gate of ratio b / a
  the path receives b * dlog p/dz. The ratio depends on log p, which depends on the gated samples,
  so it is set after log p is evaluated and before the gradient is taken.

  Several branches are the same samples as functions of different parameters. Each receives the
  gradient times its own ratio, still with one evaluation.

  Args:
    *branches: Tensors of shape [num_samples, ...], or structures of them, with the same values.

  Returns:
    The gated samples, with the value of the first branch, and a function that takes a ratio for
    each branch, Tensors whose shape is a prefix of every sample's shape. Taking the gradient before
    the ratios are set raises a RuntimeError.
  """
  ratios: list[tf.Tensor] = []

  @tf.custom_gradient
  def gated(*tensors):
    def backward(upstream):
      if not ratios:
        raise RuntimeError(
          "The gate's ratio must be set before the gradient is taken. Take gradients with "
          "tf.GradientTape: forward-mode autodiff (tf.autodiff.ForwardAccumulator) differentiates "
          "before the ratio is known, and is not supported."
        )
      # A ratio of 0 closes the gate even if the gradient is infinite: here 0 * inf is 0.
      no_nan = tf.math.multiply_no_nan
      return [no_nan(upstream, expand_to(tf.cast(r, upstream.dtype), upstream)) for r in ratios]

    return tf.identity(tensors[0]), backward

  return tf.nest.map_structure(gated, *branches), lambda *values: ratios.extend(values)


def expand_to(ratio: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
  """Returns `ratio` with trailing axes of size 1, so that it has as many axes as `tensor`."""
  missing = tensor.shape.rank - ratio.shape.rank
  return tf.reshape(ratio, tf.concat([tf.shape(ratio), tf.ones([missing], tf.int32)], axis=0))


# Distributions of loc + scale * noise.
_LOCATION_SCALE = (tfd.Cauchy, tfd.Gumbel, tfd.Laplace, tfd.Logistic, tfd.Normal)


def reparameterize(distribution: tfd.Distribution, samples: Any) -> Any:
  """Returns samples as functions of a distribution's parameters: T(stop(T^-1(samples))).

  The samples may be drawn from another distribution; T transforms noise to a sample. The parts of a
  joint distribution are functions of their own parameters, with their parents held fixed.

  Args:
    distribution: a distribution of location-scale form, a transformed distribution with an
      invertible bijector, or Independent or a joint distribution of such.
    samples: a Tensor of shape [..., batch_size, ...], or a structure of them.

  Returns:
    The samples, equal in value up to rounding. No gradient flows to `samples`.

  Raises:
    ValueError: if the distribution is of another kind.
  """
  return reparameterize_parts(distribution, samples)[0]


def reparameterize_parts(
  distribution: tfd.Distribution, samples: Any
) -> tuple[Any, list[tuple[tfd.Distribution, tf.Tensor]]]:
  """Returns the result of `reparameterize`, and each part of a joint distribution with its samples.

  A part is a conditional distribution, given the samples of its parents, which are held fixed. A
  distribution that is not joint is its only part.

  Raises:
    ValueError: if a part has no known invertible transformation of noise.
  """
  samples = tf.nest.map_structure(tf.stop_gradient, samples)
  if not isinstance(distribution, tfd.JointDistribution):
    moved = _transformed_noise(distribution, samples)
    return moved, [(distribution, moved)]
  if getattr(distribution, "use_vectorized_map", False):
    kind = type(distribution).__name__
    raise ValueError(f"{kind} must have use_vectorized_map=False: its parts see one sample alone.")
  made, _ = distribution.sample_distributions(value=samples)
  flatten = distribution._model_flatten  # Private, as is its inverse; checked in TFP 0.25.
  pairs = zip(flatten(made), flatten(samples), strict=True)
  moved, parts = zip(*(reparameterize_parts(*pair) for pair in pairs), strict=True)
  leaves = tf.nest.flatten(distribution._model_unflatten(moved))
  return tf.nest.pack_sequence_as(samples, leaves), [part for each in parts for part in each]


def _transformed_noise(distribution: tfd.Distribution, samples: tf.Tensor) -> tf.Tensor:
  """Returns T(stop(T^-1(samples))) of a distribution that is not joint."""
  if isinstance(distribution, INDEPENDENT):
    return _transformed_noise(distribution.distribution, samples)
  if isinstance(distribution, SAMPLE):
    one = distribution.distribution
    axes = distribution.event_shape.rank - one.event_shape.rank
    return _transformed_noise(one[(..., *[tf.newaxis] * axes)], samples)
  if isinstance(distribution, TRANSFORMED):
    noise = distribution.bijector.inverse(samples)
    return distribution.bijector.forward(_transformed_noise(distribution.distribution, noise))
  if isinstance(distribution, _LOCATION_SCALE):
    loc, scale = distribution.loc, distribution.scale
    return loc + scale * tf.stop_gradient((samples - loc) / scale)
  raise ValueError(
    f"{type(distribution).__name__} has no known invertible transformation of noise: "
    "use a distribution of location-scale form, or a tfd.TransformedDistribution of one."
  )


def value_and_derivatives(
  value_fn: Callable[[tf.Tensor], tf.Tensor], log_weights: tf.Tensor
) -> Terms:
  """Computes a function F of log-weights with F_i and F_ii, in float64.

  F_i - F_ii would lose all digits in float32 if one weight holds all the mass.

  Args:
    value_fn: [num_samples, batch_size] -> [batch_size], each example separately.
    log_weights: [num_samples, batch_size].

  Raises:
    ValueError: if value_fn returns another shape, or does not depend on its argument.
  """
  exact = tf.cast(log_weights, tf.float64)

  def differentiate(sample):
    """Returns F, all F_i, and F_ii for one sample."""
    with tf.GradientTape() as second_tape:
      second_tape.watch(exact)
      with tf.GradientTape() as first_tape:
        first_tape.watch(exact)
        value = tf.convert_to_tensor(_explained(value_fn, exact))
      first = first_tape.gradient(value, exact)
      if first is None or not value.shape.is_compatible_with(exact.shape[1:]):
        raise ValueError(
          "value_fn must be a differentiable function of log-weights [num_samples, batch_size] = "
          f"{exact.shape} that returns [batch_size] = {exact.shape[1:]}, got {value.shape}."
        )
      of_sample = tf.gather(first, sample)
    second = second_tape.gradient(of_sample, exact, unconnected_gradients="zero")
    return tf.cast(value, tf.float64), first, tf.gather(second, sample)

  value, first, _ = differentiate(0)
  second = tf.map_fn(
    lambda sample: differentiate(sample)[2],
    tf.range(tf.shape(exact)[0]),
    fn_output_signature=tf.TensorSpec(exact.shape[1:], tf.float64),
  )
  parts = (value, first, first - second, second)
  return Terms(*(tf.cast(part, log_weights.dtype) for part in parts))


def _explained(value_fn, log_weights: tf.Tensor) -> tf.Tensor:
  """Calls a user's function; adds its argument's dtype and shape to errors of TensorFlow."""
  try:
    return value_fn(log_weights)
  except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
    error.add_note(
      f"value_fn was called with log-weights of {log_weights.dtype.name}, shape "
      f"{log_weights.shape}. Make constants of the same dtype, or use Python numbers."
    )
    raise


class PathOnly:
  """Makes a distribution's log-density differentiable in its argument alone: q^ in the paper.

  It takes any distribution, even one whose parameters `stop_parameters` cannot reach, such as a
  joint distribution with dependent parts or a flow whose layers are networks. Pass it as
  `stopped_proposal=dregs_tf.PathOnly(proposal)`.
  """

  def __init__(self, distribution: tfd.Distribution):
    self._distribution = distribution

  def log_prob(self, samples: Any) -> tf.Tensor:
    """Returns log q(samples); its gradient flows into `samples`, never into the parameters."""
    leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(samples)]

    @tf.custom_gradient
    def log_density(*leaves):
      with tf.GradientTape(persistent=True) as tape:
        # Fresh tensors: for the old ones a bijector would use its cache, which bypasses the tape.
        fresh = [tf.identity(leaf) for leaf in leaves]
        floating = [leaf for leaf in fresh if leaf.dtype.is_floating]
        tape.watch(floating)
        value = self._distribution.log_prob(tf.nest.pack_sequence_as(samples, fresh))

      def backward(upstream, variables=None):
        # The same operations as autodiff's, so that stopping parameters changes no bit of the path.
        options = {"output_gradients": upstream, "unconnected_gradients": "zero"}
        paths = iter(tape.gradient(value, floating, **options))
        path = [next(paths) if leaf.dtype.is_floating else None for leaf in fresh]
        return (path, [None] * len(variables)) if variables else path

      return tf.stop_gradient(value), backward

    return log_density(*leaves)


def stop_parameters(distribution: tfd.Distribution) -> tfd.Distribution:
  """Returns the distribution with its parameters stopped: gradients flow only through its argument.

  Rebuilds the distribution from `distribution.parameters`, and in turn the distributions,
  bijectors and linear operators found there, with every Tensor and Variable stopped.

  Raises:
    TypeError: if it is not a distribution.
    ValueError: if the gradients of a parameter cannot be stopped from outside: a function, a
      network, or an object whose parameters are not known.
  """
  if not isinstance(distribution, tfd.Distribution):
    raise TypeError(f"stop_parameters takes a tfp Distribution, got {distribution!r}.")
  try:
    stopped = _stop(distribution, type(distribution).__name__)
  except _CannotStopError as error:
    raise ValueError(
      f"The parameters of {type(distribution).__name__} cannot be stopped automatically: {error} "
      "Pass stopped_proposal=, the same distribution built from parameters under "
      "tf.stop_gradient, or stopped_proposal=dregs_tf.PathOnly(proposal)."
    ) from error
  return stopped


class _CannotStopError(Exception):
  """Names a parameter that `stop_parameters` cannot reach."""


def _stop(value, where: str):
  """Returns `value`, a parameter called `where`, with every differentiable part stopped."""
  if isinstance(value, (tfd.Distribution, tfb.Bijector, tf.linalg.LinearOperator)):
    return _rebuild(value, where)
  if isinstance(value, (list, tuple, dict)):
    stopped = [_stop(leaf, where) for leaf in tf.nest.flatten(value)]
    return tf.nest.pack_sequence_as(value, stopped)
  if _is_constant(value):
    return value
  if not callable(value) or tf.is_tensor(value) or hasattr(value, "__tf_tensor__"):
    try:
      return tf.stop_gradient(tf.convert_to_tensor(value))
    except (TypeError, ValueError):
      pass
  raise _CannotStopError(f"{where} is {_describe(value)}, whose own parameters are out of reach.")


def _rebuild(value, where: str):
  """Copies a distribution, bijector or linear operator with stopped parameters."""
  kind = type(value)
  defaults = inspect.signature(kind.__init__).parameters
  parameters = {}
  for name, parameter in value.parameters.items():
    is_default = name in defaults and parameter is defaults[name].default
    parameters[name] = parameter if is_default else _stop(parameter, f"{where}.{name}")
  try:
    stopped = kind(**parameters)
  except TypeError as error:
    raise _CannotStopError(
      f"{where} is a {kind.__name__}, which cannot be rebuilt from its `parameters` ({error})."
    ) from error
  for name, parameter in parameters.items():
    if not _is_same(stopped.parameters.get(name), parameter):
      raise _CannotStopError(
        f"{where} is a {kind.__name__}, which changes {name} before it stores it, so it would be "
        "changed twice."
      )
  if stopped.trainable_variables:
    names = ", ".join(v.name for v in stopped.trainable_variables)
    raise _CannotStopError(
      f"{where} holds variables that are not among its `parameters` ({names})."
    )
  return stopped


def _is_same(stored, passed) -> bool:
  """Returns whether a rebuilt object stores a parameter as it was passed; names may differ."""
  stored, passed = tf.nest.flatten(stored), tf.nest.flatten(passed)
  return len(stored) == len(passed) and all(
    a is b or (_is_constant(a) and _is_constant(b) and (isinstance(b, str) or np.array_equal(a, b)))
    for a, b in zip(stored, passed, strict=True)
  )


def _is_constant(value) -> bool:
  """Returns whether no gradient can flow into `value`."""
  constants = (bool, int, float, complex, str, bytes, np.ndarray, np.generic)
  return value is None or isinstance(value, (*constants, tf.DType, tf.TensorShape, np.dtype, type))


def _describe(value) -> str:
  kind = "the function" if inspect.isroutine(value) else f"a {type(value).__name__}:"
  return f"{kind} {getattr(value, '__qualname__', None) or repr(value)}"


def watch(tape: tf.GradientTape, samples: Any) -> None:
  """Makes the tape record computations with the samples that are differentiable."""
  tape.watch([leaf for leaf in tf.nest.flatten(samples) if leaf.dtype.is_floating])


def of_loss(
  tape: tf.GradientTape, loss: tf.Tensor | None, variables: Sequence, seen: Any, samples: Any
) -> list[tf.Tensor | None] | None:
  """Computes the gradient of a loss that was added while log p(x, z) was evaluated.

  Such a loss may depend on z, which log p sees behind a gate or stopped. The gradient through the
  gate is scaled for log p, so it is subtracted, and the path through the samples is added.

  Args:
    tape: a persistent tape that recorded the loss.
    loss: a scalar, or None, whose gradient is None.
    variables: the variables to take the gradient in.
    seen: z as passed to log p, a structure of Tensors that the tape watches, or None.
    samples: z itself, of the same structure.
  """
  if loss is None:
    return None
  pairs = [] if seen is None else zip(*map(tf.nest.flatten, (samples, seen)), strict=True)
  pairs = [(z, gated) for z, gated in pairs if gated.dtype.is_floating]
  total, slopes = tape.gradient(loss, [list(variables), [gated for _, gated in pairs]])
  reached = [(*pair, s) for pair, s in zip(pairs, slopes, strict=True) if s is not None]
  if reached:
    z, gated, slopes = zip(*reached, strict=True)
    path, scaled = (tape.gradient(t, variables, output_gradients=slopes) for t in (z, gated))
    total = [_combine(*parts) for parts in zip(total, path, scaled, strict=True)]
  return total


def _combine(total, path, scaled):
  """Returns total + path - scaled, where None is 0."""
  if path is not None:
    total = path if total is None else total + path
  return total if scaled is None else total - scaled
