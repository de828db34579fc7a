"""Tests of what training reports: the bound, the effective sample size, gradient statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import models
from tests.models import helpers

X = helpers.binary(10, 6)
CONTEXT = helpers.binary(10, 4, seed=1)


def test_bound_and_effective_sample_size():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  seeds = helpers.record_seeds(model)
  logs = model.train_step(tf.constant(X))
  (seed,) = seeds
  # The metrics are those of the step's own samples, before its update.
  log_w = models.VAE.estimate(
    helpers.vae(), tf.constant(X), bound="iwae", num_samples=5, seed=seed
  ).log_weights.numpy()
  w = np.exp(log_w)
  np.testing.assert_allclose(logs["bound"], np.log(w.mean(axis=0)).mean(), rtol=1e-5)
  sizes = w.sum(axis=0) ** 2 / (w**2).sum(axis=0)
  assert np.all((sizes > 1) & (sizes < 5))
  np.testing.assert_allclose(logs["effective_sample_size"], sizes.mean(), rtol=1e-5)


def test_metrics_are_running_means_that_start_anew():
  model = helpers.compiled(helpers.vae(), run_eagerly=True, optimizer=keras.optimizers.SGD(0.0))
  first = float(model.train_step(tf.constant(X[:4]))["bound"])
  second = float(model.train_step(tf.constant(X[4:]))["bound"])
  model.reset_metrics()
  model.optimizer.iterations.assign(1)
  alone = float(model.train_step(tf.constant(X[4:]))["bound"])
  np.testing.assert_allclose(second, 0.4 * first + 0.6 * alone, rtol=1e-5)
  assert [metric.name for metric in model.metrics] == ["loss", "bound", "effective_sample_size"]


@pytest.mark.parametrize("bound", ["iwae_dreg", "jvi"])
def test_effective_sample_size_of_one_extreme_weight(bound):
  model = helpers.compiled(helpers.vae(), bound=bound, run_eagerly=True)
  for variable in model.decoder.trainable_variables:
    variable.assign(1e4 * variable)
  logs = model.train_step(tf.constant(X))
  assert 1 <= logs["effective_sample_size"] <= 2


def test_logs_of_fit_and_evaluate():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  history = model.fit(X, epochs=2, validation_data=X, verbose=0).history
  names = {"loss", "bound", "effective_sample_size"}
  assert set(history) == names | {f"val_{name}" for name in names}
  assert set(model.evaluate(X, verbose=0, return_dict=True)) == names
  assert model.metrics_names == ["loss", "bound", "effective_sample_size"]


def test_early_stopping_can_watch_the_bound():
  model = helpers.compiled(helpers.vae(), optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
  stop = keras.callbacks.EarlyStopping("val_bound", mode="max", patience=1)
  history = model.fit(X, epochs=5, validation_data=X, verbose=0, callbacks=[stop]).history
  assert len(history["bound"]) == 2


class _Shared(models.LatentVariableModel):
  """Proposal and prior see the context through one layer."""

  def __init__(self):
    super().__init__()
    self.trunk = keras.layers.Dense(5, "tanh")
    self.encoder = models.ConditionalNormal(3, (4,))
    self.conditional_prior = models.ConditionalNormal(3, ())
    self.decoder = models.ConditionalBernoulli(helpers.DATA_MEAN, hidden_units=(4,))
    self.trunk.build((None, 4))
    self.encoder.build([(None, 6), (None, 5)])
    self.conditional_prior.build((None, 5))
    self.decoder.build((None, 3))
    self.built = True

  def prior(self, context):
    return self.conditional_prior.distribution(self.trunk(context))

  def proposal(self, x, context):
    return self.encoder.distribution([x, self.trunk(context)])

  def likelihood(self, z, context):
    return self.decoder.distribution(z)


def _cases():
  def groups_of(*names):
    return lambda model: [v for name in names for v in getattr(model, name).trainable_variables]

  yield helpers.vae, X, groups_of("encoder"), groups_of("decoder")
  structured = groups_of("conditional_prior", "decoder")
  yield helpers.structured, (CONTEXT, X), groups_of("encoder"), structured
  shared = groups_of("trunk", "conditional_prior", "decoder")
  yield _Shared, (CONTEXT, X), groups_of("trunk", "encoder"), shared


def _check_statistics(model, steps, groups):
  """Runs the steps, and compares the last logs with averages of decay 0.99 computed by hand."""
  seeds = helpers.record_seeds(model)
  history = [[], []]
  for data in steps:
    tensors = tf.nest.map_structure(tf.constant, data)
    *context, x = tensors if isinstance(tensors, tuple) else (tensors,)
    context = context[0] if context else None
    before = helpers.values(model)
    logs = model.train_step(tensors)
    after = helpers.values(model)
    for variable, value in zip(model.trainable_variables, before, strict=True):
      variable.assign(value)
    with tf.GradientTape(persistent=True) as tape:
      estimate = type(model).estimate(
        model, x, context, bound=model.bound, num_samples=5, seed=seeds[-1]
      )
      objective = tf.reduce_mean(estimate.objective)
    for part, group in zip(history, groups, strict=True):
      gradient = tape.gradient(objective, group(model))
      part.append(np.concatenate([np.ravel(g) for g in gradient]))
    for variable, value in zip(model.trainable_variables, after, strict=True):
      variable.assign(value)
  for name, part in zip(("proposal", "model"), history, strict=True):
    gradients = np.array(part, np.float64)
    weights = 0.99 ** np.arange(len(steps))[::-1]
    first = np.average(gradients, axis=0, weights=weights)
    second = np.average(gradients**2, axis=0, weights=weights)
    variance = np.mean(second - first**2)
    np.testing.assert_allclose(logs[f"{name}_gradient_variance"], variance, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize(("make", "data", "of_proposal", "of_model"), list(_cases()))
def test_gradient_statistics_are_debiased_averages(make, data, of_proposal, of_model):
  model = helpers.compiled(
    make(), run_eagerly=True, gradient_statistics=True, optimizer=keras.optimizers.SGD(0.1)
  )
  _check_statistics(model, [data] * 3, [of_proposal, of_model])


def test_every_step_has_its_own_noise_when_the_loss_is_scaled():
  optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
  model = helpers.compiled(helpers.vae(), run_eagerly=True, optimizer=optimizer)
  seeds = helpers.record_seeds(model)
  for _ in range(3):
    model.train_step(tf.constant(X))
  assert len({tuple(seed) for seed in seeds}) == 3


def test_gradient_statistics_when_the_loss_is_scaled():
  model = helpers.vae()
  optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=256.0)
  helpers.compiled(model, run_eagerly=True, gradient_statistics=True, optimizer=optimizer)
  groups = [
    lambda model: model.encoder.trainable_variables,
    lambda model: model.decoder.trainable_variables,
  ]
  _check_statistics(model, [X] * 3, groups)


def test_a_step_that_overflows_does_not_spoil_the_statistics():
  """An optimizer that scales the loss skips it; the averages are those of the other steps."""
  last = []
  for scale, steps in ((2.0**19, 6), (2.0**16, 3)):  # Three steps of the first overflow.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=scale)
    model = helpers.vae(dtype="mixed_float16")
    helpers.compiled(model, run_eagerly=True, gradient_statistics=True, optimizer=optimizer)
    logs = [model.train_step(tf.constant(X)) for _ in range(steps)]
    last.append([float(logs[-1][f"{name}_gradient_variance"]) for name in ("proposal", "model")])
    assert float(logs[0]["model_gradient_variance"]) < 1e-6
  assert last[0] == pytest.approx(last[1], rel=1e-4)
  assert min(last[0]) > 0


def test_gradient_statistics_of_frozen_model_parameters():
  model = helpers.vae()
  model.decoder.trainable = False
  helpers.compiled(model, run_eagerly=True, gradient_statistics=True)
  frozen = [variable.numpy() for variable in model.decoder.variables]
  history = model.fit(X, batch_size=5, verbose=0).history
  assert "proposal_gradient_variance" in history
  assert "model_gradient_variance" not in history
  for variable, value in zip(model.decoder.variables, frozen, strict=True):
    np.testing.assert_array_equal(variable, value)


def test_gradient_statistics_change_nothing_else():
  parameters = []
  for gradient_statistics in (False, True):
    model = helpers.compiled(
      helpers.vae(), gradient_statistics=gradient_statistics, run_eagerly=True
    )
    for _ in range(2):
      model.train_step(tf.constant(X))
    parameters.append(helpers.values(model))
  for actual, expected in zip(*parameters, strict=True):
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("seed", range(4))
def test_gradient_statistics_of_a_single_step(seed):
  model = helpers.compiled(helpers.vae(), gradient_statistics=True, run_eagerly=True, seed=seed)
  logs = model.train_step(tf.constant(X))
  for name in ("proposal", "model"):
    # The variance of one gradient is 0, also where rounding says otherwise.
    assert 0 <= logs[f"{name}_gradient_variance"] < 1e-6


def test_gradient_statistics_are_off_unless_asked_for():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  variables = len(model.variables)
  history = model.fit(X, verbose=0).history
  assert set(history) == {"loss", "bound", "effective_sample_size"}
  assert len(model.variables) == variables == 12


def test_gradient_statistics_can_be_switched_off_again():
  model = helpers.compiled(helpers.vae(), run_eagerly=True, gradient_statistics=True)
  model.fit(X, verbose=0)
  assert len(model.variables) == 12 and model.followers.variables
  helpers.compiled(model, run_eagerly=True)
  assert set(model.fit(X, verbose=0).history) == {"loss", "bound", "effective_sample_size"}
  assert not model.followers.variables


def test_gradients_are_not_followed_once_other_variables_are_trainable():
  model = helpers.compiled(helpers.vae(), run_eagerly=True, gradient_statistics=True)
  model.decoder.trainable = False
  with pytest.raises(ValueError, match="follow the gradients of 12 .*got 6.*compile again"):
    model.fit(X, verbose=0)
  helpers.compiled(model, run_eagerly=True, gradient_statistics=True)
  assert "proposal_gradient_variance" in model.fit(X, verbose=0).history
