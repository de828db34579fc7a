"""Several estimators from one evaluation, against each on its own."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, side_by_side
from tests import oracles
from tests.problems import (
  FEW,
  IDS,
  KINDS,
  VARIANTS,
  all_operations,
  hierarchy_problem,
  joint_problem,
  shared_problem,
)

tfd = tfp.distributions
NUM_SAMPLES, SEED, SCALE = 5, [3, 4], 0.75


def differentiate(problem, variants, **options):
  return side_by_side.differentiate(
    [v if isinstance(v, bounds.Bound) else bounds.get(v[0], **v[1]) for v in variants],
    functools.partial(problem.target, problem.parameters),
    functools.partial(problem.proposal, problem.parameters),
    problem.parameters,
    NUM_SAMPLES,
    tf.constant(SEED),
    **({"scale": SCALE} | options),
  )


def literal(problem, name, options):
  """SCALE times the gradient of the summed surrogate, at the same samples."""
  with tf.GradientTape() as tape:
    samples = problem.proposal(problem.parameters).sample(NUM_SAMPLES, seed=SEED)
    total = SCALE * tf.reduce_sum(oracles.surrogate(name, problem, samples, options))
  return tape.gradient(total, problem.parameters, unconnected_gradients="zero")


def of_model(problem, name, options):
  """The part of it that comes through log p~: the samples are stopped."""
  samples = problem.proposal(problem.parameters).sample(NUM_SAMPLES, seed=SEED)
  a = bounds.get(name, **options).coefficients(problem.live(samples)).model
  with tf.GradientTape() as tape:
    total = SCALE * tf.reduce_sum(a * problem.tilde_p(samples))
  return tape.gradient(total, problem.parameters, unconnected_gradients="zero")


def assert_close(actual, expected, tolerance=1e-9):
  for a, e in zip(actual, expected, strict=True):
    a = np.zeros_like(e) if a is None else a
    np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name,options", VARIANTS, ids=IDS)
def test_the_first_bounds_whole_gradient_is_the_literal_surrogates(name, options):
  problem = shared_problem([2])
  gradients = differentiate(problem, [(name, options)])
  assert_close(gradients.total(), literal(problem, name, options))
  assert_close(gradients.model, of_model(problem, name, options))
  np.testing.assert_allclose(
    gradients.values[0], oracles.value(name, gradients.log_weights, options), rtol=1e-9
  )


@pytest.mark.parametrize(
  ("problem", "variants", "with_model"),
  [
    (lambda: shared_problem([2]), FEW, True),
    (lambda: shared_problem([2]), FEW, False),
    (lambda: joint_problem("named"), KINDS, True),
  ],
  ids=["one", "one_without_model", "joint"],
)
def test_every_bounds_path_and_score_are_the_literal_surrogates(problem, variants, with_model):
  problem = problem()
  gradients = differentiate(problem, variants, with_model=with_model)
  assert (gradients.model is not None) == with_model
  for (name, options), actual in zip(variants, gradients.proposal, strict=True):
    whole, model = literal(problem, name, options), of_model(problem, name, options)
    assert_close(actual, [w - m for w, m in zip(whole, model, strict=True)])


@pytest.mark.parametrize(
  "variants, num_measured",
  [
    (VARIANTS, None),
    ([("rws", {}), ("jvi", {"order": 2}), ("iwae", {})], 3),
    ([("stl", {}), ("rws_dreg", {}), ("dreg_alpha", {"alpha": 0.25}), ("elbo", {})], 3),
  ],
  ids=["all", "as_they_are", "without_score"],
)
def test_all_gradients_follow_from_those_of_the_basis(variants, num_measured):
  problem = shared_problem([2])
  asked = [bounds.get(name, **options) for name, options in variants]
  measured, matrix = side_by_side.basis(asked)
  if num_measured:
    assert len(measured) == num_measured
  else:  # All of L_K from three; so all of the ELBO, and of each order of JVI from no more.
    num_of_l_k = sum(bound.total.name == "iwae" and "norm" not in bound.name for bound in asked)
    assert len(measured) <= len(asked) - num_of_l_k + 3
  of_measured = differentiate(problem, measured).proposal
  for row, (name, options), actual in zip(
    matrix, variants, differentiate(problem, variants).proposal, strict=True
  ):
    for i, gradient in enumerate(actual):
      if gradient is None:
        continue
      mix = sum(factor * of[i] for factor, of in zip(row, of_measured, strict=True))
      np.testing.assert_allclose(mix, gradient, rtol=1e-9, atol=1e-12, err_msg=f"{name} {options}")


def test_a_hierarchy_with_the_proposal_stopped_by_path_only():
  problem = hierarchy_problem()
  gradients = differentiate(problem, KINDS)
  for (name, options), actual in zip(KINDS, gradients.proposal, strict=True):
    whole, model = literal(problem, name, options), of_model(problem, name, options)
    assert_close(actual, [w - m for w, m in zip(whole, model, strict=True)])


def test_bijectors_with_a_cache_in_prior_and_proposal():
  """Both LogNormal: the slope of the prior must not be lost to what log q has left in the cache."""
  x, parameters = (
    tf.constant([[0.5, 1.5], [2.0, 1.0], [0.75, 1.25]], tf.float64),
    [
      tf.Variable([0.25, -0.5], dtype=tf.float64),
      tf.Variable([0.5, 1.0], dtype=tf.float64),
    ],
  )

  def log_normal(loc, scale):
    return tfd.Independent(tfd.LogNormal(loc, scale), 1)

  def target(parameters, z):
    return log_normal(parameters[0], 1.5).log_prob(z) - tf.reduce_sum((z - x) ** 2, -1)

  def proposal(parameters):
    return log_normal(x * parameters[0] + parameters[1], tf.constant(0.75, tf.float64))

  problem = oracles.Problem(parameters, target, proposal)
  gradients = differentiate(problem, KINDS)
  for (name, options), actual in zip(KINDS, gradients.proposal, strict=True):
    whole, model = literal(problem, name, options), of_model(problem, name, options)
    assert_close(actual, [w - m for w, m in zip(whole, model, strict=True)])


def test_where_a_vanishes_the_path_does_not():
  """The ELBO's path beside IWAE's model gradient, in float32, one weight holding all the mass."""

  def target(z):
    return -0.5 * tf.reduce_sum((z - 1) ** 2, -1) + mean + tf.constant([[0.0], [-300.0], [-60.0]])

  mean, loc = tf.Variable(0.5), tf.Variable([[0.25, -0.5]])

  def make_proposal():
    return tfd.Independent(tfd.Normal(loc, 1.0), 1)

  gradients = side_by_side.differentiate(
    [bounds.get("iwae"), bounds.get("elbo")], target, make_proposal, [mean, loc], 3, [1, 2]
  )
  alone = side_by_side.differentiate(
    [bounds.get("elbo")], target, make_proposal, [mean, loc], 3, [1, 2]
  )
  np.testing.assert_allclose(gradients.proposal[1][1], alone.proposal[0][1], rtol=1e-5)
  np.testing.assert_allclose(gradients.model[0], 1.0, rtol=1e-6)


def test_a_sample_of_weight_zero_poisons_nothing():
  """log p is -inf there and its slope NaN, as where a density ends."""
  loc = tf.Variable([[0.5, -0.25]])

  def target(z):
    return tf.reduce_sum(tf.math.log(tf.nn.relu(1.5 - z)), -1)

  gradients = side_by_side.differentiate(
    [bounds.get(name) for name in ("iwae_dreg", "rws", "elbo_stl")],
    target,
    lambda: tfd.Independent(tfd.Normal(loc, 1.0), 1),
    [loc],
    6,
    [1, 2],
    with_model=False,
  )
  assert np.isinf(gradients.log_weights).any() and np.isfinite(gradients.log_weights).any()
  for (gradient,) in gradients.proposal:
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3


def test_further_bounds_add_no_product_of_the_model():
  """Many bounds multiply with the decoder's kernel as often as one: forward, slope and kernel."""
  kernel, size = tf.Variable(tf.ones([7, 11])), tf.Variable(tf.ones([3, 7]))

  def products(all_bounds):
    @tf.function(autograph=False)
    def step():
      gradients = side_by_side.differentiate(
        all_bounds,
        lambda z: tf.reduce_sum(tf.tanh(tf.einsum("kbi,ij->kbj", z, kernel)), -1),
        lambda: tfd.Independent(tfd.Normal(size, 1.0), 1),
        [kernel, size],
        8,
        tf.constant([1, 2]),
      )
      return gradients.total()

    operations = all_operations(step.get_concrete_function().graph)
    return sum(o.type in ("MatMul", "BatchMatMulV2", "Einsum") for o in operations)

  every = [bounds.get(name) for name in bounds.names()]
  assert products([bounds.get("iwae")]) == products(every) == 3


# --- joint proposals with discrete parts ----------------------------------------------------------

MIXED_ROWS = [(name, {}) for name in bounds.names() if not name.startswith("miselbo")]


def mixed_gradients(rows):
  """For each row, its gradient by `estimate`, and by `differentiate` of all of them at once."""
  variables = [tf.Variable([0.3, -0.2, 0.9]), tf.Variable([0.1, 0.5, -0.4])]

  def proposal():
    logits, loc = variables
    return tfd.JointDistributionNamed(
      {
        "d": tfd.Bernoulli(tf.identity(logits), dtype=tf.float32),
        "z": lambda d: tfd.Normal(loc + d, 0.8),
      }
    )

  def target(s):
    return tfd.Bernoulli(0.6, dtype=tf.float32).log_prob(s["d"]) + tfd.Normal(
      0.5 * s["d"], 1.0
    ).log_prob(s["z"])

  def alone(bound):
    with tf.GradientTape() as tape:
      total = tf.reduce_sum(bounds.estimate(bound, target, proposal(), 8, seed=SEED).objective)
    return tape.gradient(total, variables)

  all_bounds = [bounds.get(name, **options) for name, options in rows]
  together = side_by_side.differentiate(
    all_bounds, target, proposal, variables, 8, tf.constant(SEED)
  )
  return [alone(bound) for bound in all_bounds], together.proposal


def test_mixed_latents_have_the_gradients_of_estimate():
  """Beside bounds with a path, those without one keep their own score of every part."""
  for alone, together in zip(*mixed_gradients(MIXED_ROWS), strict=True):
    assert_close(together, alone, 2e-5)


def test_mixes_of_mixed_latents_are_combined_from_few():
  names = ("iwae", "iwae_dreg", "stl", "rws", "rws_dreg", "dreg_alpha")
  measured, matrix = side_by_side.basis([bounds.get(name) for name in names])
  assert len(measured) == 3
  alone, _ = mixed_gradients([(name, {}) for name in names])
  _, parts = mixed_gradients([("iwae_dreg", {}), ("rws_dreg", {}), ("rws", {})])
  for row, expected in zip(matrix, alone, strict=True):
    combined = [sum(f * part[i] for f, part in zip(row, parts, strict=True)) for i in (0, 1)]
    assert_close(combined, expected, 2e-5)
