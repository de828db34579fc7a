"""Tests of `build(input_shape)` before any data, and of what `export` serves."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.models import helpers

tfd = tfp.distributions

X = helpers.binary(9, 6)
CONTEXT = helpers.binary(9, 4, seed=1)


class Unbuilt(models.LatentVariableModel):
  """Layers that know their inputs only from data; a nested one among them."""

  def __init__(self, units=5):
    super().__init__()
    self.encoder = keras.Sequential([keras.layers.Dense(units, "tanh"), keras.layers.Dense(2)])
    self.decoder = keras.layers.Dense(6)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2))

  def proposal(self, x, context):
    return tfd.MultivariateNormalDiag(self.encoder(x), tf.fill([2], 1e-3))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.decoder(z)), 1)


class Parts(Unbuilt):
  """Observations and contexts of two parts each."""

  def proposal(self, x, context):
    parts = [x["a"], x["b"], *context]
    return super().proposal(tf.concat(parts, axis=-1), None)

  def target_log_prob(self, x, z, context=None):
    return super().target_log_prob(tf.concat([x["a"], x["b"]], axis=-1), z)

  def reconstruct(self, x, context=None, seed=None):
    return super().reconstruct(x, context, seed)


PAIRS = [
  (Unbuilt, X, (None, 6)),
  (Unbuilt, X, [None, 6]),
  (Unbuilt, X, tf.TensorShape([None, 6])),
  (helpers.vae, X, (None, 6)),
  (helpers.structured, (CONTEXT, X), ((None, 4), (None, 6))),
  (helpers.structured, (CONTEXT, X), [(9, 4), (9, 6)]),
  (
    Parts,
    ((CONTEXT[:, :3], CONTEXT[:, 3:]), {"a": X[:, :2], "b": X[:, 2:]}),
    (((None, 3), (None, 1)), {"a": (None, 2), "b": (None, 4)}),
  ),
]
IDS = ["tuple", "list", "TensorShape", "vae", "pair", "sizes", "parts"]


@pytest.mark.parametrize(("make", "data", "shape"), PAIRS, ids=IDS)
def test_weights_are_loaded_into_a_model_that_was_built(make, data, shape, tmp_path):
  model = make()
  model(data)
  for variable in model.variables:
    variable.assign(variable + 0.25)
  model.save_weights(tmp_path / "model.weights.h5")
  other = make()
  other.build(shape)
  assert len(other.variables) == len(model.variables) >= 6
  other.load_weights(tmp_path / "model.weights.h5")
  for actual, expected in zip(other.get_weights(), model.get_weights(), strict=True):
    np.testing.assert_array_equal(actual, expected)
  helpers.compiled(other, run_eagerly=True, gradient_statistics=True)
  other.train_step(data)


def test_weights_are_not_loaded_into_a_model_that_was_not_built(tmp_path):
  model = Unbuilt()
  model(X)
  model.save_weights(tmp_path / "model.weights.h5")
  with pytest.raises(ValueError, match="not yet been built"):
    Unbuilt().load_weights(tmp_path / "model.weights.h5")


def test_a_shape_that_is_not_the_models_is_refused():
  with pytest.raises(ValueError, match="6"):
    helpers.vae().build((None, 7))
  with pytest.raises(ValueError, match=r"input_shape.*\(None, None\)"):
    Unbuilt().build((None, None))


def test_a_call_builds_for_integers():
  """A one-hot code, unlike an Embedding, takes no floats."""

  class Labels(Unbuilt):
    def proposal(self, x, context):
      return super().proposal(tf.concat([x, tf.one_hot(context, 3)], axis=-1), None)

  model = Labels()
  labels = np.arange(9) % 3
  assert model((labels, X)).shape == (9, 6)
  assert len(model.variables) == 6


@pytest.mark.parametrize(
  ("make", "data", "options"),
  [
    (helpers.vae, X, {}),
    (helpers.structured, (CONTEXT, X), {"run_eagerly": True}),
    (Unbuilt, X, {"run_eagerly": True}),
  ],
  ids=["vae", "structured", "unbuilt"],
)
def test_the_artifact_serves_what_the_model_reconstructs(make, data, options, tmp_path):
  """A proposal that hardly varies makes the sampled z a number to compare."""
  model = helpers.compiled(make(), gradient_statistics=True, **options)
  parts = data if isinstance(data, tuple) else (data,)
  model.fit(*parts, batch_size=9, verbose=0)
  model.export(tmp_path / "artifact", verbose=False)
  served = tf.saved_model.load(tmp_path / "artifact")
  for size in (1, 9):
    batch = tf.nest.map_structure(lambda part, size=size: part[:size], data)
    actual = served.serve(batch)
    assert actual.shape == (size, 6)
    if make is Unbuilt:
      np.testing.assert_allclose(actual, model(batch), atol=0.01)


def test_a_model_without_a_batch_is_exported_where_the_shape_is_known(tmp_path):
  helpers.vae().export(tmp_path / "a", verbose=False)
  artifact = tf.saved_model.load(tmp_path / "a")
  assert artifact.serve(X).shape == (9, 6)
  model = Unbuilt()
  model.build((None, 6))
  model.export(tmp_path / "b", verbose=False)
  artifact = tf.saved_model.load(tmp_path / "b")
  np.testing.assert_allclose(artifact.serve(X[:2]), model(X[:2]), atol=0.01)
  with pytest.raises(ValueError, match="input_signature.*None"):
    Unbuilt().export(tmp_path / "c")


def test_a_signature_of_ones_own_is_taken(tmp_path):
  model = Unbuilt()
  model.build((None, 6))
  signature = [keras.InputSpec(shape=(2, 6), dtype="int32")]
  model.export(tmp_path / "artifact", verbose=False, input_signature=signature)
  artifact = tf.saved_model.load(tmp_path / "artifact")
  served = artifact.serve(X[:2].astype("int32"))
  np.testing.assert_allclose(served, model(X[:2]), atol=0.01)
