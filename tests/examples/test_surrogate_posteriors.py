"""Eight schools: TFP's surrogate posteriors, trained by `bounds.estimate` in a plain loop."""

import pytest
import tensorflow as tf

from dregs_tf import bounds
from tests.examples import eight_schools


@pytest.mark.parametrize(
  "make",
  [
    eight_schools.factored_surrogate,
    eight_schools.affine_surrogate,
    eight_schools.transformed_variables,
  ],
)
def test_surrogate_posterior_trains(make):
  tf.random.set_seed(0)
  surrogate = make()
  variables = surrogate.trainable_variables

  @tf.function(autograph=False)
  def step(seed):
    with tf.GradientTape() as tape:
      estimate = bounds.estimate("iwae_dreg", eight_schools.log_joint, surrogate, 8, seed=seed)
    gradients = tape.gradient(estimate.objective, variables)
    # Eight noisy schools and scales that start near 0: the gradient's length says little.
    gradients, _ = tf.clip_by_global_norm(gradients, 0.2)
    for variable, gradient in zip(variables, gradients, strict=True):
      variable.assign_add(gradient)
    return estimate.objective

  first = _mean_bound(surrogate)
  for i in range(80):
    step(tf.constant([1, i]))
  last = _mean_bound(surrogate)
  assert last.shape == ()
  assert last > first + 1.0


def _mean_bound(surrogate) -> tf.Tensor:
  estimate = bounds.estimate("iwae_dreg", eight_schools.log_joint, surrogate, 500, seed=7)
  return estimate.objective
