"""Bounds in the configuration of a saved model: by name, or with a user's own function."""

from typing import Any

import keras

from dregs_tf import bounds


def to_config(bound: bounds.Bound) -> list:
  """Returns [name, options], or [name, options, function, gradient] of a user's own.

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


def from_config(config: list[Any]) -> bounds.Bound:
  """Makes the bound again.

  Raises:
    ValueError: if its function is not registered where the model is loaded.
  """
  name, options, *function = config
  if not function:
    return bounds.get(name, **options)
  value_fn, gradient = function  # Keras has put a registered function in its name's place.
  if not callable(value_fn):
    raise ValueError(
      f"bound {name}: its function {value_fn} is not registered with Keras here: import the module "
      "that defines it before loading the model."
    )
  return bounds.from_function(value_fn, name, gradient)
