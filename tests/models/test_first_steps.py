"""Tests of what is said where training could only do nothing, or fails for want of a batch."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.models import helpers
from tests.models.layered import Layered, X
from tests.models.test_own_model import Unbuilt

METHODS = ("fit", "evaluate", "train_on_batch", "test_on_batch")


def _quietly(method):
  return {} if method.endswith("on_batch") else {"verbose": 0}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [X[:0], {"x": X[:0]}, tf.constant(X[:0])])
def test_no_examples_are_refused(method, x):
  model = helpers.compiled(Layered(), run_eagerly=True)
  with pytest.raises(ValueError, match=r"Observations.*none.*\(0, 6\)"):
    getattr(model, method)(x, **_quietly(method))


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_training_without_trainable_variables_warns(run_eagerly):
  model = helpers.compiled(Layered(), run_eagerly=True)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.fit(X, verbose=0)
  assert not [w for w in caught if "trainable" in str(w.message)]
  model = helpers.compiled(Layered(), run_eagerly=run_eagerly)
  model.trainable = False
  before = model.get_weights()
  with pytest.warns(UserWarning, match="Layered has no trainable variables"):
    model.fit(X, verbose=0)
  np.testing.assert_equal(model.get_weights(), before)


@pytest.mark.parametrize("data", [X, (X, X), {"pixels": X}], ids=["x", "pair", "dict"])
def test_an_unbatched_dataset_is_explained(data):
  class Parts(Layered):
    def proposal(self, x, context):
      return super().proposal(x["pixels"] if isinstance(x, dict) else x, context)

  model = helpers.compiled(Parts())
  dataset = tf.data.Dataset.from_tensor_slices(data)
  with pytest.raises(ValueError, match="shape") as error:
    model.fit(dataset, verbose=0)
  assert any("(6,)" in note and "dataset.batch" in note for note in error.value.__notes__)


def test_other_errors_are_not_explained():
  def stop(batch, logs):
    raise RuntimeError("stopped")

  dataset = tf.data.Dataset.from_tensor_slices(X).batch(2, drop_remainder=True)
  with pytest.raises(RuntimeError) as error:
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    helpers.compiled(Layered()).fit(dataset, verbose=0, callbacks=[callback])
  assert not getattr(error.value, "__notes__", [])
  model = helpers.compiled(Layered())
  dataset = tf.data.Dataset.from_tensor_slices(X[:, :4]).batch(2)
  with pytest.raises(ValueError) as error:
    model.fit(dataset, verbose=0)
  assert not getattr(error.value, "__notes__", [])


@pytest.mark.parametrize("make", [helpers.vae, Unbuilt])
@pytest.mark.parametrize("is_binary", [None, True])
def test_the_first_step_is_traced_once(make, is_binary):
  """TensorFlow traces a step twice that creates variables, of layers or of the optimizer."""
  model = helpers.compiled_with_adam(make())
  model.binary_observations = is_binary
  original, traced = model.train_step, []
  model.train_step = lambda data: traced.append(data) or original(data)
  model.fit(X, batch_size=len(X), verbose=0)
  assert len(traced) == 1
