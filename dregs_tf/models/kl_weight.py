"""Defines the weight of the KL divergence in training: a number, a variable, or a schedule."""

import math
import numbers
from typing import Any

import keras
import tensorflow as tf


class KLWeight:
  """Gives the weight beta of a step, for log-weights log p(x | z) + beta (log p(z) - log q(z | x)).

  Args:
    value: a number of 0 or more, a scalar tf or Keras Variable, or a Keras learning-rate schedule
      of the number of updates, for instance `keras.optimizers.schedules.PolynomialDecay(0.0, 5000,
      1.0)`, which rises to 1 within 5000.

  Raises:
    ValueError: if it is none of these.
  """

  def __init__(self, value: Any = 1.0):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    is_variable = isinstance(value, (tf.Variable, keras.Variable)) and len(value.shape) == 0
    is_schedule = isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
    if not ((is_number and 0 <= value < math.inf) or is_variable or is_schedule):
      raise ValueError(
        "kl_weight must be a number of 0 or more, a scalar Variable or a Keras schedule of the "
        f"step, got {value!r}."
      )
    self.value = value

  @property
  def is_one(self) -> bool:
    """Returns whether it is the number 1, which does not change the bound."""
    return isinstance(self.value, numbers.Real) and self.value == 1

  def at(self, step: tf.Tensor):
    """Returns the weight after a number of updates: a number, or a scalar Tensor."""
    if isinstance(self.value, keras.optimizers.schedules.LearningRateSchedule):
      return tf.convert_to_tensor(self.value(step))
    return self.value if isinstance(self.value, numbers.Real) else tf.convert_to_tensor(self.value)

  def get_config(self) -> Any:
    """Returns the argument of `from_config`; for a variable, its current value."""
    if isinstance(self.value, (tf.Variable, keras.Variable)):
      return {"variable": float(self.value)}
    if isinstance(self.value, numbers.Real):
      return float(self.value)
    return keras.saving.serialize_keras_object(self.value)

  @classmethod
  def from_config(cls, config: Any) -> "KLWeight":
    """Restores a weight from what Keras makes of `get_config`; a variable is a new one."""
    if isinstance(config, dict):
      return cls(tf.Variable(config["variable"], trainable=False, dtype=tf.float32))
    return cls(config)


def arguments(weight: float | tf.Tensor) -> dict:
  """Returns the keyword for `target_log_prob`; none for 1, since an override may not take it."""
  is_one = isinstance(weight, numbers.Real) and weight == 1
  return {} if is_one else {"kl_weight": weight}
