"""Multiplies matrices in a layer's compute dtype, with sums in float32 or better."""

import contextlib
import contextvars
import functools
import pathlib
from collections.abc import Iterator

import tensorflow as tf

from dregs_tf.models import keras_privates

# The instruction sets with products of bfloat16, as Linux names them on x86 and ARM.
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}

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
  with float32 sums; TensorFlow's own operation rounds the sums. On a processor
  without products of bfloat16, which would be emulated slowly, the rounded factors are multiplied
  in float32.
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

    if dtype == tf.bfloat16 and not multiplies_bfloat16():
      return tf.matmul(_rounded(a), _rounded(b), transpose_a, transpose_b), backward
    output = {"output_type": tf.float32} if dtype == tf.bfloat16 and keras_privates.in_xla() else {}
    product = tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype), transpose_a, transpose_b, **output)
    return tf.cast(product, tf.float32), backward

  return narrow(a, b)


@functools.cache
def multiplies_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
  """Returns whether a GPU or the processor multiplies bfloat16; True where Linux does not tell."""
  path = pathlib.Path(cpuinfo)
  if tf.config.list_physical_devices("GPU") or not path.exists():
    return True
  return not _INSTRUCTIONS.isdisjoint(path.read_text().split())


def _rounded(tensor: tf.Tensor) -> tf.Tensor:
  """Returns the nearest bfloat16 numbers in float32, ties to even.

  XLA drops a cast to bfloat16 and back, so it is done on the bits.
  """
  bits = tf.bitcast(tf.cast(tensor, tf.float32), tf.uint32)
  last_kept = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 16), 1)
  return tf.bitcast(tf.bitwise.bitwise_and(bits + 0x7FFF + last_kept, 0xFFFF0000), tf.float32)
