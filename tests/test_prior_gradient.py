"""The doubly reparameterized gradient of a prior, exactly: by quadrature, and bit for bit.

A parameter has a value for each node of the quadrature, all of them equal, so a backward pass gives
the estimator at each node: its expectation and its variance are weighted sums. The truth is the
derivative, by central differences, of the weighted sum of the bound.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import bounds, seeds, side_by_side
from tests.test_theorem import Grid

tfd = tfp.distributions

D = tf.float64


@functools.cache
def nodes(num_noises, num_nodes):
  """Noise [num_noises, N] and probabilities [N] of all combinations of nodes."""
  points, mass = np.polynomial.hermite_e.hermegauss(num_nodes)
  noise = np.stack(np.meshgrid(*[points] * num_noises, indexing="ij")).reshape(num_noises, -1)
  masses = np.meshgrid(*[mass / mass.sum()] * num_noises, indexing="ij")
  return noise, np.prod(masses, axis=0).ravel()


class OneLayer:
  """p(z) = N(shift, exp(spread)); the likelihood shares the shift, the proposal the spread."""

  def __init__(self):
    self.parameters = {"shift": 0.4, "spread": -0.1, "slope": 0.8, "loc": 0.1}
    self.noises, self.num_nodes = 1, {2: 40, 3: 16}

  @staticmethod
  def prior(shift, spread, **_):
    return tfd.Normal(shift, tf.exp(spread))

  @staticmethod
  def proposal(noise, spread, loc, **_):
    return Grid(loc, 0.7 * tf.exp(0.5 * spread), noise[0])

  @staticmethod
  def likelihood(z, shift, slope, **_):
    return -0.5 * (1.2 - slope * z) ** 2 + 0.3 * tf.sin(z + shift)


class TwoLayers:
  """p(z2) p(z1 | z2), q in either order; a slope is shared by both conditionals of the prior."""

  def __init__(self, top_down):
    self.parameters = {"slope": 0.6, "spread": -0.3, "loc": 0.2, "mix": 0.5}
    self.noises, self.num_nodes = 2, {2: 10}
    self.top_down = top_down

  @staticmethod
  def prior(slope, spread, **_):
    return tfd.JointDistributionNamed(
      {
        "z2": tfd.Normal(0.5 * slope, 1.0 + 0 * slope),
        "z1": lambda z2: tfd.Normal(slope * z2 + 0.2 * tf.sin(z2), tf.exp(spread)),
      }
    )

  def proposal(self, noise, loc, mix, **_):
    one = tf.ones_like(loc)
    if self.top_down:
      return tfd.JointDistributionNamed(
        {
          "z2": Grid(loc, 0.8 * one, noise[0]),
          "z1": lambda z2: Grid(mix * z2 + 0.3, 0.6 * one, noise[1]),
        }
      )
    return tfd.JointDistributionNamed(
      {
        "z1": Grid(loc + 0.3, 0.7 * one, noise[0]),
        "z2": lambda z1: Grid(mix * z1, 0.7 * one, noise[1]),
      }
    )

  @staticmethod
  def likelihood(z, mix, **_):
    return -0.4 * (0.9 - z["z1"]) ** 2 + 0.2 * mix * tf.cos(z["z1"])


class Sharp(OneLayer):
  """The likelihood is much narrower than the prior."""

  def __init__(self):
    super().__init__()
    self.parameters |= {"slope": 3.0, "spread": 0.5}
    self.num_nodes = {2: 60}


PROBLEMS = {
  "one_layer": OneLayer(),
  "sharp": Sharp(),
  "top_down": TwoLayers(True),
  "bottom_up": TwoLayers(False),
}


def objective(problem, bound, num_samples, values, prior_gradient, weight=1.0, **options):
  """The bound at each node, given parameters [N]."""
  noise, _ = nodes(problem.noises * num_samples, problem.num_nodes[num_samples])
  noise = tf.constant(noise.reshape(problem.noises, num_samples, -1))
  prior = problem.prior(**values)
  proposal = problem.proposal(noise, **values)
  options |= {"proposal_weight": weight, "stopped_proposal": dregs_tf.PathOnly(proposal)}
  likelihood = functools.partial(problem.likelihood, **values)
  if prior_gradient == "dreg":
    target, options["prior"] = likelihood, prior
  else:
    target = lambda z: likelihood(z) + weight * prior.log_prob(z)  # noqa: E731
  return bounds.estimate(bound, target, proposal, num_samples, **options).objective


def filled(problem, size, **moved):
  values = problem.parameters | moved
  return {name: tf.fill([size], tf.constant(value, D)) for name, value in values.items()}


def gradients(name, bound, num_samples, prior_gradient="dreg", weight=1.0):
  """The estimator of each parameter at each node, and the masses."""
  problem = PROBLEMS[name]
  _, mass = nodes(problem.noises * num_samples, problem.num_nodes[num_samples])
  values = filled(problem, len(mass))
  with tf.GradientTape() as tape:
    tape.watch(values)
    total = objective(problem, bound, num_samples, values, prior_gradient, weight)
  gradient = tape.gradient(total, values, unconnected_gradients="zero")
  return {parameter: each.numpy() for parameter, each in gradient.items()}, mass


@functools.cache
def truth(name, bound, num_samples, weight=1.0):
  """The gradient of the expected bound by central differences."""
  problem, gradient = PROBLEMS[name], {}
  _, mass = nodes(problem.noises * num_samples, problem.num_nodes[num_samples])
  for parameter, value in problem.parameters.items():
    ends = []
    for step in (1e-4, -1e-4):
      values = filled(problem, len(mass), **{parameter: value + step})
      ends.append(mass @ objective(problem, bound, num_samples, values, "direct", weight).numpy())
    gradient[parameter] = (ends[0] - ends[1]) / 2e-4
  return gradient


def expectations(name, bound, num_samples, prior_gradient="dreg", weight=1.0):
  gradient, mass = gradients(name, bound, num_samples, prior_gradient, weight)
  return {parameter: mass @ each for parameter, each in gradient.items()}


CASES = [
  *[("one_layer", name, 3, options) for name, options in (("iwae", {}), ("iwae_dreg", {}))],
  *[("one_layer", name, 3, options) for name, options in (("jvi_dreg", {}), ("vimco_star", {}))],
  *[("one_layer", "vr_iwae_dreg", 3, {"alpha": 0.3}), ("one_layer", "tvo_dreg", 2, {})],
  *[(name, "iwae_dreg", 2, {}) for name in ("top_down", "bottom_up")],
  *[(name, "iwae", 2, {}) for name in ("top_down", "bottom_up")],
]


@pytest.mark.parametrize("name,bound,num_samples,options", CASES)
def test_expectation(name, bound, num_samples, options):
  bound = bounds.get(bound, **options)
  expected = truth(name, bound.total, num_samples)
  actual = expectations(name, bound, num_samples)
  assert sum(abs(value) > 0.01 for value in expected.values()) >= 3
  for parameter, value in expected.items():
    np.testing.assert_allclose(actual[parameter], value, atol=1e-5, err_msg=parameter)


@pytest.mark.parametrize("weight", [0.3, 2.0])
@pytest.mark.parametrize("bound", ["iwae", "iwae_dreg"])
def test_expectation_with_a_weight_on_the_divergence(bound, weight):
  expected = truth("one_layer", bounds.get("iwae"), 2, weight)
  actual = expectations("one_layer", bounds.get(bound), 2, weight=weight)
  for parameter, value in expected.items():
    np.testing.assert_allclose(actual[parameter], value, atol=1e-5, err_msg=parameter)


def test_plain_weights_in_place_of_the_right_ones_are_caught(monkeypatch):
  """With F_ii taken for 0, as if the bound were linear, the gradient is biased: seen at 1e-5."""
  original = bounds.Bound._evaluate

  def linear(self, log_weights, weight):
    value, coefficients, curvature = original(self, log_weights, weight)
    return value, coefficients, 0 * curvature

  monkeypatch.setattr(bounds.Bound, "_evaluate", linear)
  error = expectations("one_layer", bounds.get("iwae_dreg"), 3)["shift"]
  error -= truth("one_layer", bounds.get("iwae"), 3)["shift"]
  assert abs(error) > 1e-2


@pytest.mark.parametrize(
  "name,parameter,expected",
  [
    ("top_down", "slope", [0.8365, 0.2002]),
    ("bottom_up", "slope", [0.8530, 0.2351]),
    ("sharp", "shift", [0.0153, 2.0586]),
  ],
)
def test_variance(name, parameter, expected):
  """Exact as well: it usually falls, and need not."""
  variances = []
  for kind in ("direct", "dreg"):
    gradient, mass = gradients(name, bounds.get("iwae_dreg"), 2, kind)
    mean = mass @ gradient[parameter]
    variances.append(mass @ gradient[parameter] ** 2 - mean**2)
  np.testing.assert_allclose(variances, expected, atol=1e-3)


def test_fewer_backward_samples_keep_the_expectation(monkeypatch):
  """Over the choice of samples, which a grid of offsets in place of the random one runs through."""
  problem, size = PROBLEMS["one_layer"], 2000
  values = filled(problem, size)
  noise = np.repeat(np.random.default_rng(0).normal(size=[4, 1]), size, axis=1)
  monkeypatch.setattr("tests.test_prior_gradient.nodes", lambda *_: (noise, None))
  monkeypatch.setitem(problem.num_nodes, 4, 0)
  offsets = tf.constant((np.arange(size) + 0.5) / size)
  monkeypatch.setattr("dregs_tf.selection.uniform", lambda *_: offsets)
  results = []
  for chosen in (None, 2):
    with tf.GradientTape() as tape:
      tape.watch(values)
      options = {"num_backward_samples": chosen}
      total = objective(problem, "jvi_dreg", 4, values, "dreg", **options)
    results.append({n: np.mean(g) for n, g in tape.gradient(total, values).items()})
  for parameter, value in results[0].items():
    np.testing.assert_allclose(results[1][parameter], value, atol=2e-3, err_msg=parameter)


# --- on equal samples ---------------------------------------------------------------------------

K, B = 5, 3


class Small:
  """float32: a likelihood, a proposal and a prior of parameters of their own."""

  def __init__(self, is_joint=False, prior_learns=True):
    rng = np.random.default_rng(3)
    make = lambda *shape: tf.Variable(rng.normal(size=shape).astype("float32"))  # noqa: E731
    self.weights, self.q, self.p = make(2), [make(B, 2), make(2)], [make(2), make(2)]
    self.is_joint, self.prior_learns = is_joint, prior_learns

  def prior(self):
    loc, slope = self.p if self.prior_learns else map(tf.constant, self.p)
    top = tfd.MultivariateNormalDiag(loc, tf.exp(loc))
    if not self.is_joint:
      return top
    below = lambda z2: tfd.Independent(tfd.Logistic(tf.tanh(slope * z2), 1.5), 1)  # noqa: E731
    return tfd.JointDistributionNamed({"z2": top, "z1": below})

  def proposal(self):
    loc, slope = self.q
    first = tfd.Independent(tfd.Normal(loc, tf.nn.softplus(loc)), 1)
    if not self.is_joint:
      return first
    above = lambda z1: tfd.Independent(tfd.Normal(slope * z1, 0.7), 1)  # noqa: E731
    return tfd.JointDistributionNamed({"z1": first, "z2": above})

  def likelihood(self, z):
    z = z["z1"] if self.is_joint else z
    return -tf.reduce_sum((tf.sin(z * self.weights) - 0.3) ** 2, axis=-1)

  def log_joint(self, z):
    return self.likelihood(z) + self.prior().log_prob(z)

  @property
  def variables(self):
    return [self.weights, *self.q, *self.p]

  def gradient(self, bound, prior_gradient, **options):
    with tf.GradientTape() as tape:
      if prior_gradient == "dreg":
        target, options["prior"] = self.likelihood, self.prior()
      else:
        target = self.log_joint
      estimate = bounds.estimate(bound, target, self.proposal(), K, seed=7, **options)
    return estimate, tape.gradient(estimate.objective, self.variables)


# Every two of the three meet.
@pytest.mark.parametrize(
  ("is_joint", "bound", "num_backward_samples"),
  [
    *[(False, "iwae", None), (False, "iwae_dreg", 2), (False, "jvi_dreg", 2)],
    *[(False, "vimco", None), (True, "iwae", 2), (True, "iwae_dreg", None)],
    *[(True, "jvi_dreg", None), (True, "vimco", 2)],
  ],
)
def test_other_parameters_receive_the_same_bits(is_joint, bound, num_backward_samples):
  model = Small(is_joint)
  options = {"num_backward_samples": num_backward_samples}
  (one, direct), (other, dreg) = (model.gradient(bound, g, **options) for g in ("direct", "dreg"))
  np.testing.assert_array_equal(one.objective, other.objective)
  if num_backward_samples is None or bound != "jvi_dreg":  # Where F_ii changes the choice.
    for index in range(2 + is_joint):
      np.testing.assert_array_equal(direct[index], dreg[index])
  for index in range(3, 4 + is_joint):
    assert np.abs(direct[index] - dreg[index]).max() > 1e-4


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("bound", ["iwae", "iwae_dreg"])
def test_a_prior_without_parameters_changes_no_bit(is_joint, bound):
  model = Small(is_joint, prior_learns=False)
  (_, direct), (_, dreg) = (model.gradient(bound, kind) for kind in ("direct", "dreg"))
  for one, other in zip(direct[:3], dreg[:3], strict=True):
    assert (one is None) == (other is None)
    if one is not None:
      np.testing.assert_array_equal(one, other)
  assert dreg[3:] == [None, None]


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("bound,weight", [("iwae_dreg", 0.4), ("jvi", 0.4), ("rws", 1.0)])
def test_side_by_side(is_joint, bound, weight):
  model, seed = Small(is_joint), seeds.stateless(7)
  log_prob = functools.partial(model.gradient, proposal_weight=weight)
  _, expected = log_prob(bound, "dreg")
  result = side_by_side.differentiate(
    [bounds.get(bound), bounds.get("vimco_star")],
    model.likelihood,
    model.proposal,
    model.variables,
    K,
    seed,
    proposal_weight=weight,
    make_prior=model.prior,
  )
  for actual, value in zip(result.total(), expected, strict=True):
    if value is not None:
      np.testing.assert_allclose(actual, value, rtol=2e-4, atol=1e-5)


def test_both_gradients_of_a_prior():
  model = Small(is_joint=True)
  both = side_by_side.differentiate_prior(
    [bounds.get("iwae"), bounds.get("jvi")],
    model.likelihood,
    model.proposal,
    model.prior,
    model.p,
    K,
    seeds.stateless(7),
    scale=0.5,
  )
  kinds = [(b, g) for b in ("iwae_dreg", "jvi_dreg") for g in ("direct", "dreg")]
  for (bound, kind), actual in zip(kinds, both, strict=True):
    _, expected = model.gradient(bound, kind)
    for one, other in zip(actual, expected[3:], strict=True):
      np.testing.assert_allclose(one, 0.5 * other, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("prior", ["gamma", "moving", "vectorized", "bernoulli", "none"])
def test_priors_that_are_refused(prior):
  scale = tf.Variable(1.5)
  made, error, message = {
    "gamma": (tfd.Gamma(scale, 1.0), ValueError, "prior: Gamma"),
    "moving": (
      tfd.TransformedDistribution(tfd.LogNormal(0.0, 1.0), tfp.bijectors.Shift(scale)),
      *(ValueError, "prior: Shift.shift moves the support"),
    ),
    "vectorized": (
      tfd.JointDistributionSequentialAutoBatched([tfd.Normal(scale, 1.0)]),
      *(ValueError, "use_vectorized_map=False"),
    ),
    "bernoulli": (tfd.Bernoulli(scale), ValueError, "prior: Bernoulli"),
    "none": (lambda z: z, TypeError, "prior must be a tfp Distribution, got function"),
  }[prior]
  proposal = tfd.LogNormal(tf.zeros([B]), 1.0)
  if prior == "vectorized":
    proposal = tfd.JointDistributionSequential([proposal])
  with tf.GradientTape(), pytest.raises(error, match=message):
    bounds.estimate("iwae_dreg", lambda z: -(z**2), proposal, K, prior=made)
