"""Estimates where some log-weights, or all of an example's, are -inf, inf or NaN."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds, seeds
from tests import oracles
from tests.problems import every_variant, few_variants, random_log_weights, shared_problem

INF = math.inf


def masked_estimate(name, options, mask, bad=-INF, parameters=None, examples=(0, 1, 2)):
  """An estimate of `shared_problem` whose log p is `bad` outside of `mask` [K, B], and its rows.

  Returns the estimate and the gradient of the objective of each of the `examples`.
  """
  problem = shared_problem([2], parameters=parameters)
  with tf.GradientTape(persistent=True) as tape:
    estimate = bounds.estimate(
      bounds.get(name, **options),
      lambda z: tf.where(mask, problem.target(problem.parameters, z), tf.constant(bad, tf.float64)),
      problem.proposal(problem.parameters),
      num_samples=5,
      seed=7,
    )
    objectives = [estimate.objective[example] for example in examples]
  rows = [
    tf.concat(tape.gradient(e, problem.parameters, unconnected_gradients="zero"), 0)
    for e in objectives
  ]
  return estimate, rows


ALL = np.ones([5, 3], bool)
ONE_OUT = np.array([[True] * 3, [True, False, True]] + [[True] * 3] * 3)
EXAMPLE_OUT = np.array([[True, False, True]] * 5)


@functools.cache
def _unmasked(name, *options):
  return masked_estimate(name, dict(options), ALL)


def unmasked(name, options):
  """`masked_estimate` of all samples, once for each variant."""
  return _unmasked(name, *options.items())


@every_variant
def test_a_sample_of_weight_zero(name, options):
  """It adds nothing to any gradient; K still counts it."""
  estimate, rows = masked_estimate(name, options, ONE_OUT)
  _, rows_of_all = unmasked(name, options)
  np.testing.assert_array_equal(rows[0], rows_of_all[0])
  np.testing.assert_array_equal(rows[2], rows_of_all[2])

  log_weights = estimate.log_weights.numpy()[:, 1:2]
  assert np.isneginf(log_weights[1]).all()
  with np.errstate(invalid="ignore"):
    value, *coefficients = oracles.table(name, log_weights, options)
  np.testing.assert_allclose(estimate.objective[1:2], value, rtol=1e-10)
  problem, kept = shared_problem([2]), [0, 2, 3, 4]
  with tf.GradientTape() as tape:
    samples = problem.proposal(problem.parameters).sample(5, seed=seeds.stateless(7))
    parts = problem.tilde_p(samples), problem.hat(samples), problem.tilde_q(samples)
    literal = sum(
      tf.reduce_sum(tf.gather(coefficient[:, 0], kept) * tf.gather(part[:, 1], kept))
      for coefficient, part in zip(coefficients, parts, strict=True)
    )
  expected = tape.gradient(literal, problem.parameters, unconnected_gradients="zero")
  np.testing.assert_allclose(rows[1], tf.concat(expected, 0), rtol=1e-9, atol=1e-9)


def test_a_sample_of_weight_zero_may_as_well_be_dropped():
  """For the normalized weights; the bound's value knows K, and falls by log(5/4)."""
  dropped = random_log_weights(4, 3)
  log_weights = np.insert(dropped, 2, -INF, axis=0)
  for name in ("iwae", "iwae_dreg", "rws", "rws_dreg", "stl", "iwae_dreg_norm", "rws_dreg_norm"):
    bound = bounds.get(name)
    value, coefficients = bound.value_and_coefficients(tf.constant(log_weights))
    value_without, without = bound.value_and_coefficients(tf.constant(dropped))
    np.testing.assert_allclose(value, value_without - math.log(5 / 4), rtol=1e-13)
    for actual, expected in zip(coefficients, without, strict=True):
      np.testing.assert_allclose(actual, np.insert(expected, 2, 0.0, axis=0), rtol=1e-13)


@every_variant
def test_an_example_whose_weights_are_all_zero(name, options):
  estimate, rows = masked_estimate(name, options, EXAMPLE_OUT)
  of_all, rows_of_all = unmasked(name, options)
  for example in (0, 2):
    np.testing.assert_array_equal(estimate.objective[example], of_all.objective[example])
    np.testing.assert_array_equal(rows[example], rows_of_all[example])
  np.testing.assert_array_equal(rows[1], np.zeros(6))
  assert estimate.objective[1] == -INF


@every_variant
def test_coefficients_of_a_single_weight_that_is_left(name, options):
  log_weights = np.array([[-INF], [-INF], [-INF], [0.75], [-INF]])
  _, coefficients = bounds.get(name, **options).value_and_coefficients(tf.constant(log_weights))
  with np.errstate(invalid="ignore"):
    _, *expected = oracles.table(name, log_weights, options)
  for actual, e in zip(coefficients, expected, strict=True):
    e = np.where(np.isneginf(log_weights), 0.0, np.nan_to_num(e, nan=0.0))
    np.testing.assert_allclose(actual, e, rtol=1e-12, atol=1e-12)


@few_variants
@pytest.mark.parametrize("bad", [math.nan, INF], ids=["nan", "inf"])
def test_nan_and_infinity_are_not_hidden(name, options, bad):
  estimate, _ = masked_estimate(name, options, ONE_OUT, bad=bad, examples=())
  of_all, _ = unmasked(name, options)
  assert not np.isfinite(estimate.objective[1])
  assert estimate.objective[1] != -INF
  for example in (0, 2):
    np.testing.assert_array_equal(estimate.objective[example], of_all.objective[example])


def test_degenerate_examples_under_xla():
  """Example 1 has no sample left, example 2 lost one, example 0 is whole."""
  mask = EXAMPLE_OUT & ONE_OUT[:, [0, 2, 1]]
  names = ("iwae_dreg", "rws")
  parameters = shared_problem([2]).parameters

  @tf.function(jit_compile=True, autograph=False)
  def compiled():
    results = []
    for name in names:
      for m in (mask, ALL):
        estimate, rows = masked_estimate(name, {}, m, parameters=parameters)
        results.append((estimate.objective, rows))
    return results

  results = compiled()
  for name, (objective, rows), (of_all, rows_of_all) in zip(
    names, results[::2], results[1::2], strict=True
  ):
    np.testing.assert_allclose(objective[0], of_all[0], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(rows[0], rows_of_all[0], rtol=1e-12, err_msg=name)
    np.testing.assert_array_equal(rows[1], np.zeros(6), err_msg=name)
    assert np.isfinite(rows[2]).all(), name
    assert np.abs(rows[2] - rows_of_all[2]).max() > 1e-3, name
    assert objective[1] == -INF, name
