"""Training with further estimators: tracked variances, an alpha that adapts, a frozen model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from dregs_tf.models import adaptive_alpha
from dregs_tf.models.adaptive_alpha import AdaptiveAlpha
from tests.models import helpers

X = helpers.binary(9, 6)
CONTEXT = helpers.binary(9, 4, seed=1)
CASES = [(helpers.vae, X), (helpers.structured, (CONTEXT, X))]
both_models = pytest.mark.parametrize("make,data", CASES, ids=["vae", "structured"])


def logs_of(model, data, steps=3):
  batch = tf.nest.map_structure(tf.constant, data)
  for _ in range(steps):
    logs = model.train_step(batch)
  return {name: float(value) for name, value in logs.items()}


@both_models
@pytest.mark.parametrize("bound", ["rws", "jvi_dreg"])
def test_a_tracked_estimator_is_the_one_that_training_on_it_would_follow(make, data, bound):
  """At a learning rate of 0 every run is at the same parameters, on the same samples."""
  names = ["iwae", "elbo_stl", "jvi", "rws_dreg"]

  def still(**options):
    optimizer = keras.optimizers.SGD(0.0)
    return helpers.compiled(make(), optimizer=optimizer, run_eagerly=True, **options)

  logs = logs_of(still(bound=bound, track_variance=names), data)
  for name in names:
    expected = logs_of(still(bound=name, gradient_statistics=True), data)
    for statistic in ("variance", "snr"):
      assert logs[f"{name}_gradient_{statistic}"] == pytest.approx(
        expected[f"proposal_gradient_{statistic}"], rel=1e-4
      )


@both_models
def test_tracking_does_not_change_training(make, data):
  trained = []
  for names in ([], ["iwae", "stl"]):
    model = helpers.compiled(make(), track_variance=names, run_eagerly=True)
    logs_of(model, data)
    trained.append(helpers.values(model))
  for actual, expected in zip(*trained, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


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


# --- alpha --------------------------------------------------------------------------------------


def adams_direction(gradients):
  """u of Adam after these gradients, in float64."""
  m = v = 0.0
  for g in gradients:
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
  t = len(gradients)
  return m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def path_gradients(steps, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=[2, steps, 7]) + np.array([0.4, 0.9])[:, None, None]


def follow(gradients, start):
  """An AdaptiveAlpha that has seen these pairs of gradients, [2, steps, size]."""
  layer = AdaptiveAlpha(start)
  layer.build([(4,), (gradients[0].shape[-1] - 4,), (2,)])

  @tf.function
  def see(g_i, g_r):
    layer.update(*([g[:4], g[4:], None] for g in (g_i, g_r)))

  for g_i, g_r in zip(*tf.constant(gradients, tf.float32), strict=True):
    see(g_i, g_r)
  return layer


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_slope_is_that_of_adams_direction(monkeypatch, alpha):
  """Against a central difference over the alpha that all the steps were taken with."""
  g_i, g_r = path_gradients(12)
  monkeypatch.setattr(adaptive_alpha, "_LEARNING_RATE", 0.0)
  layer = follow((g_i, g_r), alpha)
  above, below = (adams_direction(list(g_i + (alpha + h) * (g_r - g_i))) for h in (1e-5, -1e-5))
  actual = np.concatenate([layer._slope(0), layer._slope(1)])
  np.testing.assert_allclose(actual, (above - below) / 2e-5, rtol=2e-3, atol=2e-4)


def test_the_first_move_of_alpha():
  """One step gives a slope, the next a hypergradient, and Adam's first step is its sign."""
  gradients = path_gradients(2, seed=3)
  layer = follow(gradients, 0.5)
  before = follow(gradients[:, :1], 0.5)
  assert float(before.alpha) == 0.5
  expected = np.sign(np.sum(gradients[0, 1] * np.concatenate(before._z[:2])))
  assert np.sign(float(layer.alpha) - 0.5) == expected


def test_the_slope_of_the_position_remembers_as_long_as_momentum(monkeypatch):
  """Against a central difference of the last steps' sum, older ones discounted."""
  g_i, g_r = path_gradients(12)
  monkeypatch.setattr(adaptive_alpha, "_LEARNING_RATE", 0.0)
  layer = follow((g_i, g_r), 0.3)

  def position(alpha):
    g = list(g_i + alpha * (g_r - g_i))
    return sum(0.9 ** (12 - t) * adams_direction(g[:t]) for t in range(1, 13))

  expected = (position(0.3 + 1e-5) - position(0.3 - 1e-5)) / 2e-5
  np.testing.assert_allclose(np.concatenate(layer._z[:2]), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("better,start", [("iwae_dreg", 1.0), ("rws_dreg", 0.0)])
def test_alpha_goes_to_the_gradient_with_the_more_signal(better, start):
  """Both point the bound's way, one with a tenth of the noise: alpha leaves the other's end."""
  rng = np.random.default_rng(1)
  noise = rng.normal(size=[2, 600, 900]) * np.array([1.0, 10.0])[:, None, None]
  gradients = 0.5 + (noise if better == "iwae_dreg" else noise[::-1])
  alpha = float(follow(gradients, start).alpha)
  assert alpha < 0.4 if better == "iwae_dreg" else alpha > 0.6


def test_alpha_leaves_a_gradient_that_points_elsewhere():
  """RWS-DReG's mean opposes the bound's: alpha ends at 0."""
  rng = np.random.default_rng(2)
  gradients = rng.normal(size=[2, 600, 20]) + np.array([0.5, -0.5])[:, None, None]
  assert float(follow(gradients, 1.0).alpha) < 0.1


def test_training_uses_the_alpha_of_the_moment():
  """The gradient of a step is that of dreg_alpha at the value that the logs report."""
  model = helpers.compiled(
    helpers.vae(), bound=bounds.get("dreg_alpha", alpha=0.3), adapt_alpha=True, run_eagerly=True
  )
  logs_of(model, X)
  alpha = float(model.followers.adaptive_alpha.alpha)
  assert alpha != pytest.approx(0.3, abs=1e-4)
  model.optimizer = keras.optimizers.SGD(1.0)
  model.optimizer.build(model.trainable_variables)
  before = helpers.values(model)
  logs = model.train_step(tf.constant(X))
  assert float(logs["alpha"]) == pytest.approx(alpha)
  moved = [new - old for new, old in zip(helpers.values(model), before, strict=True)]
  for variable, value in zip(model.trainable_variables, before, strict=True):
    variable.assign(value)
  fixed = helpers.compiled(
    model, bound=bounds.get("dreg_alpha", alpha=alpha), optimizer=keras.optimizers.SGD(1.0)
  )
  expected, _ = helpers.gradient_of_step(fixed, X)
  for actual, e in zip(moved, expected, strict=True):
    np.testing.assert_allclose(actual, e, rtol=1e-3, atol=1e-6)


def test_a_tracked_dreg_alpha_that_is_trained_on_moves_too():
  """Its gradient is the one that is trained on; another fixed alpha stays as it is."""
  moving, fixed = (bounds.get("dreg_alpha", alpha=alpha) for alpha in (0.3, 0.9))
  options = {"bound": moving, "adapt_alpha": True, "run_eagerly": True}
  for tracked, is_same in ((moving, True), (fixed, False)):
    model = helpers.compiled(
      helpers.vae(), track_variance=[tracked], gradient_statistics=True, **options
    )
    logs_of(model, X)
    logs = model.train_step(tf.constant(X))
    name = "gradient_variance"
    same = float(logs[f"dreg_alpha_{name}"]) == pytest.approx(float(logs[f"proposal_{name}"]))
    assert same == is_same


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
    helpers.compiled(helpers.vae(), **options)
  assert all(word in str(error.value) for word in words), error.value


def test_float16_has_too_little_range():
  with pytest.raises(ValueError, match="mixed_bfloat16"):
    helpers.compiled(helpers.vae(dtype="mixed_float16"), track_variance=["iwae"])


@both_models
def test_a_frozen_model_is_not_trained_and_the_proposal_is(make, data):
  model = helpers.compiled(make(), freeze_model=True, run_eagerly=True)
  frozen = [v.numpy() for layer in model.model_layers for v in layer.variables]
  free = [v.numpy() for v in model.encoder.variables]
  logs_of(model, data)
  for actual, expected in zip(
    [v for layer in model.model_layers for v in layer.variables], frozen, strict=True
  ):
    np.testing.assert_array_equal(actual, expected)
  assert any(np.any(v.numpy() != old) for v, old in zip(model.encoder.variables, free, strict=True))
  helpers.compiled(model, run_eagerly=True)
  assert len(model.trainable_variables) == len(frozen) + len(free), "no longer frozen"


@both_models
def test_what_follows_gradients_is_saved(tmp_path, make, data):
  options = {
    "bound": bounds.get("dreg_alpha", alpha=0.3),
    "adapt_alpha": True,
    "track_variance": ["iwae", bounds.get("jvi", order=2)],
    "freeze_model": True,
  }
  model = helpers.compiled(make(), **options)
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
  assert {"alpha", "iwae_gradient_variance", "jvi_gradient_snr"} <= set(more[0])
