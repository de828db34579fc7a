"""Tests of `sequential.estimate`: values, lengths, weights of 0, compiled loops, refusals."""

import collections
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import sequential
from dregs_tf.sequential import resample
from tests.sequential import helpers

tfd = tfp.distributions

K, B, T = 3, 2, 4


def _model():
  return helpers.Nonlinear(helpers.variables())


def test_the_value_is_the_sum_of_the_blocks_log_means():
  estimate, _ = helpers.gradient_of(
    "fivo_dreg", _model(), helpers.observations(B, T, K), K, resample_when=[1, 3]
  )
  log_weights = estimate.log_weights.numpy()
  ends = np.logaddexp.reduce(log_weights[[0, 2, 3]], axis=1) - math.log(K)
  np.testing.assert_allclose(estimate.objective, ends.sum(axis=0), rtol=1e-13)
  np.testing.assert_array_equal(estimate.ancestors[2], [[0, 0], [1, 1], [2, 2]])
  wbar = tf.nn.softmax(log_weights, axis=1).numpy()
  np.testing.assert_allclose(
    estimate.effective_sample_size, 1 / np.sum(wbar**2, axis=1), rtol=1e-12
  )
  assert estimate.samples.shape == (T, K, B)
  assert estimate.state.shape == (K, B)


@pytest.mark.parametrize(
  ("bound", "options", "twice"),
  [("iwae_dreg", {}, 1), ("fivo_dreg", {}, 1), ("fivo_dreg", {"resample_when": [2]}, 2)],
)
def test_the_model_is_evaluated_once_a_step(bound, options, twice):
  """Twice is what a later block needs of a past of several steps; gradients take no evaluation."""
  model, counts = _model(), collections.Counter()

  def counted(name, method):
    def call(*arguments):
      counts[name] += 1
      return method(*arguments)

    return call

  for name in ("prior", "proposal", "likelihood", "next_state"):
    setattr(model, name, counted(name, getattr(model, name)))
  helpers.gradient_of(bound, model, helpers.observations(B, T, K), K, **options)
  assert counts == {"prior": T, "likelihood": T, "proposal": twice * T, "next_state": twice * T}


@pytest.mark.parametrize("options", [{"resample_when": 0.9}, {"resample_when": "always"}, {}])
@pytest.mark.parametrize("bound", ["iwae_dreg", "fivo_dreg"])
def test_a_masked_sequence_is_a_shorter_one(bound, options):
  if bound == "iwae_dreg":
    options = {}
  x = helpers.observations(1, T, K)
  padded = tf.concat([x[:, :2], tf.fill([1, T - 2, 1 + K], np.nan * x[0, 0, 0])], axis=1)
  whole, gradient = helpers.gradient_of(bound, _model(), padded, K, lengths=[2], **options)
  short, expected = helpers.gradient_of(bound, _model(), x[:, :2], K, **options)
  np.testing.assert_array_equal(whole.objective, short.objective)
  np.testing.assert_allclose(gradient, expected, rtol=1e-12)
  np.testing.assert_array_equal(whole.log_weights[-1], short.log_weights[-1])
  np.testing.assert_array_equal(whole.samples[-1], short.samples[-1])
  np.testing.assert_array_equal(whole.state, short.state)


def test_a_batch_of_different_lengths_and_none():
  x = helpers.observations(4, T, K)
  model = helpers.Nonlinear(helpers.variables())
  lengths = [4, 0, 1, 3]
  estimate = sequential.estimate("iwae", model, x, K, lengths=lengths)
  for b, length in enumerate(lengths):
    if length == 0:
      assert abs(estimate.objective[b]) < 1e-15
    else:
      alone = sequential.estimate("iwae", model, x[b : b + 1, :length], K).objective
      np.testing.assert_allclose(estimate.objective[b], alone[0], rtol=1e-13)


@pytest.mark.parametrize("bound", ["fivo", "fivo_dreg"])
def test_a_sequence_without_steps_has_no_gradient(bound):
  """Even if its padding is NaN; the noise of this model is part of its observations."""
  x = helpers.observations(2, T, K)
  padded = tf.concat([x[:1], x[1:] * np.nan], axis=0)
  whole, gradient = helpers.gradient_of(bound, _model(), padded, K, lengths=[T, 0])
  _, expected = helpers.gradient_of(bound, _model(), x[:1], K)
  np.testing.assert_allclose(gradient, expected, rtol=1e-12)
  assert whole.objective[1] == 0


def test_lengths_in_a_graph_are_checked_when_it_runs():
  model, x = _model(), helpers.observations(2, T, K)

  @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.int32)])
  def bound(lengths):
    return sequential.estimate("fivo", model, x, K, lengths=lengths).objective

  bound(tf.constant([T, 0]))
  with pytest.raises(tf.errors.InvalidArgumentError, match="lengths_must_be_from_0_to_num_steps"):
    bound(tf.constant([T, T + 1]))


class Dying(helpers.Nonlinear):
  """Gives every particle of the second example weight 0 in step 1."""

  def next_state(self, state, z, x):
    return super().next_state(state, z, x) + 100.0 * tf.cast(x[:, 0] > 5, x.dtype)

  def likelihood(self, z, state):
    likelihood = super().likelihood(z, state)

    class OrNone:
      def log_prob(self, x):
        dead = tf.logical_and(x[:, 0] > 5, z < math.inf)
        return tf.where(dead, tf.constant(-math.inf, tf.float64), likelihood.log_prob(x))

    return OrNone()


@pytest.mark.parametrize("bound", ["fivo", "fivo_dreg", "iwae_dreg"])
def test_all_weights_0_give_minus_infinity_and_no_gradient(bound):
  x = helpers.observations(B, T, K)
  dead = tf.tensor_scatter_nd_update(x, [[1, 1, 0]], tf.constant([6.0], x.dtype))
  estimate, gradient = helpers.gradient_of(bound, Dying(helpers.variables()), dead, K)
  assert np.isfinite(estimate.objective[0])
  assert estimate.objective[1] == -math.inf
  _, expected = helpers.gradient_of(bound, Dying(helpers.variables()), dead[:1], K)
  assert np.any(expected != 0)
  if bound == "iwae_dreg":  # Alone it draws other ancestors.
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
  assert np.all(np.isfinite(gradient))


@pytest.mark.slow
def test_loops_under_xla_have_the_eager_gradient(monkeypatch):
  ancestors = tf.constant([[2, 0], [2, 1], [0, 1]])
  monkeypatch.setattr(resample, "ancestors", lambda *_: ancestors)
  model, x = _model(), helpers.observations(B, T, K)

  def gradient():
    with tf.GradientTape() as tape:
      estimate = sequential.estimate(
        "fivo_dreg", model, x, K, "multinomial", 2, 0, [4, 3], resampling_gradient=True
      )
    return estimate.objective, tape.gradient(estimate.objective, model.parameters)

  value, expected = gradient()
  compiled_value, found = tf.function(gradient, autograph=False, jit_compile=True)()
  np.testing.assert_allclose(compiled_value, value, rtol=1e-12)
  np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_gradient_may_be_taken_outside_of_the_compiled_function_and_of_unknown_sizes():
  model = _model()

  @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, 1 + K], tf.float64)])
  def objective(x):
    return sequential.estimate("fivo_dreg", model, x, K, seed=1).objective

  x = helpers.observations(B, T, K)
  with tf.GradientTape() as tape:
    value = objective(x)
  gradient = tape.gradient(value, model.parameters, helpers.upstream(B))
  estimate, expected = helpers.gradient_of("fivo_dreg", model, x, K)
  np.testing.assert_allclose(value, estimate.objective, rtol=1e-13)
  np.testing.assert_allclose(gradient, expected, rtol=1e-11)


class Structured:
  """Latents and observations in parts, and a state of integers, with real noise."""

  def __init__(self):
    self.scale = tf.Variable(0.5)

  def initial_state(self, batch_size):
    return {"step": tf.zeros([batch_size], tf.int32)}

  def prior(self, z_previous, state):
    loc = 0.0 if z_previous is None else z_previous["b"]
    step = tf.cast(state["step"], tf.float32)
    return tfd.JointDistributionNamed(
      {
        "a": tfd.Independent(tfd.Normal(tf.zeros([*step.shape, 5]), 1.0), 1),
        "b": tfd.Normal(loc + 0.1 * step, 1.0),
      }
    )

  def proposal(self, x, z_previous, state):
    b = x["two"] + (0.0 if z_previous is None else z_previous["b"])
    return tfd.JointDistributionNamed(
      {
        "a": tfd.Independent(tfd.Normal(tf.zeros([*b.shape, 5]) + self.scale, 1.0), 1),
        "b": tfd.Normal(b, tf.exp(self.scale)),
      }
    )

  def likelihood(self, z, state):
    loc = tf.reduce_sum(z["a"], axis=-1) + z["b"]
    return tfd.JointDistributionNamed(
      {"one": tfd.Normal(loc, 1.0), "two": tfd.Normal(loc, self.scale)}
    )

  def next_state(self, state, z, x):
    return {"step": state["step"] + 1}


def test_structures_and_integers():
  x = {name: tf.random.stateless_normal([B, T], [1, 2]) for name in ("one", "two")}
  model = Structured()
  with tf.GradientTape() as tape:
    estimate = sequential.estimate("fivo_dreg", model, x, K, resample_when=2, seed=3)
  assert np.isfinite(tape.gradient(estimate.objective, model.scale))
  assert estimate.samples["a"].shape == (T, K, B, 5)
  np.testing.assert_array_equal(estimate.state["step"], np.full([K, B], T))
  again = sequential.estimate("fivo", model, x, K, resample_when=2, seed=3)
  np.testing.assert_allclose(again.objective, estimate.objective, rtol=1e-6)


@pytest.mark.parametrize(
  ("changed", "named"),
  [
    ({"bound": "vimco"}, "bound"),
    ({"num_particles": 0}, "num_particles"),
    ({"resampling": "residual"}, "resampling"),
    ({"bound": "iwae", "resample_when": 0.5}, "resample_when"),
    ({"bound": "iwae_dreg", "resampling": "stratified"}, "resampling"),
    ({"resampling_gradient": True}, "resampling_gradient"),
    (
      {"resampling_gradient": True, "resampling": "multinomial", "resample_when": 0.5},
      "resampling_gradient",
    ),
    ({"lengths": [1, 5]}, "lengths"),
    ({"lengths": [1.0, 2.0]}, "lengths"),
    ({"lengths": [1, 2, 3]}, "lengths"),
    ({"observations": tf.zeros([2])}, "observations"),
  ],
)
def test_wrong_arguments_are_refused(changed, named):
  arguments = {
    "bound": "fivo_dreg",
    "model": _model(),
    "observations": helpers.observations(B, T, K),
    "num_particles": K,
  }
  with pytest.raises((TypeError, ValueError), match=rf"(?s)\b{named}\b.*got"):
    sequential.estimate(**(arguments | changed))


@pytest.mark.parametrize(
  ("method", "distribution", "message"),
  [
    ("proposal", tfd.Bernoulli(tf.zeros([B])), "reparameterized"),
    (
      "proposal",
      tfd.Normal(tf.zeros([5, B], tf.float64), 1),
      r"proposal.*\[num_particles, batch_size\]",
    ),
    ("prior", tfd.Normal(tf.zeros([5, 1, 1], tf.float64), 1), r"prior.*\[num_particles, batch"),
    ("likelihood", helpers.Observed(tfd.Normal(tf.zeros([5, 1, B], tf.float64), 1)), "likelihood"),
  ],
)
def test_wrong_distributions_are_refused(method, distribution, message):
  model = _model()
  setattr(model, method, lambda *_: distribution)
  with pytest.raises((TypeError, ValueError, tf.errors.OpError), match=message):
    sequential.estimate("fivo", model, helpers.observations(B, T, K), K)


def test_a_support_that_parameters_move_is_refused():
  scale = tf.Variable(1.0)

  class Model(Structured):
    def proposal(self, x, z_previous, state):
      return tfd.Uniform(-scale, scale + 0 * x["one"])

  x = {name: tf.zeros([B, T]) for name in ("one", "two")}
  with pytest.raises(ValueError, match=r"Uniform.low .*fivo_dreg"), tf.GradientTape():
    sequential.estimate("fivo_dreg", Model(), x, K)
