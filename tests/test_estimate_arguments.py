"""What `bounds.estimate` refuses, its seeds and its dtypes."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, seeds
from tests.problems import few_variants, standard

tfd = tfp.distributions


# --- refusals -----------------------------------------------------------------------------------


def categorical():
  return tfd.Categorical(logits=tf.zeros([3, 4]))


def mixture(reparameterize):
  return tfd.MixtureSameFamily(
    tfd.Categorical(logits=tf.zeros([3, 2])),
    tfd.Normal(tf.random.stateless_normal([3, 2], seed=[0, 1]), 1.0),
    reparameterize=reparameterize,
  )


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg"])
@pytest.mark.parametrize("proposal", [categorical, functools.partial(mixture, False)])
def test_refuses_a_proposal_that_is_not_reparameterized(name, proposal):
  with pytest.raises(ValueError, match="proposal must be fully reparameterized.*is not"):
    bounds.estimate(name, lambda z: tf.zeros([5, 3]), proposal(), num_samples=5)


def test_a_reparameterized_mixture_is_a_proposal():
  estimate = bounds.estimate("iwae_dreg", standard()[0], mixture(True), num_samples=5)
  assert np.isfinite(estimate.objective).all()


def test_refuses_what_is_not_a_distribution():
  with pytest.raises(TypeError, match="proposal must be a tfp Distribution, got EagerTensor"):
    bounds.estimate("iwae", standard()[0], tf.zeros([3]), num_samples=5)


def test_refuses_what_is_not_a_bound():
  with pytest.raises(TypeError, match="bound must be a Bound or one of elbo"):
    bounds.estimate(None, *standard(), num_samples=5)
  with pytest.raises(ValueError, match="bound must be one of elbo.*got 'dreg'"):
    bounds.estimate("dreg", *standard(), num_samples=5)


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws"])
@pytest.mark.parametrize(
  "num_samples,error",
  [
    (0, ValueError),
    (-1, ValueError),
    (1.5, TypeError),
    (True, TypeError),
    (None, TypeError),
    ("5", TypeError),
    (tf.constant(5), TypeError),
    (np.array(4.5), TypeError),
    (np.array([4, 5]), TypeError),
  ],
)
def test_refuses_num_samples(name, num_samples, error):
  with pytest.raises(error, match=f"num_samples must be .*, got {re.escape(repr(num_samples))}"):
    bounds.estimate(name, *standard(), num_samples=num_samples)


def test_num_samples_may_be_a_numpy_integer():
  assert bounds.estimate("iwae", *standard(), num_samples=np.int64(5)).log_weights.shape == [5, 3]


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws"])
@pytest.mark.parametrize("shape", [[3], [5, 3, 2], [5, 1], [1, 3], [3, 5], [5], []], ids=str)
def test_refuses_a_target_of_the_wrong_shape(name, shape):
  proposal = tfd.Independent(tfd.Normal(tf.zeros([3, 2]), 1.0), 1)
  with pytest.raises(ValueError, match=r"\[num_samples, batch_size\] = \(5, 3\).*got \("):
    bounds.estimate(name, lambda z: tf.zeros(shape), proposal, num_samples=5)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_refuses_a_target_whose_wrong_shape_is_known_only_when_it_runs(jit_compile):
  """XLA drops assertions: what is not refused there is broadcast in silence."""
  signature = [tf.TensorSpec([None, None]), tf.TensorSpec([None])]

  @tf.function(input_signature=signature, jit_compile=jit_compile, autograph=False)
  def traced(log_p, loc):
    return bounds.estimate("iwae_dreg", lambda z: log_p, tfd.Normal(loc, 1.0), 5).objective

  for shape in ([5, 1], [1, 3], [5, 4]):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
      traced(tf.zeros(shape), tf.zeros([3]))
  assert traced(tf.zeros([5, 3]), tf.zeros([3])).shape == [3]


def test_refuses_a_stopped_proposal_that_is_the_proposal():
  target, proposal = standard()
  with pytest.raises(ValueError, match="stopped_proposal is the proposal itself"):
    bounds.estimate("iwae_dreg", target, proposal, num_samples=5, stopped_proposal=proposal)


# --- seeds --------------------------------------------------------------------------------------


def draw(seed, name="iwae_dreg"):
  return bounds.estimate(name, *standard(), num_samples=5, seed=seed).samples.numpy()


def test_same_seed_same_samples():
  for seed in (0, 3, -1, 2**40 + 3, 2**63, [1, 2], tf.constant([1, 2], tf.int64)):
    np.testing.assert_array_equal(draw(seed), draw(seed))
    np.testing.assert_array_equal(draw(seed), draw(seed, "iwae"))
  np.testing.assert_array_equal(draw([1, 2]), draw(np.array([1, 2])))
  np.testing.assert_array_equal(draw(3), draw(np.int64(3)))
  np.testing.assert_array_equal(draw(3), draw(seeds.stateless(3)))


def test_different_seeds_different_samples():
  integers = [0, 1, 3, -1, -3, 2**31, 2**32, 2**32 + 3, 2**40 + 3, 2**63, 2**64 - 3]
  drawn = [draw(seed) for seed in [*integers[:-1], [1, 2], [2, 1], [3, 3]]]
  for i, one in enumerate(drawn):
    for other in drawn[:i]:
      assert np.abs(one - other).min() > 0


def test_no_seed_draws_anew_at_every_call():
  assert np.abs(draw(None) - draw(None)).min() > 0
  for jit_compile in (False, True):
    traced = tf.function(
      lambda: bounds.estimate("iwae_dreg", *standard(), num_samples=5).samples,
      autograph=False,
      jit_compile=jit_compile,
    )
    assert np.abs(traced() - traced()).min() > 0


def test_no_seed_follows_the_global_seed():
  drawn = []
  for _ in range(2):
    tf.random.set_seed(1)
    drawn.append(draw(None))
  np.testing.assert_array_equal(*drawn)


def test_same_seed_same_samples_in_a_function():
  traced = tf.function(
    lambda seed: bounds.estimate("iwae_dreg", *standard(), num_samples=5, seed=seed).samples,
    autograph=False,
  )
  np.testing.assert_array_equal(traced(tf.constant([1, 2])), draw([1, 2]))
  np.testing.assert_array_equal(traced(tf.constant([2, 2])), draw([2, 2]))


@pytest.mark.parametrize(
  "seed", [1.5, "one", [1, 2, 3], [1], [1.0, 2.0], [[1, 2]], {}, slice(2)], ids=repr
)
def test_refuses_a_seed(seed):
  with pytest.raises(
    ValueError, match="seed must be an int, an integer Tensor of shape .2., or None"
  ):
    draw(seed)


def test_fold_in():
  seed = seeds.stateless(3)
  folded = {tuple(seeds.fold_in(seed, *data).numpy()) for data in ([], [0], [1], [0, 1], [1, 0])}
  assert len(folded) == 5
  np.testing.assert_array_equal(seeds.fold_in(seed, 1, 0), seeds.fold_in(seeds.fold_in(seed, 1), 0))


# --- dtypes -------------------------------------------------------------------------------------


@few_variants
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16], ids=lambda dtype: dtype.name)
def test_a_target_in_half_precision(name, options, dtype):
  """Weights, value and coefficients are float32; log p keeps the 8 (11) bits that it has."""
  x = tf.constant([0.5, -1.0, 1.5])
  results = []
  for target_dtype in (tf.float32, dtype):
    loc, scale = tf.Variable(0.1 * x), tf.Variable(0.5 * tf.ones_like(x))
    with tf.GradientTape() as tape:
      estimate = bounds.estimate(
        bounds.get(name, **options),
        lambda z, dtype=target_dtype: tf.cast(-tf.square(z - x), dtype),
        tfd.Normal(loc, scale),
        num_samples=5,
        seed=3,
      )
    assert estimate.objective.dtype == estimate.log_weights.dtype == tf.float32
    assert estimate.samples.dtype == tf.float32
    results.append((estimate, np.stack(tape.gradient(estimate.objective, [loc, scale]))))
  (exact, exact_gradient), (half, half_gradient) = results
  # log p is about -2: its rounding is 2^-8 of that; the jackknife multiplies it by up to 20.
  scale = 20 if "order" in options else 1
  np.testing.assert_allclose(half.log_weights, exact.log_weights, atol=0.05)
  np.testing.assert_allclose(half.objective, exact.objective, atol=0.05 * scale)
  np.testing.assert_allclose(half_gradient, exact_gradient, atol=0.1 * scale)


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws", "jvi_dreg"])
def test_a_proposal_in_half_precision(name):
  loc = tf.Variable(tf.zeros([3], tf.float16))
  with tf.GradientTape() as tape:
    estimate = bounds.estimate(
      name, lambda z: -tf.square(z - 1), tfd.Normal(loc, tf.constant(1, tf.float16)), 5, seed=3
    )
  assert estimate.objective.dtype == estimate.log_weights.dtype == tf.float32
  assert estimate.samples.dtype == tf.float16
  gradient = tape.gradient(estimate.objective, loc)
  assert gradient.dtype == tf.float16
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["iwae", "iwae_dreg", "rws"])
@pytest.mark.parametrize("of_target,of_proposal", [("float64", "float32"), ("float32", "float64")])
@pytest.mark.parametrize("num_backward_samples", [None, 2])
def test_mixed_precision_is_resolved_upwards(name, of_target, of_proposal, num_backward_samples):
  loc = tf.Variable(np.zeros(3), dtype=of_proposal)
  with tf.GradientTape() as tape:
    estimate = bounds.estimate(
      name,
      lambda z: tf.cast(-tf.square(z - 1), of_target),
      tfd.Normal(loc, tf.constant(1, of_proposal)),
      num_samples=5,
      num_backward_samples=num_backward_samples,
    )
  assert estimate.objective.dtype == estimate.log_weights.dtype == tf.float64
  assert tape.gradient(estimate.objective, loc).dtype == of_proposal
