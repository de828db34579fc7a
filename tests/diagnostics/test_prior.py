"""compare(gradient_of="prior"): both gradients of a learned prior, and what the report says."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds, diagnostics, seeds
from dregs_tf.diagnostics import plan
from dregs_tf.diagnostics.report import Comparison
from dregs_tf.training import runners
from dregs_tf.training.config import CompareConfig, TrainConfig
from dregs_tf.training.errors import ConfigError
from tests.models import helpers

BATCH = helpers.binary(3, 4), helpers.binary(3, 6, seed=1)
OPTIONS = {"num_samples": 4, "num_measurements": 30, "seed": 5, "gradient_of": "prior"}


@pytest.fixture(scope="module")
def result():
  model = helpers.structured()
  names = ["iwae_dreg", "rws", "iwae"]
  return model, diagnostics.compare(model, BATCH, names, **OPTIONS)


def test_rows(result):
  """Means and variances of what `estimate` gives on the same samples."""
  model, comparison = result
  assert [row.bound for row in comparison.rows] == ["iwae: direct", "iwae: dreg"]
  assert all(row.unbiased for row in comparison.rows)
  assert [row.is_reference for row in comparison.rows] == [True, False]
  assert all(row.milliseconds > 0 for row in comparison.rows)
  variables = model.conditional_prior.trainable_variables
  assert comparison.num_coordinates == model.conditional_prior.count_params()
  context, x = map(tf.constant, BATCH)

  @tf.function(autograph=False)
  def gradient(seed, kind):
    with tf.GradientTape() as tape:
      options = {"bound": "iwae_dreg", "num_samples": 4, "prior_gradient": kind}
      bound = tf.reduce_mean(model.estimate(x, context, seed=seed, **options).objective)
    return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(bound, variables)], axis=0)

  for row, kind in zip(comparison.rows, ("direct", "dreg"), strict=True):
    seed = seeds.stateless(5)
    all_gradients = np.array([gradient(seeds.fold_in(seed, i), kind) for i in range(30)])
    np.testing.assert_allclose(row.variance, all_gradients.var(axis=0, ddof=1).mean(), rtol=1e-3)


def test_report(result):
  _, comparison = result
  assert "parameters of the prior" in comparison.table()
  direct, dreg = comparison.rows
  for ratio, words in (
    (0.5, ['L_K, K = 4: take prior_gradient="dreg"', "0.5 times"]),
    (1.2, ['L_K, K = 4: keep prior_gradient="direct"', "dreg does not pay", "1.2 times"]),
  ):
    other = dataclasses.replace(dreg, variance=ratio * direct.variance, p_value=0.4)
    text = Comparison((direct, other), 30, 9, 3, "prior").recommendation
    assert all(word in text for word in words), text
  biased = dataclasses.replace(dreg, p_value=1e-6)
  assert "a bias was found" in Comparison((direct, biased), 30, 9, 3, "prior").recommendation


def test_k_that_a_value_is_not_defined_for():
  planned = plan.of_priors([bounds.get("iwae"), bounds.get("jvi")], [1, 5])
  assert [e.name for e in planned[1]] == ["iwae: direct", "iwae: dreg"]
  assert len(planned[5]) == 4


def test_the_bound_of_a_value_is_its_total():
  (direct, dreg) = plan.of_priors([bounds.get("iwae"), bounds.get("dreg_alpha")], [4])[4]
  assert direct.bound == dreg.bound == bounds.get("iwae")
  assert direct.bound.is_unbiased(4)


def test_models_that_are_refused():
  with pytest.raises(ValueError, match="its prior depends on no trainable variable"):
    diagnostics.compare(helpers.vae(), BATCH[1], "iwae", **OPTIONS)
  with pytest.raises(ValueError, match="gradient_of must be proposal or prior, got 'q'"):
    diagnostics.compare(helpers.vae(), BATCH[1], "iwae", gradient_of="q")


def test_the_flag(monkeypatch):
  with pytest.raises(ConfigError, match="--gradient_of must be one of proposal, prior, got 'q'"):
    CompareConfig(logdir="x", gradient_of="q")
  monkeypatch.setattr(runners, "_load_run", lambda logdir: (TrainConfig(), 1, None))
  with pytest.raises(ConfigError, match="--gradient_of=prior needs a learned prior.*--model=vae"):
    runners.compare(CompareConfig(logdir="x", gradient_of="prior"))
