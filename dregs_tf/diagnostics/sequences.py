"""Measures the gradients of several estimators on one batch of sequences."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dregs_tf import catalogue, evaluation, output, seeds
from dregs_tf.diagnostics import measure, statistics
from dregs_tf.diagnostics.report import Comparison, Row
from dregs_tf.models import batches, calls
from dregs_tf.models.state_space import StateSpaceModel
from dregs_tf.sequential import resample
from dregs_tf.sequential.steps import Particles, state_of_each, stop


def compare_sequences(
  model: StateSpaceModel,
  batch: Any,
  bounds: Sequence[str] = ("fivo", "fivo_dreg"),
  num_samples: int | Sequence[int] = 16,
  num_measurements: int = 200,
  *,
  seed: seeds.Seed = 0,
  jit_compile: bool = False,
  measure_cost: bool = False,
  **options: Any,
) -> Comparison:
  """Compares estimators of the proposal's gradient on one batch of sequences, as `compare` does.

  The gradient is the whole gradient of those parameters on which the proposal depends given its
  inputs. A `_dreg` bound is compared with the plain reparameterization of the same bound, on the
  same samples. The test of bias tests whether both have the same expectation, as they should where
  the steps of resampling are fixed, although both leave out a term (see `sequential.estimate`).

  Args:
    model: a model of sequences, which is not changed. Its layers are in inference mode.
    batch: observations [batch_size, T, ...], or a pair (lengths, observations).
    bounds: names of bounds of sequences; the references that they need are also measured.
    num_samples: K, or several of them.
    num_measurements: n at each K, at least 30.
    seed: as `sequential.estimate` takes it; the same seed gives the same results.
    jit_compile: whether XLA compiles the gradients.
    measure_cost: whether to also compile and time a training step's gradient of each bound.
    **options: arguments of `sequential.estimate` for bounds that resample: resampling and
      resample_when.

  Returns:
    A `Comparison`.

  Raises:
    TypeError: if an argument is of the wrong kind.
    ValueError: if a value is out of range, or the proposal has no parameters.
    FloatingPointError: if a gradient is not finite.
  """
  if not isinstance(model, StateSpaceModel):
    raise TypeError(f"model must be a StateSpaceModel, got {type(model).__name__}.")
  all_num_samples = measure.as_ints("num_samples", num_samples)
  least = catalogue.MIN_MEASUREMENTS
  num_measurements = evaluation.check_int("num_measurements", num_measurements, least)
  lengths, x, _ = batches.split(batch, model.float_dtype)
  if not model.built:
    model._build_for(x, lengths)
  names, groups = _with_references(bounds)
  variables, noise = _of_proposal(model, x), seeds.stateless(seed)
  rows = []
  total = len(all_num_samples) * (num_measurements + num_measurements // 2)
  with output.Progress(total, "measurements") as progress:
    for k in all_num_samples:
      estimates = {name: _estimate_of(model, x, lengths, name, k, options) for name in names}
      gradients = _gradients(variables, estimates.values(), noise, jit_compile)
      measured = measure.repeat(
        gradients, np.eye(len(names)), groups, num_measurements, progress.update
      )
      if not np.all(np.isfinite(measured.total)):
        raise FloatingPointError(f"A gradient of {', '.join(names)} is not finite at K = {k}.")
      times = {}
      if measure_cost:
        times = measure.milliseconds(model.trainable_variables, estimates, noise, jit_compile)
      values = statistics.summarize(measured, groups)
      references = [names[start] for start, end in groups for _ in range(start, end)]
      rows += [
        Row(
          name,
          k,
          reference,
          _is_unbiased(name, options),
          milliseconds=times.get(name, float("nan")),
          **of_name,
        )
        for name, reference, of_name in zip(names, references, values, strict=True)
      ]
  sizes = measured.center.shape[1], batches.static_size(x)
  return Comparison(tuple(rows), num_measurements, *sizes)


def _is_unbiased(bound: str, options: dict) -> bool:
  """Returns whether a gradient has the expectation of the plain one by construction."""
  row = catalogue.sequence_row(bound)
  if row.gradient == "total" or not row.resamples:
    return True
  return resample.schedule(options.get("resample_when", "always")).is_fixed


def _estimate_of(model, x, lengths, bound: str, num_samples: int, options: dict) -> Callable:
  """Returns a function of a seed that estimates a bound, with the layers in inference mode."""
  resampled = options if catalogue.sequence_row(bound).resamples else {}

  def estimate(seed):
    return model.estimate(
      x, lengths, bound=bound, num_samples=num_samples, seed=seed, training=False, **resampled
    )

  return estimate


def _gradients(
  variables: list, estimates: Iterable[Callable], noise: tf.Tensor, jit_compile: bool
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns a function of a measurement's number that computes its gradients, [M, P]."""

  @tf.function(autograph=False, jit_compile=jit_compile)
  def gradients(number):
    found = []
    for estimate in estimates:
      with tf.GradientTape() as tape:
        objective = tf.reduce_mean(estimate(seeds.fold_in(noise, number)).objective)
      parts = tape.gradient(objective, variables, unconnected_gradients="zero")
      found.append(tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0))
    return tf.stack(found)

  return gradients


def _with_references(bounds: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
  """Returns the bounds in groups, references first, and the groups' starts and ends."""
  by_reference: dict[str, list[str]] = {}
  for name in bounds:
    resamples = catalogue.sequence_row(name).resamples
    (reference,) = (
      other
      for other, row in catalogue.SEQUENCE_BOUNDS.items()
      if (row.gradient, row.resamples) == ("total", resamples)
    )
    group = by_reference.setdefault(reference, [reference])
    if name not in group:
      group.append(name)
  names, groups = [], []
  for group in by_reference.values():
    groups.append((len(names), len(names) + len(group)))
    names += group
  return names, groups


def _of_proposal(model: StateSpaceModel, x: Any) -> list:
  """Returns the variables that the proposal of the first two steps depends on, given its inputs."""
  x = tf.nest.map_structure(lambda leaf: leaf[:, 0], x)
  with calls.looking(model), tf.GradientTape() as tape:
    past = Particles(None, stop(model.initial_state(batches.size(x))))
    first = calls.call(model.proposal, x, *past).sample(1, seed=[0, 0])
    z = stop(first)
    state = stop(model.next_state(state_of_each(past, 1), z, x))
    second = calls.call(model.proposal, x, z, state).sample(seed=[0, 0])
  variables = model.trainable_variables
  found = tape.gradient(tf.nest.flatten([first, second]), variables)
  pairs = zip(variables, found, strict=True)
  depends = [variable for variable, gradient in pairs if gradient is not None]
  if not depends:
    raise ValueError("model: its proposal depends on no trainable variable.")
  return depends
