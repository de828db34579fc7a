"""Multiplies matrices in a layer's compute dtype, with sums in float32 or better."""

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

from dregs_tf.models import keras_privates

_in_float32: contextvars.ContextVar[bool] = contextvars.ContextVar("in_float32", default=False)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
  """Makes `multiply` compute in float32 or better inside, so that evaluation rounds less."""
  token = _in_float32.set(True)
  try:
    yield
  finally:
    _in_float32.reset(token)


def multiply(
  a: tf.Tensor,
  b: tf.Tensor,
  dtype: tf.DType,
  transpose_a: bool = False,
  transpose_b: bool = False,
) -> tf.Tensor:
  """Returns the product, [n, k], of matrices cast to a dtype; it is in float32 or better.

  Its gradients are also float32 or better, from products of the same dtype. XLA multiplies bfloat16
  with float32 sums; TensorFlow's own operation rounds the sums, toward zero on some processors.
  """
  if dtype.size >= 4 or _in_float32.get():
    wide = dtype if dtype.size >= 4 else tf.float32
    return tf.matmul(tf.cast(a, wide), tf.cast(b, wide), transpose_a, transpose_b)

  @tf.custom_gradient
  def narrow(a, b):
    def backward(upstream):
      if transpose_a:
        slope_a = multiply(b, upstream, dtype, transpose_b, True)
      else:
        slope_a = multiply(upstream, b, dtype, False, not transpose_b)
      if transpose_b:
        slope_b = multiply(upstream, a, dtype, True, transpose_a)
      else:
        slope_b = multiply(a, upstream, dtype, not transpose_a)
      return tf.cast(slope_a, a.dtype), tf.cast(slope_b, b.dtype)

    output = {"output_type": tf.float32} if dtype == tf.bfloat16 and keras_privates.in_xla() else {}
    product = tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype), transpose_a, transpose_b, **output)
    return tf.cast(product, tf.float32), backward

  return narrow(a, b)
