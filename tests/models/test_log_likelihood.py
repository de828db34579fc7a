"""Tests of `log_likelihood`: an exact Gaussian model, the noise of its chunks, its memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, models
from tests.models import helpers

tfd = tfp.distributions

SLOPE = np.array([0.5, -1.0, 2.0, 1.5], np.float32)
NOISE = 0.7


class Gaussian(models.LatentVariableModel):
  """z ~ N(0, I), x | z ~ N(SLOPE * z, NOISE^2); proposal: the posterior, `widen` times wider."""

  def __init__(self, widen=1.0):
    super().__init__()
    self.widen = widen

  def prior(self, context):
    return tfd.Independent(tfd.Normal(tf.zeros_like(SLOPE), 1.0), 1)

  def proposal(self, x, context):
    precision = 1 + (SLOPE / NOISE) ** 2
    scale = tf.broadcast_to(self.widen / precision**0.5, tf.shape(x))
    return tfd.Independent(tfd.Normal(x * SLOPE / NOISE**2 / precision, scale), 1)

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Normal(z * SLOPE, NOISE), 1)


def _x(batch_size):
  return np.random.RandomState(0).normal(size=(batch_size, 4)).astype("float32")


def _exact(x):
  return tfd.Normal(0.0, (SLOPE**2 + NOISE**2) ** 0.5).log_prob(x).numpy().sum(axis=-1)


@pytest.mark.parametrize(
  ("batch_size", "num_samples"),
  [(1, 1), (1, 5000), (1, 5001), (3, 7), (3, 5000), (250, 1), (250, 7), (250, 5001)],
)
def test_every_sample_of_the_posterior_weighs_the_evidence(batch_size, num_samples):
  x = _x(batch_size)
  actual = Gaussian().log_likelihood(x, num_samples=num_samples)
  assert actual.shape == [batch_size]
  np.testing.assert_allclose(actual, _exact(x), atol=2e-5)


def test_wider_proposal_converges_to_the_evidence():
  x = _x(3)
  model = Gaussian(widen=1.5)
  spread = {}
  for num_samples in (10, 1000):
    draws = [model.log_likelihood(x, num_samples=num_samples, seed=seed) for seed in range(20)]
    spread[num_samples] = np.std(draws, axis=0)
  # A standard deviation of K^-1/2 falls by 10, here measured from 20 draws (16 % each).
  assert np.all(spread[10] / spread[1000] > 3)
  np.testing.assert_allclose(model.log_likelihood(x, num_samples=100_000), _exact(x), atol=0.02)


@pytest.fixture
def eager_functions():
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


def _record(model):
  """The samples and log-weights that the model is asked for, lists that grow."""
  samples, log_weights = [], []
  original = model.target_log_prob

  def target_log_prob(x, z, context=None):
    log_p = original(x, z, context)
    samples.append(np.array(z))
    log_weights.append(np.array(log_p - model.proposal(x, context).log_prob(z)))
    return log_p

  model.target_log_prob = target_log_prob
  return samples, log_weights


def test_chunks_are_the_samples_of_one_bound(eager_functions, monkeypatch):
  monkeypatch.setattr(evaluation, "_ROWS_AT_A_TIME", 12)
  model = Gaussian(widen=1.5)
  samples, log_weights = _record(model)
  actual = model.log_likelihood(_x(3), num_samples=25)
  samples, log_weights = np.concatenate(samples), np.concatenate(log_weights)
  assert samples.shape == (25, 3, 4)
  assert np.unique(samples).size == samples.size
  expected = np.log(np.mean(np.exp(log_weights.astype("float64")), axis=0))
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_examples_do_not_share_noise(eager_functions):
  model = Gaussian()
  samples, _ = _record(model)
  model.log_likelihood(np.zeros([250, 4], np.float32), num_samples=2)
  first_coordinates = np.concatenate([piece[..., 0].ravel() for piece in samples])
  assert first_coordinates.shape == (500,)
  # Neighboring float32 draws may coincide by chance; shared noise would halve their number.
  assert np.unique(first_coordinates).size > 495


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_memory_does_not_grow_with_the_samples(batch_size):
  model = Gaussian()
  rows = []
  original = model.target_log_prob

  def target_log_prob(x, z, context=None):
    rows.append(z.shape[0] * z.shape[1])
    return original(x, z, context)

  model.target_log_prob = target_log_prob
  model.log_likelihood(_x(batch_size), num_samples=20_001)
  assert rows  # Read off the traced graph: every chunk of samples is of one of these sizes.
  assert max(rows) <= 5000


def test_seed_decides():
  x = _x(3)
  model = Gaussian(widen=1.5)
  first = model.log_likelihood(x, num_samples=5, seed=3)
  np.testing.assert_array_equal(first, model.log_likelihood(x, num_samples=5, seed=3))
  np.testing.assert_array_equal(first, model.log_likelihood(x, num_samples=5, seed=[3, 0]))
  assert (first.numpy() != model.log_likelihood(x, num_samples=5, seed=4).numpy()).all()
  unseeded = [model.log_likelihood(x, num_samples=5).numpy() for _ in range(2)]
  np.testing.assert_array_equal(*unseeded)


def test_follows_the_parameters():
  model = helpers.vae()
  x = helpers.binary(10, 6)
  before = model.log_likelihood(x, num_samples=20)
  helpers.perturb(model)
  assert (before.numpy() != model.log_likelihood(x, num_samples=20).numpy()).all()


@pytest.mark.parametrize("conditional", [False, True])
def test_examples_and_contexts_stay_together(conditional, eager_functions, monkeypatch):
  monkeypatch.setattr(evaluation, "_ROWS_AT_A_TIME", 12)
  model = helpers.structured() if conditional else helpers.vae()
  helpers.perturb(model)
  x = helpers.binary(130, 6)
  context = helpers.binary(130, 4, seed=1) if conditional else None
  samples, _ = _record(model)
  actual = model.log_likelihood(x, num_samples=3, context=context)
  # Two parts of the batch, the three samples of each one by one.
  z = np.concatenate([np.concatenate(samples[:3]), np.concatenate(samples[3:])], axis=1)
  x, context = tf.constant(x), None if context is None else tf.constant(context)
  log_w = model.target_log_prob(x, z, context) - model.proposal(x, context).log_prob(z)
  assert log_w.shape == [3, 130]
  np.testing.assert_allclose(actual, np.log(np.mean(np.exp(log_w), axis=0)), rtol=1e-4)


@pytest.mark.parametrize(
  ("num_samples", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)]
)
def test_bad_number_of_samples_is_refused(num_samples, error):
  with pytest.raises(error, match="num_samples must be"):
    Gaussian().log_likelihood(_x(3), num_samples=num_samples)


def test_no_examples():
  assert Gaussian().log_likelihood(np.zeros([0, 4], np.float32), num_samples=2).shape == [0]


# --- data sets, and batches of unknown size ------------------------------------------------------


def test_dataset_gives_the_numbers_of_its_arrays():
  x = _x(230)
  model = Gaussian(widen=1.5)
  expected = model.log_likelihood(x, num_samples=7)
  dataset = tf.data.Dataset.from_tensor_slices(x).batch(100)
  np.testing.assert_array_equal(model.log_likelihood(dataset, num_samples=7), expected)
  # Another batch size draws other noise, for every example its own.
  other = model.log_likelihood(dataset.unbatch().batch(23), num_samples=5000)
  assert other.shape == [230]
  np.testing.assert_allclose(other, _exact(x), atol=0.5)
  assert model.log_likelihood(dataset.take(0), num_samples=7).shape == [0]


def test_dataset_of_pairs():
  model = helpers.structured()
  x, context = helpers.binary(7, 6), helpers.binary(7, 4, seed=1)
  expected = model.log_likelihood(x, num_samples=3, context=context)
  for parts in ((context, x), (context, x, np.ones(7))):
    dataset = tf.data.Dataset.from_tensor_slices(parts).batch(10)
    np.testing.assert_array_equal(model.log_likelihood(dataset, num_samples=3), expected)
  with pytest.raises(ValueError, match="context must be part of the Dataset"):
    model.log_likelihood(dataset, num_samples=3, context=context)


def test_batch_of_unknown_size():
  model = Gaussian(widen=1.5)
  spec = tf.TensorSpec([None, 4], tf.float32)
  compiled = tf.function(
    lambda x: model.log_likelihood(x, num_samples=20_000), [spec], autograph=False
  )
  assert compiled.get_concrete_function().structured_outputs.shape.rank == 1
  for batch_size in (3, 130):
    actual = compiled(_x(batch_size))
    assert actual.shape == [batch_size]
    np.testing.assert_allclose(actual, _exact(_x(batch_size)), atol=0.1)
    np.testing.assert_array_equal(actual, compiled(_x(batch_size)))
  # A batch of known size stays what it is outside of a graph.
  inside = tf.function(lambda: model.log_likelihood(_x(3), num_samples=7), autograph=False)()
  np.testing.assert_allclose(inside, model.log_likelihood(_x(3), num_samples=7), rtol=1e-6)


def test_exported_for_serving(tmp_path):
  """By TensorFlow and by Keras, which both convert what they trace by AutoGraph."""
  model = helpers.structured()
  helpers.perturb(model)
  specs = [tf.TensorSpec([None, size], tf.float32) for size in (4, 6)]

  def log_likelihood(context, x):
    return model.log_likelihood(x, num_samples=9, context=context)

  archive = keras.export.ExportArchive()
  archive.track(model)
  archive.add_endpoint("log_likelihood", log_likelihood, input_signature=specs)
  archive.write_out(tmp_path / "keras", verbose=False)
  module = tf.Module()
  module.model, module.log_likelihood = model, tf.function(log_likelihood, specs)
  tf.saved_model.save(module, tmp_path / "tensorflow")
  x, context = helpers.binary(5, 6), helpers.binary(5, 4, seed=1)
  expected = module.log_likelihood(context, x)
  for how in ("tensorflow", "keras"):
    artifact = tf.saved_model.load(tmp_path / how)
    actual = artifact.log_likelihood(context, x)
    np.testing.assert_array_equal(actual, expected, err_msg=how)
    assert artifact.log_likelihood(context[:2], x[:2]).shape == [2]
