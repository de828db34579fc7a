"""Tests that AutoGraph converts the library, which it does inside a user's tf.function."""

import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds

tfd = tfp.distributions


@pytest.mark.parametrize("num_backward_samples", [None, 3])
def test_estimate_in_a_function_of_a_user(num_backward_samples, monkeypatch):
  monkeypatch.setenv("AUTOGRAPH_STRICT_CONVERSION", "1")  # An error rather than a warning.
  prior, location = tfd.Normal(0.0, 1.0), tf.Variable([0.3, 0.5])
  own = bounds.from_function(lambda l: tf.reduce_logsumexp(l, axis=0), name="own")
  kinds = ["jvi_dreg", own]
  if num_backward_samples is None:  # The choice of samples knows the coefficients alone.
    kinds += ["iwae", "iwae_dreg", "rws", "vimco_star", "elbo_loo", "iwae_cv"]

  @tf.function
  def gradients():
    with tf.GradientTape(persistent=True) as tape:
      proposal = tfd.Normal(tf.identity(location), 0.8)
      objectives = [
        bounds.estimate(
          bound, prior.log_prob, proposal, 4, num_backward_samples=num_backward_samples
        ).objective
        for bound in kinds
      ]
    return [tape.gradient(objective, location) for objective in objectives]

  assert all(gradient.shape == (2,) for gradient in gradients())
