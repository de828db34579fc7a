"""Tests of the networks that end in distributions: the authors' parameterisation and numerics."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from dregs_tf.models.conditional import MLP, Bernoulli
from tests.models import helpers

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
  keras.utils.set_random_seed(0)
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


def test_bernoulli_log_prob_is_tfds():
  logits = tf.constant([-1e3, -40.0, -1.5, 0.0, 0.3, 40.0, 1e3], tf.float64)
  for x in (0.0, 0.3, 1.0):
    x = tf.constant(x, tf.float64)
    with tf.GradientTape() as tape:
      tape.watch(logits)
      log_prob = Bernoulli(logits).log_prob(x)
    np.testing.assert_allclose(log_prob, tfd.Bernoulli(logits).log_prob(x), rtol=1e-12, atol=1e-12)
    slope = tape.gradient(log_prob, logits)
    np.testing.assert_allclose(slope, x - tf.sigmoid(logits), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [tf.uint8, tf.bool, tf.int32, tf.float64])
def test_bernoulli_log_prob_of_any_dtype(dtype):
  logits = tf.constant([-2.0, 0.5])
  x = tf.constant([1.0, 0.0])
  log_prob = Bernoulli(logits).log_prob(tf.cast(x, dtype))
  np.testing.assert_allclose(log_prob, tfd.Bernoulli(logits).log_prob(x), rtol=1e-6)
  assert log_prob.dtype == tf.float32


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
