"""Tests of what logs hold: the loss that Keras' callbacks look at, and what a subclass returns."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf.training import callbacks
from tests.models import helpers
from tests.models.layered import ENGINES, Layered, X, layered

tfd = tfp.distributions


def _still(model, **options):
  """The model compiled so that training changes nothing."""
  options = {"optimizer": keras.optimizers.SGD(0.0), "run_eagerly": True} | options
  return helpers.compiled(model, **options)


def _penalized():
  return layered([keras.layers.Dense(6, kernel_regularizer=keras.regularizers.L2(0.25))])


# --- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_loss_is_the_negative_bound_and_the_penalties(engine):
  model = _still(_penalized(), **ENGINES[engine])
  history = model.fit(X, batch_size=2, validation_data=X, verbose=0).history
  for prefix in ("", "val_"):
    loss, bound, penalty = (
      history[prefix + name][0] for name in ("loss", "bound", "regularization")
    )
    assert penalty > 0.1
    assert loss == pytest.approx(penalty - bound, rel=1e-5)


def test_loss_weighs_examples_as_training_does():
  model = _still(layered())
  weights = np.array([2, 0, 1, 0.5, 3], "float32")
  logs = model.test_on_batch(X, sample_weight=weights, return_dict=True)
  # Keras divides the weighted sum by the number of examples, a mean metric by the weights.
  assert logs["loss"] == pytest.approx(-logs["bound"] * weights.sum() / len(X), rel=1e-5)


def test_an_infinite_bound_without_weight_is_no_part_of_the_loss():
  class Impossible(Layered):
    def likelihood(self, z, context):
      logits = np.full(6, 0.5, "float32")
      logits[0] = np.inf
      return tfd.Independent(tfd.Bernoulli(logits + 0 * super().likelihood(z, context).mean()), 1)

  model = _still(Impossible())
  x = np.ones((2, 6), "float32")
  x[0, 0] = 0
  logs = model.test_on_batch(x, sample_weight=np.array([0.0, 1.0]), return_dict=True)
  assert np.isfinite(logs["loss"])
  assert model.test_on_batch(x, return_dict=True)["loss"] == np.inf


def test_evaluate_lists_the_loss_first():
  model = _still(layered())
  listed = model.evaluate(X, verbose=0)
  by_name = model.evaluate(X, verbose=0, return_dict=True)
  assert listed == [by_name[name] for name in ("loss", "bound", "effective_sample_size")]


# --- Keras' callbacks with their defaults -------------------------------------------------------


def test_nan_terminates_training():
  class Continuous(Layered):
    def likelihood(self, z, context):
      return tfd.Independent(tfd.Normal(super().likelihood(z, context).mean(), 1.0), 1)

  x = X.copy()
  x[0, 0] = np.nan
  model = _still(Continuous())
  stop = keras.callbacks.TerminateOnNaN()
  assert len(model.fit(x, epochs=3, callbacks=[stop], verbose=0).history["bound"]) == 1


def test_callbacks_watch_val_loss_unless_told(tmp_path):
  model = _still(layered(), optimizer=keras.optimizers.SGD(1e-30))
  model.fit(
    X,
    validation_data=X,
    epochs=9,
    verbose=0,
    callbacks=[
      keras.callbacks.EarlyStopping(patience=3),
      keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0),
      keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", save_best_only=True),
    ],
  )
  # The same loss in every epoch: no better than the first.
  assert len(model.history.history["val_loss"]) == 4
  assert float(model.optimizer.learning_rate) == pytest.approx(1e-30 / 8)
  assert [path.name for path in tmp_path.iterdir()] == ["1.keras"]


def test_runs_report_no_loss():
  names = ["loss", "bound", "val_loss", "val_bound", "test_loss", "test_bound", "alpha"]
  logs = {name: float(i) for i, name in enumerate(names)}
  assert callbacks.by_split(logs) == {
    "train_bound": 1.0,
    "train_alpha": 6.0,
    "valid_bound": 3.0,
    "test_bound": 5.0,
  }


# --- what a subclass says -----------------------------------------------------------------------


class OwnStep(Layered):
  """Trains in a way of its own."""

  def train_step(self, data):
    with tf.GradientTape() as tape:
      estimate = self.estimate(data, bound=self.bound, num_samples=3, seed=1)
      loss = -tf.reduce_mean(estimate.objective)
    variables = self.trainable_variables
    self.optimizer.apply(tape.gradient(loss, variables), variables)
    return {"loss": loss}


class MoreLogs(Layered):
  """Adds to what a step returns."""

  def train_step(self, data):
    return super().train_step(data) | {"seven": tf.constant(7.0)}


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_a_step_of_ones_own_reports_what_it_returns(run_eagerly):
  model = helpers.compiled(OwnStep(), run_eagerly=run_eagerly)
  history = model.fit(X, validation_data=X, verbose=0).history
  assert history.keys() == {"loss", "val_loss", "val_bound", "val_effective_sample_size"}
  assert history["loss"][0] > 1


def test_a_step_may_return_more():
  model = _still(MoreLogs())
  history = model.fit(X, batch_size=2, verbose=0).history
  assert history.keys() == {"loss", "bound", "effective_sample_size", "seven"}
  assert history["seven"] == [7.0]
  assert history["loss"][0] == pytest.approx(-history["bound"][0])


@pytest.mark.parametrize(
  ("method", "run_eagerly"), [("compute_loss", False), ("compute_metrics", True)]
)
def test_methods_that_no_step_calls_are_refused(method, run_eagerly):
  model = helpers.compiled(
    type("Own", (Layered,), {method: lambda self: 0})(), run_eagerly=run_eagerly
  )
  before = helpers.values(model)
  for of_keras in (model.fit, model.evaluate):
    with pytest.raises(TypeError, match=f"Own.{method}.*add_loss.*train_step"):
      of_keras(X, verbose=0)
  np.testing.assert_equal(helpers.values(model), before)


def test_a_step_of_ones_own_may_call_them():
  own = type("Own", (OwnStep,), {"compute_loss": lambda self: 0})
  helpers.compiled(own(), run_eagerly=True).fit(X, verbose=0)
