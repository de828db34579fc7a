"""Estimates and their gradients against the paper's literal surrogates, and against TFP's."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import bounds
from tests import oracles
from tests.problems import (
  KINDS,
  VARIANTS,
  every_variant,
  few_variants,
  hierarchy_problem,
  independent,
  joint_problem,
  shared_problem,
  standard,
)

tfb = tfp.bijectors
tfd = tfp.distributions


PROBLEMS = {
  "scalar": lambda: shared_problem([]),
  "matrix": lambda: shared_problem([2, 4]),
  "joint_sequential": lambda: joint_problem("sequential"),
  "joint_named": lambda: joint_problem("named"),
}


def estimate_and_oracle(problem, name, options, num_samples=5, seed=7, **kwargs):
  """The estimate and its gradients, and the literal surrogate's gradients at the same samples."""
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(problem.parameters)
    estimate = bounds.estimate(
      bounds.get(name, **options),
      functools.partial(problem.target, problem.parameters),
      problem.proposal(problem.parameters),
      num_samples,
      seed=seed,
      **kwargs,
    )
    literal = oracles.surrogate(name, problem, estimate.samples, options)
    log_weights = problem.live(estimate.samples)
  actual = oracles.gradients(tape, estimate.objective, problem.parameters)
  expected = oracles.gradients(tape, literal, problem.parameters)
  return estimate, log_weights, actual, expected


def assert_agree(name, options, estimate, log_weights, actual, expected, tolerance=1e-9):
  np.testing.assert_allclose(estimate.log_weights, log_weights, rtol=tolerance, atol=tolerance)
  np.testing.assert_allclose(
    estimate.objective, oracles.value(name, log_weights, options), rtol=tolerance, atol=tolerance
  )
  assert any(np.abs(gradient).max() > 1e-3 for gradient in expected), "the test would show nothing"
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance, err_msg=name)


@every_variant
def test_estimate_is_the_literal_surrogate(name, options):
  assert_agree(name, options, *estimate_and_oracle(shared_problem([2]), name, options))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name,options", KINDS)
def test_estimate_is_the_literal_surrogate_for_any_latents(name, options, problem):
  assert_agree(name, options, *estimate_and_oracle(PROBLEMS[problem](), name, options))


def test_estimate_is_the_literal_surrogate_under_xla():
  """The oracle runs inside the same function: XLA draws other normals than the kernels do.

  `test_path_only_under_xla` has iwae_dreg, and dreg_alpha is put together like it.
  """
  problem = shared_problem([2])
  variants = [v for v in KINDS if v[0] not in ("iwae_dreg", "jvi_dreg")]

  @tf.function(jit_compile=True, autograph=False)
  def compiled():
    return [estimate_and_oracle(problem, name, options) for name, options in variants]

  for (name, options), results in zip(variants, compiled(), strict=True):
    assert_agree(name, options, *results)


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws", "rws_dreg", "jvi_dreg"])
def test_gradient_taken_outside_of_the_function(name):
  problem = shared_problem([2])

  @tf.function(autograph=False)
  def traced():
    return bounds.estimate(
      name,
      functools.partial(problem.target, problem.parameters),
      problem.proposal(problem.parameters),
      num_samples=5,
      seed=7,
    )

  with tf.GradientTape() as tape:
    estimate = traced()
  actual = oracles.gradients(tape, estimate.objective, problem.parameters)
  _, log_weights, _, expected = estimate_and_oracle(problem, name, {})
  assert_agree(name, {}, estimate, log_weights, actual, expected)


@pytest.mark.parametrize(
  "name,options", [("iwae", {}), ("iwae_dreg", {}), ("jvi_dreg", {"order": 2})]
)
def test_unknown_batch_size(name, options):
  parameters = shared_problem([2]).parameters

  @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)], autograph=False)
  def traced(x):
    problem = shared_problem([2], observations=x, parameters=parameters)
    return estimate_and_oracle(problem, name, options)

  for batch_size in (3, 1, 4):
    x = tf.constant(np.random.default_rng(batch_size).normal(size=[batch_size, 2]))
    results = traced(x)
    assert results[0].samples.shape == [5, batch_size, 2]
    assert_agree(name, options, *results)


@few_variants
def test_float32_estimate(name, options):
  results = estimate_and_oracle(shared_problem([2], tf.float32), name, options)
  assert results[0].objective.dtype == tf.float32
  # The gradients are sums of terms up to 100 times the result where the jackknife alternates.
  assert_agree(name, options, *results, tolerance=3e-3 if "order" in options else 2e-4)


def test_shapes_of_an_estimate():
  estimate, *_ = estimate_and_oracle(shared_problem([2, 4]), "iwae_dreg", {})
  assert estimate.objective.shape == [3]
  assert estimate.log_weights.shape == [5, 3]
  assert estimate.samples.shape == [5, 3, 2, 4]


def test_log_weights_of_an_estimate_are_stopped():
  problem = shared_problem([2])
  with tf.GradientTape() as tape:
    estimate = bounds.estimate(
      "iwae_dreg",
      functools.partial(problem.target, problem.parameters),
      problem.proposal(problem.parameters),
      num_samples=5,
    )
  assert tape.gradient(estimate.log_weights, problem.parameters) == [None] * 3


def test_a_bound_is_given_by_name_or_as_such():
  target, proposal = standard()
  by_name = bounds.estimate("dreg_alpha", target, proposal, num_samples=4, seed=1)
  as_such = bounds.estimate(bounds.get("dreg_alpha"), target, proposal, num_samples=4, seed=1)
  np.testing.assert_array_equal(by_name.objective, as_such.objective)


# --- proposals that cannot be stopped automatically ---------------------------------------------


def coroutine_problem():
  """`hierarchy_problem` with its proposal written as a coroutine."""
  problem = hierarchy_problem()

  def proposal(parameters):
    first, second = problem.proposal(parameters).model

    def model():
      z1 = yield tfd.JointDistributionCoroutine.Root(first)
      yield second(z1)

    return tfd.JointDistributionCoroutine(model)

  return problem._replace(proposal=proposal)


def flow_problem(kind):
  """A normalizing flow on [4] whose layers are functions that close over the parameters."""
  rng = np.random.default_rng(4)
  parameters = [tf.Variable(0.5 * rng.normal(size=shape)) for shape in ([3, 4], [4], [4, 8])]

  def target(parameters, z):
    loc, raw_scale, _ = parameters
    return independent(tfd.Normal(loc[0], tf.nn.softplus(raw_scale)), [4]).log_prob(tf.sin(z) + z)

  def proposal(parameters):
    loc, raw_scale, matrix = parameters

    def shift_and_log_scale(x, units=4):
      if kind == "real_nvp":
        hidden = tf.tanh(x @ matrix[:2])
        return hidden[..., :units], hidden[..., 4 : 4 + units]
      # Strictly upper triangular: output i sees the inputs before i.
      mask = np.triu(np.ones([4, 4]), 1)
      return tf.tanh(x @ (matrix[:, :4] * mask)), tf.tanh(x @ (matrix[:, 4:] * mask))

    if kind == "real_nvp":
      flow = tfb.RealNVP(
        num_masked=2, shift_and_log_scale_fn=lambda x, units, **_: shift_and_log_scale(x, units)
      )
    else:
      flow = tfb.MaskedAutoregressiveFlow(shift_and_log_scale_fn=shift_and_log_scale)
    return tfd.TransformedDistribution(
      independent(tfd.Normal(loc, tf.nn.softplus(raw_scale) + 0 * loc), [4]), flow
    )

  return oracles.Problem(parameters, target, proposal)


UNREACHABLE = {
  "hierarchy": hierarchy_problem,
  "coroutine": coroutine_problem,
  "real_nvp": lambda: flow_problem("real_nvp"),
  "masked_autoregressive": lambda: flow_problem("masked_autoregressive"),
}


PATH_ONLY = [(name, "hierarchy") for name in ("elbo_stl", *dict(KINDS))]
PATH_ONLY += [("iwae_dreg", problem) for problem in UNREACHABLE if problem != "hierarchy"]


@pytest.mark.parametrize("name,problem", PATH_ONLY)
def test_path_only_makes_them_exact(name, problem):
  options = {}
  problem = UNREACHABLE[problem]()
  stopped = dregs_tf.PathOnly(problem.proposal(problem.parameters))
  results = estimate_and_oracle(problem, name, options, stopped_proposal=stopped)
  assert_agree(name, options, *results)


def test_path_only_of_the_proposal_itself():
  """The proposal that draws the samples and the one inside PathOnly may be the same object."""
  problem = flow_problem("real_nvp")
  with tf.GradientTape(persistent=True) as tape:
    proposal = problem.proposal(problem.parameters)
    estimate = bounds.estimate(
      "iwae_dreg",
      functools.partial(problem.target, problem.parameters),
      proposal,
      num_samples=5,
      seed=7,
      stopped_proposal=dregs_tf.PathOnly(proposal),
    )
    literal = oracles.surrogate("iwae_dreg", problem, estimate.samples)
  actual = oracles.gradients(tape, estimate.objective, problem.parameters)
  expected = oracles.gradients(tape, literal, problem.parameters)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9)


def test_path_only_under_xla():
  problem = hierarchy_problem()

  @tf.function(jit_compile=True, autograph=False)
  def compiled():
    stopped = dregs_tf.PathOnly(problem.proposal(problem.parameters))
    return estimate_and_oracle(problem, "iwae_dreg", {}, stopped_proposal=stopped)

  assert_agree("iwae_dreg", {}, *compiled())


def test_a_stopped_proposal_built_by_hand():
  problem = hierarchy_problem()
  stopped = problem.proposal([tf.stop_gradient(p.value()) for p in problem.parameters])
  results = estimate_and_oracle(problem, "rws_dreg", {}, stopped_proposal=stopped)
  assert_agree("rws_dreg", {}, *results)


# --- a proposal that is the posterior -----------------------------------------------------------


def posterior_gradients(name, options, seed):
  """d objective / d (loc, log_scale) at q = N(x/2, 1/2), the posterior of N(0, 1) N(x|z, 1)."""
  x = tf.constant([0.75, -1.5, 3.0], tf.float64)
  loc, log_scale = tf.Variable(x / 2), tf.Variable(0.5 * math.log(0.5) * tf.ones_like(x))
  one = tf.constant(1.0, tf.float64)
  with tf.GradientTape() as tape:
    estimate = bounds.estimate(
      bounds.get(name, **options),
      lambda z: tfd.Normal(0 * one, one).log_prob(z) + tfd.Normal(z, one).log_prob(x),
      tfd.Normal(loc, tf.exp(log_scale)),
      num_samples=4,
      seed=seed,
    )
  np.testing.assert_allclose(
    estimate.objective, tfd.Normal(0 * one, math.sqrt(2.0)).log_prob(x), rtol=1e-12
  )
  return np.stack(tape.gradient(estimate.objective, [loc, log_scale], unconnected_gradients="zero"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_the_posterior_the_path_vanishes_sample_by_sample(seed):
  for name, options in VARIANTS:
    if name not in ("elbo", "iwae", "rws", "jvi") and options.get("order", 0) < 4:
      gradients = posterior_gradients(name, options, seed)
      np.testing.assert_allclose(gradients, np.zeros([2, 3]), atol=1e-10, err_msg=name)
  # The score does not vanish: the test would show an estimator that keeps it.
  for name in ("elbo", "iwae", "rws", "jvi"):
    assert np.abs(posterior_gradients(name, {}, seed)).min() > 1e-4, name


# --- TensorFlow Probability's own estimator -----------------------------------------------------


def tfp_loss(target, proposal, num_samples, seed):
  return tfp.vi.monte_carlo_variational_loss(
    target,
    proposal,
    importance_sample_size=num_samples,
    gradient_estimator=tfp.vi.GradientEstimators.DOUBLY_REPARAMETERIZED,
    stopped_surrogate_posterior=dregs_tf.stop_parameters(proposal),
    seed=seed,
  )


def test_gradient_of_the_proposal_is_that_of_tfp():
  """TFP splits its seed in two and draws the samples with the first half."""
  rng = np.random.default_rng(5)
  loc, raw_scale = (tf.Variable(rng.normal(size=[3, 2])) for _ in range(2))
  seed = tf.constant([3, 4])

  def target(z):
    return independent(tfd.Normal(tf.sin(z), tf.constant(1.5, tf.float64)), [2]).log_prob(
      tf.constant([0.5, -1.0], tf.float64)
    )

  with tf.GradientTape(persistent=True) as tape:
    proposal = independent(tfd.Normal(loc, tf.nn.softplus(raw_scale)), [2])
    loss = tfp_loss(target, proposal, 5, seed)
    estimate = bounds.estimate(
      "iwae_dreg", target, proposal, 5, seed=tfp.random.split_seed(seed, 2)[0]
    )
  np.testing.assert_allclose(estimate.objective, -loss, rtol=1e-12)
  actual = oracles.gradients(tape, estimate.objective, [loc, raw_scale])
  of_loss = oracles.gradients(tape, loss, [loc, raw_scale])
  for a, e in zip(actual, of_loss, strict=True):
    assert np.abs(a).min() > 1e-3
    np.testing.assert_allclose(a, -e, rtol=1e-11)


def test_gradient_of_the_model_is_not_that_of_tfp():
  """TFP weighs the model's gradient by wbar^2 too, which even has the wrong sign here.

  p = N(mu, 1), q = N(0, 1), mu = 1, K = 10. q does not depend on mu, so the derivative of the
  bound at given samples is a finite difference; the mean over 1e5 examples has a standard
  error of 0.0012 and is -0.197 (TFP's loss is minimized, ours is maximized: signs differ).
  """
  mu, step, batch_size = tf.Variable(1.0, dtype=tf.float64), 1e-4, 100_000
  proposal = tfd.Normal(tf.zeros([batch_size], tf.float64), 1.0)
  seed = tf.constant([5, 6])

  def target(z, mu=mu):
    return tfd.Normal(mu, tf.constant(1.0, tf.float64)).log_prob(z)

  with tf.GradientTape(persistent=True) as tape:
    estimate = bounds.estimate(
      "iwae_dreg", target, proposal, 10, seed=tfp.random.split_seed(seed, 2)[0]
    )
    objective = tf.reduce_mean(estimate.objective)
    loss = tf.reduce_mean(tfp_loss(target, proposal, 10, seed))
  above, below = (
    np.mean(
      oracles.log_mean_exp(
        (target(estimate.samples, m) - proposal.log_prob(estimate.samples)).numpy()
      )
    )
    for m in (1.0 + step, 1.0 - step)
  )
  ours = tape.gradient(objective, mu)
  np.testing.assert_allclose(ours, (above - below) / (2 * step), rtol=1e-6)
  np.testing.assert_allclose(ours, -0.197, atol=5 * 0.0012 + 0.0005)
  np.testing.assert_allclose(tape.gradient(loss, mu), -0.078, atol=0.01)
