"""Gates, densities that only their argument moves, and distributions with stopped parameters."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import gradients

tfb = tfp.bijectors
tfd = tfp.distributions


# --- gate ---------------------------------------------------------------------------------------


def gated_gradient(ratio, samples):
  """The gradient of sum(sin(samples)) behind a gate."""
  with tf.GradientTape() as tape:
    tape.watch(samples)
    gated, set_ratio = gradients.gate(samples)
    total = sum(tf.reduce_sum(tf.sin(part)) for part in tf.nest.flatten(gated))
    set_ratio(ratio)
  return gated, tape.gradient(total, samples)


@pytest.mark.parametrize("compile_with", ["eager", "graph", "xla"])
def test_gate_scales_the_gradient_sample_by_sample(compile_with):
  rng = np.random.default_rng(0)
  ratio = tf.constant(rng.normal(size=[5, 3]))
  samples = {
    "scalar": tf.constant(rng.normal(size=[5, 3])),
    "vector": tf.constant(rng.normal(size=[5, 3, 2])),
    "matrix": tf.constant(rng.normal(size=[5, 3, 2, 4])),
  }
  function = gated_gradient
  if compile_with != "eager":
    function = tf.function(function, jit_compile=compile_with == "xla", autograph=False)
  gated, gradient = function(ratio, samples)
  for name, sample in samples.items():
    np.testing.assert_array_equal(gated[name], sample)
    scale = ratio.numpy().reshape([5, 3] + [1] * (len(sample.shape) - 2))
    np.testing.assert_allclose(gradient[name], scale * np.cos(sample), rtol=1e-12)


def test_a_ratio_of_zero_closes_the_gate():
  """Whatever comes: 0 * inf is 0 there, and nowhere else."""
  samples = tf.Variable([0.0, 0.0, 4.0], dtype=tf.float64)
  with tf.GradientTape() as tape:
    gated, set_ratio = gradients.gate(tf.convert_to_tensor(samples))
    total = tf.reduce_sum(tf.sqrt(gated))
    set_ratio(tf.constant([0.0, 1.0, 2.0], tf.float64))
  np.testing.assert_array_equal(tape.gradient(total, samples), [0.0, np.inf, 0.5])


def test_a_gate_without_a_ratio_says_so():
  samples = tf.Variable([1.0, 2.0])
  with tf.GradientTape() as tape:
    gated, _ = gradients.gate(tf.convert_to_tensor(samples))
    total = tf.reduce_sum(gated)
  with pytest.raises(RuntimeError, match="ratio must be set before the gradient is taken"):
    tape.gradient(total, samples)


def test_gate_casts_its_ratio_to_the_samples():
  samples = tf.constant([1.0, 2.0], tf.float16)
  _, gradient = gated_gradient(tf.constant([2.0, 0.5], tf.float64), samples)
  assert gradient.dtype == tf.float16
  np.testing.assert_allclose(gradient, [2 * np.cos(1.0), 0.5 * np.cos(2.0)], rtol=2e-3)


# --- stop_parameters and PathOnly ---------------------------------------------------------------

LOC = np.random.default_rng(1).normal(size=[3, 2])
SCALE = np.random.default_rng(2).uniform(0.5, 1.5, size=[3, 2])
TRIL = np.array([[1.0, 0.0], [0.5, 0.75]]) * np.array([1.0, 1.25, 0.75])[:, None, None]


def transformed(loc, scale, tril):
  """A chain of every kind of parameterised bijector, inverted ones included."""
  chain = tfb.Chain(
    [
      tfb.Invert(tfb.Scale(scale)),
      tfb.Shift(loc),
      tfb.Softplus(hinge_softness=scale[..., :1]),
      tfb.ScaleMatvecTriL(tril),
      tfb.Scale(log_scale=tf.math.log(scale)),
    ]
  )
  base = tfd.Independent(tfd.Normal(loc, scale), 1)
  return tfd.TransformedDistribution(base, chain)


# Distributions of batch shape [3] made of three parameters, [3, 2], [3, 2] and [3, 2, 2].
DISTRIBUTIONS = {
  "normal": lambda loc, scale, tril: tfd.Normal(loc[..., 0], scale[..., 0]),
  "log_normal": lambda loc, scale, tril: tfd.LogNormal(loc[..., 0], scale[..., 0]),
  "logistic_normal": lambda loc, scale, tril: tfd.LogitNormal(loc[..., 0], scale[..., 0]),
  "student_t": lambda loc, scale, tril: tfd.StudentT(
    5.0 + 0 * loc[..., 0], loc[..., 0], scale[..., 0]
  ),
  "diag": lambda loc, scale, tril: tfd.MultivariateNormalDiag(loc, scale),
  "tril": lambda loc, scale, tril: tfd.MultivariateNormalTriL(loc, tril),
  "linear_operator": lambda loc, scale, tril: tfd.MultivariateNormalLinearOperator(
    loc, tf.linalg.LinearOperatorLowerTriangular(tril)
  ),
  "independent": lambda loc, scale, tril: tfd.Independent(tfd.Laplace(loc, scale), 1),
  "sample": lambda loc, scale, tril: tfd.Sample(tfd.Normal(loc[..., 0], scale[..., 0]), [4]),
  "transformed": transformed,
  "mixture": lambda loc, scale, tril: tfd.MixtureSameFamily(
    tfd.Categorical(logits=loc), tfd.Normal(loc, scale), reparameterize=True
  ),
  "joint_sequential": lambda loc, scale, tril: tfd.JointDistributionSequential(
    [tfd.Normal(loc[..., 0], scale[..., 1]), tfd.MultivariateNormalTriL(loc, tril)]
  ),
  "joint_named": lambda loc, scale, tril: tfd.JointDistributionNamed(
    {"one": tfd.Normal(loc[..., 0], scale[..., 1]), "two": tfd.MultivariateNormalTriL(loc, tril)}
  ),
}


def check_stopped(live, stopped, samples):
  """Equal values, and the live one's partial derivative in the argument."""
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(samples)
    log_prob = stopped.log_prob(samples)
    expected = live.log_prob(tf.nest.map_structure(tf.identity, samples))
  np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
  slopes, expected_slopes = tape.gradient(log_prob, samples), tape.gradient(expected, samples)
  for slope, e in zip(tf.nest.flatten(slopes), tf.nest.flatten(expected_slopes), strict=True):
    assert np.abs(e).max() > 1e-3
    np.testing.assert_allclose(slope, e, rtol=1e-10, atol=1e-12)


STOPPERS = {"stop_parameters": dregs_tf.stop_parameters, "path_only": dregs_tf.PathOnly}


@pytest.mark.parametrize("stop", STOPPERS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_stopped_parameters(distribution, stop):
  sources = [tf.constant(value) for value in (LOC, SCALE, TRIL)]
  with tf.GradientTape(persistent=True) as outer:
    outer.watch(sources)
    live = DISTRIBUTIONS[distribution](*sources)
    samples = tf.nest.map_structure(tf.stop_gradient, live.sample(5, seed=[0, 1]))
    log_prob = STOPPERS[stop](live).log_prob(samples)
  for source in sources:
    gradient = outer.gradient(log_prob, source)
    assert gradient is None or not np.any(gradient)
  # Stopped anew, at new tensors: bijectors have `samples` in their caches, from before the tape.
  copies = tf.nest.map_structure(tf.identity, samples)
  check_stopped(live, STOPPERS[stop](live), copies)


@pytest.mark.parametrize("stop", STOPPERS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_very_tensor_that_was_sampled(distribution, stop):
  """A bijector remembers where its output came from; the stopped density must not ask it.

  The gradient to the parameters is the path's alone: dlog q/dz at a copy of z, times dz/dphi.
  """
  sources = [tf.constant(value) for value in (LOC, SCALE, TRIL)]
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(sources)
    live = DISTRIBUTIONS[distribution](*sources)
    samples = live.sample(5, seed=[0, 1])
    log_prob = STOPPERS[stop](live).log_prob(samples)
  copies = tf.nest.map_structure(tf.constant, tf.nest.map_structure(lambda t: t.numpy(), samples))
  with tf.GradientTape() as slope_tape:
    slope_tape.watch(copies)
    fresh = DISTRIBUTIONS[distribution](*sources).log_prob(copies)
  slopes = slope_tape.gradient(fresh, copies)
  flat_samples, flat_slopes = tf.nest.flatten(samples), tf.nest.flatten(slopes)
  for source in sources:
    actual = tape.gradient(log_prob, source, unconnected_gradients="zero")
    expected = tape.gradient(
      flat_samples, source, output_gradients=flat_slopes, unconnected_gradients="zero"
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-11)


def keras_variable(value):
  return keras.Variable(value, dtype="float64")


KINDS = {
  "tensor": tf.constant,
  "tf_variable": tf.Variable,
  "keras_variable": keras_variable,
  "numpy": np.array,
  "transformed_variable": lambda value: tfp.util.TransformedVariable(value, tfb.Exp()),
  "deferred_tensor": lambda value: tfp.util.DeferredTensor(tf.Variable(value), tf.identity),
}


def of_parameter(parameter):
  """What a tape can differentiate by in a parameter."""
  if isinstance(parameter, keras.Variable):
    return [parameter.value]
  if isinstance(parameter, tf.Module) and not isinstance(parameter, tf.Variable):
    return list(parameter.trainable_variables)
  return [] if isinstance(parameter, np.ndarray) else [parameter]


@pytest.mark.parametrize("stop", STOPPERS)
@pytest.mark.parametrize("family", ["normal", "independent", "diag", "transformed"])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_every_kind(kind, family, stop):
  make = KINDS[kind]
  loc, scale = make(np.exp(LOC)), make(SCALE)
  live = {
    "normal": lambda: tfd.Normal(loc, scale),
    "independent": lambda: tfd.Independent(tfd.Normal(loc, scale), 1),
    "diag": lambda: tfd.MultivariateNormalDiag(loc, scale),
    "transformed": lambda: tfd.TransformedDistribution(
      tfd.Independent(tfd.Normal(tf.zeros([3, 2], tf.float64), 1.0), 1),
      tfb.Chain([tfb.Shift(loc), tfb.Scale(scale)]),
    ),
  }[family]()
  variables = [v for p in (loc, scale) for v in of_parameter(p)]
  assert variables or kind == "numpy"
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(variables)
    samples = tf.random.stateless_uniform([5, 3, 2], seed=[0, 1], minval=0.5, dtype=tf.float64)
    log_prob = STOPPERS[stop](live).log_prob(samples)
  for variable in variables:
    gradient = tape.gradient(log_prob, variable)
    assert gradient is None or not np.any(gradient)
  check_stopped(live, STOPPERS[stop](live), samples)


def test_python_numbers_and_a_distribution_without_a_batch():
  live = tfd.Normal(0.5, 2.0)
  check_stopped(live, dregs_tf.stop_parameters(live), tf.constant([1.0, 3.0]))


def test_variables_are_read_when_the_distribution_is_stopped():
  loc = tf.Variable(1.0)
  live = tfd.Normal(loc, 1.0)
  loc.assign(3.0)
  np.testing.assert_allclose(dregs_tf.stop_parameters(live).log_prob(3.0), live.log_prob(3.0))


@pytest.mark.parametrize("stop", STOPPERS)
def test_stopped_parameters_under_xla(stop):
  variables = [tf.Variable(value) for value in (LOC, SCALE, TRIL)]
  samples = tf.constant(transformed(*variables).sample(5, seed=[0, 1]).numpy())

  @tf.function(jit_compile=True, autograph=False)
  def compiled(samples):
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(samples)
      live = transformed(*map(tf.convert_to_tensor, variables))
      stopped, expected = STOPPERS[stop](live).log_prob(samples), live.log_prob(samples + 0.0)
    return (
      (stopped, tape.gradient(stopped, samples)),
      (expected, tape.gradient(expected, samples)),
      [tape.gradient(stopped, v, unconnected_gradients="zero") for v in variables],
      [tape.gradient(expected, v, unconnected_gradients="zero") for v in variables],
    )

  actual, expected, to_parameters, live_to_parameters = compiled(samples)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-10)
  for gradient, live in zip(to_parameters, live_to_parameters, strict=True):
    assert np.abs(live).max() > 1e-3
    np.testing.assert_array_equal(gradient, np.zeros_like(live))


def test_path_only_weighs_every_sample_by_its_own_upstream():
  live = tfd.MultivariateNormalTriL(LOC, TRIL)
  samples = live.sample(5, seed=[0, 1])
  upstream = tf.constant(np.random.default_rng(4).normal(size=[5, 3]))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(samples)
    actual, expected = dregs_tf.PathOnly(live).log_prob(samples), live.log_prob(samples + 0)
  np.testing.assert_allclose(
    tape.gradient(actual, samples, upstream), tape.gradient(expected, samples, upstream), rtol=1e-12
  )


def test_path_only_has_no_gradient_for_variables_inside_functions():
  """A network inside a bijector is the case that `stop_parameters` refuses."""
  matrix = tf.Variable(np.random.default_rng(5).normal(size=[1, 2]))
  flow = tfb.RealNVP(1, shift_and_log_scale_fn=lambda x, units, **_: tf.split(x @ matrix, 2, -1))
  live = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.constant(LOC)), flow)
  samples = live.sample(5, seed=[0, 1])
  with tf.GradientTape(persistent=True) as tape:
    stopped, expected = dregs_tf.PathOnly(live).log_prob(samples), live.log_prob(samples + 0)
  assert tape.gradient(stopped, matrix) is None
  assert np.abs(tape.gradient(expected, matrix)).max() > 1e-3


# --- refusals -----------------------------------------------------------------------------------


class Scaled(tfd.Normal):
  """A distribution that keeps a Variable to itself: it is not among its parameters."""

  def __init__(self, loc):
    parameters = dict(loc=loc)
    self.hidden = tf.Variable(2.0, name="hidden")
    super().__init__(loc, self.hidden)
    self._parameters = parameters


def base():
  return tfd.MultivariateNormalDiag(tf.constant(LOC))


def shift_and_log_scale(x, units=2, **_):
  return tf.split(tf.tile(x[..., :1], [1] * (len(x.shape) - 1) + [2 * units]), 2, -1)


REFUSED = {
  "lambda": (
    lambda: tfd.JointDistributionSequential([tfd.Normal(0.0, 1.0), lambda z: tfd.Normal(z, 1.0)]),
    "JointDistributionSequential.model is the function .*lambda",
  ),
  "named_lambda": (
    lambda: tfd.JointDistributionNamed(
      {"a": tfd.Normal(0.0, 1.0), "b": lambda a: tfd.Normal(a, 1.0)}
    ),
    "JointDistributionNamed.model is the function .*lambda",
  ),
  "coroutine": (
    lambda: tfd.JointDistributionCoroutine(lambda: iter([tfd.Normal(0.0, 1.0)])),
    "JointDistributionCoroutine.* is the function",
  ),
  "real_nvp": (
    lambda: tfd.TransformedDistribution(
      base(), tfb.RealNVP(1, shift_and_log_scale_fn=shift_and_log_scale)
    ),
    "bijector.shift_and_log_scale_fn is the function shift_and_log_scale",
  ),
  "autoregressive": (
    lambda: tfd.TransformedDistribution(
      base(), tfb.Invert(tfb.MaskedAutoregressiveFlow(shift_and_log_scale))
    ),
    "shift_and_log_scale_fn is the function shift_and_log_scale",
  ),
  "layer": (
    lambda: tfd.TransformedDistribution(
      base(), tfb.RealNVP(1, shift_and_log_scale_fn=keras.layers.Dense(2, name="conditioner"))
    ),
    "bijector.shift_and_log_scale_fn is a Dense: .*conditioner",
  ),
  "hidden_variable": (lambda: Scaled(1.0), "holds variables that are not among its `parameters`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_it_cannot_reach(case):
  make, message = REFUSED[case]
  distribution = make()
  with pytest.raises(ValueError, match=message) as error:
    dregs_tf.stop_parameters(distribution)
  text = str(error.value)
  assert f"The parameters of {type(distribution).__name__} cannot be stopped" in text
  assert "stopped_proposal=" in text
  assert "dregs_tf.PathOnly(proposal)" in text


@pytest.mark.parametrize("value", [None, 3.0, "normal"], ids=repr)
def test_refuses_what_is_not_a_distribution(value):
  with pytest.raises((TypeError, ValueError), match="[dD]istribution"):
    dregs_tf.stop_parameters(value)


def test_the_distribution_itself_stays_as_it_was():
  loc = tf.Variable(LOC)
  live = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(loc), tfb.Chain([tfb.Exp()]))
  parameters = functools.reduce(lambda d, key: d[key].parameters, ["distribution"], live.parameters)
  dregs_tf.stop_parameters(live)
  assert parameters["loc"] is loc
  with tf.GradientTape() as tape:
    log_prob = live.log_prob(tf.exp(tf.zeros([3, 2], tf.float64)))
  assert np.abs(tape.gradient(log_prob, loc)).max() > 1e-3
