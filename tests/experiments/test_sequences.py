"""Tests of the experiment on sequences, at a small size."""

import csv

import pytest

from dregs_tf.training.errors import ConfigError
from experiments import sequences


def test_the_squared_weight_lowers_the_variance(tmp_path, capsys):
  """By a factor of more than 2 at K = 8, of 400 gradients; T = 1 is iwae."""
  settings = sequences.SequencesConfig(
    num_samples=("2", "8"), num_steps=(1, 3), num_measurements=400, output_dir=str(tmp_path)
  )
  sequences.main(settings)
  with open(tmp_path / "sequences.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 8
  variances = {
    (row["bound"], row["num_steps"], row["num_samples"]): float(row["variance"]) for row in rows
  }
  assert variances["fivo", "1", "8"] > 2 * variances["fivo_dreg", "1", "8"]
  assert variances["fivo", "3", "8"] > variances["fivo_dreg", "3", "8"]
  assert (tmp_path / "sequences.png").exists()
  assert "| 3 | 8 |" in capsys.readouterr().out


@pytest.mark.parametrize("fields", [{"num_samples": (0,)}, {"num_steps": ("x",)}, {"shift": "a"}])
def test_bad_values_are_refused(fields):
  with pytest.raises(ConfigError, match=f"--{next(iter(fields))}"):
    sequences.SequencesConfig(**fields)
