"""Tests of the alpha that adapts while training, and of the optimizers that it follows."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from dregs_tf.models import adaptive_alpha
from dregs_tf.models.adaptive_alpha import AdaptiveAlpha
from tests.models import helpers

X = helpers.binary(9, 6)
ADAMS = [{"epsilon": 1e-8}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}]
both_adams = pytest.mark.parametrize("options", ADAMS, ids=["usual", "other"])


def logs_of(model, data, steps=3):
  batch = tf.constant(data)
  for _ in range(steps):
    logs = model.train_step(batch)
  return {name: float(value) for name, value in logs.items()}


def adams_directions(gradients, options):
  """u of Keras' Adam at each of these gradients, in float64."""
  variable = keras.Variable(np.zeros(gradients.shape[-1]), dtype="float64")
  optimizer = keras.optimizers.Adam(1.0, **options)
  directions = []
  for gradient in gradients:
    before = variable.numpy()
    optimizer.apply([tf.constant(-gradient)], [variable])
    directions.append(variable.numpy() - before)
  return directions


def path_gradients(steps, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=[2, steps, 7]) + np.array([0.4, 0.9])[:, None, None]


def follow(gradients, start, options=ADAMS[0]):
  """An AdaptiveAlpha that has seen these pairs of gradients, [2, steps, size]."""
  layer = AdaptiveAlpha(start, keras.optimizers.Adam(**options))
  layer.build([(4,), (gradients[0].shape[-1] - 4,), (2,)])

  @tf.function(autograph=False)
  def see(g_i, g_r):
    layer.update(*([g[:4], g[4:], None] for g in (g_i, g_r)))

  for g_i, g_r in zip(*tf.constant(gradients, tf.float32), strict=True):
    see(g_i, g_r)
  return layer


@pytest.mark.parametrize(
  ("alpha", "options"),
  [(0.0, ADAMS[0]), (0.3, ADAMS[0]), (0.3, ADAMS[1]), (1.0, ADAMS[1])],
  ids=["0-usual", "0.3-usual", "0.3-other", "1-other"],
)
def test_the_slope_is_that_of_adams_direction(monkeypatch, alpha, options):
  """Against a central difference over the alpha that all the steps were taken with."""
  g_i, g_r = path_gradients(12)
  monkeypatch.setattr(adaptive_alpha, "_LEARNING_RATE", 0.0)
  layer = follow((g_i, g_r), alpha, options)
  above, below = (
    adams_directions(g_i + (alpha + h) * (g_r - g_i), options)[-1] for h in (1e-5, -1e-5)
  )
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


@both_adams
def test_the_slope_of_the_position_remembers_as_long_as_momentum(monkeypatch, options):
  """Against a central difference of the last steps' sum, older ones discounted."""
  g_i, g_r = path_gradients(12)
  monkeypatch.setattr(adaptive_alpha, "_LEARNING_RATE", 0.0)
  layer = follow((g_i, g_r), 0.3, options)
  beta_1 = options.get("beta_1", 0.9)

  def position(alpha):
    directions = adams_directions(g_i + alpha * (g_r - g_i), options)
    return sum(beta_1 ** (11 - t) * direction for t, direction in enumerate(directions))

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
  model = helpers.compiled_with_adam(
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
    model = helpers.compiled_with_adam(
      helpers.vae(), track_variance=[tracked], gradient_statistics=True, **options
    )
    logs_of(model, X)
    logs = model.train_step(tf.constant(X))
    name = "gradient_variance"
    same = float(logs[f"dreg_alpha_{name}"]) == pytest.approx(float(logs[f"proposal_{name}"]))
    assert same == is_same


# --- optimizers ---------------------------------------------------------------------------------


def compiled(optimizer, **options):
  bound = bounds.get("dreg_alpha", alpha=0.3)
  return helpers.compiled(
    helpers.vae(), optimizer=optimizer, bound=bound, adapt_alpha=True, **options
  )


@pytest.mark.parametrize(
  ("optimizer", "words"),
  [
    (keras.optimizers.SGD(0.1), ["SGD"]),
    ("sgd", ["SGD"]),
    (keras.optimizers.Nadam(), ["Nadam"]),
    (keras.optimizers.LossScaleOptimizer(keras.optimizers.RMSprop()), ["RMSprop"]),
    (keras.optimizers.Adam(amsgrad=True), ["amsgrad=True"]),
    (keras.optimizers.Adam(gradient_accumulation_steps=2), ["gradient_accumulation_steps=2"]),
    (keras.optimizers.Adam(clipnorm=0.5), ["clipnorm=0.5"]),
    (keras.optimizers.Adam(clipvalue=0.5), ["clipvalue=0.5"]),
    (keras.optimizers.Adam(global_clipnorm=0.5), ["global_clipnorm=0.5"]),
  ],
)
def test_an_optimizer_whose_steps_are_not_adams_is_refused(optimizer, words):
  with pytest.raises(ValueError) as error:
    compiled(optimizer)
  assert all(word in str(error.value) for word in ["adapt_alpha", *words]), error.value


def test_the_optimizers_own_betas_are_taken():
  """By a model, and where an optimizer scales the loss for another."""
  adam = {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}
  scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(**adam), initial_scale=8.0)
  moved = []
  for optimizer in (keras.optimizers.Adam(), keras.optimizers.Adam(**adam), scaled):
    model = compiled(optimizer, run_eagerly=True)
    logs_of(model, X, steps=1)
    layer = model.followers.adaptive_alpha
    moved.append([layer._beta_1, layer._beta_2, layer._epsilon])
  assert moved == [[0.9, 0.999, 1e-7], [0.5, 0.9, 0.1], [0.5, 0.9, 0.1]]


def test_a_step_that_overflows_does_not_spoil_alpha():
  gradients = path_gradients(6)
  gradients[:, 3] = [[np.inf], [np.nan]]
  layer = follow(gradients, 0.5)
  assert 0.49 < float(layer.alpha) < 0.51
  assert all(np.all(np.isfinite(variable)) for variable in layer.variables)
