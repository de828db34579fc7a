"""Chooses how many samples the gradient is taken through, while training."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dregs_tf import selection
from dregs_tf.coefficients import Coefficients
from dregs_tf.models.averages import Averages

# The value of `compile(num_backward_samples=...)` that has M chosen.
AUTO = "auto"

# The largest added variance, relative, and the number of steps between estimates of it.
_ADDED_AT_MOST, _STEPS_BETWEEN = 0.01, 10


class BackwardSamples(Averages):
  """Follows the variance that M = 1, 2, 4, ... samples would add, and holds the M in use.

  That variance is `selection.added_variance` of every tenth batch, summed over an epoch. At the
  epoch's end M becomes the smallest power of two that adds at most 1 % to the variance of each part
  of the gradient (the model's, the path's and the score's), or K if none does. The first epoch uses
  all K samples.

  Args:
    num_samples: K.
    **kwargs: of a Keras layer.
  """

  def __init__(self, num_samples: int, **kwargs: Any):
    super().__init__(**kwargs)
    self.candidates = [1 << i for i in range((num_samples - 1).bit_length())]
    self._num_samples = num_samples
    start = keras.initializers.Constant(num_samples)
    self.in_use = self.add_average("in_use", initializer=start)
    self._added = self.add_average("added", (len(self.candidates), len(Coefficients._fields)))
    self._dense = self.add_average("dense", (len(Coefficients._fields),))
    self.built = True

  @property
  def number(self) -> int:
    """Returns the M in use, as an int; not for use in a graph."""
    with tf.init_scope():
      return int(tf.convert_to_tensor(self.in_use))

  def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
    """Creates nothing: the variables depend on K alone."""

  def update(self, coefficients: Coefficients, step: tf.Tensor) -> None:
    """Adds the coefficients of a batch, each [num_samples, batch_size], at every tenth step.

    A batch with coefficients that are not finite is skipped.
    """

    def sums():
      pairs = [selection.added_variance(tuple(coefficients), each) for each in self.candidates]
      added = tf.stack([tf.reduce_sum(tf.cast(each, tf.float32), axis=1) for each, _ in pairs])
      both = added, tf.reduce_sum(tf.cast(pairs[0][1], tf.float32), axis=1)
      is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in both])
      return tuple(tf.where(is_finite, each, tf.zeros_like(each)) for each in both)

    nothing = (tf.zeros(self._added.shape), tf.zeros(self._dense.shape))
    added, dense = tf.cond(tf.equal(step % _STEPS_BETWEEN, 0), sums, lambda: nothing)
    self._added.assign_add(added)
    self._dense.assign_add(dense)

  def choose(self) -> None:
    """Sets M for the next epoch and resets the sums."""
    added, dense = (tf.convert_to_tensor(each).numpy() for each in (self._added, self._dense))
    few = [
      number
      for number, each in zip(self.candidates, added, strict=True)
      if (each <= _ADDED_AT_MOST * dense).all()
    ]
    if dense.any():
      self.in_use.assign(min(few, default=self._num_samples))
    self._added.assign(tf.zeros_like(self._added))
    self._dense.assign(tf.zeros_like(self._dense))


class ChooseBackwardSamples(keras.callbacks.Callback):
  """Lets a model choose its M at the end of an epoch, and use it from the next epoch on."""

  def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None):
    # Another callback may also have loaded M, as BackupAndRestore does.
    self.model.make_train_function()

  def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None):
    self.model.followers.backward_samples.choose()
