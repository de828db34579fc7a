"""Keeps moving averages of gradients in a Keras layer, and updates them."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# Decays of Adam's averages, and its epsilon.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class Averages(keras.layers.Layer):
  """Holds variables with statistics of gradients, each under its own name.

  A file saves them by name. Loading restores all of them, or none if the file lacks one or has
  another shape for it: it was then saved while other gradients were followed.
  """

  def __init__(self, **kwargs: Any):
    super().__init__(**kwargs)
    self._keys = []  # Parallel to the variables: names of variables may not hold every character.

  def add_average(self, name: str, shape: Sequence[int] = (), initializer: Any = "zeros"):
    """Returns a new float32 variable that is not trained."""
    self._keys.append(name.replace("/", "_"))
    options = {"initializer": initializer, "trainable": False, "dtype": "float32"}
    return self.add_weight(name="average", shape=tuple(shape), **options)

  def add_averages(self, name: str, shapes: Sequence[Sequence[int]]) -> list:
    """Returns a new variable of each shape."""
    return [self.add_average(f"{name}_{i}", shape) for i, shape in enumerate(shapes)]

  @property
  def by_name(self) -> dict[str, keras.Variable]:
    """Returns the variables by name."""
    return dict(zip(self._keys, self.variables, strict=True))

  def save_own_variables(self, store: Any) -> None:
    """Writes every variable under its name."""
    for name, variable in self.by_name.items():
      store[name] = variable.numpy()

  def load_own_variables(self, store: Any) -> None:
    """Reads what `save_own_variables` wrote, if the store holds all of it."""
    values = {name: store[name] for name in self.by_name if name in store}
    shapes = {name: value.shape for name, value in values.items()}
    if shapes == {name: tuple(variable.shape) for name, variable in self.by_name.items()}:
      for name, variable in self.by_name.items():
        variable.assign(values[name])


def follow(average: keras.Variable, new: tf.Tensor, decay: float) -> None:
  """Moves a moving average toward a new value."""
  average.assign(decay * average + (1 - decay) * new)


def adams_direction(
  slope: tf.Tensor, mean: keras.Variable, square: keras.Variable, steps: keras.Variable
) -> tf.Tensor:
  """Returns the direction of a step of Adam along a slope, after moving its two averages.

  Args:
    slope: of any shape.
    mean: Adam's average of the slope.
    square: Adam's average of its square.
    steps: the number of slopes so far, to debias the averages; with 0 steps the result is 0.
  """
  follow(mean, slope, _BETA_1)
  follow(square, slope**2, _BETA_2)
  first = tf.math.divide_no_nan(mean, 1 - _BETA_1**steps)
  second = tf.math.divide_no_nan(square, 1 - _BETA_2**steps)
  return first / (tf.sqrt(second) + _EPSILON)
