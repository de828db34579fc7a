"""Tests of what is evaluated without a gradient: streamed log-likelihoods, unrecorded passes."""

import gc
import math
import weakref

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds

tfd = tfp.distributions

X = np.array([0.5, -1.0, 2.0], np.float32)
EXACT = tfd.Normal(0.0, math.sqrt(2.0)).log_prob(X).numpy()


def log_joint(z):
  return tfd.Normal(0.0, 1.0).log_prob(z) + tfd.Normal(z, 1.0).log_prob(X)


def posterior():
  return tfd.Normal(X / 2, math.sqrt(0.5))


@pytest.mark.parametrize("num_samples", [1, 7, 1666, 1667, 5003])
def test_log_likelihood_counts_every_sample_once(num_samples):
  """With the posterior as proposal every weight is p(x)."""
  value = bounds.log_likelihood(log_joint, posterior(), num_samples, seed=0)
  assert value.shape == [3]
  np.testing.assert_allclose(value, EXACT, rtol=1e-5)


def test_log_likelihood_is_the_bound_of_many_samples():
  """With weights of the variance 0.4 the mean of 40,000 is off by 0.005; 5 of these here."""
  proposal = tfd.Normal(X / 2 + 0.2, 0.9)
  value = bounds.log_likelihood(log_joint, proposal, 40_000, seed=0)
  np.testing.assert_allclose(value, EXACT, atol=0.025)
  again = bounds.log_likelihood(log_joint, proposal, 40_000, seed=[0, 0])
  np.testing.assert_array_equal(value, again)
  assert np.all(value != bounds.log_likelihood(log_joint, proposal, 40_000, seed=1))


def test_log_likelihood_takes_a_few_samples_at_a_time():
  sizes = []

  def target(z):
    sizes.append(z.shape[0])
    return log_joint(z)

  bounds.log_likelihood(target, posterior(), 12_345, seed=0)
  assert sum(sizes) == 12_345
  assert max(sizes) * 3 <= 5000


@pytest.mark.parametrize("jit_compile", [False, True])
def test_log_likelihood_of_a_batch_of_unknown_size(jit_compile):
  signature = [tf.TensorSpec([None])]

  @tf.function(input_signature=signature, jit_compile=jit_compile, autograph=False)
  def served(x):
    return bounds.log_likelihood(
      lambda z: tfd.Normal(0.0, 1.0).log_prob(z) + tfd.Normal(z, 1.0).log_prob(x),
      tfd.Normal(x / 2, math.sqrt(0.5)),
      num_samples=333,
      seed=0,
    )

  for size in (1, 3):
    np.testing.assert_allclose(served(X[:size]), EXACT[:size], rtol=1e-5)


def test_log_likelihood_takes_discrete_proposals():
  probs = tf.constant([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
  log_p = tf.math.log(tf.constant([0.1, 0.2, 0.3]))
  value = bounds.log_likelihood(
    lambda z: tf.gather(log_p, z), tfd.Categorical(probs=probs), 60_000, seed=0
  )
  # Standard error: at most 0.5 / 0.6 / sqrt(60,000) = 0.0034; five of them.
  np.testing.assert_allclose(value, np.log(0.6), atol=0.017)


def test_log_likelihood_has_no_gradient():
  loc = tf.Variable(X)
  with tf.GradientTape() as tape:
    value = bounds.log_likelihood(log_joint, tfd.Normal(loc, 1.0), 5)
  assert tape.gradient(value, loc) is None


@pytest.mark.parametrize("num_samples", [0, -1, 2.5, True, None])
def test_log_likelihood_refuses_num_samples(num_samples):
  with pytest.raises((TypeError, ValueError), match=f"num_samples.*got {num_samples!r}"):
    bounds.log_likelihood(log_joint, posterior(), num_samples)


@pytest.mark.parametrize("shape", [[4], [4, 3, 1], [3, 4]])
def test_log_likelihood_refuses_a_wrong_target(shape):
  with pytest.raises(ValueError, match=r"target_log_prob_fn.*got \("):
    bounds.log_likelihood(lambda z: tf.zeros([len(z), *shape[1:]][: len(shape)]), posterior(), 4)


class Recorder:
  """A target that keeps an eye on its intermediate results, without keeping them alive."""

  def __init__(self):
    self.results = []

  def __call__(self, z):
    hidden = tf.tanh(z * 2.0)
    self.results.append((z.shape[0], weakref.ref(hidden)))
    return tf.reduce_sum(hidden**2, axis=-1)

  def alive(self):
    gc.collect()
    return sum(size for size, reference in self.results if reference() is not None)


@pytest.mark.parametrize("num_samples,num_backward_samples", [(40, 3), (600, 5)])
def test_the_pass_of_all_samples_is_not_recorded_eagerly(num_samples, num_backward_samples):
  loc = tf.Variable(np.zeros([3, 2], np.float32))
  target = Recorder()
  with tf.GradientTape() as tape:
    proposal = tfd.Independent(tfd.Normal(loc, 1.0), 1)
    estimate = bounds.estimate(
      "iwae_dreg",
      target,
      proposal,
      num_samples,
      seed=0,
      num_backward_samples=num_backward_samples,
    )
    objective = tf.reduce_sum(estimate.objective)
  assert sum(size for size, _ in target.results) == num_samples + num_backward_samples
  assert target.alive() == num_backward_samples
  assert np.all(tape.gradient(objective, loc) != 0)


def test_forward_mode_is_refused_in_words():
  loc = tf.Variable(X)
  with (
    pytest.raises(RuntimeError, match=r"ForwardAccumulator.*not supported"),
    tf.autodiff.ForwardAccumulator(loc, tf.ones([3])),
  ):
    bounds.estimate("iwae_dreg", log_joint, tfd.Normal(loc, 1.0), 4)


@pytest.mark.parametrize(
  "given,meant", [("iwae-dreg", "iwae_dreg"), ("iwae_drag", "iwae_dreg"), ("jvi_dregs", "jvi_dreg")]
)
def test_a_bound_that_is_meant(given, meant):
  with pytest.raises(ValueError, match=f"got {given!r}. Did you mean {meant}"):
    bounds.get(given)


def test_no_bound_is_meant():
  with pytest.raises(ValueError, match=r"got 'zzz'\.$"):
    bounds.get("zzz")
