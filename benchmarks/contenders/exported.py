"""Runs this library's step, exported by `benchmarks.export_step`, through JAX's runtime."""

import json
import os
import pathlib

import jax
import numpy as np

from experiments.exported.run import Loaded

# The environment variable that names the folder of the exported programs.
FOLDER = "EXPORTED_STEPS"


def make(name: str, batch_size: int, num_samples: int):
  """Makes steps of the program of a precision: `float32`, `tf32` or `bfloat16`."""
  folder = pathlib.Path(os.environ[FOLDER])
  path = folder / f"{batch_size}x{num_samples}-{name}"
  program = Loaded(path.with_suffix(".mlir.gz"), json.loads(path.with_suffix(".json").read_text()))
  with jax.enable_x64(True):
    x, *table = (jax.device_put(value) for value in np.load(folder / "values.npz").values())

  def run(steps: int) -> None:
    for _ in range(steps):
      logs = program(table, x)
    bound = float(logs["bound"])
    if not np.isfinite(bound):
      raise FloatingPointError(f"{path}: the bound became {bound}.")

  return run
