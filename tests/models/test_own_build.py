"""Tests that variables which a subclass makes in its own `build` are there in time."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.models import helpers
from tests.models.test_own_model import Unbuilt

tfd = tfp.distributions

X = helpers.binary(9, 6)
LABELS = np.arange(9) % 4


@keras.saving.register_keras_serializable("tests")
class OwnBuild(Unbuilt):
  """A learned prior whose variable `build` makes, of a shape that the context has a say in."""

  calls_super = True

  def build(self, input_shape):
    self.shapes = input_shape
    self.location = self.add_weight(name="location", shape=(3,), initializer="zeros")
    if self.calls_super:
      super().build(input_shape)

  def prior(self, context):
    location = tf.convert_to_tensor(self.location)
    return tfd.Independent(tfd.Normal(location, 1.0), 1)


@keras.saving.register_keras_serializable("tests")
class WithoutSuper(OwnBuild):
  """Its layers are built by what uses them."""

  calls_super = False


@keras.saving.register_keras_serializable("tests")
class WithLabels(OwnBuild):
  """Contexts are integers, which one_hot needs."""

  def proposal(self, x, context):
    return super().proposal(tf.concat([x, tf.one_hot(context, 4)], axis=-1), None)


CASES = {
  "super": (OwnBuild, X, (None, 6)),
  "without super": (WithoutSuper, X, (None, 6)),
  "context": (WithLabels, (LABELS, X), ((None,), (None, 6))),
}
USES = {
  "fit": lambda model, data: model.fit(data, verbose=0),
  "eager fit": lambda model, data: (
    helpers.compiled(model, run_eagerly=True),
    model.fit(data, verbose=0),
  ),
  "evaluate": lambda model, data: model.evaluate(data, verbose=0),
  "call": lambda model, data: model(data),
}


@pytest.mark.parametrize(
  ("use", "case"),
  [
    *((use, case) for use in ("call", "eager fit") for case in CASES),
    # "context" calls super's build as well.
    *((use, case) for use in ("fit", "evaluate") for case in ("context", "without super")),
  ],
)
def test_build_is_called_before_the_first_batch(use, case):
  make, data, shapes = CASES[case]
  model = helpers.compiled(make(), optimizer=keras.optimizers.SGD(1.0))
  USES[use](model, data)
  assert model.shapes == shapes
  assert len(model.trainable_variables) == 9
  assert np.any(model.location.numpy() != 0) == ("fit" in use)


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_model_with_a_build_of_its_own_is_saved(case, tmp_path):
  make, data, _ = CASES[case]
  model = helpers.compiled(make(), optimizer=keras.optimizers.SGD(1.0), run_eagerly=True)
  model.fit(data, verbose=0)
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  for actual, expected in zip(helpers.values(loaded), helpers.values(model), strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_build_is_called_with_a_shape():
  model = OwnBuild()
  model.build((None, 6))
  assert len(model.trainable_variables) == 9
  helpers.compiled(model, run_eagerly=True).fit(X, verbose=0)
