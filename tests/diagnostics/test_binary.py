"""Tests `bin/compare_estimators.py` and its configuration."""

import csv

import pytest

from dregs_tf import bounds, catalogue, data
from dregs_tf.diagnostics import plan
from dregs_tf.training import config, model_flags, runners
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run
from tests import binaries


@pytest.mark.parametrize(
  "values, words",
  [
    ({}, ["--logdir"]),
    ({"bounds": ["iwae", "svi"]}, ["--bounds", "'svi'", "iwae_dreg"]),
    ({"bounds": []}, ["--bounds", "empty"]),
    ({"num_samples": ["1", "x"]}, ["--num_samples", "'x'", "whole number"]),
    ({"num_measurements": 29}, ["--num_measurements", "at least 30", "got 29"]),
    ({"batch_size": 0}, ["--batch_size", "at least 1"]),
    ({"split": "dev"}, ["--split", "'dev'"]),
    ({"seed": -1}, ["--seed", "got -1"]),
  ],
)
def test_bad_values_of_a_comparison_are_refused(values, words):
  with pytest.raises(ConfigError) as error:
    config.CompareConfig(**({"logdir": "x"} if values else {}) | values)
  for word in words:
    assert word in str(error.value)


def test_the_binary_compares_on_a_run(tmp_path, capsys):
  """On a structured run whose alpha has moved."""
  settings = config.TrainConfig(
    bound="dreg_alpha",
    alpha="auto",
    num_samples=3,
    task="structured",
    latent_dim=2,
    jit_compile=False,
    logdir=str(tmp_path / "run"),
  )
  model = runners.build_model(settings, data.load("digits", None))
  model.optimizer.build(model.trainable_variables)
  model.followers.adaptive_alpha.alpha.assign(0.125)
  settings.directory.mkdir()
  Run(settings.directory).write_config(settings)
  Run(settings.directory).save(model, 3)
  arguments = ["--bounds=dreg_alpha", "--num_samples=4", "--num_measurements=30"]
  arguments += [f"--logdir={tmp_path / 'run'}", f"--output_dir={tmp_path / 'new' / 'out'}"]
  arguments += ["--batch_size=5", "--nomeasure_cost"]
  assert binaries.run("compare_estimators.py", *arguments) == 0
  out = capsys.readouterr().out
  assert "digits, test set, step 3.\n30 measurements on 5 examples" in out
  assert "L_K, K = 4: " in out
  with open(tmp_path / "new" / "out" / "comparison.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [(row["bound"], row["num_samples"]) for row in rows] == [
    ("iwae", "4"),
    ("dreg_alpha(alpha=0.125)", "4"),
  ]
  assert (tmp_path / "new" / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
  assert binaries.run("compare_estimators.py", f"--logdir={tmp_path}") == 1
  assert "holds no run" in capsys.readouterr().err


def test_bounds_that_are_compared_by_default():
  """Where latents have no path, those that need none; iwae itself has no reference there."""
  assert model_flags.compared("vae") == model_flags.compared("hierarchical") == catalogue.compared()
  compared = model_flags.compared("discrete")
  assert compared == ("elbo_loo", "rws", "vimco", "vimco_star", "ovis")
  all_num_samples = list(config.CompareConfig(logdir="x").num_samples)
  planned = plan.of_bounds([bounds.get(name) for name in compared], all_num_samples, has_path=False)
  assert {each.name for each in planned[64]} == set(compared)


def test_bounds_that_a_run_was_not_trained_with_take_its_options(tmp_path):
  options = {"num_samples": 3, "latent_dim": 2, "jit_compile": False, "logdir": str(tmp_path)}
  settings = config.TrainConfig(bound="jvi", jvi_order=2, **options)
  Run(settings.directory).write_config(settings)
  model = runners.build_model(settings, data.load("digits", None))
  model.optimizer.build(model.trainable_variables)
  Run(tmp_path).save(model, 3)
  options = {"logdir": str(tmp_path), "num_measurements": 30, "measure_cost": False}
  options |= {"bounds": ("jvi_dreg",), "batch_size": 5}
  result = runners.compare(config.CompareConfig(num_samples=(2, 3), **options))
  assert [(row.bound, row.num_samples) for row in result.rows] == [
    ("jvi(order=2)", 3),
    ("jvi_dreg(order=2)", 3),
  ]
  # The default order, 1, would be defined; nothing is refused before the run's is known.
  with pytest.raises(ConfigError, match=r"--num_samples.*at least 3.*jvi_dreg.*order=2.*got 2"):
    runners.compare(config.CompareConfig(num_samples=(2,), **options))
  (tmp_path / "file").touch()
  with pytest.raises(ConfigError, match="--output_dir=.*file cannot be written"):
    runners.compare(config.CompareConfig(output_dir=str(tmp_path / "file"), **options))
