"""Tests of the KL divergence's weight: by hand, as a schedule, saved and resumed, refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from tests.models import helpers

X = helpers.binary(8, 6)


def float64_model(**options):
  model = helpers.vae(dtype="float64")
  helpers.perturb(model)
  return helpers.compiled(model, optimizer=keras.optimizers.SGD(1.0), num_samples=4, **options)


@pytest.mark.parametrize(
  ("bound", "tracking"),
  [
    *((bound, False) for bound in ("iwae", "iwae_dreg", "elbo_stl", "vr_iwae_dreg")),
    *((bound, True) for bound in ("iwae_dreg", "elbo_stl")),
  ],
)
def test_a_step_is_that_of_the_weighted_bound(bound, tracking):
  """r = p(x | z) p(z)^beta, and beta on log q, in `bounds.estimate` alone."""
  beta = 0.3
  options = {"track_variance": ["iwae"]} if tracking else {}
  model = float64_model(bound=bound, kl_weight=beta, **options)
  x = tf.constant(X, tf.float64)
  before = helpers.values(model)
  seeds = helpers.record_seeds(model)
  logs = model.train_step(x)
  after = helpers.values(model)
  if tracking:
    # The engine that tracks draws with the same seed of the step.
    plain = float64_model(bound=bound, kl_weight=beta)
    helpers.record_seeds(plain)
    plain.train_step(x)
    expected = helpers.values(plain)
  else:
    for variable, value in zip(model.trainable_variables, before, strict=True):
      variable.assign(value)
    with tf.GradientTape() as tape:
      estimate = bounds.estimate(
        bound,
        lambda z: model.likelihood(z).log_prob(x) + beta * model.prior().log_prob(z),
        model.proposal(x),
        4,
        seed=seeds[0],
        proposal_weight=beta,
      )
      objective = tf.reduce_mean(estimate.objective)
    np.testing.assert_allclose(logs["bound"], objective, rtol=1e-5)
    gradients = tape.gradient(objective, model.trainable_variables)
    expected = [b + g.numpy() for b, g in zip(before, gradients, strict=True)]
  for actual, e in zip(after, expected, strict=True):
    np.testing.assert_allclose(actual, e, rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(logs["kl_weight"], beta, rtol=1e-6)


def schedule():
  return keras.optimizers.schedules.PolynomialDecay(0.0, 4, end_learning_rate=1.0)


def test_a_schedule_follows_the_updates():
  model = helpers.compiled(helpers.vae(), kl_weight=schedule(), jit_compile=True)
  weights = [model.train_on_batch(X, return_dict=True)["kl_weight"] for _ in range(6)]
  np.testing.assert_allclose(weights, [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-6)


def test_a_variable_moves_it():
  weight = tf.Variable(0.0, trainable=False)
  model = helpers.compiled(helpers.vae(), kl_weight=weight)
  assert all("kl" not in variable.path for variable in model.variables)
  values = []
  for value in (0.0, 2.0):
    weight.assign(value)
    values.append(model.train_on_batch(X, return_dict=True)["kl_weight"])
  assert values == [0.0, 2.0]


@pytest.mark.parametrize("make", [schedule, lambda: 0.3, lambda: tf.Variable(0.7)])
def test_it_is_saved_and_resumed(make, tmp_path):
  model = helpers.compiled(helpers.vae(), kl_weight=make(), run_eagerly=True)
  for _ in range(2):
    model.train_on_batch(X)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  for _ in range(2):
    expected = model.train_on_batch(X, return_dict=True)
    assert loaded.train_on_batch(X, return_dict=True) == expected
  for actual, e in zip(loaded.variables, model.variables, strict=True):
    np.testing.assert_array_equal(actual, e)


def test_evaluation_bounds_log_p():
  plain = helpers.compiled(helpers.vae(), run_eagerly=True)
  weighted = helpers.compiled(helpers.vae(), kl_weight=0.2, run_eagerly=True)
  assert plain.evaluate(X, verbose=0) == weighted.evaluate(X, verbose=0)
  np.testing.assert_array_equal(*(m.log_likelihood(X, 7) for m in (plain, weighted)))


def test_one_is_no_weight():
  model = helpers.compiled(helpers.vae(), bound="rws", kl_weight=1, run_eagerly=True)
  assert "kl_weight" not in model.train_on_batch(X, return_dict=True)


@pytest.mark.parametrize("value", [-0.1, "warm", True, None, float("nan"), tf.zeros(2)])
def test_weights_that_are_none_are_refused(value):
  with pytest.raises(ValueError, match="kl_weight must be"):
    helpers.compiled(helpers.vae(), kl_weight=value)


@pytest.mark.parametrize("options", [{"bound": "rws"}, {"track_variance": ["stl"]}])
def test_bounds_that_take_no_weight_are_refused(options):
  for weight in (0.5, schedule()):
    with pytest.raises(ValueError, match=r"must be 1 for (rws|stl)"):
      helpers.compiled(helpers.vae(), kl_weight=weight, **options)
