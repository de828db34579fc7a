"""Directories of made-up runs."""

import json
import pathlib

import numpy as np

from dregs_tf.training import config
from dregs_tf.training.run_directory import Run
from experiments.results import grouped, read

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(directory, steps=(10, 20, 30, 40), columns=None, result=True, evaluation=None, **values):
  """A run's directory; its bound rises by 1 nat for each 10 steps, from its seed on."""
  values = {"bound": "iwae_dreg", "max_steps": 40, "summarize_every": 10} | values
  settings = config.TrainConfig(logdir=str(directory), **values)
  directory.mkdir(parents=True)
  Run(directory).write_config(settings)
  steps = np.array(steps)
  bound = settings.seed - 30 + steps / 10
  if columns is None:
    columns = {"valid_bound": bound, "test_bound": bound}
  table = {"step": steps} | columns
  lines = [",".join(table)] + [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
  (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
  if result and len(steps) and steps[-1] == settings.max_steps:
    text = json.dumps({"step": settings.max_steps, "test_bound": float(bound[-1])})
    (directory / "result.json").write_text(text)
  if evaluation:
    (directory / "evaluation_test_5000.json").write_text(json.dumps(evaluation))
  return directory


def groups_in(place):
  return grouped(read([f"{place}/*"]))


def values_of(curve):
  steps, values = curve
  return list(steps), list(values)


VARIANCE = "train_proposal_gradient_variance"


def with_variance(level, **tracked):
  bound = -np.array([5.0, 4.0, 3.0, 2.0]) - level
  columns = {VARIANCE: np.full(4, level), "valid_bound": bound, "test_bound": bound}
  columns |= {f"train_{name}_gradient_variance": np.full(4, each) for name, each in tracked.items()}
  return columns
