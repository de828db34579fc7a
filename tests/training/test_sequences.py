"""Tests of --model=vrnn: flags that are used or refused, a run, its resumption and evaluation."""

import csv
import json
import shutil

import numpy as np
import pytest

from dregs_tf import models
from dregs_tf.training import config, model_flags, pictures, run_directory, sequences
from dregs_tf.training.errors import ConfigError
from tests import binaries
from tests.eager import functions_run_eagerly

SMALL = ["--model=vrnn", "--bound=fivo_dreg", "--num_samples=2", "--latent_dim=2"]
SMALL += ["--batch_size=4", "--jit_compile=false", "--summarize_every=2", "--checkpoint_every=1"]


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"bound": "fivo"}, ["--bound=fivo", "--model=vae", "--model=vrnn"]),
    ({"model": "vrnn", "bound": "rws"}, ["--bound", "'rws'", "fivo_dreg"]),
    ({"resampling": "stratified"}, ["--resampling", "--model=vae"]),
    ({"resample_when": "2"}, ["--resample_when", "--model=vae"]),
    ({"model": "vrnn", "bound": "fivo", "resampling": "none"}, ["--resampling", "'none'"]),
    ({"model": "vrnn", "bound": "fivo", "resample_when": "1.5"}, ["--resample_when", "'1.5'"]),
    ({"model": "vrnn", "bound": "iwae", "resample_when": "2"}, ["--resample_when", "iwae"]),
    ({"model": "vrnn", "bound": "fivo", "track_variance": "iwae"}, ["--track_variance", "vrnn"]),
    ({"model": "vrnn", "bound": "fivo", "kl_weight": 0.5}, ["--kl_weight", "0.5"]),
    ({"model": "vrnn", "bound": "fivo", "num_backward_samples": 2}, ["--num_backward_samples"]),
    ({"model": "vrnn", "bound": "fivo", "missing_fraction": 0.1}, ["--missing_fraction"]),
    ({"model": "vrnn", "bound": "fivo", "alpha": 0.1}, ["--alpha"]),
    ({"model": "vrnn", "bound": "fivo", "distribute": "mirrored"}, ["--distribute", "mirrored"]),
    ({"model": "vrnn", "bound": "fivo", "task": "structured"}, ["--task=structured"]),
  ],
)
def test_bad_values_are_refused(fields, words):
  with pytest.raises(ConfigError) as error:
    config.TrainConfig(**fields)
  assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
  ("text", "value"),
  [("always", "always"), ("3", 3), ("0.5", 0.5), ("2,5", [2, 5]), ("x", "x"), ("1,x", "1,x")],
)
def test_schedules_as_text(text, value):
  assert model_flags.as_schedule(text) == value


def test_directories_tell_schedules_apart():
  fields = [{}, {"resampling": "multinomial"}, {"resample_when": "2,4"}, {"bound": "iwae_dreg"}]
  names = {
    config.TrainConfig(**({"model": "vrnn", "bound": "fivo"} | each)).directory.name
    for each in fields
  }
  assert len(names) == len(fields)


def series(path, num_steps=3):
  """Saves real-valued sequences of different lengths, NaN beyond their ends."""
  generator = np.random.default_rng(0)
  x = generator.normal(size=[9, num_steps, 2])
  lengths = generator.integers(1, num_steps + 1, size=9)
  x[np.arange(num_steps) >= lengths[:, np.newaxis]] = np.nan
  np.savez(path, train=x, train_lengths=lengths, valid=x[:2, :, ::-1], valid_lengths=lengths[:2])
  return path


@pytest.mark.slow
def test_a_run_of_series_resumes_exactly_is_evaluated_and_compared(tmp_path, monkeypatch, capsys):
  whole, half = tmp_path / "whole", tmp_path / "half"
  flags = [*SMALL, "--resampling=stratified", "--max_steps=3"]
  flags.append(f"--dataset={series(tmp_path / 'series.npz')}")
  drawn = []
  draw = pictures.pictures
  monkeypatch.setattr(pictures, "pictures", lambda *a: drawn.append(draw(*a)) or drawn[-1])
  with functions_run_eagerly():  # tests/models has the graphs of steps
    assert binaries.run("train.py", *flags, f"--logdir={whole}") == 0
  # Of each summary, and of the run's figure. What is compared has no pictures in it.
  assert len(drawn) == 3
  monkeypatch.setattr(pictures, "pictures", lambda *_: drawn[-1])
  # As a run that was killed after its first step, within an interval.
  shutil.copytree(whole, half)
  for later in (2, 3):
    run_directory.Run(half).checkpoint(later).unlink()
  capsys.readouterr()
  with functions_run_eagerly():
    assert binaries.run("train.py", *flags, f"--logdir={half}") == 0
  assert "Resuming at step 1 of 3." in capsys.readouterr().out
  (step, one), (_, other) = (run_directory.Run(path).load_newest() for path in (whole, half))
  assert step == 3
  assert (one.resampling, one.observed) == ("stratified", "normal")
  for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (whole / "metrics.csv").read_text() == (half / "metrics.csv").read_text()
  assert run_directory.Run(whole).figure.exists()
  assert binaries.run("eval.py", f"--logdir={whole}", "--num_samples=5", "--split=valid") == 0
  (path,) = whole.glob("evaluation_valid_5.json")
  found = json.loads(path.read_text())
  with np.load(tmp_path / "series.npz") as arrays:
    x, lengths = np.nan_to_num(arrays["valid"]), arrays["valid_lengths"]
  expected = one.log_likelihood(x, 5, lengths, seed=[0, 0])
  np.testing.assert_allclose(found["log_likelihood"], np.mean(expected), rtol=1e-5)

  options = [f"--logdir={whole}", "--num_measurements=30", "--num_samples=2", "--split=train"]
  options.append("--measure_cost=false")
  assert binaries.run("compare_estimators.py", *options, "--bounds=fivo_dreg") == 0
  with open(whole / "comparison.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["bound"] for row in rows] == ["fivo", "fivo_dreg"]


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"bounds": ["rws"]}, ["--bounds", "'rws'", "fivo_dreg"]),
    ({"gradient_of": "prior"}, ["--gradient_of", "'prior'", "vrnn"]),
  ],
)
def test_comparisons_of_sequences_refuse_what_images_have(fields, words):
  settings = config.CompareConfig(logdir="x", **fields)
  with pytest.raises(ConfigError) as error:
    sequences.comparison(None, settings, config.TrainConfig(model="vrnn", bound="fivo"))
  assert all(word in str(error.value) for word in words)


def test_pictures_of_series_and_of_binary_sequences_with_lengths():
  """Gray is what lies beyond a sequence's end; a series is drawn in colors."""
  generator, lengths = np.random.default_rng(0), np.array([4, 1])
  model = models.VRNN(np.full(3, 0.5), latent_dim=2, hidden_units=(4,), rnn_units=3)
  x = (generator.random([2, 4, 3]) < 0.5).astype(np.float32)
  found = pictures.pictures(model, (lengths, x), (4, 3))
  observed, forecasts = found["forecasts"][:4], found["forecasts"][5:]
  np.testing.assert_array_equal(observed[:, :3], x[0])
  np.testing.assert_array_equal(forecasts[:2, :3], x[0, :2])
  assert np.all((forecasts[2:, :3] > 0) & (forecasts[2:, :3] < 1))
  for picture in (observed, forecasts):
    np.testing.assert_array_equal(picture[0, 4:], x[1, 0])
    np.testing.assert_array_equal(picture[1:, 4:], np.full([3, 3], 0.5))
  model = models.VRNN(np.zeros(2), 2, hidden_units=(4,), rnn_units=3, likelihood="normal")
  drawn = pictures.pictures(model, generator.normal(size=[2, 4, 2]).astype("float32"), (4, 2))
  assert [picture.ndim for picture in drawn.values()] == [3, 3]
  assert np.ptp(drawn["forecasts"]) > 0.5
