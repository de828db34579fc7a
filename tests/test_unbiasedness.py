"""Which estimators have the same mean, by paired t-tests on 400000 independent examples.

The regime is a proposal that is narrower than the posterior: q = N(0.3, 0.8^2), unnormalized target
N(1, 1.5^2), K = 5, derivative with respect to q's location. The seed is fixed, so nothing here
fails at random; "false failure" is the chance that a right estimator would fail at a new seed.
"""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds

tfd = tfp.distributions
NUM_EXAMPLES = 400_000


@functools.cache
def gradient_samples(name, order=None):
  """[NUM_EXAMPLES]: independent samples of the gradient, at the same latents for every name."""
  bound = bounds.get(name, **({} if order is None else {"order": order}))
  loc = tf.fill([NUM_EXAMPLES], tf.constant(0.3, tf.float64))
  with tf.GradientTape() as tape:
    tape.watch(loc)
    estimate = bounds.estimate(
      bound,
      lambda z: -0.5 * tf.square((z - 1.0) / 1.5),
      tfd.Normal(loc, tf.constant(0.8, tf.float64)),
      num_samples=5,
      seed=1,
    )
  return tape.gradient(estimate.objective, loc).numpy()


def paired_t(one, other):
  """The t-statistic of the mean difference, and that difference's standard error."""
  difference = one - other
  error = difference.std(ddof=1) / math.sqrt(len(difference))
  return difference.mean() / error, error


@pytest.mark.parametrize("name,order", [("iwae", None), ("rws", None), ("jvi", 1)], ids=str)
def test_double_reparameterization_keeps_the_mean(name, order):
  """|t| < 4.4: a false failure has probability 1.1e-5.

  The standard error of the difference is below 0.0035 (asserted), so a bias of 6 standard errors,
  0.021, which is less than an eighth of every mean here, is detected with probability 0.95.
  """
  t, error = paired_t(gradient_samples(f"{name}_dreg", order), gradient_samples(name, order))
  assert error < 0.0035
  assert abs(t) < 4.4


def test_the_same_test_catches_sticking_the_landing():
  """Eq. 15 is biased for K > 1: its mean is .51 where the bound's is .23."""
  t, _ = paired_t(gradient_samples("stl"), gradient_samples("iwae"))
  assert t > 20


def test_the_same_test_catches_the_wake_update():
  """The wake update of q is the gradient of another objective: .28 where the bound's is .23."""
  t, _ = paired_t(gradient_samples("rws_dreg"), gradient_samples("iwae_dreg"))
  assert t > 20


def test_the_same_test_catches_another_order_of_the_jackknife():
  t, _ = paired_t(gradient_samples("jvi_dreg", 1), gradient_samples("iwae_dreg"))
  assert t < -20


# Means and standard errors computed independently in NumPy, at 4e5 draws of their own.
REFERENCE = {
  "iwae": (0.2303, 0.0005),
  "iwae_dreg": (0.2293, 0.0008),
  "stl": (0.5145, 0.0012),
  "rws": (0.2843, 0.0017),
  "rws_dreg": (0.2853, 0.0006),
  "jvi": (0.1856, 0.0007),
  "jvi_dreg": (0.1844, 0.0011),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_means_against_an_independent_computation(name):
  """4.5 combined standard errors: a false failure has probability 7e-6 each.

  A difference of 6 combined standard errors is detected with probability 0.93: at most 0.015.
  """
  expected, error_of_expected = REFERENCE[name]
  order = 1 if name.startswith("jvi") else None
  samples = gradient_samples(name, order)
  error = samples.std(ddof=1) / math.sqrt(len(samples))
  np.testing.assert_allclose(error, error_of_expected, rtol=0.25)
  assert abs(samples.mean() - expected) < 4.5 * math.hypot(error, error_of_expected)
