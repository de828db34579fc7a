"""Keeps moving averages of gradients and their squares: the variance that the authors report."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dregs_tf.models.averages import Averages

_DECAY = 0.99


class GradientMoments(Averages):
  """Keeps debiased moving averages of g and |g|^2 for the gradients of several estimators.

  The variance over the coordinates of some variables is mean(m2 - m1^2), with averages m1 of g and
  m2 of g^2 of decay 0.99 (as in the authors' released code, which does not debias). The square of
  m1 contains about variance / 199 of noise. Only the mean of m2 is needed, so each variable stores
  one number for it.

  The authors also report mean(m1^2) / variance as a squared signal-to-noise ratio. It is not one:
  see `GradientSNR`.

  Args:
    names: the estimators' names.
    **kwargs: arguments of a Keras layer.
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
    """Updates the averages with each estimator's gradient of each variable, None if there is none.

    If any gradient is not finite, the whole step is left out: an optimizer that scales the loss
    skips it too.
    """
    gradients = {
      name: [None if g is None else tf.cast(g, tf.float32) for g in parts]
      for name, parts in gradients.items()
    }
    squares = {
      name: tf.stack([tf.zeros([]) if g is None else tf.reduce_sum(g**2) for g in parts])
      for name, parts in gradients.items()
    }
    is_finite = tf.reduce_all(tf.math.is_finite(tf.concat(list(squares.values()), axis=0)))

    def follow(average, new):
      average.assign(tf.where(is_finite, _DECAY * average + (1 - _DECAY) * new, average))

    follow(self._mass, 1.0)
    for name, parts in gradients.items():
      follow(self._second[name], squares[name])
      for average, gradient in zip(self._first[name], parts, strict=True):
        if gradient is not None:
          follow(average, gradient)

  def variance(self, name: str, places: Sequence[int]) -> tf.Tensor:
    """Returns the variance, a scalar, of one estimator over the variables at these places."""
    size = sum(self._first[name][i].shape.num_elements() for i in places)
    first = sum(tf.reduce_sum(self._first[name][i] ** 2) for i in places)
    second = sum(self._second[name][i] for i in places)
    variance = tf.math.divide_no_nan(second - first / self._mass, self._mass * size)
    return tf.nn.relu(variance)  # Rounding can make a variance negative.
