"""Tests of sample_weight: it weighs the examples in the objective and in what is reported."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from tests.models import helpers
from tests.models.layered import ENGINES, Layered, X, layered, step_of

WEIGHTS = np.array([0.5, 0.0, 2.0, 1.25, 3.0])
CONTEXT = helpers.binary(5, 4, seed=1)


def weighted_step(model, weights=WEIGHTS, **options):
  """What one step of SGD(1.0) adds to the parameters, and its logs."""
  optimizer = keras.optimizers.SGD(1.0)
  helpers.compiled(model, **({"optimizer": optimizer, "run_eagerly": True} | options))
  before = helpers.values(model)
  logs = model.train_on_batch(X, sample_weight=weights, return_dict=True)
  return [new - old for new, old in zip(helpers.values(model), before, strict=True)], logs


def double():
  return layered(dtype="float64")


@pytest.mark.parametrize("bound", ["iwae", "iwae_dreg", "rws"])
def test_each_example_weighs_what_it_should(bound):
  """The gradient of sum_b w_b bound_b / batch_size, Eqs. 11-17 read literally."""
  model = double()
  seeds = helpers.record_seeds(model)
  step, _ = weighted_step(model, bound=bound, num_samples=4)
  expected = helpers.gradient_by_hand(
    double(),
    tf.constant(X, tf.float64),
    None,
    seeds[0],
    4,
    lambda log_w: tuple(part * WEIGHTS for part in helpers.BY_HAND[bound](log_w)),
  )
  for actual, by_hand in zip(step, expected, strict=True):
    np.testing.assert_allclose(actual, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES.values())
def test_a_step_is_the_weighted_sum_of_those_on_single_examples(engine):
  total, _ = weighted_step(double(), **engine)
  parts = [weighted_step(double(), one, **engine)[0] for one in np.eye(5)[WEIGHTS > 0]]
  for actual, each in zip(total, zip(*parts, strict=True), strict=True):
    expected = sum(w * part for w, part in zip(WEIGHTS[WEIGHTS > 0], each, strict=True))
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"track_variance": ["rws"]}])
def test_weights_under_xla(options):
  model = double()
  helpers.compiled(model, optimizer=keras.optimizers.SGD(1.0), jit_compile=True, **options)
  before, steps = helpers.values(model), []
  for weights in (WEIGHTS, 3 * WEIGHTS):
    for variable, value in zip(model.trainable_variables, before, strict=True):
      variable.assign(value)
    model.optimizer.iterations.assign(0)
    model.train_on_batch(X, sample_weight=weights)
    steps.append([new - old for new, old in zip(helpers.values(model), before, strict=True)])
  for one, three in zip(*steps, strict=True):
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6, atol=1e-12)


def test_weights_of_one_change_nothing():
  step, logs = weighted_step(double(), np.ones(5, np.int32))
  expected, expected_logs = step_of(double())
  assert logs == expected_logs
  for actual, plain in zip(step, expected, strict=True):
    np.testing.assert_array_equal(actual, plain)


def test_an_alpha_that_adapts_and_a_scaled_loss():
  bound, scale = bounds.get("dreg_alpha", alpha=0.3), 64.0
  optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=scale)
  model = helpers.compiled(
    double(), bound=bound, adapt_alpha=True, optimizer=optimizer, run_eagerly=True
  )
  applied = []
  optimizer.apply = lambda gradients, variables: applied.extend(gradients)
  model.train_on_batch(X, sample_weight=WEIGHTS)
  expected, _ = weighted_step(double(), bound=bound)
  for actual, plain in zip(applied, expected, strict=True):
    np.testing.assert_allclose(-actual / scale, plain, rtol=1e-6, atol=1e-9)


def test_variances_are_those_of_the_weighted_gradient():
  logs = []
  for weights in (np.ones(5), np.full(5, 3.0)):
    model = double()
    options = {"gradient_statistics": True, "track_variance": ["iwae"]}
    helpers.compiled(model, optimizer=keras.optimizers.SGD(0.0), run_eagerly=True, **options)
    for _ in range(3):
      log = model.train_on_batch(X, sample_weight=weights, return_dict=True)
    logs.append(log)
  for name in ("iwae_gradient_variance", "proposal_gradient_variance", "model_gradient_variance"):
    assert logs[1][name] == pytest.approx(9 * logs[0][name], rel=1e-4)


def objectives(model, x, seen):
  """The bound of each example in an evaluation that has seen so many before."""
  values = []
  original = model.estimate

  def estimate(*args, **kwargs):
    result = original(*args, **kwargs)
    values.append(result.objective.numpy())
    return result

  model.estimate = estimate
  model._num_seen.reset_state()
  model._num_seen.update_state(seen)
  model.test_step(tf.constant(x))
  model.estimate = original
  return values[0]


def test_the_bound_is_a_weighted_mean_over_batches():
  model = helpers.compiled(double(), run_eagerly=True)
  logs = model.evaluate(X, sample_weight=WEIGHTS, batch_size=3, verbose=0, return_dict=True)
  values = np.concatenate([objectives(model, X[:3], 0), objectives(model, X[3:], 3)])
  assert logs["bound"] == pytest.approx(np.average(values, weights=WEIGHTS), rel=1e-6)
  assert 1 <= logs["effective_sample_size"] <= 5


def test_a_weight_of_0_leaves_out_an_example_that_is_impossible():
  class Impossible(Layered):
    def target_log_prob(self, x, z, context=None):
      log_p = super().target_log_prob(x, z, context)
      return tf.where(self.impossible, tf.constant(-np.inf, log_p.dtype), log_p)

  model = Impossible()
  model.impossible = tf.constant(WEIGHTS == 0)
  step, logs = weighted_step(model)
  assert all(np.all(np.isfinite(part)) for part in step)
  assert np.isfinite(logs["bound"])
  assert np.isfinite(model.test_on_batch(X, sample_weight=WEIGHTS)[0])


def pairs(batch_size):
  return tf.data.Dataset.from_tensor_slices((CONTEXT, X, WEIGHTS)).batch(batch_size)


def test_every_way_to_give_weights_is_the_same():
  def trained(make, *args, **kwargs):
    model = helpers.compiled(make(), run_eagerly=True)
    fit = {"shuffle": False, "verbose": 0}
    history = model.fit(*args, **fit, **kwargs).history
    return [history["bound"], *helpers.values(model)]

  def assert_same(*runs):
    for run in runs[1:]:
      for actual, expected in zip(run, runs[0], strict=True):
        np.testing.assert_array_equal(actual, expected)

  alone = {"sample_weight": WEIGHTS, "batch_size": 3}
  plain = trained(double, X, batch_size=3)
  runs = [
    trained(double, X, **alone),
    trained(double, X, sample_weight=WEIGHTS[:, None], batch_size=3),
  ]
  assert np.any(runs[0][1] != plain[1])
  assert_same(*runs)
  assert_same(
    trained(helpers.structured, CONTEXT, X, **alone), trained(helpers.structured, pairs(3))
  )


def test_validation_data_is_weighed():
  model = helpers.compiled(double(), optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)

  def bound(**options):
    return model.evaluate(X, verbose=0, return_dict=True, **options)["bound"]

  history = model.fit(X, validation_data=(X, None, WEIGHTS), verbose=0).history
  assert history["val_bound"] == [pytest.approx(bound(sample_weight=WEIGHTS))]
  assert bound() != pytest.approx(bound(sample_weight=WEIGHTS))


@pytest.mark.parametrize("weights", [np.ones((5, 2)), np.ones((5, 6)), np.ones(4)])
def test_weights_of_another_shape_are_refused(weights):
  model = helpers.compiled(layered(), run_eagerly=True)
  with pytest.raises(ValueError, match=r"sample_weight must have the shape \[batch_size\].*got"):
    model.train_on_batch(X, sample_weight=weights)


def test_class_weights_are_refused():
  model = helpers.compiled(layered(), run_eagerly=True)
  with pytest.raises(ValueError, match="class_weight.*sample_weight"):
    model.fit(X, class_weight={0: 1.0}, verbose=0)
  with pytest.raises(ValueError, match="class_weight.*sample_weight"):
    model.train_on_batch(X, class_weight={0: 1.0})
