"""Runs a particle filter: a loop of steps with resampling between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from dregs_tf import importance_weights, seeds
from dregs_tf.sequential import gates, resample, steps

# The purposes of a step's seeds.
_LATENTS, _ANCESTORS = range(2)


class Outputs(NamedTuple):
  """Holds the outputs of the steps, stacked along axis 0.

  increments: [T, num_particles, batch_size], the log-weights of each step, with gradients.
  ticket, score: of the same shape or None, see `steps.Step`.
  log_weights: of the same shape, the log-weights of the block so far, stopped.
  samples: [T, num_particles, batch_size, ...], stopped.
  ancestors: [T, num_particles, batch_size], int32.
  begins: [T, batch_size], bools, whether particles were resampled before the step.
  closed: [T, batch_size], the sum of the values of the blocks that ended before the step.
  """

  increments: tf.Tensor
  ticket: tf.Tensor | None
  score: tf.Tensor | None
  log_weights: tf.Tensor
  samples: Any
  ancestors: tf.Tensor
  begins: tf.Tensor
  closed: tf.Tensor


class _Carry(NamedTuple):
  """Holds what a step passes to the next; see `Outputs` and `steps.Lineage`."""

  lineage: steps.Lineage
  log_weights: tf.Tensor
  samples: Any
  closed: tf.Tensor


class ParticleFilter(NamedTuple):
  """Filters sequences; the fields are checked arguments of `estimate`.

  observations: Tensors [batch_size, T, ...].
  lengths: int32 [batch_size], or None.
  schedule: when to resample.
  needs: what the estimator needs of a step.
  """

  model: Any
  observations: Any
  lengths: tf.Tensor | None
  num_particles: int
  seed: tf.Tensor
  scheme: str
  schedule: resample.Schedule
  needs: steps.Needs

  def run(self, batch_size: tf.Tensor, num_steps: int | tf.Tensor) -> tuple[Outputs, Any]:
    """Returns the outputs of all steps, and the state after the last."""
    carry, outputs = _scan(self._first(batch_size), self._next, num_steps)
    particles = carry.lineage.whole or carry.lineage.gated
    return outputs, steps.stop(particles.state)

  def _first(self, batch_size: tf.Tensor) -> tuple[_Carry, Outputs]:
    state = self.model.initial_state(batch_size)
    lineage = steps.before_first(steps.map_tensors(tf.convert_to_tensor, state), self.needs)
    step = self._stepper(0).take(lineage)
    zeros = tf.zeros_like(step.log_weights)
    ancestors = self._itself(zeros)
    before = _Carry(step.lineage, zeros, None, zeros[0])
    return self._after(0, before, step, ancestors, zeros[0] > 0)

  def _next(self, t: tf.Tensor, carry: _Carry) -> tuple[_Carry, Outputs]:
    ancestors = self._itself(carry.log_weights)
    begins = tf.zeros_like(carry.closed) > 0
    if self.schedule.is_due is not None:
      begins |= self.schedule.is_due(t, carry.log_weights)
      if self.lengths is not None:
        begins &= t < self.lengths
      drawn = resample.ancestors(self.scheme, carry.log_weights, self._seed(t, _ANCESTORS))
      ancestors = tf.where(begins, drawn, ancestors)
      value = importance_weights.log_mean(carry.log_weights)
      resampled = descend(carry.lineage.whole, ancestors)
      carry = _Carry(
        steps.begin_block(carry.lineage, resampled, begins, self.needs),
        tf.where(begins, tf.zeros_like(carry.log_weights), carry.log_weights),
        carry.samples,
        tf.where(begins, carry.closed + value, carry.closed),
      )
    step = self._stepper(t).take(carry.lineage)
    return self._after(t, carry, step, ancestors, begins)

  def _after(self, t, before: _Carry, step: steps.Step, ancestors, begins):
    """Returns the carry after a step, and its outputs; ended sequences do not change."""
    increments, lineage = step.log_weights, step.lineage
    samples = steps.stop((lineage.gated or lineage.whole).z)
    if self.lengths is not None:
      going = t < self.lengths
      increments = tf.where(going, increments, tf.zeros_like(increments))
      if before.samples is not None:  # Before the first step there is nothing to keep.
        lineage = steps.unless_ended(going, lineage, before.lineage)
        samples = steps.choose(going, samples, before.samples)
    log_weights = before.log_weights + tf.stop_gradient(increments)
    outputs = Outputs(
      increments, step.ticket, step.score, log_weights, samples, ancestors, begins, before.closed
    )
    return _Carry(lineage, log_weights, samples, before.closed), outputs

  def _stepper(self, t) -> steps.Stepper:
    seed = self._seed(t, _LATENTS)
    return steps.Stepper(self.model, self._at(t), self.num_particles, seed, self.needs)

  def _seed(self, t, purpose: int) -> tf.Tensor:
    return seeds.fold_in(self.seed, t, purpose)

  def _at(self, t):
    """Returns the observations of step t; after its end a sequence's last one, or 0 without any."""
    if self.lengths is None:
      return tf.nest.map_structure(lambda leaf: tf.gather(leaf, t, axis=1), self.observations)
    places = tf.maximum(tf.minimum(t, self.lengths - 1), 0)

    def of_leaf(leaf):
      # Padding may be NaN, which would reach gradients.
      found = tf.gather(leaf, places, axis=1, batch_dims=1)
      is_there = tf.reshape(self.lengths > 0, [-1] + [1] * (found.shape.rank - 1))
      return tf.where(is_there, found, tf.zeros_like(found))

    return tf.nest.map_structure(of_leaf, self.observations)

  def _itself(self, log_weights: tf.Tensor) -> tf.Tensor:
    """Returns the index of each particle, [num_particles, batch_size]."""
    numbers = tf.range(self.num_particles)[:, tf.newaxis]
    return numbers + tf.zeros_like(log_weights, tf.int32)


def descend(particles: steps.Particles, ancestors: tf.Tensor) -> steps.Particles:
  """Returns the particles with these indices, [n, batch_size], as Tensors [n, batch_size, ...]."""
  batch_size = tf.shape(ancestors)[1]
  rows = ancestors * batch_size + tf.range(batch_size)

  def of_tensor(tensor):
    # A gather of rows is much faster than one along an axis with a batch axis.
    flat = tf.reshape(tensor, tf.concat([[-1], tf.shape(tensor)[2:]], axis=0))
    return tf.ensure_shape(tf.gather(flat, rows), [ancestors.shape[0], *tensor.shape[1:]])

  return steps.map_tensors(of_tensor, particles)


def _scan(first: tuple, step: Callable, num_steps: int | tf.Tensor) -> tuple:
  """Loops over steps; returns the last carry and the outputs, stacked along axis 0.

  Args:
    first: the carry after step 0 and its outputs.
    step: (t, carry) -> (carry, outputs), for t of 1 and more.
    num_steps: the number of steps, including the first.
  """
  carry, outputs = first
  arrays = tuple(
    tf.TensorArray(leaf.dtype, num_steps, element_shape=leaf.shape).write(0, leaf)
    for leaf in gates.leaves_of(outputs)
  )

  def body(t, carried, arrays):
    new_carry, new_outputs = step(t, gates.pack(carry, carried))
    new = zip(gates.leaves_of(new_carry), carried, strict=True)
    written = zip(arrays, gates.leaves_of(new_outputs), strict=True)
    return (
      t + 1,
      tuple(tf.ensure_shape(leaf, old.shape) for leaf, old in new),
      tuple(array.write(t, leaf) for array, leaf in written),
    )

  _, carried, arrays = tf.while_loop(
    lambda t, *_: t < num_steps,
    body,
    (tf.constant(1), tuple(gates.leaves_of(carry)), arrays),
    maximum_iterations=num_steps - 1,  # XLA needs it for the gradient.
  )
  return gates.pack(carry, carried), gates.pack(outputs, [array.stack() for array in arrays])
