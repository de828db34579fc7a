"""What the binaries say to bad input: one line that names what is wrong, given and allowed."""

import contextlib
import json
import os
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys
import time
import warnings

import hypothesis
import keras
import numpy as np
import pytest
import scipy.io
import tensorflow as tf
from hypothesis import strategies as st

from dregs_tf import bounds, models
from dregs_tf.data import pipeline, tfds_readers
from dregs_tf.training import config, runners
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run
from tests import binaries

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}

SMALL = ("--max_steps=2", "--num_samples=2", "--latent_dim=2", "--batch_size=4", "--nojit_compile")

LONGER = (*SMALL, "--max_steps=6", "--checkpoint_every=2")


def grey(*shape):
  return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def assert_one_line(binary, text, words):
  lines = text.splitlines()
  assert len(lines) == 1, text
  assert lines[0].startswith(f"{binary}.py: error: ")
  for word in words:
    assert word in lines[0], f"{word!r} is not in {lines[0]!r}"


# --- files and runs to give ---------------------------------------------------------------------


class Bomb:
  """An object whose unpickling would be noticed."""

  def __reduce__(self):
    return pytest.fail, ("a pickle was loaded",)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a finished run in it, and files and runs that are bad in every way."""
  place = tmp_path_factory.mktemp("place")
  good = grey(40, 4, 4)
  np.savez(place / "good.npz", train=good)
  (place / "folder.npz").mkdir()
  (place / "empty.npz").touch()
  for name in ("junk.npz", "junk.mat", "file"):
    (place / name).write_bytes(b"junk" * 50)
  (place / "images.csv").write_text("0,1\n")
  (place / "cut.npz").write_bytes((place / "good.npz").read_bytes()[:-100])
  (place / "pickle.npz").write_bytes(pickle.dumps([1.0, 2.0]))
  np.savez(place / "objects.npz", train=np.array([Bomb()], object))
  np.savez(place / "bright.npz", train=good * 255)
  np.savez(place / "nan.npz", train=np.where(good > 0.5, np.nan, good))
  np.savez(place / "int.npz", train=(good * 255).astype(int))
  np.savez(place / "key.npz", x_train=good)
  np.savez(place / "rank.npz", train=good[0, 0])
  np.savez(place / "oblong.npz", train=grey(40, 7))
  np.savez(place / "sizes.npz", train=good, test=grey(3, 9))
  np.savez(place / "few.npz", train=good[:2])
  np.savez(place / "flat.npz", train=good[:, :1])
  scipy.io.savemat(place / "key.mat", {"images": grey(4, 5)})
  scipy.io.savemat(place / "rows.mat", {"data": grey(5, 4), "testdata": grey(5, 4)})

  settings = {"dataset": str(place / "good.npz"), "max_steps": 4, "checkpoint_every": 2}
  settings |= {"num_samples": 2, "latent_dim": 2, "batch_size": 4, "jit_compile": False}
  runners.train(config.TrainConfig(logdir=str(place / "run"), **settings))

  def copy(name):
    return shutil.copytree(place / "run", place / name)

  shutil.rmtree(copy("no_checkpoint") / "checkpoints")
  (copy("half_config") / "config.json").write_text('{"bound": ')
  (copy("list_config") / "config.json").write_text("[1]")
  (copy("wrong_config") / "config.json").write_text('{"bound": "svi"}')
  (copy("newer_config") / "config.json").write_text('{"flag_to_come": 1}')
  directory = copy("no_data")
  settings = json.loads((directory / "config.json").read_text())
  settings["dataset"] = str(place / "gone.npz")
  (directory / "config.json").write_text(json.dumps(settings))
  for path in (copy("damaged") / "checkpoints").iterdir():
    path.write_bytes(path.read_bytes()[:500])
  (copy("csv_word") / "metrics.csv").write_text("step,train_bound\nfour,-3\n")
  (copy("csv_bytes") / "metrics.csv").write_bytes(b"\xff\x00\xfe" * 9)
  (copy("csv_folder") / "metrics.csv").unlink()
  (place / "csv_folder" / "metrics.csv").mkdir()
  return place


# (binary, arguments, words). {new} is a directory that does not exist yet.
BAD = [
  # Flags.
  ("train", ["--bound=svi"], ["--bound", "'svi'", "iwae_dreg", "jvi_dreg"]),
  ("train", ["--task=both"], ["--task", "'both'", "generative, structured"]),
  ("train", ["--num_samples=0"], ["--num_samples", "got 0", "at least 1"]),
  ("train", ["--num_samples=-1"], ["--num_samples", "got -1", "at least 1"]),
  ("train", ["--num_samples=1", "--bound=jvi"], ["--num_samples", "got 1", "at least 2", "jvi"]),
  ("train", ["--num_samples=abc"], ["--num_samples", "'abc'", "whole number"]),
  ("train", ["--num_samples=2.5"], ["--num_samples", "'2.5'", "whole number"]),
  ("train", ["--num_samples="], ["--num_samples", "''", "whole number"]),
  ("train", ["--num_samples"], ["num_samples", "Missing value"]),
  ("train", ["--num_samples=1" + 20 * "0"], ["--num_samples", "at most 2147483647"]),
  ("train", ["--num_backward_samples=65"], ["--num_backward_samples", "--num_samples=64", "65"]),
  ("train", ["--bound=dreg_alpha", "--alpha=nan"], ["--alpha", "nan", "[0, 1]"]),
  ("train", ["--bound=dreg_alpha", "--alpha=2"], ["--alpha", "2.0", "[0, 1]"]),
  ("train", ["--bound=dreg_alpha", "--alpha=x"], ["--alpha", "'x'", "[0, 1], or auto"]),
  ("train", ["--bound=stl", "--alpha=0.5"], ["--alpha", "--bound=stl", "--bound=dreg_alpha"]),
  ("train", ["--bound=jvi", "--jvi_order=-1"], ["--jvi_order", "got -1", "0 or more"]),
  (
    "train",
    ["--bound=jvi", "--jvi_order=5", "--num_samples=5"],
    ["--num_samples", "got 5", "at least 6", "jvi"],
  ),
  ("train", ["--jvi_order=2"], ["--jvi_order", "--bound=iwae_dreg", "--bound=jvi or jvi_dreg"]),
  ("train", ["--batch_size=-5"], ["--batch_size", "got -5", "at least 1"]),
  ("train", ["--latent_dim=0"], ["--latent_dim", "got 0", "at least 1"]),
  ("train", ["--latent_dim=1" + 20 * "0"], ["--latent_dim", "at most 2147483647"]),
  ("train", ["--max_steps=0"], ["--max_steps", "got 0", "at least 1"]),
  ("train", ["--summarize_every=0"], ["--summarize_every", "got 0", "at least 1"]),
  ("train", ["--checkpoint_every=-1"], ["--checkpoint_every", "got -1", "at least 1"]),
  ("train", ["--learning_rate=0"], ["--learning_rate", "got 0.0", "positive"]),
  ("train", ["--learning_rate=inf"], ["--learning_rate", "got inf", "positive"]),
  ("train", ["--seed=-1"], ["--seed", "got -1", "at least 0"]),
  ("train", ["--seed=5" + 20 * "0"], ["--seed", "at most 2147483647"]),
  ("train", ["--jit_compile=maybe"], ["--jit_compile", "'maybe'", "true or false"]),
  ("train", ["--num_sample=3"], ["'num_sample'", "Did you mean: num_samples", "--help"]),
  ("train", ["--flagfile={place}/none"], ["{place}/none", "No such file"]),
  ("train", ["stray"], ["'stray'", "--name=value"]),
  ("train", ["--bound", "iwae", "64"], ["'64'", "--name=value"]),
  ("eval", [], ["--logdir"]),
  ("eval", ["--logdir={place}/run", "--split=dev"], ["--split", "'dev'", "train, valid, test"]),
  ("eval", ["--logdir={place}/run", "--num_samples=0"], ["--num_samples", "got 0", "at least 1"]),
  ("eval", ["--logdir={place}/run", "--batch_size=0"], ["--batch_size", "got 0", "at least 1"]),
  ("eval", ["--logdir={place}/run", "--seed=-2"], ["--seed", "got -2", "at least 0"]),
  ("eval", ["--logdir={place}/run", "--bound=iwae"], ["'bound'", "--help"]),
  # Data.
  ("train", ["--dataset=mnits"], ["'mnits'", "digits, mnist, omniglot", ".npz or .mat"]),
  ("train", ["--dataset="], ["dataset ''", "digits, mnist, omniglot", ".npz or .mat"]),
  ("train", ["--dataset={place}/none.npz"], ["{place}/none.npz", "no such file"]),
  ("train", ["--dataset={place}/folder.npz"], ["{place}/folder.npz", "directory"]),
  ("train", ["--dataset={place}"], ["{place}", ".npz or .mat"]),
  ("train", ["--dataset={place}/images.csv"], ["{place}/images.csv", ".npz or .mat"]),
  ("train", ["--dataset={place}/empty.npz"], ["{place}/empty.npz", "empty"]),
  ("train", ["--dataset={place}/junk.npz"], ["{place}/junk.npz", "not a whole .npz file"]),
  ("train", ["--dataset={place}/cut.npz"], ["{place}/cut.npz", "cut short"]),
  ("train", ["--dataset={place}/pickle.npz"], ["{place}/pickle.npz", "not a whole .npz file"]),
  ("train", ["--dataset={place}/objects.npz"], ["{place}/objects.npz", "Python objects"]),
  ("train", ["--dataset={place}/bright.npz"], ["{place}/bright.npz", "in [0, 1]", "values from"]),
  ("train", ["--dataset={place}/nan.npz"], ["{place}/nan.npz", "NaN"]),
  ("train", ["--dataset={place}/int.npz"], ["{place}/int.npz", "int64", "uint8 (0 to 255)"]),
  ("train", ["--dataset={place}/key.npz"], ["{place}/key.npz", "no array 'train'", "allowed"]),
  ("train", ["--dataset={place}/rank.npz"], ["{place}/rank.npz", "(4,)", "[N, H, W]"]),
  ("train", ["--dataset={place}/oblong.npz"], ["{place}/oblong.npz", "7 pixels", "image_shape"]),
  ("train", ["--dataset={place}/sizes.npz"], ["{place}/sizes.npz", "9 pixels", "4x4"]),
  ("train", ["--dataset={place}/few.npz"], ["{place}/few.npz", "2 image(s)", "too few"]),
  ("train", ["--dataset={place}/flat.npz", "--task=structured"], ["1x4", "bottom half"]),
  ("train", ["--dataset={place}/junk.mat"], ["{place}/junk.mat", ".mat file"]),
  ("train", ["--dataset={place}/key.mat"], ["{place}/key.mat", "no matrix 'data'", "testdata"]),
  ("train", ["--dataset={place}/rows.mat"], ["{place}/rows.mat", "5 rows", "square"]),
  ("train", [*SMALL, "--batch_size=33"], ["batch_size 33", "32 images"]),
  (
    "train",
    ["--dataset=mnist", "--data_dir={place}/none"],
    ["mnist", "{place}/none", "--data_dir", "does not exist", "--dataset=digits"],
  ),
  # Directories.
  ("train", [*SMALL, "--logdir=/dev/null/run"], ["--logdir=/dev/null/run", "directory", "written"]),
  ("train", [*SMALL, "--logdir={place}/file"], ["--logdir={place}/file", "must be a directory"]),
  ("train", [*SMALL, "--logdir={place}/run", "--seed=1"], ["--logdir={place}/run", "--seed was 0"]),
  ("train", [*SMALL, "--logdir={place}/half_config"], ["half_config/config.json", "Expecting"]),
  ("train", [*SMALL, "--logdir={place}/list_config"], ["list_config/config.json"]),
  ("train", [*SMALL, "--logdir={place}/wrong_config"], ["wrong_config/config.json", "svi"]),
  ("train", [*SMALL, "--logdir={place}/newer_config"], ["newer_config/config.json", "flag_to_com"]),
  ("train", [*LONGER, "--logdir={place}/csv_word"], ["csv_word/metrics.csv"]),
  ("train", [*LONGER, "--logdir={place}/csv_bytes"], ["csv_bytes/metrics.csv"]),
  ("train", [*LONGER, "--logdir={place}/csv_folder"], ["csv_folder/metrics.csv"]),
  ("eval", ["--logdir={place}/none"], ["--logdir={place}/none", "no config.json"]),
  ("eval", ["--logdir={place}/file"], ["--logdir={place}/file", "no config.json"]),
  ("eval", ["--logdir={place}"], ["--logdir={place}", "no config.json"]),
  ("eval", ["--logdir={place}/no_checkpoint"], ["--logdir={place}/no_checkpoint", "no checkpoint"]),
  ("eval", ["--logdir={place}/half_config"], ["half_config/config.json", "Expecting"]),
  ("eval", ["--logdir={place}/no_data"], ["{place}/gone.npz", "no such file"]),
]


@pytest.fixture
def unreachable(monkeypatch):
  """No network, whatever this machine has."""
  monkeypatch.setitem(tfds_readers._HOSTS, "mnist", "http://127.0.0.1:9")


@pytest.mark.parametrize(
  "binary,arguments,words", BAD, ids=[" ".join([b, *a])[:60] for b, a, _ in BAD]
)
def test_bad_input(binary, arguments, words, place, tmp_path, capfd, unreachable):
  begun = time.monotonic()
  arguments = [argument.replace("{place}", str(place)) for argument in arguments]
  if binary == "train" and not any("--dataset" in argument for argument in arguments):
    arguments.insert(0, f"--dataset={place / 'good.npz'}")
  if binary == "train" and not any("--logdir" in argument for argument in arguments):
    arguments.insert(0, f"--logdir={tmp_path / 'new'}")
  words = [word.replace("{place}", str(place)) for word in words]
  assert binaries.run(f"{binary}.py", *arguments) == 1
  assert_one_line(binary, capfd.readouterr().err, words)
  assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
  "arguments,kind",
  [
    (["--num_samples=abc"], "IllegalFlagValueError"),
    (["--num_samples=0"], "ConfigError"),
    (["--dataset=none.npz"], "DataError"),
  ],
)
def test_debug_shows_the_traceback(arguments, kind, tmp_path, capfd):
  stop = None
  try:
    assert binaries.run("train.py", *arguments, f"--logdir={tmp_path / 'new'}", "--debug") == 1
  except ValueError as error:  # Python would show it.
    stop = type(error).__name__
  assert kind in (stop or capfd.readouterr().err)


@pytest.mark.parametrize(
  "arguments,words",
  [
    (["bin/train.py", "--bound=svi"], ["--bound", "'svi'", "iwae_dreg"]),
    (["bin/eval.py", "--split=dev"], ["--split", "'dev'", "train, valid, test"]),
    (["bin/train.py", "--num_samples=0"], ["--num_samples", "got 0"]),
    (["bin/train.py", "--dataset=none.npz"], ["none.npz", "no such file"]),
  ],
)
def test_as_a_process(arguments, words, tmp_path):
  command = [sys.executable, *arguments, f"--logdir={tmp_path / 'new'}"]
  done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=120)
  assert done.returncode == 1
  assert done.stdout == b""
  assert_one_line(arguments[0][4:-3], done.stderr.decode(), words)


def test_debug_as_a_process():
  command = [sys.executable, "bin/train.py", "--num_samples=0", "--debug"]
  done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=120)
  assert done.returncode == 1
  assert b"Traceback" in done.stderr
  assert b"ConfigError: --num_samples" in done.stderr


# --- what goes wrong on the way -----------------------------------------------------------------


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


# --- checkpoints are data, not programs ---------------------------------------------------------


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


# --- the API ------------------------------------------------------------------------------------


def a_model():
  return models.VAE(np.full(4, 0.5), latent_dim=2, hidden_units=(3,))


def batches(**changes):
  arguments = {"images": grey(6, 4), "batch_size": 2, "seed": 0, "image_shape": (2, 2)} | changes
  return pipeline.train_batches(**arguments)


def test_each_of_these_calls_is_right_with_good_arguments():
  """What the table below changes one argument of."""
  batches()
  model = a_model()
  model.compile(num_samples=2)
  assert model.log_likelihood(grey(3, 4), num_samples=2).shape == (3,)
  assert model.sample(2).shape == (2, 4)
  assert model.reconstruct(grey(3, 4)).shape == (3, 4)


@pytest.mark.parametrize(
  "call,words",
  [
    (lambda: bounds.get("IWAE"), ["bound", "'IWAE'", "iwae_dreg"]),
    (lambda: bounds.get("jvi", order="1"), ["order", "'1'"]),
    (lambda: bounds.get("dreg_alpha", alpha=True), ["alpha", "True", "[0, 1]"]),
    (lambda: a_model().compile(num_samples="8"), ["num_samples", "'8'"]),
    (lambda: a_model().compile(num_backward_samples=65), ["num_backward_samples", "65", "64"]),
    (lambda: a_model().compile(num_backward_samples=0), ["num_backward_samples", "0"]),
    (lambda: models.VAE(np.full(4, 2.0)), ["data_mean", "[0, 1]", "2.0"]),
    (lambda: models.VAE(np.full(4, 0.5), latent_dim="2"), ["latent_dim", "'2'"]),
    (lambda: models.VAE(np.full(4, 0.5), hidden_units=200), ["hidden_units", "200"]),
    (lambda: models.StructuredVAE([0.5], [-1.0]), ["data_mean", "-1.0"]),
    (lambda: models.StructuredVAE([[0.5]], [0.5]), ["context_mean", "[1, 1]"]),
    (lambda: a_model().log_likelihood(grey(3, 4), num_samples=0), ["num_samples", "0"]),
    (lambda: a_model().log_likelihood(grey(3, 5), num_samples=2), ["x must have", "4", "5"]),
    (lambda: a_model().log_likelihood(grey(3, 4), num_samples=2, seed="a"), ["seed", "string"]),
    (lambda: a_model().log_likelihood(grey(3, 4), 2, context=grey(3, 1)), ["VAE", "context"]),
    (lambda: a_model().reconstruct(grey(3, 5)), ["x must have", "4", "5"]),
    (lambda: a_model().sample(2, seed=1.5), ["seed", "float32"]),
    (lambda: a_model().sample(2, context=grey(3, 1)), ["VAE", "context"]),
    (lambda: batches(batch_size=7), ["batch_size", "7", "6 images"]),
    (lambda: batches(batch_size=0), ["batch_size", "0", "at least 1"]),
    (lambda: batches(batch_size=2.0), ["batch_size", "2.0", "integer"]),
    (lambda: batches(seed=None), ["seed", "None"]),
    (lambda: batches(start_step=-1), ["start_step", "-1", "at least 0"]),
    (lambda: batches(task="both"), ["task", "'both'", "structured"]),
    (lambda: batches(images=grey(6, 5)), ["[N, 4]", "2x2", "[6, 5]"]),
    (lambda: batches(images=grey(0, 4)), ["[N, 4]", "[0, 4]"]),
  ],
)
def test_bad_arguments(call, words):
  with pytest.raises((TypeError, ValueError)) as error:
    call()
  for word in words:
    assert word in str(error.value)


# --- any values of the flags --------------------------------------------------------------------

_anything = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-3, 70),
  st.integers(),
  st.floats(allow_nan=True),
  st.text(max_size=5),
  st.sampled_from([*config.BOUNDS, *config.TASKS]),
  st.lists(st.integers(), max_size=2),
)


@hypothesis.settings(max_examples=500, derandomize=True, deadline=None, database=None)
@hypothesis.given(kind=st.sampled_from([config.TrainConfig, config.EvalConfig]), data=st.data())
def test_any_configuration_is_valid_or_refused_in_one_line(kind, data):
  names = st.sampled_from(sorted(kind.__dataclass_fields__))
  values = data.draw(st.dictionaries(names, _anything, max_size=4))
  try:
    settings = kind(**values)
  except ConfigError as error:
    assert "\n" not in str(error)
    assert any(f"--{name}" in str(error) for name in [*values, "num_samples", "logdir"])
  else:
    assert settings == kind(**values)
    assert settings.num_samples >= 1
    if kind is config.TrainConfig:
      bounds.check_num_samples(
        settings.num_samples, bounds.get(settings.bound, **settings.bound_options)
      )


def test_a_wrong_first_try_does_not_stand_in_the_way(place, tmp_path, capfd):
  """Flags that fail before the first step can be corrected, in the same directory."""
  arguments = [f"--dataset={place / 'good.npz'}", f"--logdir={tmp_path / 'new'}", *SMALL]
  assert binaries.run("train.py", *arguments, "--batch_size=33") == 1
  assert_one_line("train", capfd.readouterr().err, ["33", "32 images"])
  assert binaries.run("train.py", *arguments) == 0
