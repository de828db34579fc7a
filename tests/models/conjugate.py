"""A linear Gaussian model with its exact posterior, evidence and imputations, for the tests."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models

tfd = tfp.distributions

LATENTS, FEATURES = 2, 5
NOISE = 0.8
_RANDOM = np.random.RandomState(3)
WEIGHTS = _RANDOM.normal(size=(FEATURES, LATENTS))
OFFSET = _RANDOM.normal(size=FEATURES)


class Conjugate(models.LatentVariableModel):
  """z ~ N(0, I), x | z ~ N(W z + b, NOISE^2); the proposal is near the posterior, and too wide."""

  def __init__(self):
    super().__init__(dtype="float64")

  def prior(self, context):
    return tfd.Independent(tfd.Normal(tf.zeros(LATENTS, tf.float64), 1.0), 1)

  def proposal(self, x, context):
    gain = WEIGHTS.T / (NOISE**2 + np.sum(WEIGHTS**2, axis=0))[:, np.newaxis]
    loc = tf.matmul(x - OFFSET, gain, transpose_b=True)
    return tfd.Independent(tfd.Normal(loc, np.full(LATENTS, 0.8)), 1)

  def likelihood(self, z, context):
    loc = tf.einsum("...l,dl->...d", z, WEIGHTS) + OFFSET
    return tfd.Independent(tfd.Normal(loc, tf.constant(NOISE, tf.float64)), 1)


def observations(batch_size, missing_share=0.0, seed=0):
  """Draws from the model, with NaN at random in the place of a share of features."""
  random = np.random.RandomState(seed)
  z = random.normal(size=(batch_size, LATENTS))
  x = z @ WEIGHTS.T + OFFSET + NOISE * random.normal(size=(batch_size, FEATURES))
  return np.where(random.uniform(size=x.shape) < missing_share, np.nan, x)


def exact(x):
  """Of one example x [FEATURES] with NaN: the posterior's mean and covariance, and log p(x_obs)."""
  there = ~np.isnan(x)
  weights, offset = WEIGHTS[there], OFFSET[there]
  covariance = np.linalg.inv(np.eye(LATENTS) + weights.T @ weights / NOISE**2)
  mean = covariance @ weights.T @ (x[there] - offset) / NOISE**2
  evidence = weights @ weights.T + NOISE**2 * np.eye(there.sum())
  difference = x[there] - offset
  log_p = -0.5 * (
    difference @ np.linalg.solve(evidence, difference) + np.linalg.slogdet(2 * np.pi * evidence)[1]
  )
  return mean, covariance, log_p


def imputed(x):
  """Of one example: mean and variance of all features given the observed ones."""
  mean, covariance, _ = exact(x)
  variance = np.sum(WEIGHTS @ covariance * WEIGHTS, axis=1) + NOISE**2
  there = ~np.isnan(x)
  return np.where(there, x, WEIGHTS @ mean + OFFSET), np.where(there, 0, variance)
