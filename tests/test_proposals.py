"""Tests of what a proposal must be: its support, its kind, its wrappers, its batch shape."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, evaluation, gradients, side_by_side
from tests import oracles

tfb = tfp.bijectors
tfd = tfp.distributions

# The path, or the score, takes it that E_q[score] is 0.
SECOND_PATH = ["iwae_dreg", "rws_dreg", "stl", "elbo_stl", "dreg_alpha", "jvi_dreg"]
SECOND_PATH += ["vimco", "elbo_loo", "iwae_cv", "tvo_dreg"]
OTHERS = ["iwae", "elbo", "jvi", "rws"]


def learned(value):
  return tf.Variable(tf.constant(value, shape=[3]))


def flow():
  """A bijector that is no CompositeTensor, as those with a network."""
  return tfb.MaskedAutoregressiveFlow(lambda y: (0 * y, 0 * y))


MOVING = {
  "uniform": lambda: tfd.Uniform(learned(-1.0), 2.0),
  "uniform of two": lambda: tfd.Independent(tfd.Uniform(0.0, learned(1.0)[:, None] + [1, 2]), 1),
  "pareto": lambda: tfd.Pareto(3.0, learned(1.0)),
  "half cauchy": lambda: tfd.HalfCauchy(learned(0.0), 1.0),
  "half student": lambda: tfd.HalfStudentT(5.0, learned(0.0), 1.0),
  "generalized pareto": lambda: tfd.GeneralizedPareto(learned(0.0), 1.0, 0.2),
  "triangular": lambda: tfd.Triangular(learned(-1.0), 2.0, 0.5),
  "truncated": lambda: tfd.TruncatedNormal(0.0, 1.0, -1.0, learned(1.0)),
  "shifted exponential": lambda: tfb.Shift(learned(1.0))(tfd.Exponential(2.0)),
  "scaled beta": lambda: tfb.Scale(learned(1.0))(tfd.Beta(2.0, 3.0)),
  "sigmoid of a normal": lambda: tfb.Sigmoid(0.0, learned(2.0))(tfd.Normal(0.0, 1.0)),
  "mixture": lambda: tfd.MixtureSameFamily(
    tfd.Categorical(tf.zeros([3, 2])),
    tfd.Uniform(0.0, learned(1.0)[:, None] + [[1.0, 2.0]]),
    reparameterize=True,
  ),
  "shifted expm1": lambda: tfb.Shift(learned(1.0))(tfb.Expm1()(tfd.Normal(0.0, 1.0))),
  "scaled expm1": lambda: tfb.Scale(learned(1.0))(tfb.Expm1()(tfd.Normal(0.0, 1.0))),
  "block": lambda: tfd.Blockwise(
    [
      tfd.Independent(tfd.Uniform(-1.0, learned(1.0)[:, None]), 1),
      tfd.Independent(tfd.Normal(learned(0.0)[:, None], 1.0), 1),
    ]
  ),
  "flow with a network": lambda: tfb.Chain([tfb.Sigmoid(0.0, learned(2.0)[:, None]), flow()])(
    tfd.Independent(tfd.Normal(tf.zeros([3, 1]), 1.0), 1)
  ),
  "part of a joint in a joint": lambda: tfd.JointDistributionSequential(
    [
      tfd.Normal(learned(0.0), 1.0),
      lambda y: tfd.JointDistributionSequential([tfd.Uniform(y, y + 1)]),
    ]
  ),
  "part of a joint": lambda: tfd.JointDistributionSequential(
    [tfd.Normal(learned(0.0), 1.0), lambda z: tfd.Uniform(z, z + 1)]
  ),
}
STAYING = {
  "normal": lambda: tfd.Normal(learned(0.0), 1.0),
  "fixed uniform": lambda: tfd.Uniform([-1.0, 0.0, 1.0], 2.0),
  "half cauchy": lambda: tfd.HalfCauchy(0.0, learned(1.0)),
  "gamma": lambda: tfd.Gamma(learned(2.0), 1.0),
  "kumaraswamy": lambda: tfd.Kumaraswamy(learned(2.0), 1.5),
  "weibull": lambda: tfd.Weibull(learned(2.0), 1.5),
  "lognormal": lambda: tfd.LogNormal(learned(0.0), 1.0),
  "affine": lambda: tfb.Shift(learned(1.0))(tfb.Scale(learned(2.0))(tfd.Normal(0.0, 1.0))),
  "scaled exponential": lambda: tfb.Scale(learned(2.0))(tfd.Exponential(1.0)),
  "exp of a shift": lambda: tfb.Exp()(tfb.Shift(learned(1.0))(tfd.Normal(0.0, 1.0))),
  "shift by a number": lambda: tfb.Shift(1.0)(tfd.Exponential(learned(2.0))),
  "truncated": lambda: tfd.TruncatedNormal(learned(0.0), 1.0, -1.0, 1.0),
  "stopped end": lambda: tfd.HalfCauchy(tf.stop_gradient(learned(1.0) - 1), learned(1.0)),
}


def target(z):
  z = sum(tf.nest.flatten(z)) if isinstance(z, (list, tuple)) else z
  log_p = -tf.abs(z)
  return tf.reduce_sum(log_p, -1) if log_p.shape.rank == 3 else log_p


@pytest.mark.parametrize("name", MOVING)
def test_a_support_that_moves_is_refused_by_the_second_reparameterization(name):
  with tf.GradientTape():
    proposal = MOVING[name]()
    for bound in SECOND_PATH:
      message = rf"proposal: \w+\.\w+ moves.*{bound} relies on.*iwae"
      with pytest.raises(ValueError, match=message):
        bounds.estimate(bound, target, proposal, num_samples=4)


@pytest.mark.parametrize("name", ["uniform", "truncated", "shifted exponential"])
def test_a_support_that_moves_is_refused_by_side_by_side(name):
  kinds = [bounds.get("iwae"), bounds.get("stl")]
  with pytest.raises(ValueError, match="stl"):
    side_by_side.differentiate(kinds, target, MOVING[name], [], 4, tf.constant([1, 2]))
  result = side_by_side.differentiate(kinds[:1], target, MOVING[name], [], 4, tf.constant([1, 2]))
  assert np.isfinite(result.values[0]).all()


@pytest.mark.parametrize("name", MOVING)
def test_a_support_that_moves_is_taken_by_the_others(name):
  with tf.GradientTape():
    proposal = MOVING[name]()
    for bound in OTHERS:
      estimate = bounds.estimate(bound, target, proposal, num_samples=4, seed=1)
      assert estimate.objective.shape == [3]


@pytest.mark.filterwarnings("ignore:proposal")
@pytest.mark.parametrize("name", STAYING)
def test_a_support_that_stays_is_taken(name):
  with tf.GradientTape() as tape:
    proposal = STAYING[name]()
    estimate = bounds.estimate("iwae_dreg", target, proposal, num_samples=4, seed=1)
  assert np.isfinite(estimate.objective).all()
  variables = proposal.trainable_variables
  assert all(g is not None for g in tape.gradient(estimate.objective, variables)) or not variables


def test_a_moving_end_that_is_an_argument_of_a_function_is_refused():
  @tf.function(autograph=False)
  def objective(bound, low):
    proposal = tfd.Uniform(low, tf.constant([2.0, 3.0, 4.0]))
    return bounds.estimate(bound, target, proposal, num_samples=4, seed=1).objective

  low = tf.constant([-1.0, 0.0, 1.0])
  with pytest.raises(ValueError, match=r"Uniform.low moves .*tf.stop_gradient"):
    objective("iwae_dreg", low)
  assert objective("iwae", low).shape == [3]


@pytest.mark.parametrize("with_tape", [False, True])
def test_moving_supports_in_a_function(with_tape):
  """With a tape inside the function, or none: Keras' evaluate."""
  low, loc = learned(-1.0), learned(0.0)

  def traced(make):
    @tf.function(autograph=False)
    def objective():
      if with_tape:
        with tf.GradientTape():
          return bounds.estimate("iwae_dreg", target, make(), 4, seed=1).objective
      return bounds.estimate("iwae_dreg", target, make(), 4, seed=1).objective

    return objective()

  with pytest.raises(ValueError, match=r"Uniform\.low"):
    traced(lambda: tfd.Uniform(low * 2, 2.0))
  assert traced(lambda: tfd.HalfCauchy(tf.zeros_like(loc), tf.exp(loc))).shape == [3]
  assert traced(lambda: tfd.HalfCauchy(tf.stop_gradient(loc), tf.exp(loc))).shape == [3]


def test_the_reason_for_the_refusal():
  """E_q[score] is not 0: the gradient of iwae, by quadrature, is not that of wbar^2 on the path."""
  low, high = -0.5, 1.5
  eps = (np.arange(400) + 0.5) / 400
  first, second = np.meshgrid(eps, eps, indexing="ij")

  def bound(high):
    w = [np.exp(-((low + (high - low) * e - 0.4) ** 2)) * (high - low) for e in (first, second)]
    return np.log((w[0] + w[1]) / 2)

  z = low + (high - low) * np.stack([first, second])
  w = np.exp(-((z - 0.4) ** 2))
  wbar = w / w.sum(axis=0)
  path = -2 * (z - 0.4) * np.stack([first, second])  # dlog w / dz times dz / dhigh
  exact = (bound(high + 1e-4) - bound(high - 1e-4)).mean() / 2e-4
  total = np.sum(wbar * (path + 1 / (high - low)), axis=0).mean()
  twice = np.sum(wbar**2 * path, axis=0).mean()
  np.testing.assert_allclose(total, exact, atol=1e-5)
  assert abs(twice - exact) > 0.1


@pytest.mark.parametrize("kind", ["InverseGaussian", "NormalInverseGaussian", "TruncatedNormal"])
def test_wrong_sample_gradients_are_named(kind):
  proposal = {
    "InverseGaussian": lambda: tfd.InverseGaussian(learned(1.0), 1.0),
    "NormalInverseGaussian": lambda: tfd.NormalInverseGaussian(learned(0.0), 1.0, 2.0, 0.5),
    "TruncatedNormal": lambda: tfd.TruncatedNormal(learned(0.0), 1.0, -1.0, 1.0),
  }[kind]()
  with pytest.warns(UserWarning, match=rf"{tfp.__version__}.*{kind}"):
    bounds.estimate("iwae", target, proposal, num_samples=4)


# --- kinds --------------------------------------------------------------------------------------


def poisson_of(d):
  return tfd.Poisson(1.0 + tf.reduce_sum(tf.cast(d, tf.float32), -1) ** 2)


DISCRETE = {
  "bernoulli": lambda p: tfd.Independent(tfd.Bernoulli(p), 1),
  "categorical": lambda p: tfd.Independent(tfd.Categorical(tf.stack([p, -p], -1)), 1),
  "one hot": lambda p: tfd.OneHotCategorical(p),
  "poisson": lambda p: tfd.Independent(tfd.Poisson(log_rate=p), 1),
  "joint": lambda p: tfd.JointDistributionSequential(
    [
      tfd.Independent(tfd.Bernoulli(p), 1),
      lambda d: tfd.Poisson(1.0 + tf.reduce_sum(tf.cast(d, p.dtype) * p, -1) ** 2),
    ]
  ),
}


@pytest.mark.parametrize("engine", ["estimate", "side_by_side"])
@pytest.mark.parametrize("name", DISCRETE)
def test_reweighted_wake_sleep_takes_discrete_proposals(name, engine):
  logits = tf.Variable(np.random.default_rng(0).normal(size=[3, 2]).astype(np.float32))
  slope = tf.Variable(0.5)

  def log_joint(z):
    z = tf.nest.flatten(z)
    parts = [
      tf.reduce_sum(tf.cast(part, tf.float32), -1) if part.shape.rank == 3 else part for part in z
    ]
    return -((slope * tf.add_n(parts) - 1) ** 2)

  seed = tf.constant([3, 4])
  with tf.GradientTape(persistent=True) as tape:
    q = DISCRETE[name](logits)
    z = q.sample(5, seed=seed)
    log_p, log_q = log_joint(z), q.log_prob(z)
    w = tf.stop_gradient(tf.nn.softmax(log_p - log_q, axis=0))
    literal = tf.reduce_sum(w * log_p + w * log_q)
  expected = tape.gradient(literal, [logits, slope])
  if engine == "estimate":
    with tf.GradientTape() as tape:
      estimate = bounds.estimate("rws", log_joint, DISCRETE[name](logits), 5, seed=seed)
    actual = tape.gradient(estimate.objective, [logits, slope])
  else:
    actual = side_by_side.differentiate(
      [bounds.get("rws")], log_joint, lambda: DISCRETE[name](logits), [logits, slope], 5, seed
    ).total()
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_a_mixture_that_is_not_reparameterized_is_refused_everywhere():
  def make():
    components = tfd.MultivariateNormalDiag(tf.zeros([3, 2, 4]), tf.ones(4))
    return tfd.MixtureSameFamily(tfd.Categorical(tf.zeros([3, 2])), components)

  message = r"MixtureSameFamily.*reparameterize=True.*Independent\(tfd.Normal"
  with pytest.raises(ValueError, match=message):
    bounds.estimate("iwae_dreg", target, make(), num_samples=4)
  for kinds in (["iwae"], ["rws", "iwae"]):
    with pytest.raises(ValueError, match=message):
      side_by_side.differentiate(
        [bounds.get(kind) for kind in kinds], target, make, [], 4, tf.constant([1, 2])
      )


def test_a_forgotten_independent_is_refused_everywhere():
  """Also where the sizes happen to match, so that nothing fails by itself."""

  def make():
    return tfd.Normal(tf.zeros([3, 3]), 1.0)

  def log_joint(z):
    return tfd.Normal(0.0, 1.0).log_prob(z) + tf.zeros([3])

  for call in (
    lambda: bounds.estimate("iwae_dreg", log_joint, make(), num_samples=4),
    lambda: bounds.log_likelihood(log_joint, make(), num_samples=4),
    lambda: side_by_side.differentiate(
      [bounds.get("iwae")], log_joint, make, [], 4, tf.constant([1, 2])
    ),
  ):
    with pytest.raises(ValueError, match=r"proposal.*\(3, 3\).*tfd.Independent"):
      call()


# --- wrappers and subclasses --------------------------------------------------------------------


def trainable_normal():
  return tfp.experimental.util.make_trainable(tfd.Normal, initial_parameters={"loc": 0.3})


def coercible():
  from tensorflow_probability.python.layers.internal import distribution_tensor_coercible

  variable = tf.Variable(0.3)
  wrapped = distribution_tensor_coercible._TensorCoercible(tfd.Normal(variable, 1.0))
  return wrapped, [variable]


def factored():
  return tfp.experimental.vi.build_factored_surrogate_posterior(event_shape=[])


def affine():
  return tfp.experimental.vi.build_affine_surrogate_posterior(
    event_shape=[4], operators="tril", bijector=tfb.Softplus(), dtype=tf.float64
  )


def asvi():
  return tfp.experimental.vi.build_asvi_surrogate_posterior(
    tfd.JointDistributionSequential([tfd.Normal(0.0, 1.0), lambda z: tfd.Normal(z, 1.0)])
  )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", [trainable_normal, coercible, factored, affine, asvi])
def test_tfps_wrappers_are_proposals(make):
  tf.random.set_seed(0)
  made = make()
  proposal, variables = made if isinstance(made, tuple) else (made, made.trainable_variables)

  def log_joint(z):
    parts = [tf.reduce_sum(z, -1) if z.shape.rank == 2 else z for z in tf.nest.flatten(z)]
    return -((tf.add_n(parts) - 1.0) ** 2)

  for bound in ("iwae", "iwae_dreg"):
    with tf.GradientTape(persistent=True) as tape:
      estimate = bounds.estimate(bound, log_joint, proposal, num_samples=4, seed=1)
      if bound == "iwae":
        z = estimate.samples
        log_w = log_joint(z) - proposal.log_prob(tf.nest.map_structure(tf.identity, z))
        literal = tf.reduce_logsumexp(log_w, axis=0)
    assert estimate.objective.shape == []
    actual = tape.gradient(estimate.objective, variables)
    if bound == "iwae":
      for a, e in zip(actual, tape.gradient(literal, variables), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
    assert all(g is not None and np.isfinite(g).all() for g in actual), bound
  assert np.isfinite(bounds.log_likelihood(log_joint, proposal, 10, seed=1))


class SoftplusNormal(tfd.Normal):
  """A Normal that transforms what it is given, and stores the result."""

  def __init__(self, loc, scale, validate_args=False, allow_nan_stats=True, name="Softplus"):
    super().__init__(loc, tf.nn.softplus(scale), validate_args, allow_nan_stats, name)


class DoubledNormal(tfd.Normal):
  """The same with a number."""

  def __init__(self, loc, scale, **kwargs):
    super().__init__(loc, 2 * scale, **kwargs)


def softplus_problem(kind=SoftplusNormal):
  x = tf.constant([0.5, -1.0, 2.0], tf.float64)
  parameters = [tf.Variable(0.3, dtype=tf.float64), tf.Variable(-0.5, dtype=tf.float64)]
  one = tf.constant(1.0, tf.float64)

  def log_joint(parameters, z):
    return tfd.Normal(parameters[0], one).log_prob(z) + tfd.Normal(z, one).log_prob(x)

  def proposal(parameters):
    return kind(x * parameters[0], parameters[1] + 0 * x)

  return oracles.Problem(parameters, log_joint, proposal)


@pytest.mark.parametrize("kind", [SoftplusNormal, DoubledNormal])
def test_a_transformation_is_not_applied_twice(kind):
  argument = 0.7 if kind is DoubledNormal else tf.Variable(0.7)
  with pytest.raises(ValueError, match=rf"{kind.__name__}.*scale.*PathOnly"):
    gradients.stop_parameters(kind(tf.Variable(0.0), argument))


@pytest.mark.parametrize("bound", ["iwae_dreg", "stl", "rws_dreg", "iwae"])
def test_a_subclass_with_its_own_transformation_is_exact(bound):
  problem = softplus_problem()
  with tf.GradientTape(persistent=True) as tape:
    estimate = bounds.estimate(
      bound,
      functools.partial(problem.target, problem.parameters),
      problem.proposal(problem.parameters),
      num_samples=5,
      seed=3,
    )
    literal = oracles.surrogate(bound, problem, estimate.samples)
    log_weights = problem.live(estimate.samples)
  np.testing.assert_allclose(estimate.objective, oracles.value(bound, log_weights), rtol=1e-12)
  actual = oracles.gradients(tape, estimate.objective, problem.parameters)
  expected = oracles.gradients(tape, literal, problem.parameters)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-10)


def test_unwrap_leaves_a_distribution_alone():
  proposal = tfd.Normal(0.0, 1.0)
  assert evaluation.draw(proposal, 2, tf.constant([1, 2])).proposal is proposal
