"""Tests of weights and of files: with and without what `compile` turns on beside training."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from tests.models import helpers

X = helpers.binary(8, 6)
FOLLOWING = {
  "bound": bounds.get("dreg_alpha", alpha=0.3),
  "adapt_alpha": True,
  "gradient_statistics": True,
  "track_variance": ["iwae"],
}
PLAIN = {"bound": bounds.get("dreg_alpha", alpha=0.3)}


@functools.cache
def trained_once(following, seed=0):
  """A model for tests that do not mind what weights it has."""
  return trained(FOLLOWING if following else PLAIN, seed)


def trained(options, seed=0):
  model = helpers.compiled_with_adam(helpers.vae(seed), run_eagerly=True, **options)
  for _ in range(2):
    model.train_step(tf.constant(X))
  return model


@pytest.mark.parametrize("into", [FOLLOWING, PLAIN, None], ids=["following", "plain", "uncompiled"])
@pytest.mark.parametrize("of", [FOLLOWING, PLAIN], ids=["following", "plain"])
def test_weights_do_not_depend_on_what_compile_turns_on(of, into, tmp_path):
  model = trained_once(of is FOLLOWING)
  other = helpers.vae(9) if into is None else trained_once(into is FOLLOWING, seed=9)
  expected = model.get_weights()
  assert len(expected) == len(other.weights) == len(other.variables) == 12
  other.set_weights(expected)
  for actual, value in zip(other.get_weights(), expected, strict=True):
    np.testing.assert_array_equal(actual, value)
  other.set_weights([np.zeros_like(value) for value in expected])
  model.save_weights(tmp_path / "model.weights.h5")
  other.load_weights(tmp_path / "model.weights.h5")
  for actual, value in zip(other.get_weights(), expected, strict=True):
    np.testing.assert_array_equal(actual, value)


def state(model):
  layers = model.followers.layers
  return {name: v.numpy() for layer in layers for name, v in layer.by_name.items()}


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_a_weights_file_resumes_what_follows_gradients(tmp_path):
  model = trained_once(following=True)
  model.save_weights(tmp_path / "model.weights.h5")
  other = helpers.compiled_with_adam(helpers.vae(9), run_eagerly=True, **FOLLOWING)
  other.load_weights(tmp_path / "model.weights.h5")
  assert len(state(model)) > 80
  assert_same(state(other), state(model))


@pytest.mark.parametrize(
  "options",
  [
    FOLLOWING | {"track_variance": ["stl"], "adapt_alpha": False},
    FOLLOWING | {"track_variance": ["iwae", "stl"], "adapt_alpha": False},
  ],
  ids=["another", "more"],
)
def test_averages_of_other_gradients_are_not_taken_from_a_file(options, tmp_path):
  """Averages share their mass: it would be wrong for those that the file lacks."""
  model = trained_once(following=True)
  model.save_weights(tmp_path / "model.weights.h5")
  other = trained(options)
  before = state(other)
  other.load_weights(tmp_path / "model.weights.h5")
  assert_same(state(other), before)


@pytest.mark.parametrize("to", [FOLLOWING, PLAIN], ids=["following", "plain"])
@pytest.mark.parametrize("of", [FOLLOWING, PLAIN], ids=["following", "plain"])
def test_a_saved_model_is_compiled_otherwise(of, to, tmp_path):
  """A `.keras` file resumes as it was saved, and compiles anew either way."""
  model = trained_once(of is FOLLOWING)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert_same(state(loaded), state(model))
  logs, expected = (m.train_step(tf.constant(X)) for m in (loaded, model))
  assert {k: float(v) for k, v in logs.items()} == {k: float(v) for k, v in expected.items()}
  helpers.compiled_with_adam(loaded, run_eagerly=True, **to)
  assert ("alpha" in loaded.train_step(tf.constant(X))) == (to is FOLLOWING)
  assert len(loaded.weights) == 12


def test_a_model_that_was_called_is_compiled():
  model = helpers.vae()
  model(X)
  helpers.compiled_with_adam(model, run_eagerly=True, **FOLLOWING)
  helpers.compiled_with_adam(model, run_eagerly=True, **FOLLOWING)
  names = [metric.name for metric in model.metrics]
  assert names == ["loss", "bound", "effective_sample_size"]
  model.train_step(tf.constant(X))
