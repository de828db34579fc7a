"""Tests of Keras models of sequences: fit, evaluate, filter, forecast, save, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models, sequential
from tests.models import helpers
from tests.seeding import seed_layers

tfd = tfp.distributions

D, T, N = 3, 4, 6
MEAN = np.linspace(0.2, 0.6, D)


def vrnn(**options):
  seed_layers(0)
  options = {"latent_dim": 2, "hidden_units": (4,), "rnn_units": 5} | options
  return models.VRNN(MEAN, **options)


def compiled(model, **options):
  defaults = {"optimizer": "sgd", "num_samples": 3, "seed": 1, "jit_compile": False}
  model.compile(**(defaults | options))
  return model


def sequences(dtype="float32"):
  return helpers.binary(N * T, D).reshape(N, T, D).astype(dtype)


LENGTHS = np.array([4, 1, 2, 4, 3, 4])


class AR(models.StateSpaceModel):
  """z_t ~ N(a z_{t-1}, 1), x_t ~ N(z_t, 1), without a state; the linear-Gaussian model."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.a = self.add_weight(shape=(), initializer="ones", name="a")

  def prior(self, z_previous, state):
    if z_previous is None:
      return tfd.Normal(0.0, 1.0)
    return tfd.Normal(0.5 * self.a * z_previous, 1.0)

  def proposal(self, x, z_previous, state):
    past = 0.0 if z_previous is None else 0.5 * self.a * z_previous
    return tfd.Normal((past + x) / 2, 0.75)

  def likelihood(self, z, state):
    return tfd.Normal(z, 1.0)

  def exact(self):
    one = np.eye(1, dtype=np.float32)
    return sequential.LinearGaussianSSM(0.5 * one, one, one, one, one[0] * 0, one)


def real_sequences():
  return np.random.default_rng(0).normal(size=[N, T]).astype(np.float32)


def test_a_step_has_the_gradient_of_the_estimate():
  model = compiled(vrnn(), optimizer=keras.optimizers.SGD(1.0), run_eagerly=True)
  x, lengths, weights = sequences(), LENGTHS, np.linspace(0.5, 1.5, N).astype("float32")
  seeds, original = [], model.estimate

  def estimate(*args, **kwargs):
    seeds.append(kwargs["seed"])
    return original(*args, **kwargs)

  model.estimate = estimate
  before = helpers.values(model)
  logs = model.train_step((lengths, x, weights))
  change = [new - old for new, old in zip(helpers.values(model), before, strict=True)]
  for variable, value in zip(model.trainable_variables, before, strict=True):
    variable.assign(value)
  with tf.GradientTape() as tape:
    result = original(x, lengths, bound="fivo_dreg", num_samples=3, seed=seeds[0])
    objective = tf.reduce_sum(result.objective * weights) / N
  expected = tape.gradient(objective, model.trainable_variables)
  for found, gradient in zip(change, expected, strict=True):
    np.testing.assert_allclose(found, gradient, atol=1e-6)
  mean = np.sum(result.objective * weights) / np.sum(weights)
  np.testing.assert_allclose(logs["bound"], mean, rtol=1e-6)


def test_fit_raises_the_bound():
  """In a graph for batches of unknown sizes; no XLA, which `tests/sequential` compiles."""
  model = compiled(vrnn(), optimizer=keras.optimizers.Adam(0.05))
  batch = np.minimum(LENGTHS, 2), sequences("uint8")[:, :2]
  smaller = LENGTHS[:4], sequences("uint8")[:4]
  data = tf.data.Dataset.from_generator(
    lambda: iter([batch] * 20 + [smaller] + [batch] * 20),
    output_signature=(tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, None, D], tf.uint8)),
  )
  history = model.fit(data, epochs=1, verbose=0).history
  model.run_eagerly = True
  after = model.evaluate(*batch, batch_size=N, verbose=0, return_dict=True)
  assert after["bound"] > history["bound"][0] + 0.5
  assert 1 <= after["effective_sample_size"] <= 3


@pytest.mark.slow
def test_fit_with_xla():
  """Of a model that has a variable inside the loops, and no layers: they take long to compile."""
  model = compiled(AR(), jit_compile=True)
  history = model.fit(real_sequences(), batch_size=N, verbose=0).history
  assert np.isfinite(history["bound"][0])
  assert float(model.a) != 1


def test_the_same_seed_gives_the_same_run_and_a_saved_model_resumes_it(tmp_path):
  options = {"resample_when": [1], "resampling": "stratified", "run_eagerly": True}
  options["optimizer"] = "adam"
  x = (np.minimum(LENGTHS, 2), sequences()[:, :2])

  def fit(model, epochs):
    model.fit(*x, batch_size=N, epochs=epochs, shuffle=False, verbose=0)
    return model

  whole, half = fit(compiled(vrnn(), **options), 2), fit(compiled(vrnn(), **options), 1)
  half.save(tmp_path / "half.keras")
  loaded = keras.models.load_model(tmp_path / "half.keras")
  assert (loaded.resample_when, loaded.resampling) == ([1], "stratified")
  fit(loaded, 1)
  for one, other in zip(helpers.values(whole), helpers.values(loaded), strict=True):
    np.testing.assert_array_equal(one, other)


def test_log_likelihood_and_filter_are_kalmans():
  model, x = AR(), real_sequences()
  exact = model.exact()
  found = model.log_likelihood(x, num_samples=2000)
  np.testing.assert_allclose(found, exact.log_likelihood(x[..., None]), atol=0.15)
  filtered = model.filter(x, num_samples=2000)
  means, _ = exact.filter(x[..., None])
  np.testing.assert_allclose(filtered.mean, means[..., 0], atol=0.15)
  assert filtered.samples.shape == filtered.weights.shape == (N, T, 2000)
  np.testing.assert_allclose(
    filtered.effective_sample_size, 1 / np.sum(filtered.weights**2, axis=-1), rtol=1e-3
  )
  short = model.log_likelihood(x, num_samples=2000, lengths=LENGTHS)
  alone = exact.log_likelihood(x[1:2, :1, None])[0]
  np.testing.assert_allclose(short[1], alone, atol=0.1)
  data = tf.data.Dataset.from_tensor_slices((LENGTHS, x)).batch(4)
  assert model.log_likelihood(data, num_samples=10).shape == (N,)


def test_forecasts_are_kalmans():
  """Means of 4000 paths; the standard error of the mean is at most 1.4 / sqrt(4000) = 0.03."""
  model, x = AR(), real_sequences()
  paths = model.forecast(x, 2, n=4000, num_samples=4000, lengths=LENGTHS, seed=1)
  assert paths.shape == (N, 4000, 2)
  means, _ = model.exact().filter(x[..., None])
  last = np.take_along_axis(means[..., 0].numpy(), LENGTHS[:, None] - 1, axis=1)
  np.testing.assert_allclose(np.mean(paths, axis=1), last * [0.5, 0.25], atol=0.15)
  smooth = model.forecast(x, 2, n=50, seed=1, mean=True)
  assert np.all(np.std(smooth, axis=1) < np.std(paths, axis=1))


def test_samples_and_forward_pass():
  model = vrnn()
  assert model.sample(5, 4, seed=1).shape == (5, 4, D)
  mean = model.sample(5, 4, seed=1, mean=True)
  assert np.all((mean > 0) & (mean < 1))
  assert model((LENGTHS, sequences())).shape == (N, D)
  assert vrnn(likelihood="normal").sample(2, 3, seed=1).shape == (2, 3, D)


class Coins(AR):
  """Binary observations, which the likelihood draws as ints; the state is their sum."""

  def initial_state(self, batch_size):
    return tf.zeros([batch_size])

  def next_state(self, state, z, x):
    return state + x

  def likelihood(self, z, state):
    return tfd.Bernoulli(logits=z)


def test_draws_have_the_dtype_of_the_data():
  model = compiled(Coins(), run_eagerly=True)
  x = helpers.binary(N, T)
  model.fit(x, verbose=0)
  assert model.sample(2, 3, seed=0).dtype == tf.int32
  assert model.forecast(x, 2, n=3, num_samples=4, seed=0).shape == (N, 3, 2)
  assert model(x).shape == (N,)


def test_the_effective_sample_size_is_that_of_a_sequences_own_steps():
  model, x, lengths = compiled(AR(), run_eagerly=True), real_sequences(), [4, 0, 1, 2, 3, 4]
  sizes = model.sample_size(model.estimate(x, lengths, bound="fivo", num_samples=5, seed=1))
  padded = np.pad(x, [(0, 0), (0, 3)])
  longer = model.estimate(padded, lengths, bound="fivo", num_samples=5, seed=1)
  np.testing.assert_allclose(model.sample_size(longer), sizes, rtol=1e-6)
  np.testing.assert_allclose(sizes[3], np.mean(longer.effective_sample_size[:2, 3]), rtol=1e-6)
  np.testing.assert_allclose(sizes[1], 5, rtol=1e-6)


def test_lengths_are_checked_before_a_graph_runs():
  model, x = AR(), real_sequences()
  with pytest.raises(ValueError, match="lengths must be from 0 to num_steps = 4, got 99"):
    model.log_likelihood(x, 3, lengths=[99, 1, 1, 1, 1, 1])
  with pytest.raises(ValueError, match="lengths must be 1 or more to forecast, got 0"):
    model.forecast(x, 1, lengths=[0, 1, 1, 1, 1, 1])


def test_other_dtypes():
  model = compiled(vrnn(dtype="mixed_bfloat16"), bound="iwae_dreg", run_eagerly=True)
  for x in (sequences("uint8")[:4, :3], sequences("uint8")[4:, :2]):
    assert np.isfinite(model.train_on_batch(x)).all()


class Careless(models.VRNN):
  """A VRNN with dropout between its steps."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.dropout = keras.layers.Dropout(0.5)

  def next_state(self, state, z, x):
    return super().next_state(tuple(self.dropout(leaf) for leaf in state), z, x)


def test_layers_with_noise_and_variables_of_others_are_refused():
  model = Careless(MEAN, latent_dim=2, hidden_units=(4,), rnn_units=5)
  with pytest.raises(ValueError, match="Careless.*Dropout"):
    compiled(model, run_eagerly=True).fit(sequences(), verbose=0)
  stray = AR()
  other = tf.Variable(1.0)
  stray.likelihood = lambda z, state: tfd.Normal(z * other, 1.0)
  with pytest.raises(ValueError, match="does not hold"):
    compiled(stray, run_eagerly=True).fit(real_sequences(), verbose=0)


@pytest.mark.parametrize(
  ("changed", "named"),
  [
    ({"bound": "rws"}, "bound"),
    ({"num_samples": 0}, "num_samples"),
    ({"resampling": "none"}, "resampling"),
    ({"resample_when": 2.5}, "resample_when"),
    ({"bound": "iwae", "resample_when": 2}, "resample_when"),
    ({"loss": "mse"}, "loss"),
  ],
)
def test_wrong_arguments_of_compile_are_refused(changed, named):
  with pytest.raises((TypeError, ValueError), match=rf"\b{named}\b"):
    compiled(vrnn(), **changed)


def test_wrong_data_and_methods_are_refused():
  model = compiled(vrnn(), run_eagerly=True)
  with pytest.raises(ValueError, match=r"lengths.*got float32"):
    model.fit(np.ones([N], np.float32), sequences(), verbose=0)
  with pytest.raises(ValueError, match=r"\[0, 1\].*to 2"):
    model.fit(2 * sequences(), verbose=0)
  with pytest.raises(ValueError, match="likelihood"):
    models.VRNN(MEAN, likelihood="poisson")
  careless = AR()
  careless.prior = lambda z_previous, state: z_previous
  with pytest.raises(TypeError, match="distribution"):
    careless.log_likelihood(real_sequences())


def test_several_replicas_are_refused(monkeypatch):
  model = vrnn()
  monkeypatch.setattr(type(model), "distribute_strategy", TwoReplicas(), raising=False)
  with pytest.raises(ValueError, match="VRNN .*got 2 replicas"):
    compiled(model)


class TwoReplicas:
  num_replicas_in_sync = 2
