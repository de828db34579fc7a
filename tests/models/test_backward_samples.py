"""Tests of num_backward_samples="auto": what is chosen, when, and that a run resumes the same."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import selection
from dregs_tf.coefficients import Coefficients
from dregs_tf.models.backward_samples import BackwardSamples
from tests import binaries
from tests.eager import functions_run_eagerly
from tests.models import helpers
from tests.seeding import seed_layers

NUM_SAMPLES, BATCH = 6, 4


def weights(concentration: float) -> tf.Tensor:
  logits = concentration * np.random.RandomState(0).normal(size=(NUM_SAMPLES, BATCH))
  return tf.nn.softmax(tf.constant(logits, tf.float32), axis=0)


def coefficients(a: tf.Tensor) -> Coefficients:
  """Those of rws_dreg: the path's are small where a weight is near 1."""
  return Coefficients(a, a - a**2, tf.zeros_like(a))


def chosen(*batches: tf.Tensor) -> int:
  layer = BackwardSamples(NUM_SAMPLES)
  for batch in batches:
    layer.update(coefficients(batch), tf.constant(10))
  layer.choose()
  return layer.number


def test_the_smallest_power_of_two_that_adds_less_than_one_percent():
  for concentration in (0.0, 1.0, 4.0, 7.0, 1e4):
    batch = weights(concentration)
    ratios = {}
    for number in (1, 2, 4):
      added, dense = (
        np.sum(s, axis=1) for s in selection.added_variance(tuple(coefficients(batch)), number)
      )
      ratios[number] = np.nan_to_num(added / np.where(dense, dense, 1)).max()
    expected = min((m for m, ratio in ratios.items() if ratio <= 0.01), default=NUM_SAMPLES)
    assert chosen(batch) == expected
  assert chosen(weights(0.0)) == NUM_SAMPLES
  assert chosen(weights(1e4)) == 1
  assert chosen(weights(1e4), weights(0.0)) == NUM_SAMPLES  # the sum over batches


def test_only_every_tenth_finite_batch_counts():
  layer = BackwardSamples(NUM_SAMPLES)
  layer.update(coefficients(weights(100.0)), tf.constant(11))
  layer.update(coefficients(weights(100.0) * np.nan), tf.constant(20))
  layer.choose()
  assert layer.number == NUM_SAMPLES
  layer.update(coefficients(weights(100.0)), tf.constant(20))
  layer.choose()
  chosen = layer.number
  assert chosen < NUM_SAMPLES
  layer.choose()  # No batch since then.
  assert layer.number == chosen


def model():
  seed_layers(0)
  result = helpers.compiled(
    helpers.vae(), num_samples=NUM_SAMPLES, num_backward_samples="auto", run_eagerly=True
  )
  for variable in result.decoder.weights:
    variable.assign(20 * variable)  # log-weights far apart
  return result


def test_a_saved_model_goes_on_with_the_number_in_use(tmp_path):
  x = helpers.binary(8, 6)
  first = model()
  fit = {"batch_size": 4, "shuffle": False, "verbose": 0}
  logs = first.fit(x, epochs=2, **fit).history
  first.save(tmp_path / "model.keras")
  second = keras.saving.load_model(tmp_path / "model.keras")
  second.run_eagerly = True
  assert second.get_compile_config()["num_backward_samples"] == "auto"
  assert second.followers.backward_samples.number == first.followers.backward_samples.number
  for each in (first, second):
    each.fit(x, **fit)
  assert logs["num_backward_samples"][0] == NUM_SAMPLES
  assert logs["num_backward_samples"][1] < NUM_SAMPLES
  for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)


def test_the_number_in_use_is_that_of_the_step(monkeypatch):
  trained = model()
  trained.fit(helpers.binary(8, 6), batch_size=4, verbose=0)
  trained.followers.backward_samples.in_use.assign(2)
  seen, likelihood = [], trained.likelihood
  monkeypatch.setattr(
    trained, "likelihood", lambda z, context: seen.append(z.shape[0]) or likelihood(z, context)
  )
  history = trained.fit(helpers.binary(4, 6), batch_size=4, verbose=0).history
  assert history["num_backward_samples"] == [2]
  assert 2 in seen


class Spy(keras.callbacks.Callback):
  """Notes the M of each step and the M in its logs."""

  def __init__(self):
    super().__init__()
    self.seen = []

  def on_train_batch_end(self, batch, logs=None):
    used = self.model.step_options(training=True)["num_backward_samples"]
    self.seen.append((used, int(logs["num_backward_samples"])))


class Interrupt(keras.callbacks.Callback):
  """Ends a run in its third epoch, as a signal does."""

  def on_epoch_begin(self, epoch, logs=None):
    if epoch == 2:
      raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_with_the_number_in_use(tmp_path):
  x = helpers.binary(8, 6)
  fit = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0}
  whole, resumed = Spy(), Spy()
  first = model()
  first.fit(x, callbacks=[whole], **fit)
  with pytest.raises(KeyboardInterrupt):
    model().fit(x, callbacks=[keras.callbacks.BackupAndRestore(tmp_path), Interrupt()], **fit)
  second = model()
  second.fit(x, callbacks=[keras.callbacks.BackupAndRestore(tmp_path), resumed], **fit)
  assert resumed.seen == whole.seen[4:]
  assert all(used == logged for used, logged in whole.seen)
  assert resumed.seen[0][0] < NUM_SAMPLES
  for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_compiled_step_takes_the_number_that_is_loaded(monkeypatch, tmp_path):
  x, trained = helpers.binary(4, 6), model()
  trained.run_eagerly = False
  trained.fit(x, batch_size=4, verbose=0)
  trained.followers.backward_samples.in_use.assign(3)
  trained.save_weights(tmp_path / "model.weights.h5")
  trained.followers.backward_samples.in_use.assign(NUM_SAMPLES)
  trained.fit(x, batch_size=4, verbose=0)
  trained.load_weights(tmp_path / "model.weights.h5")
  seen, likelihood = [], trained.likelihood
  monkeypatch.setattr(
    trained, "likelihood", lambda z, context: seen.append(z.shape[0]) or likelihood(z, context)
  )
  assert trained.fit(x, batch_size=4, verbose=0).history["num_backward_samples"] == [3]
  assert 3 in seen


@functions_run_eagerly()
def test_the_flag(tmp_path):
  flags = ["--num_samples=6", "--latent_dim=3", "--jit_compile=false", "--summarize_every=2"]
  flags += ["--num_backward_samples=auto", f"--logdir={tmp_path}", "--checkpoint_every=1"]
  assert binaries.run("train.py", *flags, "--max_steps=3") == 0
  assert binaries.run("train.py", *flags, "--max_steps=4") == 0
  assert json.loads((tmp_path / "config.json").read_text())["num_backward_samples"] == "auto"
  assert "train_num_backward_samples" in (tmp_path / "metrics.csv").read_text()


@pytest.mark.parametrize("value", ["all", "0", "7"])
def test_other_words_are_refused(value, capsys):
  assert binaries.run("train.py", "--num_samples=6", f"--num_backward_samples={value}") == 1
  assert f"got {value}" in capsys.readouterr().err.replace("'", "")
