"""Tests of the log-density that takes the net's last layer in: the same function as without."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import models
from dregs_tf.models import bernoulli
from dregs_tf.models.bernoulli import IndependentBernoulli, LinearLogits

tfd = tfp.distributions

NUM_SAMPLES, BATCH, UNITS, SIZE = 5, 2, 4, 6


def random(*shape, seed=0):
  return np.random.RandomState(seed).normal(size=shape)


def layer(dtype="float64", scale=1.0, **options):
  mean = np.linspace(0, 1, SIZE)
  result = models.ConditionalBernoulli(mean, hidden_units=(7, UNITS), dtype=dtype, **options)
  result.build((None, 3))
  for i, variable in enumerate(result.weights):
    variable.assign(scale * random(*variable.shape, seed=i))
  return result


def plain(distribution):
  """The same distribution of logits that are a Tensor, differentiated by autodiff."""
  return IndependentBernoulli(distribution.logits)


def derivatives(net, z, x, change, order=1):
  """First derivatives in x, z and the variables; for order 2, also those of a function of them."""
  sources = [x, z, *(variable.value for variable in net.trainable_variables)]
  with tf.GradientTape() as outer:
    outer.watch([x, z])
    with tf.GradientTape() as tape:
      tape.watch([x, z])
      log_prob = change(net.distribution(z)).log_prob(x)
    upstream = tf.constant(random(NUM_SAMPLES, BATCH, seed=9), log_prob.dtype)
    first = tape.gradient(log_prob, sources, output_gradients=upstream)
    total = sum(tf.reduce_sum(tf.sin(each)) for each in first)
  if order == 1:
    return [log_prob, *first]
  return [log_prob, *first, *outer.gradient(total, sources)]


@pytest.fixture(params=[2_000_000, 2 * BATCH * SIZE], ids=["whole", "pieces"])
def at_a_time(request, monkeypatch):
  monkeypatch.setattr(bernoulli, "_LOGITS_AT_A_TIME", request.param)


EVENTS = [(BATCH, SIZE), (NUM_SAMPLES, BATCH, SIZE), (1, 1, SIZE), (SIZE,), (1, BATCH, SIZE)]


@pytest.mark.parametrize("shape", EVENTS, ids=str)
def test_values_and_derivatives_are_those_of_the_logits(shape, at_a_time):
  z = tf.constant(random(NUM_SAMPLES, BATCH, 3))
  x = tf.constant(np.random.RandomState(1).choice([0, 0.3, 1], size=shape))  # gray ones as well
  net = layer()
  assert isinstance(net.distribution(z).parameters["logits"], LinearLogits)
  actual = derivatives(net, z, x, lambda each: each, order=2)
  expected = derivatives(net, z, x, plain, order=2)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)


def test_samples_are_cut_into_pieces(monkeypatch):
  monkeypatch.setattr(bernoulli, "_LOGITS_AT_A_TIME", 2 * BATCH * SIZE)
  pieces = bernoulli._pieces(tf.TensorShape([NUM_SAMPLES, BATCH, UNITS]), SIZE)
  assert [len(np.arange(NUM_SAMPLES)[piece]) for piece in pieces] == [1, 2, 2]
  assert pieces[0].start == 0
  assert bernoulli._pieces(tf.TensorShape([None, BATCH, UNITS]), SIZE) == [slice(None)]


def test_events_with_further_axes_are_broadcast():
  z, x = tf.constant(random(1, BATCH, 3)), tf.constant(random(NUM_SAMPLES, BATCH, SIZE) > 0)
  distribution = layer().distribution(z)
  np.testing.assert_allclose(distribution.log_prob(x), plain(distribution).log_prob(x), rtol=1e-12)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_compiled_for_any_batch_size(compiled):
  net = layer("float32")
  spec = [tf.TensorSpec([NUM_SAMPLES, None, 3]), tf.TensorSpec([None, SIZE])]

  z, x = tf.constant(random(NUM_SAMPLES, BATCH, 3), tf.float32), tf.ones([BATCH, SIZE]) * 0.3

  def slopes(z, x, change=lambda each: each):
    return derivatives(net, z, x, change)

  function = tf.function(slopes, input_signature=spec, jit_compile=compiled)
  for a, e in zip(function(z, x), slopes(z, x, plain), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [1e4, -1e4, np.nan, np.inf])
def test_extreme_logits(bias):
  net = layer("float32")
  net.weights[-1].assign([bias, 0, 0, 0, 0, bias])
  z = tf.constant(random(NUM_SAMPLES, BATCH, 3), tf.float32)
  x = tf.constant([[0, 1, 0, 0.3, 1, 1], [1, 1, 0, 0.5, 0, 0]], tf.float32)
  actual = derivatives(net, z, x, lambda each: each)
  expected = derivatives(net, z, x, plain)
  exact = tfd.Independent(tfd.Bernoulli(tf.cast(net.distribution(z).logits, "float64")), 1)
  if np.isfinite(bias):
    np.testing.assert_allclose(actual[0], exact.log_prob(x), rtol=1e-6)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)  # NaN equals NaN


def test_forward_mode_and_persistent_tapes():
  net, x = layer(), tf.ones([BATCH, SIZE], tf.float64)
  z, direction = tf.constant(random(NUM_SAMPLES, BATCH, 3)), tf.constant(random(5, 2, 3, seed=1))
  results = []
  for change in (lambda each: each, plain):
    with tf.autodiff.ForwardAccumulator(z, direction) as accumulator:
      log_prob = change(net.distribution(z)).log_prob(x)
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(z)
      log_prob_again = change(net.distribution(z)).log_prob(x)
    slopes = [tape.gradient(log_prob_again, z) for _ in range(2)]
    results.append([accumulator.jvp(log_prob), *slopes])
  for a, e in zip(*results, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-10)


def test_it_is_an_ordinary_distribution():
  net, x = layer(), tf.ones([BATCH, SIZE])
  distribution = net.distribution(tf.constant(random(NUM_SAMPLES, BATCH, 3)))
  expected = plain(distribution)
  assert (distribution.batch_shape, distribution.event_shape) == ([NUM_SAMPLES, BATCH], [SIZE])
  for method in ("mean", "variance", "entropy", "mode"):
    np.testing.assert_allclose(getattr(distribution, method)(), getattr(expected, method)())
  for part in (2, (slice(1, 3), 0), (..., tf.newaxis)):
    assert distribution[part].batch_shape == expected[part].batch_shape
    np.testing.assert_array_equal(distribution[part].mean(), expected[part].mean())
  draws = distribution.sample(3, seed=[0, 1])
  np.testing.assert_array_equal(draws, expected.sample(3, seed=[0, 1]))
  for same in (distribution.copy(), tf.function(lambda d: d)(distribution)):
    np.testing.assert_allclose(same.log_prob(x), expected.log_prob(x), rtol=1e-12)


def test_its_parameters_are_stopped():
  net, z = layer(), tf.constant(random(NUM_SAMPLES, BATCH, 3))
  with tf.GradientTape() as tape:
    tape.watch(z)
    stopped = dregs_tf.stop_parameters(net.distribution(z))
    log_prob = stopped.log_prob(tf.ones([BATCH, SIZE]))
  slopes = tape.gradient(log_prob, [z, *(v.value for v in net.trainable_variables)])
  assert slopes == [None] * 7


@pytest.mark.parametrize("hidden_units", [(), (4,)])
def test_nets_with_another_last_layer_give_plain_logits(hidden_units):
  net = models.ConditionalBernoulli(event_size=SIZE, hidden_units=hidden_units)
  z = tf.constant(random(NUM_SAMPLES, BATCH, 3), tf.float32)
  expected = net.distribution(z).mean()
  if hidden_units:
    net._layers_in_order[-1].quantize("int8")
  assert tf.is_tensor(net.distribution(z).parameters["logits"])
  assert not isinstance(net.distribution(z).parameters["logits"], LinearLogits)
  np.testing.assert_allclose(net.distribution(z).mean(), expected, atol=0.02)


def test_no_pass_over_the_logits_is_left_in_the_backward_pass():
  net, x = layer("float32"), tf.ones([BATCH, SIZE])

  @tf.function(autograph=False)
  def slopes(z):
    with tf.GradientTape() as tape:
      log_prob = net.distribution(z).log_prob(x)
    return tape.gradient(log_prob, [v.value for v in net.trainable_variables])

  graph = slopes.get_concrete_function(tf.zeros([NUM_SAMPLES, BATCH, 3])).graph
  wide = [NUM_SAMPLES * BATCH, SIZE]
  passes = [
    op.name
    for op in graph.get_operations()
    if op.type in ("Mul", "SigmoidGrad", "BiasAddGrad")
    and op.outputs[0].shape.as_list() in (wide, [NUM_SAMPLES, BATCH, SIZE])
  ]
  assert len(passes) == 1, passes  # x * logits of the forward pass
