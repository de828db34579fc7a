"""Other people's models, from the first epoch to serving: train, resume, save, load, export."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest

from tests.examples import serve_and_evaluate
from tests.examples.serve_and_evaluate import EXAMPLES
from tests.processes import Forked
from tests.seeding import seed_layers

# A learned prior, BatchNormalization and Dropout, an Embedding, and a model without our class. In
# float32, the test of an interrupted run trains two of them, and the recipes their like.
_MIXED = ["tfp_vae", "convolutional_vae", "conditional_vae", "plain_vae"]
_CASES = [(name, "mixed_bfloat16" if name in _MIXED else "float32") for name in EXAMPLES]

_BATCH_SIZE = 40  # The last batch has 32 images; those to validate on are one batch.


def _built(example, dtype: str, run_eagerly: bool) -> keras.Model:
  seed_layers(1)
  model = example.make(dtype, run_eagerly=run_eagerly)
  train, _ = example.data()
  batch = tuple(part[:2] for part in train)
  model(batch if len(batch) > 1 else batch[0])  # BackupAndRestore takes a model that is built.
  return model


def _fit(example, model, callbacks) -> dict[str, list[float]]:
  train, valid = example.data()
  return model.fit(
    *train,
    batch_size=_BATCH_SIZE,
    epochs=2,
    shuffle=False,
    validation_data=valid if len(valid) > 1 else valid[0],
    callbacks=callbacks,
    verbose=0,
  ).history


def _evaluate(example, model) -> dict[str, float]:
  _, valid = example.data()
  return model.evaluate(*valid, batch_size=_BATCH_SIZE, verbose=0, return_dict=True)


@dataclasses.dataclass
class Trained:
  """A trained example, and the folder that it was saved and exported to."""

  example: object
  model: keras.Model
  folder: pathlib.Path
  history: dict[str, list[float]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Returns the trained example of a name and a dtype, which is trained once."""
  done = {}

  def train(name: str, dtype: str) -> Trained:
    if (name, dtype) not in done:
      example = EXAMPLES[name]
      folder = tmp_path_factory.mktemp(f"{name}_{dtype}")
      model = _built(example, dtype, run_eagerly=name in ("eight_schools", "tfp_vae"))
      monitor = {"monitor": "val_bound", "mode": "max"}
      history = _fit(
        example,
        model,
        [
          keras.callbacks.BackupAndRestore(folder / "backup"),
          keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True, **monitor),
          keras.callbacks.ReduceLROnPlateau(patience=1, **monitor),
          keras.callbacks.ModelCheckpoint(folder / "best.keras", save_best_only=True, **monitor),
        ],
      )
      model.export(folder / "served", verbose=False)
      done[name, dtype] = Trained(example, model, folder, history)
    return done[name, dtype]

  return train


@pytest.fixture(scope="module")
def in_new_process(trained):
  """Returns what a new process finds in each folder."""
  folders = [(name, str(trained(name, dtype).folder)) for name, dtype in _CASES]
  status, out, err = Forked(serve_and_evaluate.main, folders).finish()
  assert status == 0, err[-3000:]
  return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize(("name", "dtype"), _CASES)
def test_bound_improves_under_callbacks(name, dtype, trained):
  case = trained(name, dtype)
  bounds = case.history["val_bound"]
  assert np.all(np.isfinite(bounds))
  assert bounds[-1] > bounds[0]
  assert len(case.history["learning_rate"]) == len(bounds) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), _CASES)
def test_new_process_evaluates_and_serves(name, dtype, trained, in_new_process):
  case = trained(name, dtype)
  found = in_new_process[str(case.folder)]
  assert found["dtype"] == dtype
  # EarlyStopping restored the epoch that ModelCheckpoint had saved.
  expected = _evaluate(case.example, case.model)
  assert found["logs"] == pytest.approx(expected, rel=1e-5)
  _, valid = case.example.data()
  assert tuple(found["shape"]) == valid[-1].shape
  assert np.isfinite(found["mean"])


@pytest.mark.parametrize("name", ["convolutional_vae", "plain_vae"])
def test_interrupted_run_ends_as_the_uninterrupted_one(name, tmp_path):
  example = EXAMPLES[name]

  class Interrupted(Exception):
    pass

  class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
      if epoch == 1:
        raise Interrupted

  straight = _built(example, "float32", run_eagerly=True)
  _fit(example, straight, [])
  backup = keras.callbacks.BackupAndRestore(tmp_path)
  with pytest.raises(Interrupted):
    _fit(example, _built(example, "float32", run_eagerly=True), [backup, Interrupt()])
  resumed = _built(example, "float32", run_eagerly=True)
  _fit(example, resumed, [keras.callbacks.BackupAndRestore(tmp_path)])
  for actual, expected in zip(resumed.variables, straight.variables, strict=True):
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "plain_vae"])
def test_log_likelihood_samples_and_reconstructions(name, trained):
  case = trained(name, "mixed_bfloat16" if name in _MIXED else "float32")
  _, (*context, x) = case.example.data()
  options = {"context": context[0]} if context else {}
  value = case.model.log_likelihood(x, num_samples=20, **options)
  assert value.shape == x.shape[:1]
  assert value.dtype == "float32"
  # More samples than in training: a tighter bound.
  assert np.mean(value) > _evaluate(case.example, case.model)["bound"] - 0.5
  assert case.model.reconstruct(x, **options).shape == x.shape
  drawn = case.model.sample(2, **options)
  assert drawn.shape == ((2, *x.shape) if context else (2, *x.shape[1:]))
