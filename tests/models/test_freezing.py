"""Tests of `freeze_model`: what is frozen, and that a user's own flags come back."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from dregs_tf.models import freezing
from tests.models import helpers

tfd = tfp.distributions

X = helpers.binary(9, 6)
CONTEXT = helpers.binary(9, 4, seed=1)
CASES = [(helpers.vae, X), (helpers.structured, (CONTEXT, X))]
both_models = pytest.mark.parametrize("make,data", CASES, ids=["vae", "structured"])


@both_models
def test_a_frozen_model_is_not_trained_and_the_proposal_is(make, data):
  model = helpers.compiled(make(), freeze_model=True, run_eagerly=True)
  frozen = [v.numpy() for layer in model.model_layers for v in layer.variables]
  free = [v.numpy() for v in model.encoder.variables]
  model.train_step(tf.nest.map_structure(tf.constant, data))
  for actual, expected in zip(
    [v for layer in model.model_layers for v in layer.variables], frozen, strict=True
  ):
    np.testing.assert_array_equal(actual, expected)
  assert any(np.any(v.numpy() != old) for v, old in zip(model.encoder.variables, free, strict=True))
  helpers.compiled(model, run_eagerly=True)
  assert len(model.trainable_variables) == len(frozen) + len(free), "no longer frozen"


class Nested(models.LatentVariableModel):
  """A decoder within a decoder, a part of which a user has frozen."""

  def __init__(self):
    super().__init__()
    self.encoder = keras.layers.Dense(2)
    self.inner = keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(4, "tanh")])
    self.decoder = keras.Sequential([self.inner, keras.layers.Dense(6)])
    self.build((None, 6))

  @property
  def model_layers(self):
    return [self.decoder]

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2))

  def proposal(self, x, context):
    return tfd.MultivariateNormalDiag(self.encoder(x), tf.ones(2))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.decoder(z)), 1)


def flags(model):
  return {item.path: item.trainable for item in (*model._flatten_layers(), *model.variables)}


def test_a_users_own_flags_come_back():
  model = Nested()
  model.inner.layers[0].trainable = False
  model.decoder.layers[1].bias.trainable = False
  before = flags(model)
  assert sorted(before.values()).count(False) == 4
  for freeze_model in (True, True, False, False, True):
    helpers.compiled(model, freeze_model=freeze_model)
    assert len(model.trainable_variables) == (2 if freeze_model else 5)
  helpers.compiled(model)
  assert flags(model) == before


def test_a_frozen_layer_stays_frozen_without_freeze_model():
  model = Nested()
  model.decoder.trainable = False
  helpers.compiled(model)
  assert len(model.trainable_variables) == 2


def test_a_layer_within_two_frozen_ones_gets_its_own_flag_back():
  inner = keras.Sequential([keras.layers.Dense(2)])
  outer = [keras.Sequential([inner, keras.layers.Dense(3)]) for _ in range(2)]
  for layer in outer:
    layer.build((None, 2))
  inner.trainable = False
  outer[1].layers[1].trainable = False
  thaw = freezing.freeze([*outer, inner])
  assert not any(layer.trainable for layer in (*outer, inner))
  thaw()
  assert [layer.trainable for layer in (*outer, inner)] == [True, True, False]
  assert [layer.layers[1].trainable for layer in outer] == [True, False]
