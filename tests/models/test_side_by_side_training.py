"""Training with further estimators: tracked variances, and options beside them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, models
from tests.models import helpers
from tests.seeding import seed_layers

tfd = tfp.distributions

X = helpers.binary(9, 6)
CONTEXT = helpers.binary(9, 4, seed=1)
CASES = [(helpers.vae, X), (helpers.structured, (CONTEXT, X))]
both_models = pytest.mark.parametrize("make,data", CASES, ids=["vae", "structured"])


def logs_of(model, data, steps=3):
  batch = tf.nest.map_structure(tf.constant, data)
  for _ in range(steps):
    logs = model.train_step(batch)
  return {name: float(value) for name, value in logs.items()}


@pytest.mark.parametrize(
  ("make", "data", "bound"),
  [(*case, bound) for case, bound in zip(CASES, ("rws", "jvi_dreg"), strict=True)],
  ids=["vae", "structured"],
)
def test_a_tracked_estimator_is_the_one_that_training_on_it_would_follow(make, data, bound):
  """At a learning rate of 0 every run is at the same parameters, on the same samples."""
  names = ["iwae", "elbo_stl", "jvi", "rws_dreg"]

  def still(**options):
    optimizer = keras.optimizers.SGD(0.0)
    return helpers.compiled(make(), optimizer=optimizer, run_eagerly=True, **options)

  logs = logs_of(still(bound=bound, track_variance=names), data, steps=2)
  for name in names:
    expected = logs_of(still(bound=name, gradient_statistics=True), data, steps=2)
    variance = pytest.approx(expected["proposal_gradient_variance"], rel=1e-4)
    assert logs[f"{name}_gradient_variance"] == variance


@both_models
def test_tracking_does_not_change_training(make, data):
  trained = []
  for names in ([], ["iwae", "stl"]):
    model = helpers.compiled_with_adam(make(), track_variance=names, run_eagerly=True)
    logs_of(model, data)
    trained.append(helpers.values(model))
  for actual, expected in zip(*trained, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


class Embedded(models.LatentVariableModel):
  """Labels that prior and proposal embed with one table: the sum of two sparse gradients."""

  def __init__(self):
    super().__init__()
    self.table, self.decoder = keras.layers.Embedding(20, 2), keras.layers.Dense(6)
    self.to_loc, self.to_prior = keras.layers.Dense(2), keras.layers.Dense(2)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(self.to_prior(self.table(context)), tf.ones(2))

  def proposal(self, x, context):
    return tfd.MultivariateNormalDiag(self.table(context) + self.to_loc(x), tf.ones(2))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.decoder(z)), 1)


def test_tracking_does_not_change_the_training_of_an_embedding():
  """Adam moves the rows that a sparse gradient has, and every row for a dense one."""
  batches = [(np.array(labels * 3), X) for labels in ([1, 1, 2], [5, 2, 7], [4, 3, 3])]
  tables = []
  for names, run_eagerly in (([], True), (["iwae"], True), (["iwae"], False)):
    seed_layers(0)
    options = {"optimizer": keras.optimizers.Adam(0.1), "run_eagerly": run_eagerly}
    model = helpers.compiled(Embedded(), track_variance=names, **options)
    for batch in batches:
      model.train_on_batch(*batch)
    tables.append(model.table.get_weights()[0])
  for table in tables[1:]:
    np.testing.assert_allclose(table, tables[0], rtol=1e-4, atol=1e-6)


def test_tracking_under_xla_and_a_scaled_loss():
  optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=64.0)
  options = {"track_variance": ["iwae", "rws_dreg"], "gradient_statistics": True}
  eager = logs_of(
    helpers.compiled(
      helpers.vae(), optimizer=keras.optimizers.SGD(0.0), run_eagerly=True, **options
    ),
    X,
  )
  model = helpers.compiled(helpers.vae(), optimizer=optimizer, jit_compile=True, **options)
  history = model.fit(X, batch_size=9, epochs=3, shuffle=False, verbose=0).history
  # The noise differs between XLA and none; a scale of 64 that were left in would show as 4096.
  for name in ("iwae", "rws_dreg", "proposal"):
    ratio = history[f"{name}_gradient_variance"][-1] / eager[f"{name}_gradient_variance"]
    assert 0.05 < ratio < 20, (name, ratio)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "options,words",
  [
    ({"track_variance": ["iwae"], "num_backward_samples": 2}, ["track_variance", "num_backward"]),
    ({"track_variance": ["iwae", "iwae"]}, ["track_variance", "twice"]),
    ({"track_variance": ["dreg"]}, ["dreg", "iwae_dreg"]),
    ({"track_variance": ["jvi"], "num_samples": 1}, ["jvi", "num_samples"]),
    ({"bound": "stl", "adapt_alpha": True}, ["adapt_alpha", "stl"]),
  ],
)
def test_options_that_do_not_go_together_are_refused(options, words):
  with pytest.raises(ValueError) as error:
    helpers.compiled_with_adam(helpers.vae(), **options)
  assert all(word in str(error.value) for word in words), error.value


def test_float16_has_too_little_range():
  with pytest.raises(ValueError, match="mixed_bfloat16"):
    helpers.compiled(helpers.vae(dtype="mixed_float16"), track_variance=["iwae"])


@both_models
def test_what_follows_gradients_is_saved(tmp_path, make, data):
  options = {
    "bound": bounds.get("dreg_alpha", alpha=0.3),
    "adapt_alpha": True,
    "track_variance": ["iwae", bounds.get("jvi", order=2)],
    "freeze_model": True,
  }
  model = helpers.compiled_with_adam(make(), run_eagerly=True, **options)
  fit = {"batch_size": 9, "shuffle": False, "verbose": 0}
  x, y = data if isinstance(data, tuple) else (data, None)
  model.fit(x, y, **fit)
  model.save(tmp_path / "m.keras")
  loaded = keras.saving.load_model(tmp_path / "m.keras")
  assert len(loaded.trainable_variables) == len(model.trainable_variables)
  assert loaded.bound == model.bound
  assert loaded.followers.tracked == model.followers.tracked
  more = [m.fit(x, y, **fit).history for m in (model, loaded)]
  assert more[0] == more[1]
  assert {"alpha", "iwae_gradient_variance", "jvi_gradient_variance"} <= set(more[0])
