"""Tests of binary latents: bounds without a path, the prior, saving, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import diagnostics, models
from tests.models import helpers
from tests.seeding import seed_layers

X = helpers.binary(8, 6)


def discrete(seed=0, **options):
  seed_layers(seed)
  options = {"latent_dim": 3, "hidden_units": (5, 4)} | options
  return models.DiscreteVAE(helpers.DATA_MEAN, **options)


SPARSE = {"num_samples": 8, "num_backward_samples": 3, "kl_weight": 0.5}


@pytest.mark.parametrize(
  ("bound", "options"), [("vimco_star", SPARSE), ("rws", {}), ("elbo_loo", {})]
)
def test_it_learns(bound, options):
  optimizer = keras.optimizers.Adam(0.03)
  model = helpers.compiled(discrete(), optimizer=optimizer, bound=bound, **options)
  data = tf.data.Dataset.from_tensor_slices(X).batch(4).repeat()
  history = model.fit(data, steps_per_epoch=10, epochs=5, verbose=0).history["bound"]
  assert history[-1] > history[0] + 0.2


def test_log_likelihood_is_the_sum_over_all_latents():
  """8 latent states; the error of 100,000 samples is below 0.005 for weights as even as these."""
  model = discrete(dtype="float64")
  helpers.perturb(model)
  z = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, 1, 8).transpose(2, 1, 0)
  x = tf.constant(X, tf.float64)
  log_p = model.likelihood(tf.constant(z)).log_prob(x) + 3 * np.log(0.5)
  exact = tf.reduce_logsumexp(log_p, axis=0)
  np.testing.assert_allclose(model.log_likelihood(X, 100_000), exact, atol=0.02)
  np.testing.assert_allclose(model.target_log_prob(x, tf.constant(z)), log_p, rtol=1e-12)


def test_tracking_and_statistics():
  options = {"bound": "vimco_star", "track_variance": ["vimco", "rws"], "gradient_statistics": True}
  model = helpers.compiled(discrete(), run_eagerly=True, **options)
  history = model.fit(X, batch_size=4, epochs=2, verbose=0).history
  for name in ("proposal", "model", "vimco", "rws"):
    assert history[f"{name}_gradient_variance"][-1] > 0


@pytest.mark.parametrize("bound", ["iwae_dreg", "iwae", "stl"])
def test_bounds_with_a_path_are_refused(bound):
  model = helpers.compiled(discrete(), bound=bound, run_eagerly=True)
  with pytest.raises(ValueError, match=f"proposal.*{bound}.*vimco_star"):
    model.fit(X, verbose=0)


def test_it_is_saved_samples_and_reconstructs(tmp_path):
  model = helpers.compiled(discrete(), bound="vimco_star", run_eagerly=True)
  model.fit(X, verbose=0)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert loaded.evaluate(X, verbose=0) == model.evaluate(X, verbose=0)
  assert loaded.sample(3, seed=0).shape == (3, 6)
  assert loaded.reconstruct(X, seed=0).shape == (8, 6)
  assert set(np.unique(loaded.proposal(tf.constant(X)).sample(5, seed=[0, 1]))) <= {0, 1}


def test_bernoulli_samples_have_their_probabilities():
  """20,000 samples of 3: the standard error is at most 0.0036; five of them."""
  logits = tf.constant([[-2.0, 0.0, 1.5]])
  samples = models.conditional.IndependentBernoulli(logits).sample(20_000, seed=[1, 2])
  assert samples.shape == [20_000, 1, 3]
  means = tf.reduce_mean(tf.cast(samples, tf.float32), axis=0)
  np.testing.assert_allclose(means, tf.sigmoid(logits), atol=0.018)


def test_compare_has_vimco_as_the_reference_and_prefers_vimco_star():
  """At K = 64 its variance is 1e-4 of vimco's: no noise of 30 measurements hides that."""
  optimizer = keras.optimizers.Adam(0.03)
  model = helpers.compiled(discrete(), optimizer=optimizer, bound="vimco_star", run_eagerly=True)
  model.fit(X, batch_size=4, epochs=5, verbose=0)
  result = diagnostics.compare(
    model,
    X,
    ["vimco", "vimco_star", "ovis", "rws"],
    num_samples=64,
    num_measurements=30,
    measure_cost=False,
  )
  rows = {row.bound: row for row in result.rows}
  assert set(rows) == {"vimco", "vimco_star", "ovis", "rws"}
  assert all(row.reference == "vimco" for row in rows.values())
  assert rows["vimco_star"].unbiased and not rows["ovis"].unbiased
  assert rows["vimco_star"].variance < 0.1 * rows["vimco"].variance
  assert "take vimco_star" in result.recommendation
