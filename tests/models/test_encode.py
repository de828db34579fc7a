"""Tests of `encode`, the proposal's mean."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.models import helpers

tfd = tfp.distributions
X, CONTEXT = helpers.binary(10, 6), helpers.binary(10, 4, seed=1)


class Own(models.LatentVariableModel):
  """One latent vector of size 2, of a proposal that `make` builds from location [batch_size, 2]."""

  def __init__(self, make):
    super().__init__()
    self.make = make
    self.drop = keras.layers.Dropout(0.5)
    self.dense = keras.layers.Dense(2)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2))

  def proposal(self, x, context):
    return self.make(self.dense(self.drop(x)))


def test_mean_of_the_proposal():
  model = helpers.vae()
  z = model.encode(X.astype("uint8"))
  assert z.shape == [10, 3]
  np.testing.assert_array_equal(z, model.proposal(tf.constant(X), None).mean())
  draws = model.proposal(tf.constant(X), None).sample(2000, seed=0)
  bound = 5 * np.std(draws, axis=0) / 2000**0.5  # exceeded once in 60,000 draws of 30 numbers
  assert (np.abs(np.mean(draws, axis=0) - z) < bound).all()


def test_given_contexts():
  model = helpers.structured()
  z = model.encode(X, CONTEXT)
  np.testing.assert_array_equal(z, model.proposal(tf.constant(X), tf.constant(CONTEXT)).mean())
  assert (z.numpy() != model.encode(X, 1 - CONTEXT).numpy()).all()


def test_structure_of_a_joint_proposal_in_inference_mode():
  def make(loc):
    parts = {"a": tfd.MultivariateNormalDiag(loc), "b": tfd.MultivariateNormalDiag(2 * loc)}
    return tfd.JointDistributionNamedAutoBatched(parts, batch_ndims=1)

  model = Own(make)
  z = model.encode(X)
  kernel, bias = model.dense.get_weights()
  np.testing.assert_allclose(z["a"], X @ kernel + bias, rtol=1e-6)
  np.testing.assert_allclose(z["b"], 2 * (X @ kernel + bias), rtol=1e-6)


def test_a_proposal_without_a_mean_says_so():
  def make(loc):
    return tfd.Sample(
      tfd.TransformedDistribution(tfd.Normal(loc[:, 0], 1.0), tfp.bijectors.Tanh()), 2
    )

  with pytest.raises(NotImplementedError, match="mean"):
    Own(make).encode(X)
