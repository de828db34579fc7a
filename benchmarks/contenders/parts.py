"""Runs parts of this library's step alone: its noise, its optimizer, and what no size changes."""

import keras
import tensorflow as tf

from benchmarks.contenders import EPSILON, LATENT_DIM, LEARNING_RATE, ours
from dregs_tf import models


def make(name: str, batch_size: int, num_samples: int):
  """Returns `noise`, `optimizer`, or `fixed`: the optimizer, the call of a step and its data."""
  if name == "fixed":
    return ours.make("iwae_dreg", 1, 1)
  step = {"noise": _noise, "optimizer": _optimizer}[name](batch_size, num_samples)
  counter = iter(range(10**9))

  def run(steps: int) -> None:
    for _ in range(steps):
      step(tf.constant([0, next(counter)]))

  return run


def _noise(batch_size: int, num_samples: int):
  shape = [num_samples, batch_size, LATENT_DIM]

  @tf.function(jit_compile=True)
  def draw(seed):
    return tf.random.stateless_normal(shape, seed, alg="philox")

  return draw


def _optimizer(batch_size: int, num_samples: int):
  del batch_size, num_samples
  variables = models.VAE([0.3] * 784, latent_dim=LATENT_DIM).trainable_variables
  optimizer = keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON)
  optimizer.build(variables)
  gradients = [tf.ones(variable.shape) for variable in variables]

  @tf.function(jit_compile=True)
  def update(seed):
    del seed
    optimizer.apply(gradients, variables)

  return update
