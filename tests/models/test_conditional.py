"""Tests of the networks that end in distributions: the authors' parameterization and numerics."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from dregs_tf.models.conditional import MLP, IndependentBernoulli, Normal
from tests.models import helpers
from tests.seeding import seed_layers

tfd = tfp.distributions

MEAN = np.array([0.0, 0.2, 0.5, 0.8, 1.0])


def _net_by_hand(layer, inputs):
  (w1, b1), (w2, b2), (w3, b3) = np.reshape(np.array(layer.get_weights(), object), [3, 2])
  return np.tanh(np.tanh(inputs @ w1 + b1) @ w2 + b2) @ w3 + b3


def _inputs(*shape, seed=0):
  return np.random.RandomState(seed).normal(size=shape)


def test_normal_has_the_authors_parameters():
  layer = models.ConditionalNormal(3, (5, 4), dtype="float64")
  layer.build((None, 6))
  helpers.perturb(layer)
  inputs = _inputs(7, 6)
  distribution = layer.distribution(tf.constant(inputs))
  loc, raw = np.split(_net_by_hand(layer, inputs), 2, axis=-1)
  np.testing.assert_allclose(distribution.mean(), loc, rtol=1e-12)
  np.testing.assert_allclose(distribution.stddev(), np.log1p(np.exp(raw + 0.25)), rtol=1e-12)
  assert distribution.batch_shape == [7]
  assert distribution.event_shape == [3]


def test_bernoulli_has_the_authors_logits():
  layer = models.ConditionalBernoulli(MEAN, hidden_units=(5, 4), dtype="float64")
  layer.build((None, 6))
  helpers.perturb(layer)
  inputs = _inputs(7, 6)
  clipped = np.clip(MEAN, 1e-3, 1 - 1e-3)
  expected = _net_by_hand(layer, inputs) + np.log(clipped / (1 - clipped))
  distribution = layer.distribution(tf.constant(inputs))
  np.testing.assert_allclose(distribution.distribution.logits, expected, rtol=1e-9)
  assert distribution.batch_shape == [7]
  assert distribution.event_shape == [5]


def test_bernoulli_without_a_mean_adds_nothing():
  layer = models.ConditionalBernoulli(event_size=2, hidden_units=(5, 4), dtype="float64")
  inputs = _inputs(7, 6)
  logits = layer.distribution(tf.constant(inputs)).distribution.logits
  np.testing.assert_allclose(logits, _net_by_hand(layer, inputs), rtol=1e-12)


def test_untrained_weights_are_glorot_uniform_and_biases_zero():
  seed_layers(0)
  layer = MLP(30, (60, 50))
  layer.build((None, 40))
  weights = layer.get_weights()
  for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
    limit = np.sqrt(6 / sum(kernel.shape))
    assert 0.98 * limit < np.abs(kernel).max() <= limit
    # Uniform, not normal: the standard deviation of 1500 or more draws is within 5 % of it.
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)
    np.testing.assert_array_equal(bias, 0)


def test_bernoulli_needs_a_mean_or_a_size():
  with pytest.raises(ValueError, match="needs mean or event_size, got neither"):
    models.ConditionalBernoulli()
  with pytest.raises(ValueError, match="event_size must be the size of mean, 5, got 4"):
    models.ConditionalBernoulli(MEAN, event_size=4)


# 11 * 11 and a prime above the number of factors that are multiplied at a time, and usual sizes.
@pytest.mark.parametrize("size", [1, 7, 121, 127, 392, 784])
def test_bernoulli_log_prob_is_tfds(size):
  random = np.random.RandomState(0)
  logits = tf.constant(random.normal(size=(3, 4, size)) * 5)
  x = tf.constant(random.choice([0, 0.3, 1], size=(4, size)))
  with tf.GradientTape() as tape:
    tape.watch(logits)
    log_prob = IndependentBernoulli(logits).log_prob(x)
  expected = tfd.Independent(tfd.Bernoulli(logits), 1).log_prob(x)
  np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
  np.testing.assert_allclose(tape.gradient(log_prob, logits), x - tf.sigmoid(logits), atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 120, 784])
def test_bernoulli_log_prob_of_extreme_logits(size, dtype):
  logits = tf.constant([[-1e3], [-40.0], [-1e-3], [0.0], [1e-3], [40.0], [1e3]], dtype)
  logits = tf.tile(logits, [1, size])
  for x in (0.0, 1.0):
    x = tf.fill([size], tf.constant(x, dtype))
    with tf.GradientTape() as tape:
      tape.watch(logits)
      log_prob = IndependentBernoulli(logits).log_prob(x)
    expected = tfd.Independent(tfd.Bernoulli(tf.cast(logits, "float64")), 1).log_prob(x)
    atol = size * (1e-4 if dtype == "float32" else 1e-12)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6, atol=atol)
    np.testing.assert_allclose(tape.gradient(log_prob, logits), x - tf.sigmoid(logits), atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.uint8, tf.bool, tf.int32, tf.float64])
def test_bernoulli_log_prob_of_any_dtype(dtype):
  logits = tf.constant([[-2.0, 0.5]])
  x = tf.constant([1.0, 0.0])
  log_prob = IndependentBernoulli(logits).log_prob(tf.cast(x, dtype))
  expected = tfd.Independent(tfd.Bernoulli(logits), 1).log_prob(x)
  np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
  assert log_prob.dtype == tf.float32


def test_bernoulli_is_an_ordinary_distribution():
  logits = tf.constant(_inputs(3, 4, 5))
  distribution = IndependentBernoulli(logits)
  expected = tfd.Independent(tfd.Bernoulli(logits), 1)
  assert (distribution.batch_shape, distribution.event_shape) == ([3, 4], [5])
  for method in ("mean", "variance", "entropy", "mode"):
    np.testing.assert_allclose(getattr(distribution, method)(), getattr(expected, method)())
  np.testing.assert_array_equal(distribution.copy().mean(), expected.mean())
  assert distribution.sample(2, seed=[0, 1]).shape == [2, 3, 4, 5]


def test_normal_is_an_ordinary_reparameterized_normal():
  loc, scale = tf.constant(_inputs(4, 3)), tf.constant(np.exp(_inputs(3, seed=1)))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([loc, scale])
    distribution = Normal(loc, scale)
    samples = distribution.sample(5, seed=[0, 1])
  noise = (samples - loc) / scale
  assert samples.shape == [5, 4, 3]
  np.testing.assert_allclose(tape.gradient(samples, loc), np.full([4, 3], 5.0), rtol=1e-12)
  np.testing.assert_allclose(
    tape.gradient(samples, scale), tf.reduce_sum(noise, axis=[0, 1]), rtol=1e-9
  )
  assert distribution.reparameterization_type == tfd.FULLY_REPARAMETERIZED
  expected = tfd.Normal(loc, scale)
  np.testing.assert_allclose(distribution.log_prob(samples), expected.log_prob(samples))
  np.testing.assert_allclose(distribution.kl_divergence(expected), np.zeros([4, 3]), atol=1e-12)
  assert distribution.sample([2, 6], seed=3).shape == [2, 6, 4, 3]
  assert distribution.sample().shape == [4, 3]
  assert Normal(0.0, 1.0).sample(7, seed=3).shape == [7]


def test_normal_draws_standard_noise():
  draws = Normal(tf.constant([1.0, -2.0]), tf.constant([0.5, 3.0])).sample(20_000, seed=[0, 1])
  noise = (draws.numpy() - [1.0, -2.0]) / [0.5, 3.0]
  # Six standard errors of mean and variance: less than one false alarm in 10^8.
  np.testing.assert_allclose(noise.mean(axis=0), 0, atol=6 / 20_000**0.5)
  np.testing.assert_allclose(noise.var(axis=0), 1, atol=6 * (2 / 20_000) ** 0.5)
  assert abs(np.corrcoef(noise.T)[0, 1]) < 6 / 20_000**0.5


def _draw(seed):
  return Normal(tf.zeros([4, 3]), 1.0).sample(5, seed=seed)


def test_same_seed_same_samples():
  seed = tf.constant([3, 4])
  np.testing.assert_array_equal(_draw(seed), _draw(seed))
  np.testing.assert_allclose(tf.function(_draw)(seed), _draw(seed), rtol=1e-6)
  assert np.all(_draw(seed) != _draw(tf.constant([3, 5])))


@pytest.mark.parametrize("leading", [(), (4,), (3, 4), (2, 3, 4)])
def test_net_keeps_any_number_of_leading_axes(leading):
  layer = MLP(2, (5, 4), dtype="float64")
  inputs = _inputs(*leading, 6)
  outputs = layer(tf.constant(inputs))
  assert outputs.shape == (*leading, 2)
  np.testing.assert_allclose(outputs, _net_by_hand(layer, inputs), rtol=1e-12)


@pytest.mark.parametrize(
  "shapes",
  [
    [(7, 6), (7, 3)],
    [(2, 7, 6), (7, 3)],
    [(7, 3), (2, 7, 6)],
    [(2, 7, 6), (2, 7, 3)],
    [(2, 7, 6), (2, 1, 3), (7, 5), (4,)],
    [(7, 6)],
  ],
)
def test_list_of_inputs_counts_as_concatenated(shapes):
  layer = MLP(2, (5, 4), dtype="float64")
  parts = [_inputs(*shape, seed=i) for i, shape in enumerate(shapes)]
  layer([tf.constant(part) for part in parts])
  leading = np.broadcast_shapes(*[shape[:-1] for shape in shapes])
  together = np.concatenate([np.broadcast_to(p, (*leading, p.shape[-1])) for p in parts], axis=-1)
  helpers.perturb(layer)
  outputs = layer([tf.constant(part) for part in parts])
  assert outputs.shape == (*leading, 2)
  np.testing.assert_allclose(outputs, _net_by_hand(layer, together), rtol=1e-12)


def test_tuple_of_inputs_is_a_list_of_inputs():
  parts = [_inputs(7, 6), _inputs(7, 3)]
  layer = MLP(2, (5, 4), dtype="float64")
  outputs = layer(tuple(tf.constant(part) for part in parts))
  np.testing.assert_allclose(outputs, _net_by_hand(layer, np.concatenate(parts, 1)), rtol=1e-12)


def test_net_without_hidden_layers_is_linear():
  layer = MLP(2, (), dtype="float64")
  parts = [_inputs(3, 7, 6), _inputs(7, 3)]
  outputs = layer([tf.constant(part) for part in parts])
  kernel, bias = layer.get_weights()
  expected = parts[0] @ kernel[:6] + parts[1] @ kernel[6:] + bias
  np.testing.assert_allclose(outputs, expected, rtol=1e-12)


def test_unknown_batch_size():
  layer = models.ConditionalNormal(2, (5, 4), dtype="float64")
  layer.build([(None, 6), (None, 3)])
  traced_shapes = []

  @tf.function(
    input_signature=[
      tf.TensorSpec([None, None, 6], tf.float64),
      tf.TensorSpec([None, 3], tf.float64),
    ]
  )
  def means(z, context):
    distribution = layer.distribution([z, context])
    traced_shapes.append((distribution.mean().shape.as_list(), distribution.event_shape))
    return distribution.mean()

  for samples, batch in ((2, 7), (3, 1)):
    z, context = _inputs(samples, batch, 6), _inputs(batch, 3)
    together = np.concatenate([z, np.broadcast_to(context, (samples, batch, 3))], axis=-1)
    np.testing.assert_allclose(
      means(z, context), _net_by_hand(layer, together)[..., :2], rtol=1e-12
    )
  assert traced_shapes == [([None, None, 2], [2])]


def test_empty_batch():
  layer = models.ConditionalNormal(2, (5, 4))
  assert layer.distribution(tf.zeros([0, 6])).sample(3).shape == [3, 0, 2]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_parameters_are_float32_whatever_the_layers_compute_in(policy):
  inputs = [tf.constant(_inputs(3, 7, 6), tf.float32), tf.constant(_inputs(7, 2), tf.float32)]
  normal = models.ConditionalNormal(2, (5, 4), dtype=policy)
  bernoulli = models.ConditionalBernoulli(MEAN, hidden_units=(5, 4), dtype=policy)
  assert normal(inputs).dtype == keras.DTypePolicy(policy).compute_dtype
  assert normal.distribution(inputs).mean().dtype == tf.float32
  assert normal.distribution(inputs).stddev().dtype == tf.float32
  assert bernoulli.distribution(inputs).distribution.logits.dtype == tf.float32


@pytest.mark.parametrize(
  "layer",
  [
    MLP(2, (5, 4), activation="relu", name="net"),
    models.ConditionalNormal(2, (5,), activation="elu", name="net"),
    models.ConditionalBernoulli(MEAN, hidden_units=(5, 4), dtype="float64", name="net"),
    models.ConditionalBernoulli(event_size=2, hidden_units=(), name="net"),
  ],
  ids=["mlp", "normal", "bernoulli_mean", "bernoulli_size"],
)
def test_config_round_trip(layer):
  config = keras.saving.serialize_keras_object(layer)
  copy = keras.saving.deserialize_keras_object(config)
  assert copy.get_config() == layer.get_config()
  assert (copy.name, copy.dtype_policy.name) == ("net", layer.dtype_policy.name)
  inputs = tf.constant(_inputs(7, 6), layer.compute_dtype)
  layer(inputs)
  copy(inputs)
  copy.set_weights(layer.get_weights())
  np.testing.assert_array_equal(copy(inputs), layer(inputs))
  if hasattr(layer, "distribution"):
    np.testing.assert_array_equal(
      copy.distribution(inputs).mean(), layer.distribution(inputs).mean()
    )


def test_output_shape_of_symbolic_inputs():
  z, context = keras.Input((7, 6)), keras.Input((3,))
  assert MLP(2, (5, 4))([z, context]).shape == (None, 7, 2)
  assert MLP(2, (5, 4)).compute_output_shape([(2, 7, 6), (7, 3)]) == (2, 7, 2)
