"""Tests of a stranger's bound in a model: trained on, tracked, compared, saved and loaded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds, diagnostics
from tests.models import helpers

X = helpers.binary(8, 6)


@keras.saving.register_keras_serializable("tests")
def median_of_halves(log_weights):
  """The mean of a sharper and a flatter bound than L_K."""
  sharp = tf.reduce_logsumexp(2 * log_weights, axis=0) / 2
  flat = 2 * tf.reduce_logsumexp(log_weights / 2, axis=0)
  return (sharp + flat) / 2


MINE = bounds.from_function(median_of_halves, name="mine")


def test_it_trains():
  """In a graph; `tests/test_rows.py` compiles the terms of such a bound with XLA."""
  model = helpers.compiled(helpers.vae(), optimizer=keras.optimizers.Adam(0.03), bound=MINE)
  data = tf.data.Dataset.from_tensor_slices(X).batch(4).repeat()
  history = model.fit(data, steps_per_epoch=10, epochs=5, verbose=0).history["bound"]
  assert history[-1] > history[0] + 0.3


def test_it_is_tracked_and_compared():
  options = {"track_variance": [MINE, "iwae_dreg"], "run_eagerly": True}
  model = helpers.compiled(helpers.vae(), **options)
  history = model.fit(X, batch_size=4, verbose=0).history
  assert np.isfinite(history["mine_gradient_variance"]).all()
  result = diagnostics.compare(
    model, X, [MINE, "iwae_dreg"], num_samples=6, num_measurements=30, measure_cost=False
  )
  names = [row.bound for row in result.rows]
  assert names == ["mine_total", "mine", "iwae", "iwae_dreg"]
  assert result.rows[1].reference == "mine_total"
  assert "mine" in result.table() and "mine" in result.recommendation


def test_it_is_saved_and_loaded(tmp_path):
  model = helpers.compiled(helpers.vae(), bound=MINE, track_variance=[MINE], run_eagerly=True)
  model.fit(X, batch_size=4, verbose=0)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert loaded.bound == MINE
  assert loaded.train_on_batch(X) == model.train_on_batch(X)


def test_a_function_that_no_file_can_name_is_refused_when_saving(tmp_path):
  def unknown(log_weights):
    return tf.reduce_mean(log_weights, axis=0)

  model = helpers.compiled(helpers.vae(), bound=bounds.from_function(unknown, "unknown"))
  with pytest.raises(ValueError, match="bound unknown.*register_keras_serializable"):
    model.save(tmp_path / "model.keras")
