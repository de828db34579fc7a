"""Tests of `.keras` files and weights: a loaded model trains on as if it had not been saved."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, models
from tests.models import helpers

tfd = tfp.distributions

X = helpers.binary(12, 6)
CONTEXT = helpers.binary(12, 4, seed=1)


@keras.saving.register_keras_serializable("tests")
class Own(models.LatentVariableModel):
  """A user's model: a scalar option, a layer, a variable of its own."""

  def __init__(self, units, **kwargs):
    super().__init__(**kwargs)
    self.units = units
    self.encoder = models.ConditionalNormal(3, (units,))
    self.decoder = models.ConditionalBernoulli(event_size=6, hidden_units=(units,))
    self.location = self.add_weight(name="location", shape=(3,), initializer="zeros")
    self.encoder.build((None, 6))
    self.decoder.build((None, 3))
    self.built = True

  def prior(self, context):
    return tfd.Independent(tfd.Normal(tf.convert_to_tensor(self.location), 1.0), 1)

  def proposal(self, x, context):
    return self.encoder.distribution(x)

  def likelihood(self, z, context):
    return self.decoder.distribution(z)

  def get_config(self):
    return super().get_config() | {"units": self.units}


def _steps(model, data, num):
  logs = []
  for i in range(num):
    part = tuple(array[4 * i % 12 :][:4] for array in data)
    logs.append(model.train_on_batch(*part, return_dict=True))
  return logs


@pytest.mark.parametrize(
  ("make", "data", "options"),
  [
    (helpers.vae, (X,), {}),
    (helpers.vae, (X,), {"bound": bounds.get("jvi", order=2), "num_samples": 4}),
    (helpers.vae, (X,), {"bound": bounds.get("dreg_alpha", alpha=0.3), "seed": None}),
    (helpers.vae, (X,), {"gradient_statistics": True, "seed": [7, -8]}),
    (helpers.structured, (CONTEXT, X), {"bound": "rws_dreg", "gradient_statistics": True}),
    (lambda: helpers.vae(dtype="mixed_float16"), (X,), {}),
    (lambda: Own(5), (X,), {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9)}),
  ],
  ids=["vae", "jvi", "dreg_alpha", "statistics", "structured", "float16", "own"],
)
def test_training_goes_on_as_if_not_saved(make, data, options, tmp_path):
  model = helpers.compiled_with_adam(make(), **{"run_eagerly": True} | options)
  _steps(model, data, 2)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert type(loaded) is type(model)
  assert loaded.get_config() == model.get_config()
  assert (loaded.bound, loaded.num_samples) == (model.bound, model.num_samples)
  assert list(np.ravel(loaded.seed)) == list(np.ravel(model.seed))
  assert loaded.followers.gradient_statistics == model.followers.gradient_statistics
  assert loaded.optimizer.iterations == model.optimizer.iterations == 2
  assert loaded.optimizer.get_config() == model.optimizer.get_config()
  assert (loaded.jit_compile, loaded.run_eagerly) == (model.jit_compile, model.run_eagerly)
  assert _steps(loaded, data, 2) == _steps(model, data, 2)
  for actual, expected in zip(loaded.variables, model.variables, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_traced_training_goes_on_as_if_not_saved(tmp_path):
  optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
  model = helpers.compiled(helpers.vae(), optimizer=optimizer, gradient_statistics=True)
  _steps(model, (X,), 3)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  logs = _steps(model, (X,), 3)
  assert _steps(loaded, (X,), 3) == logs
  assert all(logs[-1][f"{name}_gradient_variance"] > 0 for name in ("proposal", "model"))
  for actual, expected in zip(loaded.variables, model.variables, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_fresh_process_needs_only_the_package(tmp_path):
  model = helpers.compiled_with_adam(helpers.vae(), run_eagerly=True)
  _steps(model, (X,), 2)
  model.save(tmp_path / "model.keras")
  np.save(tmp_path / "x.npy", X)
  script = (
    "import sys, keras, numpy as np, dregs_tf.models\n"
    "model = keras.models.load_model(sys.argv[1] + '/model.keras')\n"
    "x = np.load(sys.argv[1] + '/x.npy')\n"
    "print(repr([float(v) for v in model.evaluate(x, batch_size=4, verbose=0)]))\n"
  )
  result = subprocess.run(
    [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr[-2000:]
  expected = model.evaluate(X, batch_size=4, verbose=0)
  np.testing.assert_allclose(eval(result.stdout.splitlines()[-1]), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [helpers.vae, helpers.structured, lambda: Own(5)])
def test_uncompiled_model(make, tmp_path):
  model = make()
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert not loaded.compiled
  for actual, expected in zip(loaded.variables, model.variables, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_running_means_are_saved(tmp_path):
  model = helpers.compiled_with_adam(helpers.vae(), run_eagerly=True)
  model.train_step(tf.constant(X[:4]))
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  # In the middle of an epoch: no reset between the steps.
  actual, expected = (m.train_step(tf.constant(X[4:])) for m in (loaded, model))
  assert expected["bound"] != 0
  assert {name: float(value) for name, value in actual.items()} == {
    name: float(value) for name, value in expected.items()
  }


def test_load_without_compiling(tmp_path):
  model = helpers.compiled_with_adam(helpers.vae(), gradient_statistics=True, run_eagerly=True)
  _steps(model, (X,), 2)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
  assert not loaded.compiled
  for actual, expected in zip(helpers.values(loaded), helpers.values(model), strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_weights(tmp_path):
  model = helpers.compiled_with_adam(helpers.vae(), run_eagerly=True)
  _steps(model, (X,), 2)
  model.save_weights(tmp_path / "model.weights.h5")
  fresh = helpers.vae(seed=9)
  assert (fresh.encoder.get_weights()[0] != model.encoder.get_weights()[0]).any()
  fresh.load_weights(tmp_path / "model.weights.h5")
  for actual, expected in zip(fresh.variables, model.variables, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_weights_of_a_model_that_follows_gradient_statistics(tmp_path):
  model = helpers.compiled_with_adam(helpers.vae(), gradient_statistics=True, run_eagerly=True)
  _steps(model, (X,), 2)
  model.save_weights(tmp_path / "model.weights.h5")
  fresh = helpers.vae(seed=9)
  fresh.load_weights(tmp_path / "model.weights.h5")
  for actual, expected in zip(helpers.values(fresh), helpers.values(model), strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_model_is_saved_before_it_is_trained(tmp_path):
  model = helpers.compiled_with_adam(helpers.vae(), gradient_statistics=True, run_eagerly=True)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert _steps(loaded, (X,), 2)[1] == _steps(model, (X,), 2)[1]


def test_clone_has_the_architecture_and_its_own_weights():
  model = helpers.vae()
  clone = keras.models.clone_model(model)
  assert [v.shape for v in clone.variables] == [v.shape for v in model.variables]
  assert (clone.encoder.get_weights()[0] != model.encoder.get_weights()[0]).any()


@keras.saving.register_keras_serializable("dregs_tf_tests")
class BuiltByFit(models.LatentVariableModel):
  """A conditional model whose layers know their inputs only from data."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.to_loc = keras.layers.Dense(2)
    self.to_logits = keras.layers.Dense(X.shape[-1])
    self.to_prior = keras.layers.Dense(2)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(self.to_prior(context), tf.ones(2))

  def proposal(self, x, context):
    return tfd.MultivariateNormalDiag(self.to_loc(x), tf.ones(2))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.to_logits(z)), 1)


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_layers_that_fit_built_are_loaded(run_eagerly, tmp_path):
  model = helpers.compiled_with_adam(BuiltByFit(), run_eagerly=run_eagerly)
  model.fit(CONTEXT, X, verbose=0)
  assert model.built
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert len(loaded.variables) == 6
  for ours, theirs in zip(loaded.variables, model.variables, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  for each in (model, loaded):
    each.run_eagerly = True
    each.make_train_function(force=True)
    _steps(each, (CONTEXT, X), 2)
  for ours, theirs in zip(loaded.variables, model.variables, strict=True):
    np.testing.assert_array_equal(ours, theirs)
