"""Tests of --model=vrnn: flags that are used or refused, a run, its resumption and evaluation."""

import json

import numpy as np
import pytest

from dregs_tf.training import config, model_flags, run_directory
from dregs_tf.training.errors import ConfigError
from tests import binaries

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


@pytest.mark.slow
def test_a_run_resumes_exactly_and_is_evaluated(tmp_path):
  whole, half = tmp_path / "whole", tmp_path / "half"
  flags = [*SMALL, "--resample_when=0.5", "--resampling=stratified"]
  assert binaries.run("train.py", *flags, "--max_steps=4", f"--logdir={whole}") == 0
  assert binaries.run("train.py", *flags, "--max_steps=2", f"--logdir={half}") == 0
  assert binaries.run("train.py", *flags, "--max_steps=4", f"--logdir={half}") == 0
  (step, one), (_, other) = (run_directory.Run(path).load_newest() for path in (whole, half))
  assert step == 4
  assert (one.resample_when, one.resampling) == (0.5, "stratified")
  for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (whole / "metrics.csv").read_text() == (half / "metrics.csv").read_text()
  assert run_directory.Run(whole).figure.exists()
  assert binaries.run("eval.py", f"--logdir={whole}", "--num_samples=5", "--batch_size=250") == 0
  (path,) = whole.glob("evaluation_test_5.json")
  result = json.loads(path.read_text())
  assert np.isfinite(result["log_likelihood"])
  assert binaries.run("compare_estimators.py", f"--logdir={whole}") == 1
