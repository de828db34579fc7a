"""Tests that a step has the side effects of one call of each method, whatever is followed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from tests.models import helpers
from tests.models.layered import Layered, X, layered
from tests.models.test_own_model import Unbuilt

FOLLOWING = {
  "nothing": {},
  "gradients": {"track_variance": ["iwae"], "gradient_statistics": True},
  "alpha": {"bound": bounds.get("dreg_alpha", alpha=0.3), "adapt_alpha": True},
}


class _Counting:
  """Counts the calls of a model's methods by metrics of its own."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    names = ("prior", "proposal", "likelihood")
    self.counts = {name: keras.metrics.Sum(name=f"{name}_calls") for name in names}

  def prior(self, context):
    self.counts["prior"].update_state(1.0)
    return super().prior(context)

  def proposal(self, x, context):
    self.counts["proposal"].update_state(1.0)
    return super().proposal(x, context)

  def likelihood(self, z, context):
    self.counts["likelihood"].update_state(1.0)
    return super().likelihood(z, context)


class Counts(_Counting, Layered):
  """Its layers are built."""


class UnbuiltCounts(_Counting, Unbuilt):
  """Its layers are built for the first batch."""


@pytest.mark.parametrize(
  ("make", "run_eagerly", "following"),
  [
    *((make, True, following) for make in (Counts, UnbuiltCounts) for following in FOLLOWING),
    (UnbuiltCounts, False, "gradients"),
  ],
)
def test_methods_are_called_once_a_step(following, run_eagerly, make):
  optimizer = "adam" if following == "alpha" else "sgd"
  options = FOLLOWING[following] | {"optimizer": optimizer, "run_eagerly": run_eagerly}
  model = helpers.compiled(make(), **options)
  data = tf.data.Dataset.from_tensor_slices(X).batch(3)
  history = model.fit(data, epochs=2, verbose=0, validation_data=data).history
  for name, calls in history.items():
    if name.endswith("_calls"):
      assert calls == [2.0] * 2, name
  assert sum(name.endswith("_calls") for name in history) == 6


@pytest.mark.parametrize("following", sorted(FOLLOWING))
def test_following_does_not_change_statistics(following):
  model = layered([keras.layers.BatchNormalization()], [keras.layers.BatchNormalization()])
  bound = bounds.get("dreg_alpha", alpha=0.3)
  options = {"optimizer": "adam", "bound": bound, "run_eagerly": True}
  helpers.compiled(model, **(options | FOLLOWING[following]))
  plain = layered([keras.layers.BatchNormalization()], [keras.layers.BatchNormalization()])
  helpers.compiled(plain, **options)
  for each in (model, plain):
    each.train_on_batch(X)
  for net in ("encoder", "decoder"):
    mine, expected = (getattr(each, net).layers[0] for each in (model, plain))
    assert np.all(expected.moving_mean.numpy() != 0)
    np.testing.assert_allclose(mine.moving_mean, expected.moving_mean, rtol=1e-6)
    np.testing.assert_allclose(mine.moving_variance, expected.moving_variance, rtol=1e-6)
