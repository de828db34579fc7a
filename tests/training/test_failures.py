"""Tests of failures of runs: a directory in use, damaged checkpoints, no memory, a full disk."""

import contextlib
import resource
import shutil
import warnings

import keras
import pytest
import tensorflow as tf

from dregs_tf.training import config, runners
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run
from tests import binaries
from tests.eager import functions_run_eagerly
from tests.training.bad_files import (
  LONGER,
  SMALL,
  assert_one_line,
)


def test_a_directory_in_use(place, capfd):
  with Run(place / "run").locked():
    assert binaries.run("train.py", f"--logdir={place / 'run'}", *SMALL) == 1
  words = [f"--logdir={place / 'run'}", "in use by another process", "another --logdir"]
  assert_one_line("train", capfd.readouterr().err, words)


def test_damaged_checkpoints(place, capfd):
  with pytest.warns(UserWarning, match="is damaged"):
    assert binaries.run("eval.py", f"--logdir={place / 'damaged'}", "--num_samples=2") == 1
  assert_one_line("eval", capfd.readouterr().err, [str(place / "damaged")])


@pytest.mark.parametrize(
  "error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")]
)
def test_more_memory_than_there_is(error, monkeypatch, tmp_path, capfd):
  def train(settings):
    raise error

  monkeypatch.setattr(runners, "train", train)
  assert binaries.run("train.py", f"--logdir={tmp_path / 'new'}") == 1
  assert_one_line("train", capfd.readouterr().err, ["not enough memory", "fewer latents"])


@contextlib.contextmanager
def no_file_larger_than(size):
  """What a full disk does: writing fails from some byte on."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@functions_run_eagerly()
def test_a_full_disk(place, tmp_path, capfd):
  """The older checkpoints survive, and the run goes on from them when there is room."""
  directory = tmp_path / "run"
  shutil.copytree(place / "run", directory)
  before = Run(directory).checkpoints()
  settings = Run(directory).read_config()
  arguments = [f"--logdir={directory}", f"--dataset={settings.dataset}", *LONGER]
  with no_file_larger_than(100_000):
    assert before[-1][1].stat().st_size > 100_000
    assert binaries.run("train.py", *arguments) == 1
  lines = capfd.readouterr().err.splitlines()
  # The row of the step was written before; then comes the error.
  assert lines[-1].startswith("train.py: error: ")
  assert str(directory / "checkpoints") in lines[-1]
  assert "File too large" in lines[-1]
  assert not any("Traceback" in line for line in lines)
  assert Run(directory).checkpoints() == before
  assert Run(directory).load_newest()[0] == 4
  assert binaries.run("train.py", *arguments) == 0
  assert Run(directory).checkpoints()[-1][0] == 6


def test_a_full_disk_leaves_the_files_of_numbers_whole(tmp_path):
  run, settings = Run(tmp_path), config.TrainConfig(logdir=str(tmp_path))
  evaluation = {"split": "test", "num_samples": 5, "log_likelihood": -90.0}
  writers = (
    lambda: run.write_config(settings),
    lambda: run.write_result({"step": 1000, "test_bound": -90.0}),
    lambda: run.write_evaluation(evaluation, [{"image": 0}]),
  )

  def files():
    return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

  for write in writers:
    write()
  before = files()
  assert {"config.json", "result.json", "evaluation_test_5.json"} <= set(before)
  for write in writers:
    with no_file_larger_than(10), pytest.raises(OSError, match="File too large"):
      write()
  assert files() == before


def test_a_checkpoint_with_code_in_it_is_not_executed(tmp_path):
  """Keras' safe mode: a Lambda layer's Python code is refused, not run."""
  folder = tmp_path / "checkpoints"
  folder.mkdir()
  trace = tmp_path / "trace"
  code = f"lambda x: (open({str(trace)!r}, 'w').close(), x)[1]"
  model = keras.Sequential([keras.Input([2]), keras.layers.Lambda(eval(code))])
  trace.unlink()  # Building the model ran it.
  model.save(folder / "step-000000001.keras")
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with contextlib.suppress(ConfigError):
      assert Run(tmp_path).load_newest() is None
  assert not trace.exists()
  messages = [str(warning.message) for warning in caught]
  assert any("step-000000001.keras" in text and "Lambda" in text for text in messages), messages
  # The same file, trusted, does run: the test would notice.
  keras.saving.load_model(folder / "step-000000001.keras", safe_mode=False)
  assert trace.exists()
