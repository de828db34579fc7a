"""Writes the directories of runs that `experiments.exported.run` has run.

python -m experiments.exported.read --experiment=mnist_seeds --seeds=0,1,2

It takes the flags of bin/run_experiment.py, and reads OUTPUT_DIR/exported. A directory holds what
bin/train.py and bin/eval.py write, but for checkpoints and figures.
"""

import dataclasses
import gzip
import json
import pathlib

import numpy as np

from dregs_tf.importance_weights import Diagnostics
from dregs_tf.training import Run, callbacks, config, flags, trust
from experiments import runs


def read(settings: runs.ExperimentConfig) -> None:
  """Writes the directories of the experiment's runs; of an unfinished run, the metrics alone."""
  exported = pathlib.Path(settings.directory) / "exported"
  for each in runs.all_runs(settings):
    path = exported / f"{each.name}.json.gz"
    if path.exists():
      _write_run(each.settings, json.loads(gzip.decompress(path.read_bytes())))
      print(each.settings.directory, flush=True)
    else:
      print(f"{path} is not there: {each.name} has not been run.", flush=True)


def _write_run(settings: config.TrainConfig, found: dict) -> None:
  run = Run(settings.directory)
  run.directory.mkdir(parents=True, exist_ok=True)
  run.write_config(settings, {"device": found["device"]})
  run.keep_metrics(0)
  for row in found["rows"]:
    logs = dict(row["train"])
    logs |= {f"val_{name}": value for name, value in row["valid"].items()}
    logs |= {f"test_{name}": value for name, value in row["test"].items()}
    run.add_metrics({"step": row["step"]} | callbacks.by_split(logs))
  last = found["rows"][-1]
  if "evaluation" not in found:
    return
  run.write_result({"step": last["step"], "test_bound": last["test"]["bound"]})
  figures = Diagnostics(**{name: np.array(each) for name, each in found["evaluation"].items()})
  evaluation = config.EvalConfig(logdir=str(settings.directory))
  result = dataclasses.asdict(evaluation) | {"step": last["step"]} | trust.summary(figures)
  run.write_evaluation(result, trust.rows(figures))


if __name__ == "__main__":
  flags.run(runs.ExperimentConfig, read, __doc__)
