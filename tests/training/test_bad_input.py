"""What the binaries say to bad input: one line that names what is wrong, given and allowed."""

import subprocess
import sys
import time

import pytest

from dregs_tf.data import tfds_readers
from tests import binaries
from tests.eager import functions_run_eagerly
from tests.training.bad_files import (
  ENVIRONMENT,
  LONGER,
  ROOT,
  SMALL,
  assert_one_line,
)

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
  ("train", ["--dataset={place}/empty.npz"], ["{place}/empty.npz", "not a whole .npz file"]),
  ("train", ["--dataset={place}/junk.npz"], ["{place}/junk.npz", "not a whole .npz file"]),
  ("train", ["--dataset={place}/cut.npz"], ["{place}/cut.npz", "truncated"]),
  ("train", ["--dataset={place}/pickle.npz"], ["{place}/pickle.npz", "not a whole .npz file"]),
  ("train", ["--dataset={place}/objects.npz"], ["{place}/objects.npz", "allow_pickle=False"]),
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


@functions_run_eagerly()
def test_a_wrong_first_try_does_not_stand_in_the_way(place, tmp_path, capfd):
  """Flags that fail before the first step can be corrected, in the same directory."""
  arguments = [f"--dataset={place / 'good.npz'}", f"--logdir={tmp_path / 'new'}", *SMALL]
  assert binaries.run("train.py", *arguments, "--batch_size=33") == 1
  assert_one_line("train", capfd.readouterr().err, ["33", "32 images"])
  assert binaries.run("train.py", *arguments) == 0
