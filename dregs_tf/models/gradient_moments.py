"""Moving averages of gradients and their squares: the variance that the authors report."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dregs_tf.models.averages import Averages

_DECAY = 0.99


class GradientMoments(Averages):
  """Exponential moving averages of g and |g|^2 for the gradients of several estimators, debiased.

  Over the coordinates of some variables, variance = mean(m2 - m1^2), with averages m1 of g and m2
  of g^2 of decay 0.99 (the authors' released code, there without the debiasing). The square of m1
  holds about variance / 199 of noise. Of m2 the mean alone is needed, so each variable has one
  number for it.

  The authors also report mean(m1^2) / variance as a squared signal-to-noise ratio. It is not one:
  see `GradientSNR`.

  Args:
    names: of the estimators.
    **kwargs: of a Keras layer.
  """

  def __init__(self, names: Sequence[str], **kwargs: Any):
    super().__init__(**kwargs)
    self.names = tuple(names)

  def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
    """Makes the averages, for variables of these shapes."""
    self._first = {name: self.add_averages(f"{name}_first", shapes) for name in self.names}
    self._second = {name: self.add_average(f"{name}_second", (len(shapes),)) for name in self.names}
    self._mass = self.add_average("mass")
    self.built = True

  def update(self, gradients: dict[str, Sequence[tf.Tensor | None]]) -> None:
    """Takes in each estimator's gradient of each variable, None where there is none."""
    self._mass.assign(_DECAY * self._mass + (1 - _DECAY))
    for name, parts in gradients.items():
      squares = []
      for average, gradient in zip(self._first[name], parts, strict=True):
        if gradient is None:
          squares.append(tf.zeros([]))
          continue
        gradient = tf.cast(gradient, tf.float32)
        squares.append(tf.reduce_sum(gradient**2))
        average.assign(_DECAY * average + (1 - _DECAY) * gradient)
      second = self._second[name]
      second.assign(_DECAY * second + (1 - _DECAY) * tf.stack(squares))

  def variance(self, name: str, places: Sequence[int]) -> tf.Tensor:
    """Returns the variance, a scalar, of one estimator over the variables at these places."""
    size = sum(self._first[name][i].shape.num_elements() for i in places)
    first = sum(tf.reduce_sum((self._first[name][i] / self._mass) ** 2) for i in places) / size
    second = sum(self._second[name][i] for i in places) / (self._mass * size)
    return tf.nn.relu(second - first)  # Rounding can take a variance below 0.
