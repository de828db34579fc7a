"""Tests of regularizers and add_loss: they are part of the objective, not of the bound."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from tests.models import helpers
from tests.models.layered import ENGINES, X, layered, step_of

L2 = 0.3


def dense(units=4, l2=0.0, **options):
  return keras.layers.Dense(
    units, "tanh", kernel_regularizer=keras.regularizers.L2(l2) if l2 else None, **options
  )


class Penalty(keras.layers.Layer):
  """Adds a loss that is no mean over anything, so that it shows what it was computed from."""

  def __init__(self, strength, **kwargs):
    super().__init__(**kwargs)
    self.strength = strength

  def call(self, inputs):
    if self.strength:
      self.add_loss(self.strength * penalty(inputs))
    return inputs


def penalty(inputs):
  return tf.reduce_sum(tf.cast(inputs, tf.float64) ** 3)


def assert_differ_by(with_losses, without, expected, **tolerance):
  """`expected` of each parameter, None for 0."""
  assert any(e is not None and np.any(np.abs(e) > 1e-3) for e in expected)
  for actual, plain, e in zip(with_losses, without, expected, strict=True):
    np.testing.assert_allclose(actual - plain, 0 if e is None else e, **tolerance)


@pytest.mark.parametrize(
  ("engine", "bound"),
  [
    *(("one bound", bound) for bound in ("iwae_dreg", "rws", "elbo")),
    ("track_variance", "elbo"),
    ("sparse", "iwae_dreg"),
  ],
)
def test_l2_is_in_the_step_and_not_in_the_bound(engine, bound):
  options = {"bound": bound} | ENGINES[engine]
  steps, logs = zip(
    *(
      step_of(layered([dense(l2=l2, dtype="float64")], dtype="float64"), **options)
      for l2 in (L2, 0.0)
    ),
    strict=True,
  )
  kernel = layered([dense(dtype="float64")], dtype="float64").encoder.layers[0].kernel.numpy()
  expected = [-2 * L2 * kernel, *[None] * (len(steps[0]) - 1)]
  assert_differ_by(*steps, expected, rtol=1e-7, atol=1e-12)
  assert logs[0]["regularization"] == pytest.approx(L2 * np.sum(kernel**2), rel=1e-6)
  assert logs[0]["bound"] == logs[1]["bound"]
  assert "regularization" not in logs[1]


# Every two of place, engine and bound meet.
@pytest.mark.parametrize(
  ("where", "engine", "bound"),
  [
    *(("encoder", "one bound", bound) for bound in ("iwae_dreg", "rws")),
    *(("encoder", "track_variance", bound) for bound in ("jvi_dreg", "iwae")),
    *(("decoder", "one bound", bound) for bound in ("jvi_dreg", "iwae")),
    *(("decoder", "track_variance", bound) for bound in ("iwae_dreg", "rws")),
  ],
)
def test_the_gradient_of_an_added_loss_is_its_own(where, engine, bound):
  """Also where it passes the samples, whose path is scaled for the bound."""
  options = {"bound": bound, "num_samples": 4} | ENGINES[engine]
  steps = []
  for strength in (0.05, 0.0):
    layers = {where: [dense(dtype="float64"), Penalty(strength, dtype="float64")]}
    model = layered(**layers, dtype="float64")
    seeds = helpers.record_seeds(model)
    steps.append(step_of(model, **options)[0])
  if engine == "track_variance":
    # The other engine draws from the same seed.
    model = layered(**layers, dtype="float64")
    seeds = helpers.record_seeds(model)
    step_of(model, bound=bound, num_samples=4)
  model = layered(**layers, dtype="float64")
  with tf.GradientTape() as tape:
    x = tf.constant(X, tf.float64)
    z = model.proposal(x, None).sample(4, seed=seeds[0])
    net, inputs = (model.encoder, x) if where == "encoder" else (model.decoder, z)
    loss = 0.05 * penalty(net.layers[0](inputs))
  expected = [
    None if g is None else -g.numpy() for g in tape.gradient(loss, model.trainable_variables)
  ]
  assert_differ_by(*steps, expected, rtol=1e-6, atol=1e-9)


def test_l2_in_a_step_under_xla():
  """The bound has no gradient in the weights of inputs that are 0: the penalty's is left."""
  model, x = layered([dense(l2=L2)]), X.copy()
  x[:, :2] = 0
  kernel = model.encoder.layers[0].kernel.numpy()
  step, _ = step_of(model, x, run_eagerly=False, jit_compile=True)
  np.testing.assert_allclose(step[0][:2], -2 * L2 * kernel[:2], rtol=1e-4, atol=1e-6)
  assert np.abs(step[0][2:] + 2 * L2 * kernel[2:]).max() > 1e-3


def test_activity_is_divided_by_the_batch_size_where_keras_does():
  regularizer = keras.layers.ActivityRegularization(l2=0.2, dtype="float64")
  model = layered([dense(dtype="float64"), regularizer], dtype="float64")
  activity = model.encoder.layers[0](X.astype("float64"))
  regularizer(activity)
  (expected,) = regularizer.losses  # Keras 3.10 does not divide it.
  _, logs = step_of(model)
  assert logs["regularization"] == pytest.approx(float(expected), rel=1e-6)


def test_losses_of_other_calls_are_not_counted():
  model = helpers.compiled(layered([dense(l2=L2), Penalty(1.0)]), run_eagerly=True)
  helpers.compiled(model, run_eagerly=True, optimizer=keras.optimizers.SGD(0.0))
  first = model.train_on_batch(X, return_dict=True)["regularization"]
  activity = model.encoder.layers[0](X)
  kernel = model.encoder.layers[0].kernel
  assert first == pytest.approx(
    float(penalty(activity)) + L2 * float(tf.reduce_sum(kernel**2)), rel=1e-5
  )
  model.build((None, 6))
  model.log_likelihood(X, num_samples=3)
  model.reconstruct(X)
  model.target_log_prob(X, tf.zeros([2, 5, 3]))
  for _ in range(2):
    assert model.test_on_batch(X, return_dict=True)["regularization"] == pytest.approx(first)
    assert model.train_on_batch(X, return_dict=True)["regularization"] == pytest.approx(first)
  assert len(model.losses) == 1, "the regularizer alone: no call is in progress"


def test_the_loss_is_reported_over_epochs_and_validation():
  model = helpers.compiled(layered([dense(l2=L2)]), optimizer=keras.optimizers.SGD(0.0))
  history = model.fit(X, batch_size=2, epochs=2, validation_data=X, verbose=0).history
  expected = L2 * float(tf.reduce_sum(model.encoder.layers[0].kernel ** 2))
  assert history["regularization"] == pytest.approx([expected] * 2, rel=1e-5)
  assert history["val_regularization"] == pytest.approx([expected] * 2, rel=1e-5)
  reported = model.evaluate(X, verbose=0, return_dict=True)["regularization"]
  assert reported == pytest.approx(expected, rel=1e-5)


def test_accumulated_gradients_hold_the_loss_once():
  steps = []
  for l2 in (L2, 0.0):
    model = layered([dense(l2=l2)])
    before = helpers.values(model)
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    helpers.compiled(model, optimizer=optimizer, run_eagerly=True)
    model.fit(X[:4], batch_size=2, shuffle=False, verbose=0)
    steps.append([new - old for new, old in zip(helpers.values(model), before, strict=True)])
  expected = [-2 * L2 * before[0], *[None] * (len(before) - 1)]
  assert_differ_by(*steps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["one bound", "track_variance"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_scaled_loss_and_layers_of_lower_precision(dtype, engine):
  steps = []
  for l2 in (L2, 0.0):
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=64.0)
    model = layered([dense(l2=l2, dtype=dtype)], dtype=dtype)
    steps.append(step_of(model, optimizer=optimizer, **ENGINES[engine])[0])
  kernel = layered([dense(dtype=dtype)], dtype=dtype).encoder.layers[0].kernel.numpy()
  expected = [-2 * L2 * kernel, *[None] * (len(steps[0]) - 1)]
  assert_differ_by(*steps, expected, rtol=1e-4, atol=1e-5)


def test_l2_with_an_alpha_that_adapts():
  gradients = []
  for l2 in (L2, 0.0):
    model = layered([dense(l2=l2)])
    options = {"bound": bounds.get("dreg_alpha", alpha=0.3), "adapt_alpha": True}
    helpers.compiled_with_adam(model, run_eagerly=True, **options)
    model.optimizer.apply = lambda applied, variables: gradients.append(applied)
    model.train_on_batch(X)
  kernel = layered([dense()]).encoder.layers[0].kernel.numpy()
  expected = [2 * L2 * kernel, *[None] * (len(gradients[0]) - 1)]
  assert_differ_by(*gradients, expected, rtol=1e-4, atol=1e-6)


def test_gradient_statistics_are_those_of_the_bound():
  logs = []
  for l2 in (L2, 0.0):
    model = layered([dense(l2=l2)])
    options = {"optimizer": keras.optimizers.SGD(0.0), "gradient_statistics": True}
    helpers.compiled(model, run_eagerly=True, **options)
    for _ in range(3):
      log = model.train_on_batch(X, return_dict=True)
    log["loss"] -= log.pop("regularization", 0)
    logs.append(log)
  assert logs[0].pop("loss") == pytest.approx(logs[1].pop("loss"), rel=1e-6)
  assert logs[0] == logs[1]


def test_own_models_report_what_they_did():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  assert set(model.fit(X, verbose=0).history) == {"loss", "bound", "effective_sample_size"}
  assert model.metrics_names == ["loss", "bound", "effective_sample_size"]


def test_losses_of_a_likelihood_that_is_evaluated_twice_are_refused():
  model = layered(decoder=[keras.layers.ActivityRegularization(l2=0.1)])
  with pytest.raises(ValueError, match="num_backward_samples=3.*ActivityRegularization"):
    step_of(model, num_backward_samples=3)
