"""Tests of mixed_bfloat16 in the library's networks: only the factors of products are rounded."""

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import models
from dregs_tf.models import calls, products
from tests.models import helpers

NUM_SAMPLES, BATCH, SIZE = 5, 2, 6


def rounded(tensor):
  return tf.cast(tf.cast(tensor, tf.bfloat16), tf.float32)


def random(*shape, seed=0):
  return tf.constant(np.random.RandomState(seed).normal(size=shape), tf.float32)


TRANSPOSED = [(False, False), (True, False), (False, True), (True, True)]


# TensorFlow's own product rounds its sums to 8 bits, or toward zero where it is emulated.
OF_SUMS = 2**-8 if products.multiplies_bfloat16() else 2**-7


@pytest.fixture(params=[(True, OF_SUMS), (False, 1e-6)], ids=["bfloat16", "float32"])
def tolerance(request, monkeypatch):
  """That of products outside XLA, with either kind of processor."""
  has_products, tolerance = request.param
  monkeypatch.setattr(products, "multiplies_bfloat16", lambda: has_products)
  return tolerance


@pytest.mark.parametrize("transpose_a,transpose_b", TRANSPOSED)
def test_products_and_their_gradients_are_those_of_rounded_factors(
  transpose_a, transpose_b, tolerance
):
  a = random(*((4, 3) if transpose_a else (3, 4)))
  b = random(*((5, 4) if transpose_b else (4, 5)), seed=1)
  upstream = random(3, 5, seed=2)
  with tf.GradientTape() as tape:
    tape.watch([a, b])
    product = products.multiply(a, b, tf.bfloat16, transpose_a, transpose_b)
  slopes = tape.gradient(product, [a, b], output_gradients=upstream)
  with tf.GradientTape() as tape:
    exact = [rounded(a), rounded(b)]
    tape.watch(exact)
    expected = tf.matmul(*exact, transpose_a=transpose_a, transpose_b=transpose_b)
  expected_slopes = tape.gradient(expected, exact, output_gradients=rounded(upstream))
  assert product.dtype == tf.float32
  np.testing.assert_allclose(product, expected, rtol=tolerance)
  for actual, each in zip(slopes, expected_slopes, strict=True):
    assert actual.dtype == tf.float32
    np.testing.assert_allclose(actual, each, rtol=2 * tolerance, atol=tolerance / 4)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rounding_in_float32_is_the_cast(jit_compile):
  ties = np.float32(1) + np.arange(16, dtype=np.float32) * np.float32(2**-8)
  x = np.concatenate(
    [np.ravel(random(50)), ties, -ties, [0.0, -0.0, 1e-40, 3.4e38, np.inf, np.nan]]
  )
  x = tf.constant(x, tf.float32)
  actual = tf.function(products._rounded, jit_compile=jit_compile, autograph=False)(x)
  np.testing.assert_array_equal(actual, rounded(x))


@pytest.mark.parametrize(
  "flags,expected",
  [("fpu avx2 avx512f", False), ("fpu avx512_bf16 x", True), ("asimd bf16", True)],
)
def test_what_the_processor_says(flags, expected, tmp_path):
  path = tmp_path / "cpuinfo"
  path.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
  has_gpu = bool(tf.config.list_physical_devices("GPU"))
  assert products.multiplies_bfloat16(str(path)) == (expected or has_gpu)
  assert products.multiplies_bfloat16(str(tmp_path / "none"))


def make(policy):
  net = models.ConditionalBernoulli(np.linspace(0, 1, SIZE), hidden_units=(8, 7), dtype=policy)
  net.build((None, 3))
  for i, variable in enumerate(net.weights):
    variable.assign(random(*variable.shape, seed=i))
  return net


def by_hand(net, z):
  """The logits, from products of rounded factors whose sums are float32."""
  (w1, b1), (w2, b2), (w3, b3) = np.reshape(np.array(net.get_weights(), object), [3, 2])
  rows = tf.reshape(z, [-1, 3])
  for kernel, bias in ((w1, b1), (w2, b2)):
    rows = tf.tanh(rounded(rows) @ rounded(kernel) + bias)
  offset = tf.constant(net._offset, tf.float32)
  return tf.reshape(rounded(rows) @ rounded(w3) + (b3 + offset), [*z.shape[:-1], SIZE])


@pytest.mark.usefixtures("tolerance")
def test_with_xla_nothing_but_factors_is_rounded():
  net, z, x = make("mixed_bfloat16"), random(NUM_SAMPLES, BATCH, 3), tf.ones([BATCH, SIZE])
  logits, log_prob = tf.function(
    lambda: ((d := net.distribution(z)).logits, d.log_prob(x)), jit_compile=True
  )()
  np.testing.assert_allclose(logits, by_hand(net, z), rtol=1e-4, atol=1e-4)
  plain = models.bernoulli.IndependentBernoulli(logits).log_prob(x)
  np.testing.assert_allclose(log_prob, plain, rtol=1e-5)


def test_gradients_are_near_those_of_float32():
  z, x = random(NUM_SAMPLES, BATCH, 3), tf.ones([BATCH, SIZE])
  slopes = []
  for policy in ("float32", "mixed_bfloat16"):
    net = make(policy)
    with tf.GradientTape() as tape:
      log_prob = net.distribution(z).log_prob(x)
    slopes.append(tape.gradient(log_prob, [v.value for v in net.trainable_variables]))
  for exact, actual in zip(*slopes, strict=True):
    assert actual.dtype == tf.float32
    scale = np.abs(exact).max()
    np.testing.assert_allclose(actual / scale, exact / scale, atol=0.05)
    assert np.any(exact != actual)


def test_evaluation_is_in_float32():
  x = helpers.binary(8, 6)
  model, exact = helpers.vae(dtype="mixed_bfloat16"), helpers.vae()
  for each in (model, exact):
    helpers.compiled(each, run_eagerly=True)
  exact.set_weights(model.get_weights())
  np.testing.assert_array_equal(model.log_likelihood(x, 7), exact.log_likelihood(x, 7))
  results = [each.evaluate(x, batch_size=8, verbose=0) for each in (model, exact)]
  np.testing.assert_array_equal(*results)
  steps = [each.train_on_batch(x, return_dict=True)["bound"] for each in (model, exact)]
  assert steps[0] != steps[1]  # training rounds


USES = {
  "encode": lambda model, x: model.encode(x),
  "kl_divergence": lambda model, x: model.kl_divergence(x, num_samples=3),
  "sample": lambda model, x: model.sample(3, seed=1, mean=True),
  "reconstruct": lambda model, x: model.reconstruct(x, seed=1),
}


@pytest.mark.parametrize("use", USES)
def test_use_is_in_float32(use):
  x, model, exact = helpers.binary(8, 6), helpers.vae(dtype="mixed_bfloat16"), helpers.vae()
  exact.set_weights(model.get_weights())
  np.testing.assert_array_equal(USES[use](model, x), USES[use](exact, x))


def test_a_reconstruction_in_training_is_rounded():
  x, model = helpers.binary(8, 6), helpers.vae(dtype="mixed_bfloat16")
  with calls.mode(model, training=True):
    rounded = model.reconstruct(x, seed=1)
  assert np.any(rounded != model.reconstruct(x, seed=1))
