"""Tests of the sparse backward pass: probabilities, exact unbiasedness, bounded memory."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, selection
from tests.problems import every_bound
from tests.test_theorem import Grid

tfd = tfp.distributions


def sizes(num_samples: int, spread: float, seed: int = 0) -> np.ndarray:
  """Coefficients' sizes of four examples, some of them 0."""
  generator = np.random.default_rng(seed)
  values = np.exp(spread * generator.standard_normal((num_samples, 4)))
  return np.where(generator.random(values.shape) < 0.2, 0.0, values)


def probabilities_by_bisection(r: np.ndarray, num_chosen: int) -> np.ndarray:
  """min(1, tau r) with tau found by bisection."""
  if np.count_nonzero(r) <= num_chosen:
    return (r > 0).astype(float)
  low, high = 0.0, num_chosen / r[r > 0].min()
  for _ in range(200):
    tau = (low + high) / 2
    low, high = (tau, high) if np.minimum(1, tau * r).sum() < num_chosen else (low, tau)
  return np.minimum(1, tau * r)


CASES = [
  (7, 3, 1.0),
  (7, 3, 5.0),
  (7, 6, 9.0),
  (5, 5, 1.0),
  (6, 4, 40.0),
  (6, 1, 1.0),
  (64, 16, 3.0),
]


@pytest.mark.parametrize("num_samples, num_chosen, spread", CASES)
def test_probabilities_are_proportional_up_to_certainty(num_samples, num_chosen, spread):
  r = sizes(num_samples, spread)
  actual = selection.inclusion_probabilities(tf.constant(r), num_chosen).numpy()
  for example in range(4):
    expected = probabilities_by_bisection(r[:, example], num_chosen)
    np.testing.assert_allclose(actual[:, example], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_chosen", [1, 2, 3, 5, 6])
def test_probabilities_of_equal_sizes(num_chosen):
  """The M-th largest has equals, among the largest and beyond them; one of few is all there is."""
  examples = [
    [2, 1, 1, 0, 1, 1e-3],
    [1, 1, 1, 1, 1, 1],
    [0, 0, 7, 0, 0, 0],
    [3, 3, 3, 0, 0, 0],
    [1e9, 1, 1, 1, 0, 1],
  ]
  r = np.array(examples).T
  actual = selection.inclusion_probabilities(tf.constant(r), num_chosen).numpy()
  for example in range(r.shape[1]):
    expected = probabilities_by_bisection(r[:, example], num_chosen)
    np.testing.assert_allclose(actual[:, example], expected, rtol=1e-9, atol=1e-12)


def pieces(probabilities: np.ndarray):
  """The offsets' intervals in which the choice does not change: (length, an offset within)."""
  ends = np.cumsum(probabilities, axis=0) % 1
  borders = np.unique(np.concatenate([[0.0, 1.0], ends.ravel()]))
  return [(high - low, (low + high) / 2) for low, high in itertools.pairwise(borders)]


@pytest.mark.parametrize("num_samples, num_chosen, spread", CASES)
def test_added_variance_is_that_of_all_choices(num_samples, num_chosen, spread):
  """Orthogonal gradients of one size: the mean of |S^ - S|^2 over every choice, enumerated."""
  r = sizes(num_samples, spread)
  signed = tf.constant(r * np.where(np.arange(num_samples) % 2, 1, -1)[:, np.newaxis])
  actual, dense = selection.added_variance((0.3 * signed, signed), num_chosen)
  p = selection.inclusion_probabilities(tf.constant(r), num_chosen).numpy()
  expected = np.zeros(4)
  for length, offset in pieces(p):
    offsets = tf.fill([4], tf.constant(offset, tf.float64))
    chosen, is_real = (t.numpy() for t in selection.systematic(tf.constant(p), num_chosen, offsets))
    for example in range(4):
      weights = np.zeros(num_samples)
      real = chosen[is_real[:, example], example]
      weights[real] = 1 / p[real, example]
      expected[example] += length * np.sum((r[:, example] * (weights - 1)) ** 2)
  np.testing.assert_allclose(actual, [0.09 * expected, expected], rtol=1e-8, atol=1e-12)
  np.testing.assert_allclose(dense[1], np.sum(r**2, axis=0))


@pytest.mark.parametrize("num_samples, num_chosen, spread", CASES)
def test_each_sample_is_chosen_as_often_as_it_is_probable(num_samples, num_chosen, spread):
  p = selection.inclusion_probabilities(tf.constant(sizes(num_samples, spread)), num_chosen).numpy()
  share = np.zeros_like(p)
  for length, offset in pieces(p):
    offsets = tf.fill([4], tf.constant(offset, tf.float64))
    chosen, is_real = (t.numpy() for t in selection.systematic(tf.constant(p), num_chosen, offsets))
    assert chosen.shape == (num_chosen, 4)
    for example in range(4):
      real = chosen[is_real[:, example], example]
      assert len(set(real)) == len(real)
      share[real, example] += length
  np.testing.assert_allclose(share, p, atol=1e-12)


NUM_SAMPLES, BATCH, DIM = 6, 3, 2
SEED = [3, 4]


class Problem:
  """A Normal proposal and a target that shares its location, in float64, a number of times."""

  def __init__(self, copies=1):
    rng = np.random.default_rng(0)
    self.loc = tf.Variable(np.tile(rng.standard_normal((BATCH, DIM)), [copies, 1, 1]))
    self.mean = tf.Variable(np.tile([0.3, -0.2], [copies, 1]))
    self.noise = np.tile(rng.standard_normal((NUM_SAMPLES, BATCH, DIM)), [1, copies, 1])

  def gradient(self, bound, **options):
    with tf.GradientTape() as tape:
      loc = tf.reshape(self.loc, [-1, DIM])
      proposal = tfd.Independent(Grid(loc, tf.constant(0.8, tf.float64), self.noise), 1)
      estimate = bounds.estimate(bound, self.target, proposal, NUM_SAMPLES, seed=SEED, **options)
    return estimate, tape.gradient(estimate.objective, [self.loc, self.mean])

  def target(self, z):
    centre = self.mean + 0.1 * tf.reduce_sum(self.loc, axis=[1, 2])[:, tf.newaxis]
    normal = tfd.Normal(tf.repeat(centre, BATCH, axis=0), 1.5)
    return tf.reduce_sum(normal.log_prob(z), axis=-1)


# One sample for one bound of each kind: the choice knows the coefficients alone.
CHOICES = [(bound, 4) for bound in (*every_bound(), bounds.get("jvi_dreg", order=2))]
CHOICES += [(bounds.get(name), 1) for name in ("iwae", "iwae_dreg", "rws", "jvi_dreg", "vimco")]


@pytest.mark.parametrize(("bound", "num_chosen"), CHOICES, ids=str)
def test_unbiased_exactly(bound, num_chosen, monkeypatch):
  """The mean over the one uniform number that chooses: a copy of the problem for each piece."""
  dense, expected = Problem().gradient(bound)
  largest = tf.reduce_max(tf.abs(tf.stack(bound.coefficients(dense.log_weights))), axis=0)
  p = selection.inclusion_probabilities(largest, num_chosen).numpy()
  lengths, offsets = np.array(pieces(p)).T
  fixed = tf.constant(np.repeat(offsets, BATCH))
  monkeypatch.setattr(selection, "uniform", lambda *arguments: fixed)
  problem = Problem(len(offsets))
  sparse, gradients = problem.gradient(bound, num_backward_samples=num_chosen)
  for one, all_copies in (
    (dense.objective, sparse.objective),
    (dense.log_weights, sparse.log_weights),
  ):
    copies = np.tile(one, len(offsets))
    np.testing.assert_allclose(all_copies, copies, rtol=1e-12)
  # The choice matters, so that the mean says something.
  assert len(set(gradients[1][:, 0].numpy())) > 1
  for actual, exact in zip(gradients, expected, strict=True):
    mean = np.tensordot(lengths, actual, axes=1)
    np.testing.assert_allclose(mean, exact[0], atol=1e-11)


def test_all_samples_is_the_dense_estimate():
  problem = Problem()
  for gradient in zip(
    problem.gradient("jvi_dreg")[1],
    problem.gradient("jvi_dreg", num_backward_samples=NUM_SAMPLES)[1],
    strict=True,
  ):
    np.testing.assert_array_equal(*gradient)


def test_the_gradient_is_taken_through_few_samples_and_memory_is_bounded():
  """In the compiled graph nothing has a gradient of all K samples through the target."""
  weight = tf.Variable(tf.ones([DIM, 11]))
  calls = []

  def target(z):
    calls.append(z.shape[0])
    return -tf.reduce_sum(tf.tanh(tf.einsum("kbd,de->kbe", z, weight)), axis=-1)

  @tf.function(autograph=False)
  def gradient():
    with tf.GradientTape() as tape:
      proposal = tfd.Independent(tfd.Normal(tf.zeros([BATCH, DIM]), 1.0), 1)
      objective = bounds.estimate(
        "iwae_dreg", target, proposal, 1025, seed=SEED, num_backward_samples=5
      ).objective
    return tape.gradient(objective, weight)

  assert np.all(np.isfinite(gradient()))
  # A rest, what is recorded, and the loop's body, in pieces.
  assert sorted(calls) == [1, 5] + [16] * 16
  operations = gradient.get_concrete_function().graph.get_operations()
  widths = [
    output.shape[0]
    for op in operations
    for output in op.outputs
    if output.shape.rank == 3 and output.shape[-1] == 11
  ]
  assert widths
  assert max(widths) <= 256


def test_chunks_evaluate_what_one_call_does():
  problem = Problem()
  proposal = tfd.Independent(tfd.Normal(problem.loc[0], 0.8), 1)
  options = {"num_samples": 600, "seed": SEED}
  dense = bounds.estimate("iwae_dreg", problem.target, proposal, **options)
  sparse = bounds.estimate("iwae_dreg", problem.target, proposal, **options, num_backward_samples=8)
  np.testing.assert_allclose(sparse.log_weights, dense.log_weights, rtol=1e-12)
  np.testing.assert_allclose(sparse.objective, dense.objective, rtol=1e-12)


def test_a_joint_proposal_and_samples_of_weight_zero():
  loc = tf.Variable(tf.zeros([BATCH]))

  def target(z):
    return tf.where(z[0] > 0, -(z[0] ** 2) - z[1] ** 2, -np.inf)

  with tf.GradientTape() as tape:
    proposal = tfd.JointDistributionSequential([tfd.Normal(loc, 1.0), tfd.Normal(loc, 2.0)])
    estimate = bounds.estimate(
      "jvi_dreg", target, proposal, NUM_SAMPLES, seed=SEED, num_backward_samples=4
    )
  assert np.any(np.isinf(estimate.log_weights))
  assert np.all(np.isfinite(estimate.objective))
  assert np.all(np.isfinite(tape.gradient(estimate.objective, loc)))


@pytest.mark.parametrize(
  "value, error", [(0, ValueError), (10, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_bad_numbers_are_refused(value, error):
  with pytest.raises(error, match=r"num_backward_samples must be .*got"):
    Problem().gradient("iwae", num_backward_samples=value)
