"""Tests of resampling: who is drawn how often, exactly, and when."""

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import catalogue
from dregs_tf.sequential import resample

# Multiples of 1/12: with 4 particles, counts change where the uniform is a multiple of 1/3.
WEIGHTS = np.array([1, 7, 0, 4]) / 12
K = len(WEIGHTS)


def _counts(ancestors):
  return np.stack([np.sum(ancestors == k, axis=0) for k in range(K)])


@pytest.mark.parametrize("scheme", catalogue.RESAMPLING)
def test_expected_counts_by_quadrature_over_the_uniform(scheme):
  """The midpoint rule is exact for a step function whose steps are between the points."""
  grid = (np.arange(48) + 0.5) / 48
  uniform = tf.constant(np.tile(grid, (1 if scheme == "systematic" else K, 1)))
  weights = tf.constant(np.tile(WEIGHTS[:, np.newaxis], (1, 48)))
  ancestors = resample.ancestors_at(resample.points(scheme, uniform, K), weights).numpy()
  counts = _counts(ancestors)
  np.testing.assert_allclose(counts.mean(axis=1), K * WEIGHTS, atol=1e-12)
  if scheme == "systematic":
    assert np.all(np.abs(counts - K * WEIGHTS[:, np.newaxis]) < 1)


@pytest.mark.parametrize("scheme", catalogue.RESAMPLING)
def test_no_ancestor_has_weight_0(scheme):
  """Also where points are at the ends of the line, or rounding takes them beyond."""
  rng = np.random.default_rng(0)
  log_weights = rng.normal(size=[5, 300]).astype(np.float32)
  log_weights[rng.uniform(size=[5, 300]) < 0.6] = -np.inf
  log_weights[2] = np.where(np.all(np.isinf(log_weights), axis=0), 0, log_weights[2])
  ancestors = resample.ancestors(scheme, tf.constant(log_weights), tf.constant([1, 2])).numpy()
  assert np.all(np.take_along_axis(log_weights, ancestors, axis=0) > -np.inf)
  weights = tf.constant([[0.0], [0.3], [0.7], [0.0]])
  for point, ancestor in ((0.0, 1), (0.3, 2), (1.0, 2)):
    assert np.all(resample.ancestors_at(tf.fill([4, 1], point), weights) == ancestor)


def test_of_particles_without_weight_and_without_number():
  for value in (-np.inf, np.nan):
    log_weights = tf.fill([3, 2], tf.constant(value, tf.float32))
    ancestors = resample.ancestors("systematic", log_weights, tf.constant([1, 2])).numpy()
    assert np.all((ancestors >= 0) & (ancestors < 3))


def test_float32_points_beyond_the_line():
  """(K - 1 + u) / K may round to 1."""
  uniform = tf.fill([1, 1], tf.constant(np.nextafter(np.float32(1), np.float32(0))))
  points = resample.points("systematic", uniform, 4096)
  assert points[-1, 0] == 1
  weights = tf.concat([tf.fill([4095, 1], 1 / 4095), [[0.0]]], axis=0)
  assert resample.ancestors_at(points, weights)[-1, 0] == 4094


@pytest.mark.parametrize(
  ("resample_when", "steps"),
  [("always", [1, 2, 3, 4, 5]), (2, [2, 4]), ([1, 4], [1, 4]), ([], []), ("never", [])],
)
def test_fixed_schedules(resample_when, steps):
  schedule = resample.schedule(resample_when)
  is_due = schedule.is_due or (lambda *_: False)
  assert [t for t in range(1, 6) if is_due(tf.constant(t), None)] == steps
  assert schedule.is_fixed
  assert schedule.has_long_blocks == (resample_when != "always")


def test_a_schedule_by_the_effective_sample_size():
  schedule = resample.schedule(0.5)
  weights = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).T
  with np.errstate(divide="ignore"):
    is_due = schedule.is_due(tf.constant(1), tf.constant(np.log(weights)))
  np.testing.assert_array_equal(is_due, [False, False, True, True])
  assert not schedule.is_fixed


@pytest.mark.parametrize("value", [0, -1, 1.0, 0.0, "sometimes", [0], [1.5], True, None])
def test_other_schedules_are_refused(value):
  with pytest.raises(ValueError, match=r"resample_when .*got"):
    resample.schedule(value)
