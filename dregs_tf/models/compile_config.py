"""Converts the arguments of `compile` to and from the configuration of a saved model."""

from typing import Any

import keras

from dregs_tf import bounds
from dregs_tf.models import kl_weight as kl
from dregs_tf.models.backward_samples import AUTO


def to_config(model: keras.Model) -> dict:
  """Returns the arguments of a model's `compile`, as Keras saves them."""
  choice = model.followers.backward_samples
  return keras.saving.serialize_keras_object(
    {
      **model._compile_arguments,
      "bound": bound_to_config(model.bound),
      "kl_weight": model.kl_weight.get_config(),
      "missing": model.missing,
      "num_samples": model.num_samples,
      "num_backward_samples": model.num_backward_samples if choice is None else AUTO,
      "gradient_statistics": model.followers.gradient_statistics,
      "track_variance": [bound_to_config(b) for b in model.followers.tracked.values()],
      "adapt_alpha": model.followers.adaptive_alpha is not None,
      "prior_gradient": model.prior_gradient,
    }
  )


def from_config(config: dict) -> dict:
  """Returns the arguments of `compile`, given what `to_config` returned."""
  arguments = keras.saving.deserialize_keras_object(config)
  if isinstance(arguments["bound"], str):  # as release 0.1 saved it
    arguments["bound"] = [arguments["bound"], arguments.pop("bound_options")]
  arguments["bound"] = bound_from_config(arguments["bound"])
  tracked = arguments.get("track_variance", [])
  arguments["track_variance"] = [bound_from_config(each) for each in tracked]
  arguments["kl_weight"] = kl.KLWeight.from_config(arguments.get("kl_weight", 1.0)).value
  return arguments


def bound_to_config(bound: bounds.Bound) -> list:
  """Returns [name, options] of a bound, or [name, options, function, gradient] of a user's own.

  Raises:
    ValueError: if a user's function is not registered with Keras: a file could not name it.
  """
  if bound.function is None:
    return [bound.name, dict(bound.options)]
  value_fn, gradient = bound.function
  registered = keras.saving.get_registered_name(value_fn)
  if keras.saving.get_registered_object(registered) is not value_fn:
    raise ValueError(
      f"bound {bound.name} cannot be saved: register the function that it is made of, with "
      f"@keras.saving.register_keras_serializable(), got {value_fn!r}."
    )
  return [bound.name, {}, registered, gradient]


def bound_from_config(config: list[Any]) -> bounds.Bound:
  """Makes a bound from what `bound_to_config` returned.

  Raises:
    ValueError: if its function is not registered where the model is loaded.
  """
  name, options, *function = config
  if not function:
    return bounds.get(name, **options)
  value_fn, gradient = function  # Keras has replaced the name of a registered function with it.
  if not callable(value_fn):
    raise ValueError(
      f"bound {name}: its function {value_fn} is not registered with Keras here: import the module "
      "that defines it before loading the model."
    )
  return bounds.from_function(value_fn, name, gradient)
