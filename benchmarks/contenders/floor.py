"""Runs only the step's matrix products, each in one call of TensorFlow or PyTorch: the floor."""

import functools

from benchmarks.contenders import DATA_DIM, HIDDEN, LATENT_DIM


def make(name: str, batch_size: int, num_samples: int):
  """Returns the products by `tf`, `xla` or `torch`, also `-bfloat16`.

  `tf-forward` are the decoder's forward ones.
  """
  library, _, part = name.partition("-")
  rows = batch_size * num_samples
  encoder = [(batch_size, n, m) for n, m in _layers(DATA_DIM, 2 * LATENT_DIM)]
  decoder = [(rows, n, m) for n, m in _layers(LATENT_DIM, DATA_DIM)]
  if part == "forward":
    return _maker(library)(decoder, backward=False)
  return _maker(library)([*encoder, *decoder], backward=True, bfloat16=part == "bfloat16")


def _layers(size_in: int, size_out: int) -> list[tuple[int, int]]:
  return [(size_in, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, size_out)]


def _maker(library: str):
  return {"tf": _tensorflow, "xla": _tensorflow_xla, "torch": _torch}[library]


def _tensorflow(shapes, backward: bool, bfloat16: bool = False, jit_compile: bool = False):
  import tensorflow as tf

  def normal(shape):
    return tf.cast(tf.random.normal(shape), tf.bfloat16 if bfloat16 else tf.float32)

  inputs = [normal([rows, n]) for rows, n, _ in shapes]
  kernels = [normal([n, m]) for _, n, m in shapes]
  outputs = [normal([rows, m]) for rows, _, m in shapes]
  # Only XLA has products of bfloat16 whose sums stay float32.
  multiply = functools.partial(
    tf.matmul, output_type=tf.float32 if bfloat16 and jit_compile else None
  )

  @tf.function(jit_compile=jit_compile)
  def products():
    results = [multiply(x, w) for x, w in zip(inputs, kernels, strict=True)]
    if backward:
      results += [multiply(x, y, transpose_a=True) for x, y in zip(inputs, outputs, strict=True)]
      # The encoder's input needs no gradient.
      pairs = list(zip(outputs, kernels, strict=True))[1:]
      results += [multiply(y, w, transpose_b=True) for y, w in pairs]
    return results

  def run(steps: int) -> None:
    for _ in range(steps):
      products()

  return run


def _tensorflow_xla(shapes, backward: bool, bfloat16: bool = False):
  return _tensorflow(shapes, backward, bfloat16, jit_compile=True)


def _torch(shapes, backward: bool, bfloat16: bool = False):
  import torch

  dtype = torch.bfloat16 if bfloat16 else torch.float32
  inputs = [torch.randn(rows, n, dtype=dtype) for rows, n, _ in shapes]
  kernels = [torch.randn(n, m, dtype=dtype) for _, n, m in shapes]
  outputs = [torch.randn(rows, m, dtype=dtype) for rows, _, m in shapes]

  def run(steps: int) -> None:
    for _ in range(steps):
      for x, w in zip(inputs, kernels, strict=True):
        x @ w
      if backward:
        for x, y in zip(inputs, outputs, strict=True):
          x.T @ y
        for y, w in list(zip(outputs, kernels, strict=True))[1:]:
          y @ w.T

  return run
