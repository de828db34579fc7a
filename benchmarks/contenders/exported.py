"""Runs this library's step, exported by `benchmarks.export_step`, through JAX's runtime."""

import json
import os
import pathlib

import jax
import numpy as np
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from jaxlib import _jax  # The runtime under `jax.jit`; checked in JAX 0.10.

# The environment variable that names the folder of the exported programs.
FOLDER = "EXPORTED_STEPS"


def make(name: str, batch_size: int, num_samples: int):
  """Makes steps of the program of a precision: `float32`, `tf32` or `bfloat16`."""
  folder = pathlib.Path(os.environ[FOLDER])
  path = folder / f"{batch_size}x{num_samples}-{name}"
  replaced = json.loads(path.with_suffix(".json").read_text())
  device = jax.devices()[0]
  with mlir.make_ir_context(), ir.Location.unknown():
    module = ir.Module.parse(path.with_suffix(".mlir").read_text())
    program = device.client.compile_and_load(
      module, _jax.DeviceList((device,)), _jax.CompileOptions()
    )
  with jax.enable_x64(True):
    arguments = [jax.device_put(value, device) for value in np.load(folder / "values.npz").values()]
  x = arguments[0]

  def run(steps: int) -> None:
    results = []
    for _ in range(steps):
      results = program.execute_sharded(arguments).disassemble_into_single_device_arrays()
      results = [result for (result,) in results]
      for result, argument in replaced.items():
        arguments[int(argument)] = results[int(result)]
    bound = float(results[0])
    if not np.isfinite(bound):
      raise FloatingPointError(f"{path}: the bound became {bound}.")
    if arguments[0] is not x:
      raise ValueError(f"{path} replaces its batch.")

  return run
