"""The bounds' values, coefficients and estimates against the paper's equations, by hand."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import bounds, seeds
from tests import oracles
from tests.problems import (
  FEW,
  FEW_IDS,
  IDS,
  PAPER,
  VARIANTS,
  all_operations,
  every_bound,
  hierarchy_problem,
  independent,
  joint_problem,
  shared_problem,
)

tfb = tfp.bijectors
tfd = tfp.distributions
INF = math.inf

# One of each way that an estimate is put together; the rows differ in numbers alone.
KINDS = [v for v in FEW if v[0] in ("iwae", "iwae_dreg", "rws", "dreg_alpha", "jvi_dreg")]
every_variant = pytest.mark.parametrize("name,options", VARIANTS, ids=IDS)
few_variants = pytest.mark.parametrize("name,options", FEW, ids=FEW_IDS)


def random_log_weights(num_samples, batch_size, seed=0, scale=1.5):
  return np.random.default_rng(seed).normal(size=[num_samples, batch_size]) * scale - 3.0


def by_hand(name, log_weights, options):
  """value, a, b, c of log-weights [K, B]: the table of the paper, one row after the other."""
  wbar = oracles.softmax(log_weights)
  uniform = np.full_like(log_weights, 1 / len(log_weights))
  bound, elbo = oracles.log_mean_exp(log_weights), log_weights.mean(axis=0)
  if name == "elbo":
    return elbo, uniform, uniform, -uniform
  if name == "elbo_stl":
    return elbo, uniform, uniform, 0 * uniform
  if name == "iwae":
    return bound, wbar, wbar, -wbar
  if name == "iwae_dreg":
    return bound, wbar, wbar**2, 0 * wbar
  if name == "rws":
    return bound, wbar, 0 * wbar, wbar
  if name == "rws_dreg":
    return bound, wbar, wbar - wbar**2, 0 * wbar
  if name == "stl":
    return bound, wbar, wbar, 0 * wbar
  if name == "dreg_alpha":
    alpha = options["alpha"]
    return bound, wbar, alpha * wbar + (1 - 2 * alpha) * wbar**2, 0 * wbar
  if name == "iwae_dreg_norm":
    return bound, wbar, wbar**2 / (wbar**2).sum(axis=0), 0 * wbar
  if name == "rws_dreg_norm":
    path = oracles.times_others(wbar)
    return bound, wbar, path / path.sum(axis=0), 0 * wbar
  value, u, v = oracles.jackknife(log_weights, options["order"])
  return {"jvi": (value, u, u, -u), "jvi_dreg": (value, u, v, 0 * u)}[name]


# --- values and coefficients --------------------------------------------------------------------


@every_variant
def test_value_and_coefficients_are_the_tables(name, options):
  log_weights = random_log_weights(5, 3)
  bound = bounds.get(name, **options)
  value, coefficients = bound.value_and_coefficients(tf.constant(log_weights))
  for actual, expected in zip(
    (value, *coefficients), by_hand(name, log_weights, options), strict=True
  ):
    assert actual.dtype == tf.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)
  np.testing.assert_array_equal(bound.value(tf.constant(log_weights)), value)
  for one, other in zip(bound.coefficients(tf.constant(log_weights)), coefficients, strict=True):
    np.testing.assert_array_equal(one, other)


@every_variant
def test_float32_values_and_coefficients(name, options):
  log_weights = random_log_weights(5, 3)
  value, coefficients = bounds.get(name, **options).value_and_coefficients(
    tf.constant(log_weights, tf.float32)
  )
  for actual, expected in zip(
    (value, *coefficients), by_hand(name, log_weights, options), strict=True
  ):
    assert actual.dtype == tf.float32
    np.testing.assert_allclose(
      actual, expected, rtol=1e-5, atol=2e-4 if "order" in options else 1e-5
    )


@pytest.mark.parametrize("name", ["jvi", "jvi_dreg"])
@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("extra", [1, 2, 4])
def test_jackknife_by_listing_the_subsets(name, order, extra):
  """K = order + 1 is the smallest that there is: the last term averages single samples."""
  log_weights = random_log_weights(order + extra, 3, seed=order)
  value, (a, b, c) = bounds.get(name, order=order).value_and_coefficients(tf.constant(log_weights))
  expected, u, v = oracles.jackknife(log_weights, order)
  np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
  np.testing.assert_allclose(a, u, rtol=1e-10, atol=1e-10)
  np.testing.assert_allclose(b, u if name == "jvi" else v, rtol=1e-10, atol=1e-10)
  np.testing.assert_allclose(c, -u if name == "jvi" else 0 * u, rtol=1e-10, atol=1e-10)


DEGENERATE = {
  "one_dominates": [1e4, 0.5, -0.25, 1.0, 2.0],
  "two_dominate": [1e4, 0.5, 1e4, 1.0, 2.0],
  "all_equal": [2.0] * 5,
  "tied": [2.0, -1.0, 2.0, 0.5, 0.25],
  "some_zero": [-INF, 0.5, -INF, 1.0, 2.0],
  "far_below_zero": [-1e4, -1e4 + 1, -1e4 - 1.5, -1e4 + 2, -1e4],
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", DEGENERATE)
def test_jackknife_of_degenerate_weights(case, order):
  log_weights = np.array(DEGENERATE[case])[:, None] + np.zeros([1, 2])
  value, (u, v, _) = bounds.get("jvi_dreg", order=order).value_and_coefficients(
    tf.constant(log_weights)
  )
  for actual, expected in zip((value, u, v), oracles.jackknife(log_weights, order), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@every_variant
@pytest.mark.parametrize("case", ["one_dominates", "two_dominate", "far_below_zero"])
def test_coefficients_of_degenerate_weights(name, options, case):
  """Finite, and the table's, in whatever regime; 0/0 is 0 where the released code divides."""
  log_weights = np.array(DEGENERATE[case])[:, None]
  _, coefficients = bounds.get(name, **options).value_and_coefficients(tf.constant(log_weights))
  with np.errstate(invalid="ignore"):
    _, *expected = by_hand(name, log_weights, options)
  for actual, e in zip(coefficients, expected, strict=True):
    np.testing.assert_allclose(actual, np.nan_to_num(e, nan=0.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [-1e4, -90.0, 0.0, 1e4])
def test_weights_of_the_model_sum_to_one(offset, dtype):
  """a sums to 1 for every bound of K samples: an offset of the log-weights must not change it.

  The log-weights are quarters, exact in float32 at every offset, so nothing but the function
  itself can lose digits.
  """
  log_weights = np.round(random_log_weights(5, 3) * 4) / 4 + offset
  tolerance = 2e-6 if dtype == "float32" else 1e-13
  for name, options in VARIANTS:
    if options.get("order", 1) == 1:
      a = bounds.get(name, **options).coefficients(tf.constant(log_weights, dtype)).model
      scale = 10.0 if "order" in options else 1.0
      np.testing.assert_allclose(
        tf.reduce_sum(a, axis=0), np.ones(3), atol=scale * tolerance, err_msg=name
      )


@pytest.mark.parametrize("dtype,gap", [("float32", 20.0), ("float64", 45.0)])
def test_normalized_rws_path_when_one_weight_dominates(dtype, gap):
  """(wbar - wbar^2) / sum is 1/2 for a weight that dominates: 1 - wbar must not cancel.

  With w_1 = 1 and the others small, wbar_1 - wbar_1^2 = sum of the others = their own sum.
  """
  log_weights = tf.constant([[gap], [0.0], [0.0], [0.0], [0.0]], dtype)
  b = bounds.get("rws_dreg_norm").coefficients(log_weights).path
  np.testing.assert_allclose(b[:, 0], [0.5, 0.125, 0.125, 0.125, 0.125], rtol=1e-4)


def test_identities_between_the_estimators():
  log_weights = tf.constant(random_log_weights(5, 3, seed=4))
  row = {name: bounds.get(name).value_and_coefficients(log_weights) for name in PAPER}
  path = {name: coefficients.path.numpy() for name, (_, coefficients) in row.items()}

  def alpha_path(alpha):
    return bounds.get("dreg_alpha", alpha=alpha).coefficients(log_weights).path

  exact = functools.partial(np.testing.assert_allclose, rtol=1e-14, atol=1e-15)
  exact(path["stl"], path["iwae_dreg"] + path["rws_dreg"])
  exact(alpha_path(0.0), path["iwae_dreg"])
  exact(alpha_path(1.0), path["rws_dreg"])
  exact(alpha_path(0.5), path["stl"] / 2)
  exact(alpha_path(0.9), path["dreg_alpha"])
  for name in ("iwae_dreg", "rws", "rws_dreg", "stl", "dreg_alpha"):
    value, coefficients = row[name]
    np.testing.assert_array_equal(value, row["iwae"][0])
    np.testing.assert_array_equal(coefficients.model, row["iwae"][1].model)
  for name in ("iwae_dreg_norm", "rws_dreg_norm"):
    exact(path[name].sum(axis=0), np.ones(3))
  # Order 0 of the jackknife is the bound itself.
  exact(bounds.get("jvi_dreg", order=0).coefficients(log_weights).path, path["iwae_dreg"])


def test_one_sample():
  log_weights = tf.constant(random_log_weights(1, 3))
  ones, zeros = np.ones([1, 3]), np.zeros([1, 3])
  expected = {"elbo": (1, 1, -1), "iwae": (1, 1, -1), "rws": (1, 0, 1), "rws_dreg": (1, 0, 0)}
  expected |= dict.fromkeys(("elbo_stl", "iwae_dreg", "stl", "iwae_dreg_norm"), (1, 1, 0))
  expected["rws_dreg_norm"] = (1, 0, 0)
  for name, row in expected.items():
    value, coefficients = bounds.get(name).value_and_coefficients(log_weights)
    np.testing.assert_allclose(value, log_weights[0], rtol=1e-15)
    for actual, e in zip(coefficients, row, strict=True):
      np.testing.assert_allclose(actual, e * ones + zeros, rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("name", ["jvi", "jvi_dreg"])
def test_first_order_jackknife_takes_linear_memory(name):
  """No Tensor of the traced graph has more than 4 K B elements; K^2 B would be 1000 times K B."""
  bound = bounds.get(name)
  function = tf.function(bound.value_and_coefficients)
  graph = function.get_concrete_function(tf.TensorSpec([1000, 3])).graph
  sizes = [out.shape.num_elements() for op in all_operations(graph) for out in op.outputs]
  assert None not in sizes
  assert 3000 <= max(sizes) <= 4 * 3000


def test_alpha_may_be_a_variable():
  log_weights = random_log_weights(5, 3)
  alpha = tf.Variable(0.25)
  bound = bounds.get("dreg_alpha", alpha=alpha)
  for new in (0.25, 0.75):
    alpha.assign(new)
    expected = by_hand("dreg_alpha", log_weights, {"alpha": new})[2]
    b = bound.coefficients(tf.constant(log_weights)).path
    np.testing.assert_allclose(b, expected, rtol=1e-14)


def test_values_and_coefficients_are_stopped():
  log_weights = tf.constant(random_log_weights(6, 3))
  for bound in every_bound():
    with tf.GradientTape() as tape:
      tape.watch(log_weights)
      value, coefficients = bound.value_and_coefficients(log_weights)
      total = tf.reduce_sum(value) + sum(tf.reduce_sum(part) for part in coefficients)
    assert tape.gradient(total, log_weights) is None, bound


# --- get ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "name,options,message",
  [
    ("svi", {}, "bound must be one of elbo, .*jvi_dreg.*'svi'"),
    ("iwae", {"alpha": 0.5}, "iwae takes no options, got alpha"),
    ("jvi", {"alpha": 0.5}, "jvi takes only order, got alpha"),
    ("dreg_alpha", {"order": 1}, "dreg_alpha takes only alpha, got order"),
    ("dreg_alpha", {"alpha": math.nan}, r"alpha must be in \[0, 1\], got nan"),
    ("dreg_alpha", {"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0.1"),
    ("dreg_alpha", {"alpha": 1.1}, r"alpha must be in \[0, 1\], got 1.1"),
    ("dreg_alpha", {"alpha": "0.5"}, "alpha must be .*got '0.5'"),
    ("dreg_alpha", {"alpha": None}, "alpha must be .*got None"),
    ("jvi", {"order": -1}, "order must be an int of 0 or more, got -1"),
    ("jvi", {"order": 1.5}, "order must be an int of 0 or more, got 1.5"),
    ("jvi_dreg", {"order": True}, "order must be an int of 0 or more, got True"),
    ("jvi_dreg", {"order": None}, "order must be an int of 0 or more, got None"),
  ],
)
def test_get_refuses(name, options, message):
  with pytest.raises(ValueError, match=message):
    bounds.get(name, **options)


def test_names_and_defaults():
  assert set(PAPER) == {
    *("elbo", "elbo_stl", "iwae", "iwae_dreg", "rws", "rws_dreg", "stl", "dreg_alpha"),
    *("jvi", "jvi_dreg", "iwae_dreg_norm", "rws_dreg_norm"),
  }
  assert bounds.get("jvi") == bounds.get("jvi", order=1)
  assert bounds.get("jvi") != bounds.get("jvi", order=2)
  assert bounds.get("dreg_alpha") == bounds.get("dreg_alpha", alpha=0.9)
  assert all(bounds.get(name).source for name in bounds.names())


@pytest.mark.parametrize("bound", [*every_bound(), bounds.get("jvi_dreg", order=2)], ids=str)
def test_the_unbiased_estimator_of_the_same_value(bound):
  log_weights = tf.constant(np.random.default_rng(0).normal(size=[6, 3]))
  np.testing.assert_allclose(bound.total.value(log_weights), bound.value(log_weights))
  assert bound.total.total is bound.total
  # d value / d log w_i, which the total derivative is made of: a = b = -c.
  a, b, c = bound.total.coefficients(log_weights)
  np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(a, -c)


def test_which_estimators_are_unbiased():
  """At K = 1 all that have the path, as every weight is 1 then."""
  every = [bounds.get(name) for name in PAPER]
  every += [bounds.get("dreg_alpha", alpha=0.0), bounds.get("jvi_dreg", order=2)]

  def unbiased(num_samples):
    defined = [bound for bound in every if bound.min_samples <= num_samples]
    return [bound.name for bound in defined if bound.is_unbiased(num_samples)]

  dreg = ["iwae", "iwae_dreg", "jvi", "jvi_dreg", "dreg_alpha", "jvi_dreg"]
  assert unbiased(5) == ["elbo", "elbo_stl", *dreg]
  single = ["elbo", "elbo_stl", "iwae", "iwae_dreg", "stl", "iwae_dreg_norm", "dreg_alpha"]
  assert unbiased(1) == single


@pytest.mark.parametrize("order,num_samples", [(1, 1), (2, 2), (3, 1)])
def test_jackknife_needs_more_samples_than_its_order(order, num_samples):
  bound = bounds.get("jvi", order=order)
  assert bound.min_samples == order + 1
  with pytest.raises(ValueError, match=f"at least {order + 1} for jvi, got {num_samples}"):
    bound.value(tf.zeros([num_samples, 3]))
  with pytest.raises(ValueError, match=f"num_samples must be at least {order + 1} for jvi"):
    bounds.estimate(bound, *standard(), num_samples=num_samples)


@pytest.mark.parametrize("name", bounds.names())
def test_no_samples_at_all_is_refused(name):
  with pytest.raises(ValueError, match="axis 0 of log_weights must be at least"):
    bounds.get(name).value(tf.zeros([0, 3]))


# --- estimates against the literal surrogates ---------------------------------------------------


def standard():
  """A target and a proposal of batch shape [3], for what happens before any arithmetic."""
  return (lambda z: -tf.square(z - 1.0)), tfd.Normal(tf.zeros([3]), 1.0)


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


# `test_path_only_when_compiled` has iwae_dreg, and dreg_alpha is put together like it.
XLA_KINDS = [v for v in KINDS if v[0] not in ("iwae_dreg", "jvi_dreg")]
COMPILED = {"graph": (False, KINDS), "xla": (True, XLA_KINDS)}


@pytest.mark.parametrize("mode", COMPILED)
def test_estimate_is_the_literal_surrogate_when_compiled(mode):
  """The oracle runs inside the same function: XLA draws other normals than the kernels do."""
  problem = shared_problem([2])
  jit_compile, variants = COMPILED[mode]

  @tf.function(jit_compile=jit_compile)
  def compiled():
    return [estimate_and_oracle(problem, name, options) for name, options in variants]

  for (name, options), results in zip(variants, compiled(), strict=True):
    assert_agree(name, options, *results)


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws", "rws_dreg", "jvi_dreg"])
def test_gradient_taken_outside_of_the_function(name):
  problem = shared_problem([2])

  @tf.function
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

  @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)])
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


PATH_ONLY = [(name, "hierarchy") for name in PAPER]
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


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_path_only_when_compiled(jit_compile):
  problem = hierarchy_problem()

  @tf.function(jit_compile=jit_compile)
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


# --- degenerate log-weights ---------------------------------------------------------------------


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
    value, *coefficients = by_hand(name, log_weights, options)
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
    _, *expected = by_hand(name, log_weights, options)
  for actual, e in zip(coefficients, expected, strict=True):
    e = np.where(np.isneginf(log_weights), 0.0, np.nan_to_num(e, nan=0.0))
    np.testing.assert_allclose(actual, e, rtol=1e-12, atol=1e-12)


@every_variant
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
  names = ("iwae", "iwae_dreg", "rws")
  parameters = shared_problem([2]).parameters

  @tf.function(jit_compile=True)
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


# --- refusals -----------------------------------------------------------------------------------


def categorical():
  return tfd.Categorical(logits=tf.zeros([3, 4]))


def mixture(reparameterize):
  return tfd.MixtureSameFamily(
    tfd.Categorical(logits=tf.zeros([3, 2])),
    tfd.Normal(tf.random.stateless_normal([3, 2], seed=[0, 1]), 1.0),
    reparameterize=reparameterize,
  )


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg"])
@pytest.mark.parametrize("proposal", [categorical, functools.partial(mixture, False)])
def test_refuses_a_proposal_that_is_not_reparameterized(name, proposal):
  with pytest.raises(ValueError, match="proposal must be fully reparameterized.*is not"):
    bounds.estimate(name, lambda z: tf.zeros([5, 3]), proposal(), num_samples=5)


def test_a_reparameterized_mixture_is_a_proposal():
  estimate = bounds.estimate("iwae_dreg", standard()[0], mixture(True), num_samples=5)
  assert np.isfinite(estimate.objective).all()


def test_refuses_what_is_not_a_distribution():
  with pytest.raises(TypeError, match="proposal must be a tfp Distribution, got EagerTensor"):
    bounds.estimate("iwae", standard()[0], tf.zeros([3]), num_samples=5)


def test_refuses_what_is_not_a_bound():
  with pytest.raises(TypeError, match="bound must be a Bound or one of elbo"):
    bounds.estimate(None, *standard(), num_samples=5)
  with pytest.raises(ValueError, match="bound must be one of elbo.*got 'dreg'"):
    bounds.estimate("dreg", *standard(), num_samples=5)


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws"])
@pytest.mark.parametrize(
  "num_samples,error",
  [
    (0, ValueError),
    (-1, ValueError),
    (1.5, TypeError),
    (True, TypeError),
    (None, TypeError),
    ("5", TypeError),
  ],
)
def test_refuses_num_samples(name, num_samples, error):
  with pytest.raises(error, match=f"num_samples must be .*, got {num_samples!r}"):
    bounds.estimate(name, *standard(), num_samples=num_samples)


def test_num_samples_may_be_a_numpy_integer():
  assert bounds.estimate("iwae", *standard(), num_samples=np.int64(5)).log_weights.shape == [5, 3]


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws"])
@pytest.mark.parametrize("shape", [[3], [5, 3, 2], [5, 1], [1, 3], [3, 5], [5], []], ids=str)
def test_refuses_a_target_of_the_wrong_shape(name, shape):
  proposal = tfd.Independent(tfd.Normal(tf.zeros([3, 2]), 1.0), 1)
  with pytest.raises(ValueError, match=r"\[num_samples, batch_size\] = \(5, 3\).*got \("):
    bounds.estimate(name, lambda z: tf.zeros(shape), proposal, num_samples=5)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_refuses_a_target_whose_wrong_shape_is_known_only_when_it_runs(jit_compile):
  """XLA drops assertions: what is not refused there is broadcast in silence."""
  signature = [tf.TensorSpec([None, None]), tf.TensorSpec([None])]

  @tf.function(input_signature=signature, jit_compile=jit_compile)
  def traced(log_p, loc):
    return bounds.estimate("iwae_dreg", lambda z: log_p, tfd.Normal(loc, 1.0), 5).objective

  for shape in ([5, 1], [1, 3], [5, 4]):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
      traced(tf.zeros(shape), tf.zeros([3]))
  assert traced(tf.zeros([5, 3]), tf.zeros([3])).shape == [3]


def test_refuses_a_stopped_proposal_that_is_the_proposal():
  target, proposal = standard()
  with pytest.raises(ValueError, match="stopped_proposal is the proposal itself"):
    bounds.estimate("iwae_dreg", target, proposal, num_samples=5, stopped_proposal=proposal)


# --- seeds --------------------------------------------------------------------------------------


def draw(seed, name="iwae_dreg"):
  return bounds.estimate(name, *standard(), num_samples=5, seed=seed).samples.numpy()


def test_same_seed_same_samples():
  for seed in (0, 3, -1, 2**40 + 3, 2**63, [1, 2], tf.constant([1, 2], tf.int64)):
    np.testing.assert_array_equal(draw(seed), draw(seed))
    np.testing.assert_array_equal(draw(seed), draw(seed, "iwae"))
  np.testing.assert_array_equal(draw([1, 2]), draw(np.array([1, 2])))
  np.testing.assert_array_equal(draw(3), draw(np.int64(3)))
  np.testing.assert_array_equal(draw(3), draw(seeds.stateless(3)))


def test_different_seeds_different_samples():
  integers = [0, 1, 3, -1, -3, 2**31, 2**32, 2**32 + 3, 2**40 + 3, 2**63, 2**64 - 3]
  drawn = [draw(seed) for seed in [*integers[:-1], [1, 2], [2, 1], [3, 3]]]
  for i, one in enumerate(drawn):
    for other in drawn[:i]:
      assert np.abs(one - other).min() > 0


def test_no_seed_draws_anew_at_every_call():
  assert np.abs(draw(None) - draw(None)).min() > 0
  for jit_compile in (False, True):
    traced = tf.function(
      lambda: bounds.estimate("iwae_dreg", *standard(), num_samples=5).samples,
      jit_compile=jit_compile,
    )
    assert np.abs(traced() - traced()).min() > 0


def test_no_seed_follows_the_global_seed():
  drawn = []
  for _ in range(2):
    tf.random.set_seed(1)
    drawn.append(draw(None))
  np.testing.assert_array_equal(*drawn)


def test_same_seed_same_samples_in_a_function():
  traced = tf.function(
    lambda seed: bounds.estimate("iwae_dreg", *standard(), num_samples=5, seed=seed).samples
  )
  np.testing.assert_array_equal(traced(tf.constant([1, 2])), draw([1, 2]))
  np.testing.assert_array_equal(traced(tf.constant([2, 2])), draw([2, 2]))


@pytest.mark.parametrize(
  "seed", [1.5, "one", [1, 2, 3], [1], [1.0, 2.0], [[1, 2]], {}, slice(2)], ids=repr
)
def test_refuses_a_seed(seed):
  with pytest.raises(
    ValueError, match="seed must be an int, an integer Tensor of shape .2., or None"
  ):
    draw(seed)


def test_fold_in():
  seed = seeds.stateless(3)
  folded = {tuple(seeds.fold_in(seed, *data).numpy()) for data in ([], [0], [1], [0, 1], [1, 0])}
  assert len(folded) == 5
  np.testing.assert_array_equal(seeds.fold_in(seed, 1, 0), seeds.fold_in(seeds.fold_in(seed, 1), 0))


# --- dtypes -------------------------------------------------------------------------------------


@few_variants
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16], ids=lambda dtype: dtype.name)
def test_a_target_in_half_precision(name, options, dtype):
  """Weights, value and coefficients are float32; log p keeps the 8 (11) bits that it has."""
  x = tf.constant([0.5, -1.0, 1.5])
  results = []
  for target_dtype in (tf.float32, dtype):
    loc, scale = tf.Variable(0.1 * x), tf.Variable(0.5 * tf.ones_like(x))
    with tf.GradientTape() as tape:
      estimate = bounds.estimate(
        bounds.get(name, **options),
        lambda z, dtype=target_dtype: tf.cast(-tf.square(z - x), dtype),
        tfd.Normal(loc, scale),
        num_samples=5,
        seed=3,
      )
    assert estimate.objective.dtype == estimate.log_weights.dtype == tf.float32
    assert estimate.samples.dtype == tf.float32
    results.append((estimate, np.stack(tape.gradient(estimate.objective, [loc, scale]))))
  (exact, exact_gradient), (half, half_gradient) = results
  # log p is about -2: its rounding is 2^-8 of that; the jackknife multiplies it by up to 20.
  scale = 20 if "order" in options else 1
  np.testing.assert_allclose(half.log_weights, exact.log_weights, atol=0.05)
  np.testing.assert_allclose(half.objective, exact.objective, atol=0.05 * scale)
  np.testing.assert_allclose(half_gradient, exact_gradient, atol=0.1 * scale)


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws", "jvi_dreg"])
def test_a_proposal_in_half_precision(name):
  loc = tf.Variable(tf.zeros([3], tf.float16))
  with tf.GradientTape() as tape:
    estimate = bounds.estimate(
      name, lambda z: -tf.square(z - 1), tfd.Normal(loc, tf.constant(1, tf.float16)), 5, seed=3
    )
  assert estimate.objective.dtype == estimate.log_weights.dtype == tf.float32
  assert estimate.samples.dtype == tf.float16
  gradient = tape.gradient(estimate.objective, loc)
  assert gradient.dtype == tf.float16
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws"])
@pytest.mark.parametrize("of_target,of_proposal", [("float64", "float32"), ("float32", "float64")])
def test_mixed_precision_is_resolved_upwards(name, of_target, of_proposal):
  loc = tf.Variable(np.zeros(3), dtype=of_proposal)
  with tf.GradientTape() as tape:
    estimate = bounds.estimate(
      name,
      lambda z: tf.cast(-tf.square(z - 1), of_target),
      tfd.Normal(loc, tf.constant(1, of_proposal)),
      num_samples=5,
    )
  assert estimate.objective.dtype == estimate.log_weights.dtype == tf.float64
  assert tape.gradient(estimate.objective, loc).dtype == of_proposal
