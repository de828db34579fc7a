"""Moving averages of a gradient and its square: the variance and SNR that the authors report."""

import keras
import tensorflow as tf

_DECAY = 0.99


@keras.saving.register_keras_serializable("dregs_tf")
class GradientMoments(keras.layers.Layer):
  """Exponential moving averages of g and g^2 for every coordinate of a gradient, debiased.

  Over a net's coordinates, variance = mean(m2 - m1^2) and SNR^2 = mean(m1^2) / variance, with
  averages of decay 0.99 (the authors' released code, there without the debiasing).
  """

  size: int | None = None  # the number of coordinates, until built

  def build(self, size: int) -> None:
    """Makes the averages of a gradient of `size` coordinates."""
    options = {"initializer": "zeros", "trainable": False, "dtype": "float32"}
    self._first = self.add_weight(name="first", shape=(size,), **options)
    self._second = self.add_weight(name="second", shape=(size,), **options)
    self._mass = self.add_weight(name="mass", shape=(), **options)
    self.size = size
    self.built = True

  def update(self, gradient: tf.Tensor) -> None:
    """Takes in one gradient, a vector of `size` coordinates."""
    gradient = tf.cast(gradient, tf.float32)
    for average, new in ((self._first, gradient), (self._second, gradient**2), (self._mass, 1.0)):
      average.assign(_DECAY * average + (1 - _DECAY) * new)

  def variance_and_snr(self, slices: list[tuple[int, int]]) -> tuple[tf.Tensor, tf.Tensor]:
    """Variance and SNR, scalars, over the coordinates in the slices, each (start, end)."""

    def part(average):
      return tf.concat([average[start:end] for start, end in slices], axis=0) / self._mass

    squared_mean = part(self._first) ** 2
    # Rounding can take a variance below 0.
    variance = tf.reduce_mean(tf.nn.relu(part(self._second) - squared_mean))
    return variance, tf.sqrt(tf.math.divide_no_nan(tf.reduce_mean(squared_mean), variance))
