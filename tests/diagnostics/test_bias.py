"""Tests the test of bias, and the errors and limits that a comparison states."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds
from tests.diagnostics.helpers import LogNormal, compare, row_of
from tests.models import helpers

tfd = tfp.distributions


def measured(name, num_measurements, num_samples=5, size=20):
  """[num_measurements, size]: independent measurements of a gradient, the same samples for all.

  q = N(0.3, 0.8^2) in each coordinate, narrower than the posterior N(0.6, 1.2^2): weights are
  skewed, and through them the coordinates depend on each other.
  """
  loc = tf.fill([num_measurements, size], 0.3)
  with tf.GradientTape() as tape:
    tape.watch(loc)
    objective = bounds.estimate(
      name,
      lambda z: -0.5 * tf.reduce_sum(((z - 0.6) / 1.2) ** 2, axis=-1),
      tfd.Independent(tfd.Normal(loc, 0.8), 1),
      num_samples,
      seed=1,
    ).objective
  return tape.gradient(objective, loc).numpy()


def rows_of(name, reference, num_measurements, repetitions):
  one, other = (measured(b, num_measurements * repetitions) for b in (name, reference))
  shape = [repetitions, num_measurements, -1]
  return [row_of(*pair) for pair in zip(one.reshape(shape), other.reshape(shape), strict=True)]


@pytest.mark.parametrize("name", ["iwae", "jvi", "elbo"])
def test_without_bias_small_p_values_are_rare(name):
  """500 comparisons of 100 measurements each, in 20 coordinates, at a fixed seed.

  Uniform p-values, which are the most that is allowed, would fail at another seed with probability
  7e-4 by the number below 0.01: 5 are expected, 14 are too many; and 2e-4 by that below 0.001.
  """
  other = {"iwae": "iwae_dreg", "jvi": "jvi_dreg", "elbo": "elbo_stl"}[name]
  p_values = np.array([row.p_value for row in rows_of(other, name, 100, 500)])
  assert (p_values < 0.01).sum() < 14
  assert (p_values < 1e-3).sum() < 5


def test_rws_differ_as_iwae_differ():
  """Sample by sample: the p-value of iwae_dreg against iwae is that of rws_dreg against rws."""
  iwae, iwae_dreg, rws, rws_dreg = (
    measured(name, 100) for name in ("iwae", "iwae_dreg", "rws", "rws_dreg")
  )
  np.testing.assert_allclose(rws_dreg - rws, iwae - iwae_dreg, atol=1e-5)
  assert np.abs(iwae - iwae_dreg).max() > 0.1


def test_the_limit_of_the_bias_and_the_error_of_the_snr_hold():
  """Against what all 50000 measurements say, for an estimator with a bias of 0.3.

  Were the limit to hold with probability 0.99 (as simulated), 0.95 of 500 would fail at another
  seed with probability 1e-10; and 4e-6 if the SNR were within twice its error with 0.95.
  """
  rows = rows_of("rws_dreg", "iwae", 100, 500)
  one, other = measured("rws_dreg", 50_000), measured("iwae", 50_000)
  bias = np.linalg.norm((one - other).mean(axis=0)) / np.linalg.norm(other.mean(axis=0))
  snr = np.linalg.norm(one.mean(axis=0)) / math.sqrt(one.var(axis=0).sum())
  assert 0.25 < bias < 0.4
  assert np.mean([row.bias_limit >= bias for row in rows]) > 0.95
  assert np.mean([abs(row.snr - snr) < 2 * row.snr_error for row in rows]) > 0.9
  assert abs(np.mean([row.snr for row in rows]) - snr) < 0.02


@pytest.mark.parametrize("size,errors", [(1, 2), (1, 3), (3, 3), (50, 4)])
def test_the_limit_of_the_bias_holds_where_the_noise_has_few_directions(size, errors):
  """A bias of some standard errors in the first of the coordinates, whose deviations are 1 / i.

  Simulated, the limit held in 0.95 or more of 200; fewer than 0.9 would come with probability 1e-3.
  """
  random = np.random.default_rng(1)
  scale = 1 / np.arange(1, size + 1)
  bias = errors / math.sqrt(100) * np.eye(size)[0]
  rows = []
  for _ in range(200):
    reference = 10 + 0.1 * random.normal(size=[100, size])
    rows.append(row_of(reference + scale * random.normal(size=[100, size]) + bias, reference))
  true = np.linalg.norm(bias) / math.sqrt(100 * size)
  assert np.mean([row.bias_limit >= true for row in rows]) > 0.9


@pytest.mark.parametrize("size,snr", [(1, 5.0), (10, 2.0), (30, 0.5)])
def test_the_error_of_the_snr_is_its_deviation(size, snr):
  """The deviation of 200 SNRs is known to 5 %: beyond 0.8 or 1.25 is four errors away or more."""
  random = np.random.default_rng(2)
  draws = snr + random.normal(size=[200, 100, size])
  rows = [row_of(draw, 10 + random.normal(size=draw.shape)) for draw in draws]
  ratio = np.mean([row.snr_error for row in rows]) / np.std([row.snr for row in rows])
  assert 0.8 < ratio < 1.25


def test_opposite_biases_do_not_cancel():
  """A bias of +-0.02 standard deviations in halves of 2000 coordinates, too small in any of them.

  Its t-statistic is 6 to 8, and p < 1e-6 takes 4.8; a false alarm comes with probability 1e-3.
  """
  random = np.random.default_rng(0)
  reference = random.normal(size=[400, 2000])
  bias = 0.02 * np.repeat([1.0, -1.0], 1000)
  row = row_of(reference + random.normal(size=[400, 2000]) + math.sqrt(2) * bias, reference)
  assert row.p_value < 1e-6
  assert abs(row.max_t) < 5
  assert row_of(reference + random.normal(size=[400, 2000]), reference).p_value > 1e-3


def test_stl_is_found_to_be_biased_and_iwae_dreg_is_not():
  """The false alarm, p < 1e-3 for iwae_dreg or jvi_dreg, would come with probability 2e-3.

  STL's t-statistic is 19 to 20, and p < 1e-6 takes 4.9: that is 14 standard errors away.
  """
  model = helpers.vae(latent_dim=2)
  helpers.perturb(model)
  names = ["stl", "iwae_dreg", "rws", "rws_dreg", "jvi_dreg"]
  result = compare(model, helpers.binary(9, 6), names, 8, 300)
  rows = {row.bound: row for row in result.rows}
  assert rows["stl"].p_value < 1e-6
  assert rows["stl"].is_biased and rows["stl"].bias > 0.3
  for name in ("iwae_dreg", "jvi_dreg"):
    assert rows[name].p_value > 1e-3
    assert not rows[name].is_biased
    assert rows[name].cosine > 0.98
  best = "iwae" if rows["iwae"].snr > rows["iwae_dreg"].snr else "iwae_dreg"
  assert result.recommendation.startswith(f"L_K, K = 8: take {best}.")


class Step(LogNormal):
  """A likelihood that jumps where a latent is 1."""

  def likelihood(self, z, context):
    logits = tf.where(z[..., :1] > 1, 3.0, -3.0) * tf.ones([5])
    return tfd.Independent(tfd.Bernoulli(logits), 1)


def test_a_target_that_is_not_continuous_is_named_as_a_cause():
  """log p jumps by 3 at the median of the proposal. The statistic is 25; p < 0.001 takes 3.2."""
  x = np.tile([1.0, 1.0, 1.0, 0.0, 0.0], [8, 1])
  model = Step()
  model._build_for(x, None)
  model.encoder.kernel.assign(tf.zeros([5, 6]))
  result = compare(model, x, ["iwae_dreg"], 4, 200)
  row = result.rows[1]
  assert row.unbiased and row.is_biased
  take, cause = result.recommendation.splitlines()
  assert "take iwae." in take
  assert "iwae_dreg" in cause and "not continuous in z" in cause
