"""Moving averages of a gradient and its square: the variance and SNR that the authors report."""

import keras
import tensorflow as tf

_DECAY = 0.99


@keras.saving.register_keras_serializable("dregs_tf")
class GradientMoments(keras.layers.Layer):
  """Exponential moving averages of g and g^2 over all coordinates of a gradient, debiased.

  variance = mean over coordinates of (m2 - m1^2), SNR^2 = mean(m1^2) / variance, with averages of
  decay 0.99 (the authors' released code, there without the debiasing).
  """

  size: int | None = None  # until built

  def build(self, size: int) -> None:
    """Makes the averages of a gradient of `size` coordinates."""
    options = {"initializer": "zeros", "trainable": False, "dtype": "float32"}
    self._first = self.add_weight(name="first", shape=(size,), **options)
    self._second = self.add_weight(name="second", shape=(size,), **options)
    self._mass = self.add_weight(name="mass", shape=(), **options)
    self.size = size
    self.built = True

  def update(self, gradients: list[tf.Tensor]) -> None:
    """Takes in one gradient, given as a list of Tensors."""
    gradient = tf.concat([tf.reshape(tf.cast(g, tf.float32), [-1]) for g in gradients], axis=0)
    if not self.built:
      self.build(int(gradient.shape[0]))
    for average, new in ((self._first, gradient), (self._second, gradient**2), (self._mass, 1.0)):
      average.assign(_DECAY * average + (1 - _DECAY) * new)

  def variance(self) -> tf.Tensor:
    """The mean over coordinates of the gradient's variance, a scalar."""
    return tf.reduce_mean(self._second / self._mass - (self._first / self._mass) ** 2)

  def snr(self) -> tf.Tensor:
    """The gradient's signal-to-noise ratio, a scalar."""
    return tf.sqrt(
      tf.math.divide_no_nan(tf.reduce_mean((self._first / self._mass) ** 2), self.variance())
    )
