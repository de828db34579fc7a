"""Tests that observations have the shape of the likelihood's events: nothing broadcasts."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.models import helpers
from tests.models.layered import Layered, X

tfd = tfp.distributions


class Parts(Layered):
  """Observations of two parts."""

  def proposal(self, x, context):
    return super().proposal(x["pixels"], context)

  def likelihood(self, z, context):
    pixels = super().likelihood(z, context)
    label = tfd.Independent(tfd.Normal(z, 1.0), 1)
    return tfd.JointDistributionNamed({"pixels": pixels, "label": label})


class Scalar(Layered):
  """An observation is a number, which its proposal repeats."""

  def proposal(self, x, context):
    return super().proposal(tf.repeat(x[:, None], 6, axis=1), context)

  def likelihood(self, z, context):
    return tfd.Normal(z[..., 0], 1.0)


class Repeats(Scalar):
  """Its events are vectors of 6 all the same."""

  def likelihood(self, z, context):
    return Layered.likelihood(self, z, context)


def _parts(size):
  return {"pixels": X, "label": np.ones((5, size), "float32")}


# A batch of 6 numbers, whose batch axis would meet the axis of the events.
_NUMBERS = np.linspace(0, 1, 6).astype("float32")


class First(Layered):
  """Looks at its observations as a whole, so that other sizes get as far as the likelihood."""

  def proposal(self, x, context):
    return super().proposal(tf.reduce_mean(x, axis=1, keepdims=True) + tf.zeros(6), context)


@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize(
  ("make", "x", "event", "observation"),
  [
    (First, X[:, :1], r"\(6,\)", r"\(1,\)"),
    (First, X[:, :4], r"\(6,\)", r"\(4,\)"),
    (Repeats, _NUMBERS, r"\(6,\)", r"\(\)"),
    (Parts, _parts(1), r"\(3,\)", r"\(1,\)"),
  ],
)
def test_both_shapes_are_named(make, x, event, observation, run_eagerly):
  model = helpers.compiled(make(), run_eagerly=run_eagerly)
  for method in (model.fit, model.evaluate):
    with pytest.raises(ValueError, match=f"{make.__name__}.*{event}.*{observation}"):
      method(x, verbose=0)


@pytest.mark.parametrize(("make", "x"), [(First, X), (Scalar, _NUMBERS), (Parts, _parts(3))])
def test_events_and_observations_of_one_shape_are_fine(make, x):
  helpers.compiled(make(), run_eagerly=True).fit(x, verbose=0)
