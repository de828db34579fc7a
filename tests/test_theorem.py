"""Tests of expectations, exactly: Gauss-Hermite quadrature and enumeration of all samples.

A proposal "draws" every combination of K nodes, an example each; the weighted sum of the examples'
gradients is the expectation of the estimator. The truth is the derivative, by central differences,
of the weighted sum of the bound itself.
"""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds
from tests.rows import FUNCTIONS

tfd = tfp.distributions

NUM_NODES = {2: 90, 3: 20, 4: 16}


class Grid(tfd.Normal):
  """A Normal that draws given noise."""

  def __init__(self, loc, scale, noise):
    super().__init__(loc, scale)
    self.noise = noise

  @classmethod
  def _parameter_properties(cls, dtype, num_classes=None):
    return super()._parameter_properties(dtype, num_classes)

  def _sample_n(self, n, seed=None):
    if n > 1:
      return self.loc + self.scale * self.noise
    # Below another latent the batch shape has all samples, but for a trial run of TFP's.
    noise = self.noise if self.loc.shape.rank == 2 else self.noise[0]
    return (self.loc + self.scale * noise)[tf.newaxis]


class Listed(tfd.Bernoulli):
  """A Bernoulli that draws given values."""

  def __init__(self, logits, values):
    super().__init__(logits, dtype=tf.int32)
    self.values = values

  @classmethod
  def _parameter_properties(cls, dtype, num_classes=None):
    return super()._parameter_properties(dtype, num_classes)

  def _sample_n(self, n, seed=None):
    return tf.constant(self.values[:n])


def nodes(num_samples):
  """Noise [num_samples, N] and the probabilities [N] of all combinations of nodes."""
  points, mass = np.polynomial.hermite_e.hermegauss(NUM_NODES[num_samples])
  noise = np.stack(np.meshgrid(*[points] * num_samples, indexing="ij")).reshape(num_samples, -1)
  masses = np.meshgrid(*[mass / mass.sum()] * num_samples, indexing="ij")
  return noise, np.prod(masses, axis=0).ravel()


def log_target(mu, z):
  """Not Gaussian: a location mu, a slope and ripples."""
  return -0.5 * (z - mu) ** 2 + 0.5 * tf.sin(z) + 0.2 * tf.cos(1.5 * z + 0.4)


PARAMETERS = [0.3, -0.2, 0.5]  # loc, log scale, mu


def estimate(bound, parameters, num_samples, **options):
  """The expected bound; one of each entry if the parameters are vectors."""
  shape = parameters[0].shape
  noise, mass = nodes(num_samples)
  loc, log_scale, mu = (tf.repeat(tf.reshape(p, [-1]), len(mass)) for p in parameters)
  noise = np.tile(noise, [1, shape.num_elements()])
  result = bounds.estimate(
    bound,
    lambda z: log_target(mu, z),
    Grid(loc, tf.exp(log_scale), tf.constant(noise)),
    num_samples,
    stopped_proposal=Grid(tf.stop_gradient(loc), tf.exp(tf.stop_gradient(log_scale)), noise),
    **options,
  )
  return tf.reduce_sum(mass * tf.reshape(result.objective, [*shape, len(mass)]), axis=-1)


def expected_gradient(bound, num_samples=3, **options):
  parameters = [tf.Variable(p, dtype=tf.float64) for p in PARAMETERS]
  with tf.GradientTape() as tape:
    total = estimate(bound, parameters, num_samples, **options)
  return np.array([g.numpy() for g in tape.gradient(total, parameters)])


def gradient_of_expectation(bound, num_samples=3, **options):
  """Of the bound's value, which its total derivative shares: most rows have L_K."""
  return _gradient_of_expectation(bound.total, num_samples, **options)


@functools.cache
def _gradient_of_expectation(bound, num_samples, **options):
  steps = 1e-4 * np.eye(len(PARAMETERS))
  moved = np.array(PARAMETERS) + np.concatenate([steps, -steps])
  above, below = np.split(estimate(bound, tf.unstack(moved.T), num_samples, **options), 2)
  return (above - below) / 2e-4


UNBIASED = [
  *[("iwae", {}), ("iwae_dreg", {}), ("jvi_dreg", {}), ("jvi_dreg", {"order": 2})],
  *[("elbo_stl", {}), ("elbo_loo", {}), ("vimco", {}), ("vimco_star", {})],
  ("ovis", {"gamma": 0.0}),
  *[("vr_iwae", {"alpha": 0.3}), ("vr_iwae_dreg", {"alpha": 0.3})],
  *[("ciwae", {"beta": 0.2}), ("ciwae_dreg", {"beta": 0.2})],
  *[("miwae", {"groups": 3}), ("tvo", {}), ("tvo_dreg", {"betas": (0, 0.3, 1)})],
  *[("iwae_cv", dict(zip("abgd", factors, strict=True))) for factors in [(0.4, 0.7, 0.3, -1.0)]],
]
BIASED = [
  *[("stl", {}), ("rws", {}), ("rws_dreg", {}), ("dreg_alpha", {"alpha": 0.3})],
  *[("ovis", {"gamma": 1.0}), ("ovis", {"gamma": 0.3}), ("iwae_dreg_norm", {})],
  *[("piwae", {"groups": 3}), ("piwae_dreg", {"groups": 3})],
]


def ids(cases):
  return ["-".join([name, *map(str, options.values())]) for name, options in cases]


@pytest.mark.parametrize("name,options", UNBIASED, ids=ids(UNBIASED))
def test_unbiased_rows(name, options):
  bound = bounds.get(name, **options)
  assert bound.is_unbiased(3)
  np.testing.assert_allclose(expected_gradient(bound), gradient_of_expectation(bound), atol=1e-6)


@pytest.mark.parametrize("name,options", BIASED, ids=ids(BIASED))
def test_biased_rows_are_caught(name, options):
  bound = bounds.get(name, **options)
  assert not bound.is_unbiased(3)
  error = expected_gradient(bound) - gradient_of_expectation(bound)
  assert abs(error[:2]).max() > 1e-2
  np.testing.assert_allclose(error[2], 0, atol=1e-6)  # the model's is right all the same


def test_the_wake_update_has_the_same_expectation_doubly_reparameterized():
  rows = [expected_gradient(bounds.get(name)) for name in ("rws", "rws_dreg")]
  np.testing.assert_allclose(*rows, atol=1e-6)


def test_grouped_rows_of_more_than_one_sample_each():
  for name in ("miwae", "miwae_dreg"):
    bound = bounds.get(name, groups=2)
    actual, expected = expected_gradient(bound, 4), gradient_of_expectation(bound, 4)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("gradient", ["total", "dreg"])
def test_a_strangers_bound(function, gradient):
  """Asymmetric, not exchangeable, linear: the theorem asks for independent samples alone."""
  bound = bounds.from_function(function, "mine", gradient)
  num_samples = 4 if function.__name__ == "of_groups" else 3
  actual = expected_gradient(bound, num_samples)
  np.testing.assert_allclose(actual, gradient_of_expectation(bound, num_samples), atol=1e-6)


def test_a_strangers_stl_is_caught():
  bound = bounds.from_function(FUNCTIONS[0], "mine", "stl")
  error = expected_gradient(bound) - gradient_of_expectation(bound)
  assert abs(error[:2]).max() > 1e-2


# --- a weight on the proposal -------------------------------------------------------------------

WEIGHTED = [
  *[("iwae", {}), ("iwae_dreg", {}), ("jvi_dreg", {}), ("vr_iwae_dreg", {"alpha": 0.4})],
  *[("elbo_stl", {}), ("tvo_dreg", {}), ("vimco", {}), ("vimco_star", {}), ("elbo_loo", {})],
]


@pytest.mark.parametrize("weight", [0.3, 2.0])
@pytest.mark.parametrize("name,options", WEIGHTED, ids=ids(WEIGHTED))
def test_weighted_rows(name, options, weight):
  bound = bounds.get(name, **options)
  actual = expected_gradient(bound, num_samples=2, proposal_weight=weight)
  expected = gradient_of_expectation(bound, num_samples=2, proposal_weight=weight)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_the_square_of_the_weight_is_caught(weight):
  """wbar^2 on the path of log r - beta log q^: what DReG with a warm-up gets elsewhere."""
  parameters = [tf.Variable(p, dtype=tf.float64) for p in PARAMETERS]
  noise, mass = nodes(3)
  with tf.GradientTape() as tape:
    loc, log_scale, mu = parameters
    z = loc + tf.exp(log_scale) * noise
    q = tfd.Normal(tf.stop_gradient(loc), tf.exp(tf.stop_gradient(log_scale)))
    l = log_target(tf.stop_gradient(mu), z) - weight * q.log_prob(z)
    square = tf.stop_gradient(tf.nn.softmax(l, axis=0)) ** 2
    total = tf.reduce_sum(mass * tf.reduce_sum(square * l, axis=0))
  naive = np.array(tape.gradient(total, parameters[:2]))
  exact = gradient_of_expectation(bounds.get("iwae_dreg"), proposal_weight=weight)[:2]
  assert abs(naive - exact).max() > 0.02


@pytest.mark.parametrize(
  "name", ["rws", "stl", "rws_dreg", "dreg_alpha", "iwae_dreg_norm", "ovis", "iwae_cv"]
)
def test_a_weight_without_meaning_is_refused(name):
  with pytest.raises(ValueError, match=f"proposal_weight must be 1 for {name}, got 0.5"):
    bounds.estimate(name, lambda z: -(z**2), tfd.Normal(0.0, 1.0), 3, proposal_weight=0.5)


@pytest.mark.parametrize("weight", [-1.0, True, "x", float("nan"), None])
def test_weights_that_are_none_are_refused(weight):
  with pytest.raises(ValueError, match=f"proposal_weight must be .*got {weight!r}"):
    bounds.estimate("iwae", lambda z: -(z**2), tfd.Normal(0.0, 1.0), 3, proposal_weight=weight)


def test_a_weight_may_be_a_variable():
  def objective(weight):
    return bounds.estimate(
      "iwae_dreg", lambda z: -(z**2), tfd.Normal(0.0, 1.0), 3, seed=1, proposal_weight=weight
    ).objective

  weight = tf.Variable(0.5)
  np.testing.assert_array_equal(objective(weight), objective(0.5))
  weight.assign(2.0)
  np.testing.assert_array_equal(objective(weight), objective(2.0))


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "vr_iwae_dreg"])
def test_the_gradient_in_the_weight_is_that_of_the_value(name, with_prior):
  prior = tfd.Normal(tf.zeros([2], tf.float64), 1.0)

  def objective(weight):
    def log_p(z):
      return -((z - 1) ** 2) / 3 + (0 if with_prior else prior.log_prob(z))

    proposal = tfd.Normal(tf.constant([0.3, -0.2], tf.float64), 0.8)
    options = {"prior": prior} if with_prior else {}
    return tf.reduce_sum(
      bounds.estimate(name, log_p, proposal, 3, seed=1, proposal_weight=weight, **options).objective
    )

  weight, step = tf.Variable(0.7, dtype=tf.float64), 1e-6
  with tf.GradientTape() as tape:
    value = objective(weight)
  expected = (objective(0.7 + step) - objective(0.7 - step)) / (2 * step)
  np.testing.assert_allclose(tape.gradient(value, weight), expected, rtol=1e-6)


def test_parts_without_a_path_pass_no_gradient_to_what_depends_on_them():
  """TFP differentiates the samples of a MixtureSameFamily, although it has no path."""
  loc, scale = tf.Variable([[-1.0, 0.5], [0.2, 1.0]]), tf.Variable([0.7, 1.2])

  def gradients_of(bound, stop):
    with tf.GradientTape() as tape:
      proposal = tfd.JointDistributionSequential(
        [
          tfd.MixtureSameFamily(tfd.Categorical(tf.zeros([2, 2])), tfd.Normal(loc, 0.7)),
          lambda d: tfd.Normal(0.8 * stop(d), tf.identity(scale)),
        ]
      )
      objective = bounds.estimate(
        bound, lambda z: -((z[0] - 1) ** 2) - (z[1] - z[0]) ** 2, proposal, 4, seed=3
      ).objective
    return tape.gradient(objective, [loc, scale])

  for bound in ("iwae", "iwae_dreg"):
    for actual, expected in zip(
      gradients_of(bound, lambda d: d), gradients_of(bound, tf.stop_gradient), strict=True
    ):
      np.testing.assert_allclose(actual, expected, rtol=1e-6)


# --- discrete and mixed latents -----------------------------------------------------------------

LOGITS = np.array([0.4, -0.7])


def bernoulli_values(num_samples):
  """All samples of two Bernoullis, [num_samples, 4^num_samples, 2]."""
  single = list(itertools.product([0, 1], repeat=2))
  return np.array(list(itertools.product(single, repeat=num_samples))).transpose(1, 0, 2)


def log_joint_of_bits(theta, d):
  d = tf.cast(d, tf.float64)
  return theta * d[..., 0] - 0.8 * d[..., 0] * d[..., 1] + tf.sin(d[..., 1] + theta) - 1


def probabilities(logits, d):
  """[N]: of each combination of samples, differentiable."""
  log_prob = tfd.Independent(tfd.Bernoulli(logits), 1).log_prob(d)
  return tf.exp(tf.reduce_sum(log_prob, axis=0))


def enumerated(bound, num_samples):
  """The expectation of the estimator's gradient, and the gradient of the expected bound."""
  logits, theta = tf.Variable(LOGITS), tf.Variable(0.6, dtype=tf.float64)
  d = bernoulli_values(num_samples)
  with tf.GradientTape(persistent=True) as tape:
    proposal = tfd.Independent(Listed(logits + tf.zeros([d.shape[1], 2], tf.float64), d), 1)
    result = bounds.estimate(bound, lambda z: log_joint_of_bits(theta, z), proposal, num_samples)
    p = probabilities(logits, d)
    estimated = tf.reduce_sum(tf.stop_gradient(p) * result.objective)
    l = log_joint_of_bits(theta, d) - tfd.Independent(tfd.Bernoulli(logits), 1).log_prob(d)
    exact = tf.reduce_sum(p * tf.reduce_logsumexp(l, axis=0))
  return (
    np.concatenate([np.ravel(g) for g in tape.gradient(target, [logits, theta])])
    for target in (estimated, exact)
  )


@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("name", ["vimco", "vimco_star"])
def test_discrete_latents(name, num_samples):
  actual, expected = enumerated(bounds.get(name), num_samples)
  np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_ovis_is_vimco_and_a_part_of_rws(gamma):
  """E ovis = E vimco + gamma E rws in the proposal; so it is biased for L_K."""
  ovis, exact = enumerated(bounds.get("ovis", gamma=gamma), 3)
  rws, _ = enumerated(bounds.get("rws"), 3)
  vimco, _ = enumerated(bounds.get("vimco"), 3)
  np.testing.assert_allclose(ovis[:2], vimco[:2] + gamma * rws[:2], atol=1e-12)
  assert abs(ovis - exact).max() > 1e-2


def mixed(bound, num_samples, **options):
  """q(d) q(z | d): one Bernoulli and a Normal whose location depends on it.

  Returns:
    The expectation of the estimator's gradient, and the gradient of the expected bound.
  """
  points, mass = np.polynomial.hermite_e.hermegauss(NUM_NODES[num_samples])
  single = [(d, e, m) for d in (0, 1) for e, m in zip(points, mass / mass.sum(), strict=True)]
  combined = np.array(list(itertools.product(single, repeat=num_samples)))
  d, noise, masses = combined.transpose(2, 1, 0)  # [num_samples, N] each
  d, mass = d.astype(np.int32), masses.prod(axis=0)
  parameters = [tf.Variable(p, dtype=tf.float64) for p in (0.4, -0.3, 0.2, 0.5)]
  weight = options.get("proposal_weight", 1)

  def log_joint(mu, d, z):
    d = tf.cast(d, tf.float64)
    return log_target(mu + d, z) - 0.5 * d

  def conditional(parameters, d):
    _, loc, log_scale, _ = parameters
    d = tf.cast(d, tf.float64)
    return loc + 0.7 * d * loc, tf.exp(log_scale) + 0 * d

  with tf.GradientTape(persistent=True) as tape:
    logit, _, _, mu = parameters
    zero = tf.zeros(d.shape[1], tf.float64)
    proposal = tfd.JointDistributionNamed(
      {
        "d": Listed(logit + zero, d),
        "z": lambda d: Grid(*conditional(parameters, d), tf.constant(noise)),
      }
    )
    result = bounds.estimate(
      bound, lambda s: log_joint(mu, s["d"], s["z"]), proposal, num_samples, **options
    )
    probability = tf.exp(tf.reduce_sum(tfd.Bernoulli(logit).log_prob(d), axis=0))
    p = mass * probability
    estimated = tf.reduce_sum(tf.stop_gradient(p) * result.objective)
    loc, scale = conditional(parameters, d)
    z = loc + scale * noise
    log_q = tfd.Bernoulli(logit).log_prob(d) + tfd.Normal(loc, scale).log_prob(z)
    l = log_joint(mu, d, z) - weight * log_q
    exact = tf.reduce_sum(p * bound_value(bound, l))
  return (np.array(tape.gradient(target, parameters)) for target in (estimated, exact))


def bound_value(bound, l):
  if bound.name.startswith("elbo"):
    return tf.reduce_mean(l, axis=0)
  if bound.name.startswith("vr_iwae"):
    return tf.reduce_logsumexp(0.5 * l, axis=0) / 0.5
  return tf.reduce_logsumexp(l, axis=0)


@pytest.mark.parametrize(
  "name,atol",
  [
    *[("iwae", 1e-10), ("elbo", 1e-10), ("elbo_stl", 1e-10), ("vr_iwae_dreg", 1e-10)],
    *[("iwae_dreg", 1e-6), ("vimco", 1e-6)],  # what their quadrature resolves
  ],
)
def test_mixed_latents(name, atol):
  actual, expected = mixed(bounds.get(name), 2)
  np.testing.assert_allclose(actual, expected, atol=atol)


def test_mixed_latents_of_three_samples(monkeypatch):
  """The plain path agrees at each node, so that few of them show the enumerated score exactly."""
  monkeypatch.setitem(NUM_NODES, 3, 8)
  actual, expected = mixed(bounds.get("iwae"), 3)
  np.testing.assert_allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg"])
def test_mixed_latents_with_a_weight(name):
  actual, expected = mixed(bounds.get(name), 2, proposal_weight=0.3)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_mixed_latents_of_a_biased_row_are_caught():
  actual, expected = mixed(bounds.get("stl"), 2)
  assert abs(actual - expected).max() > 1e-2


@pytest.mark.parametrize(
  "name,options,same_as",
  [
    ("rws_dreg", {}, ["rws"]),
    ("stl", {}, ["iwae", "rws"]),
    ("dreg_alpha", {"alpha": 0.3}, [("iwae", 0.7), ("rws", 0.3)]),
    ("piwae", {"groups": 2}, ["elbo"]),
    ("piwae_dreg", {"groups": 2}, ["elbo"]),
    ("iwae_cv", {"a": 0.4, "b": 0.7, "g": 0.2, "d": 0.1}, ["iwae"]),
  ],
)
def test_mixed_latents_follow_one_direction(name, options, same_as):
  """In the proposal's parameters: the biased rows mix L_K's direction and the wake update's."""
  actual, _ = mixed(bounds.get(name, **options), 2)
  terms = [each if isinstance(each, tuple) else (each, 1) for each in same_as]
  expected = sum(factor * next(mixed(bounds.get(each), 2)) for each, factor in terms)
  np.testing.assert_allclose(actual[:3], expected[:3], atol=1e-6)
  assert abs(expected[0]) > 1e-2


def test_a_discrete_part_below_a_path_is_refused():
  proposal = tfd.JointDistributionNamed(
    {"z": tfd.Normal(tf.zeros(3), 1.0), "d": lambda z: tfd.Bernoulli(z)}
  )
  with pytest.raises(ValueError, match="proposal: d is not reparameterized and depends on z"):
    bounds.estimate("iwae_dreg", lambda s: tf.zeros([4, 3]), proposal, 4)
  assert bounds.estimate("vimco", lambda s: -(s["z"] ** 2), proposal, 4).objective.shape == [3]


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "stl", "tvo_dreg", "iwae_cv"])
def test_a_path_on_a_discrete_proposal_is_refused(name):
  with pytest.raises(ValueError, match=rf"proposal.*{name}, Bernoulli.*vimco_star"):
    bounds.estimate(name, lambda z: tf.zeros([4, 3]), tfd.Bernoulli(tf.zeros(3)), 4)
