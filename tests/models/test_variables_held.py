"""Tests that a step refuses trainable variables that the model does not hold."""

import keras
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.models import helpers
from tests.models.layered import ENGINES, Layered, X

tfd = tfp.distributions


class OwnPrior(Layered):
  """A learned prior, made of variables that Keras does not track."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.location = tf.Variable(tf.zeros(3), name="location")
    self.scale = tfp.util.TransformedVariable(tf.ones(3), tfp.bijectors.Softplus(), name="scale")

  def prior(self, context):
    return tfd.MultivariateNormalDiag(self.location, self.scale)


class Closure(Layered):
  """A decoder that no attribute holds."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    decoder = keras.layers.Dense(6, name="hidden")
    self.decode = lambda z: decoder(z)

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.decode(z)), 1)


class Constants(Layered):
  """Variables that need no training: constants, and features with stopped gradients."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.shift = tf.Variable(tf.zeros(6), trainable=False)
    self.features = tf.Variable(tf.ones(6))

  def proposal(self, x, context):
    return super().proposal(x * tf.stop_gradient(self.features) + self.shift, context)


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_variables_that_keras_does_not_track_are_refused(engine, run_eagerly):
  model = helpers.compiled(OwnPrior(), run_eagerly=run_eagerly, **ENGINES[engine])
  with pytest.raises(ValueError, match=r"OwnPrior.*location:0 \[3\], scale:0 \[3\].*add_weight"):
    model.fit(X, verbose=0)


def test_layers_that_no_attribute_holds_are_refused():
  model = helpers.compiled(Closure())
  with pytest.raises(ValueError, match=r"kernel:0 \[3, 6\], .*bias:0 \[6\].*layers"):
    model.fit(X, verbose=0)


def test_variables_that_are_not_to_be_trained_are_fine():
  model = helpers.compiled(Constants(), run_eagerly=True)
  model.fit(X, verbose=0)
  model.trainable = False
  model.evaluate(X, verbose=0)
