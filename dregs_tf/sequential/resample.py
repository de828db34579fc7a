"""Resamples particles: draws their ancestors, and decides when.

A scheme draws K ancestors such that particle k has K wbar_k offspring in expectation. Schemes
differ in the variance of these counts (Douc, Cappe and Moulines 2005,
https://arxiv.org/abs/cs/0507025).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from dregs_tf import catalogue, importance_weights


def ancestors(scheme: str, log_weights: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Draws the ancestors of K particles; none has weight 0, unless all particles have.

  Args:
    scheme: one of `catalogue.RESAMPLING`.
    log_weights: [num_particles, batch_size], in nats.
    seed: a stateless seed, of shape [2].

  Returns:
    Indices of particles, int32, [num_particles, batch_size], in ascending order for each example
    except with multinomial resampling.
  """
  weights = importance_weights.normalize(log_weights)
  num_particles, batch_size = tf.unstack(tf.shape(weights))
  rows = {"systematic": 1, "stratified": num_particles, "multinomial": num_particles}[scheme]
  uniform = tf.random.stateless_uniform([rows, batch_size], seed, dtype=weights.dtype, alg="philox")
  return ancestors_at(points(scheme, uniform, num_particles), weights)


def points(scheme: str, uniform: tf.Tensor, num_particles: int | tf.Tensor) -> tf.Tensor:
  """Returns K points in [0, 1), [num_particles, batch_size], to look up in cumulative weights.

  Args:
    scheme: one of `catalogue.RESAMPLING`.
    uniform: numbers from [0, 1), of shape [1, batch_size] for systematic resampling, otherwise
      [num_particles, batch_size].
    num_particles: K.
  """
  if scheme == "multinomial":
    return uniform
  number = tf.cast(tf.range(num_particles)[:, tf.newaxis], uniform.dtype)
  return (number + uniform) / tf.cast(num_particles, uniform.dtype)


def ancestors_at(points: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
  """Looks up each point in the cumulative weights; returns particles [num_particles, batch_size].

  Args:
    points: in [0, 1], [num_particles, batch_size].
    weights: normalized weights, of the same shape; all 0 gives the first particle.
  """
  cumulative = tf.cumsum(weights, axis=0)
  total = cumulative[-1]
  # The interval of the last particle with a positive weight extends to infinity, so rounding of the
  # cumulative weights cannot put a point beyond it.
  end = tf.constant(math.inf, weights.dtype)
  cumulative = tf.where(cumulative >= total, end, cumulative)
  found = tf.searchsorted(
    tf.transpose(cumulative), tf.transpose(points * total), side="right", out_type=tf.int32
  )
  return tf.minimum(tf.transpose(found), tf.shape(weights)[0] - 1)  # NaN is past every interval.


class Schedule(NamedTuple):
  """Determines before which steps particles are resampled.

  is_due: a function of a step's number, a scalar, and the log-weights of the block so far,
    [num_particles, batch_size], that returns bools that broadcast to [batch_size]. None: never.
  has_long_blocks: whether a block can have more than one step.
  is_fixed: whether it does not depend on the weights.
  """

  is_due: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None
  has_long_blocks: bool = True
  is_fixed: bool = True


def schedule(resample_when: Any) -> Schedule:
  """Makes a `Schedule` from the argument `resample_when` of `estimate`.

  Raises:
    ValueError: if the argument is not valid.
  """
  if not catalogue.is_schedule(resample_when):
    raise ValueError(f"resample_when must be {catalogue.SCHEDULES}, got {resample_when!r}.")
  if resample_when in ("never", [], ()):
    return Schedule(None)
  if resample_when == "always":
    return Schedule(lambda step, _: step >= 0, has_long_blocks=False)
  if isinstance(resample_when, (list, tuple)):
    steps = [int(step) for step in resample_when]
    return Schedule(lambda step, _: tf.reduce_any(step == steps))
  if catalogue.is_int(resample_when):
    length = int(resample_when)
    return Schedule(lambda step, _: step % length == 0, has_long_blocks=length > 1)
  return Schedule(_below(float(resample_when)), is_fixed=False)


def _below(fraction: float) -> Callable:
  """Returns an `is_due` for an effective sample size below a fraction of the particles."""

  def is_due(step, log_weights):
    del step
    least = fraction * importance_weights.count(log_weights)
    return importance_weights.effective_sample_size(log_weights) < least

  return is_due
