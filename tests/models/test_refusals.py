"""Tests that what would broadcast in silence, or be taken for something else, is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.models import helpers

tfd = tfp.distributions

X = helpers.binary(6, 5)


class Small(models.LatentVariableModel):
  """Observations [batch_size, 5], latents [3]."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.encoder = keras.layers.Dense(3)
    self.decoder = keras.layers.Dense(5)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros([3]))

  def proposal(self, x, context):
    return tfd.MultivariateNormalDiag(self.encoder(x), tf.ones([3]))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.decoder(z)), 1)


def _eager(model):
  return helpers.compiled(model, num_samples=4, run_eagerly=True)


def test_latents_that_broadcast_against_the_prior_are_refused():
  class OneLatent(Small):
    def proposal(self, x, context):
      return tfd.MultivariateNormalDiag(self.encoder(x)[:, :1], tf.ones([1]))

  with pytest.raises(ValueError, match=r"OneLatent: prior.*\(3,\).*proposal.*\(1,\)"):
    _eager(OneLatent()).fit(X, verbose=0)


# With four samples of four examples, samples would stand for examples.
@pytest.mark.parametrize("batch_size", [4, 6])
def test_proposal_without_a_batch_is_refused(batch_size):
  class Shared(Small):
    def proposal(self, x, context):
      return tfd.MultivariateNormalDiag(tf.reduce_mean(self.encoder(x), axis=0))

  with pytest.raises(ValueError, match=r"Shared\.proposal.*\[batch_size\].*\(\)"):
    _eager(Shared()).fit(X[:batch_size], batch_size=batch_size, verbose=0)


def test_transformed_joint_proposal_is_taken():
  class Joint(Small):
    def proposal(self, x, context):
      normal = super().proposal(x, context)
      joint = tfd.JointDistributionSequential([normal, normal])
      return tfp.bijectors.JointMap([tfp.bijectors.Identity(), tfp.bijectors.Exp()])(joint)

    def prior(self, context):
      normal = super().prior(context)
      return tfd.JointDistributionSequential([normal, normal])

    def likelihood(self, z, context):
      return super().likelihood(z[0], context)

  _eager(Joint()).fit(X, verbose=0)


@pytest.mark.parametrize("seed", ["1", 1.5, [1, 2, 3]])
def test_compile_refuses_what_is_no_seed(seed):
  with pytest.raises(ValueError, match="seed must be"):
    Small().compile(seed=seed)


@pytest.mark.parametrize(("n", "error"), [(2.5, TypeError), (0, ValueError), (True, TypeError)])
def test_sample_refuses_what_is_no_number_of_samples(n, error):
  with pytest.raises(error, match=f"n must be .*{n}"):
    Small().sample(n)
  assert Small().sample(np.int64(2)).shape == [2, 5]
