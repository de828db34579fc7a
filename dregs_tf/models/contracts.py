"""Checks the arguments and results of a user's `prior`, `proposal` and `likelihood`."""

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation

tfd = tfp.distributions

# The parameters of each method in a model without its own `method_parameters`, and advice for
# methods that do not return a distribution.
_PARAMETERS = {"prior": "context", "proposal": "x, context", "likelihood": "z, context"}
_INSTEAD = {
  "prior": "Return the distribution itself.",
  "proposal": "Return the distribution itself, not a sample of it: samples are drawn from it.",
  "likelihood": (
    "Return a distribution of x rather than its parameters, such as "
    "tfd.Independent(tfd.Bernoulli(logits), 1)."
  ),
}


def check_signature(method: Callable, args: tuple, kwargs: dict) -> None:
  """Raises a TypeError if a model's method does not take the arguments that it is called with."""
  name = getattr(method, "__name__", None)
  expected = getattr(getattr(method, "__self__", None), "method_parameters", _PARAMETERS)
  if name not in expected:
    return
  signature = inspect.signature(method)
  try:
    signature.bind(*args, **kwargs)
  except TypeError:
    parameters = ", ".join(["self", *map(str, signature.parameters.values())])
    raise TypeError(
      f"{_full_name(method)} must be defined as {name}(self, {expected[name]}), got "
      f"{name}({parameters})."
    ) from None


def check_distribution(method: Callable, result: Any) -> None:
  """Raises unless a model's method returned a distribution of float32 or better.

  Raises:
    TypeError: if it is not a distribution.
    ValueError: if its samples are narrower than float32, or a proposal has no batch shape.
  """
  if not hasattr(result, "log_prob"):
    is_tensor = tf.is_tensor(result)
    got = f"a Tensor of shape {result.shape}" if is_tensor else f"a {type(result).__name__}"
    instead = _INSTEAD.get(getattr(method, "__name__", None), "")
    raise TypeError(
      f"{_full_name(method)} must return a distribution of TensorFlow Probability, got {got}. "
      f"{instead}"
    )
  if not isinstance(result, tfd.JointDistribution):
    for dtype in tf.nest.flatten(result.dtype):
      _check_dtype(_full_name(method), "its samples are", tf.as_dtype(dtype))
    # Without a batch shape, the axis of the samples could be taken for that of the examples.
    has_batch = any(shape.rank != 0 for shape in tf.nest.flatten(result.batch_shape))
    if getattr(method, "__name__", None) == "proposal" and not has_batch:
      raise ValueError(
        f"{_full_name(method)} must return a distribution of batch shape [batch_size], one for "
        f"each observation, got batch shape {result.batch_shape}."
      )


def check_latents(name: str, prior: tfd.Distribution, z: Any) -> None:
  """Raises a ValueError if samples z [num_samples, batch_size, ...] do not fit the prior.

  A prior evaluates only its own dtype, and another event shape may broadcast silently.
  """
  if isinstance(prior, tfd.JointDistribution):
    return
  events = tf.nest.flatten(prior.event_shape)
  leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(z)]
  for event, leaf in zip(events, leaves, strict=False):
    if event.rank and not leaf.shape[2:].is_compatible_with(event):
      raise ValueError(
        f"{name}: prior(context) has the event shape {event}, and z, which proposal draws, has the "
        f"event shape {leaf.shape[2:]}; they must be the same."
      )
  dtypes = tf.nest.flatten(prior.dtype)
  for dtype, leaf in zip(dtypes, leaves, strict=False):
    if leaf.dtype.is_floating and tf.as_dtype(dtype) != leaf.dtype:
      raise ValueError(
        f"{name}.prior is a distribution of {tf.as_dtype(dtype).name}, but z, which proposal "
        f"draws, is {leaf.dtype.name}: give both one dtype, such as self.float_dtype."
      )


def sum_of_log_probs(
  name: str, log_likelihood: tf.Tensor, log_prior: tf.Tensor, kl_weight: float | tf.Tensor = 1
) -> tf.Tensor:
  """Returns log p(x | z) + kl_weight log p(z), each [num_samples, batch_size], in nats.

  `name` is the model's, for messages.

  Raises:
    ValueError: if one is narrower than float32, or the two differ in rank.
  """
  _check_dtype(f"{name}.likelihood", "log p(x | z, context) is", log_likelihood.dtype)
  _check_dtype(f"{name}.prior", "log p(z | context) is", log_prior.dtype)
  if log_likelihood.shape.rank != log_prior.shape.rank:
    raise ValueError(
      f"{name}: log p(x | z) and log p(z) must have the shape [num_samples, batch_size], got "
      f"likelihood(z, context).log_prob(x) of {log_likelihood.shape} and "
      f"prior(context).log_prob(z) of {log_prior.shape}. If event axes remain, wrap the "
      "distribution in tfd.Independent."
    )
  return evaluation.add_log_prior(log_likelihood, log_prior, kl_weight)


def _check_dtype(name: str, what: str, dtype: tf.DType) -> None:
  """Raises a ValueError if a dtype is a floating one narrower than float32."""
  if dtype.is_floating and dtype.size < 4:
    raise ValueError(
      f"{name}: {what} {dtype.name}, which is too coarse for log-densities. Give the layer that "
      'computes the parameters dtype="float32", or cast them: the other layers may be narrower.'
    )


def _full_name(method: Callable) -> str:
  """Returns the name of a method with that of its object's class."""
  owner = getattr(method, "__self__", None)
  name = getattr(method, "__name__", repr(method))
  return name if owner is None else f"{type(owner).__name__}.{name}"
