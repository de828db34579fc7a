"""Runs what `experiments.exported.write` wrote, through JAX's runtime; on a GPU if it can.

  python -m experiments.exported.run --directory=runs/reduced/exported --jobs=6

Several processes keep a GPU busier than one. Results are DIRECTORY/NAME_seedN.json: the rows of
metrics.csv, and the log-likelihoods of the test set; the parameters are beside them.
"""

import argparse
import concurrent.futures
import functools
import gzip
import json
import multiprocessing
import os
import pathlib
import time
from fnmatch import fnmatch

import jax
import numpy as np
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from jaxlib import _jax  # The runtime under `jax.jit`; checked in JAX 0.10 and 0.11.


def main() -> None:
  """Runs the plans that a pattern selects, some at a time."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--directory", required=True, help="Where the plans are.")
  parser.add_argument("--output_dir", help="Where to write results; the same by default.")
  parser.add_argument("--only", default="*", help="Names of plans, with commas between; * for any.")
  parser.add_argument("--jobs", type=int, default=1, help="Processes at a time.")
  parser.add_argument("--max_steps", type=int, help="Stop earlier.")
  parser.add_argument("--num_images", type=int, help="Test images to evaluate; all by default.")
  arguments = parser.parse_args()
  os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # Processes share the memory of a GPU.
  directory = pathlib.Path(arguments.directory)
  output_dir = pathlib.Path(arguments.output_dir or directory)
  output_dir.mkdir(parents=True, exist_ok=True)
  plans = sorted(path.parent for path in directory.glob("*/plan.json"))
  patterns = arguments.only.split(",")
  plans = [path for path in plans if any(fnmatch(path.name, pattern) for pattern in patterns)]
  work = functools.partial(
    run, output_dir=output_dir, max_steps=arguments.max_steps, num_images=arguments.num_images
  )
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
    for line in pool.map(work, plans):
      print(line, flush=True)


def run(
  folder: pathlib.Path, output_dir: pathlib.Path, max_steps: int | None, num_images: int | None
) -> str:
  """Runs a plan, seed by seed; returns a line that says how long it took."""
  begun = time.perf_counter()
  plan = json.loads((folder / "plan.json").read_text())
  with jax.enable_x64(True):  # The figures of an evaluation are sums in float64.
    programs = {
      name: Loaded(folder / f"{name}.mlir.gz", entry) for name, entry in plan["programs"].items()
    }
    compiled = time.perf_counter()
    for (seed, keys), names in zip(plan["seeds"].items(), plan["data"], strict=True):
      table = _first_values(folder.parent, keys)
      _run_seed(
        programs,
        table,
        {key: value for name in names for key, value in np.load(folder.parent / name).items()},
        plan | {"steps": max_steps or plan["steps"], "num_images": num_images},
        output_dir / f"{folder.name}_seed{seed}",
      )
  trained = time.perf_counter() - compiled
  return f"{folder.name}: compiled in {compiled - begun:.0f} s, {trained:.0f} s for {len(plan['seeds'])} seeds"


class Loaded:
  """A program, compiled for the device."""

  def __init__(self, path: pathlib.Path, entry: dict):
    device = jax.devices()[0]
    text = gzip.decompress(path.read_bytes()).decode()
    with mlir.make_ir_context(), ir.Location.unknown():
      self._program = device.client.compile_and_load(
        ir.Module.parse(text), _jax.DeviceList((device,)), _jax.CompileOptions()
      )
    self._entry = entry

  def __call__(self, table: list, *inputs, update: bool = True) -> dict:
    """Returns the results by name, and puts the variables' new values into the table."""
    inputs = [jax.device_put(i) if isinstance(i, np.ndarray) else i for i in inputs]
    arguments = [*inputs, *(table[place] for place in self._entry["arguments"])]
    results = self._program.execute_sharded(arguments).disassemble_into_single_device_arrays()
    for result, place in self._entry["updates"] if update else ():
      (table[place],) = results[result]
    return {name: results[i][0] for i, name in enumerate(self._entry["results"])}


def _first_values(directory: pathlib.Path, keys: list[str]) -> list:
  files = [np.load(path) for path in directory.glob("values-*.npz")]
  values = {key: file[key] for file in files for key in set(keys) & set(file.files)}
  # Copies: a program writes new values into the memory of the old ones.
  return [jax.device_put(values[key].copy()) for key in keys]


def _run_seed(programs: dict, table: list, data: dict, plan: dict, path: pathlib.Path) -> None:
  """Trains, measures and evaluates; writes what it found."""

  def floats(bits):
    return np.unpackbits(bits, axis=-1, count=int(data["width"])).astype(np.float32)

  gray = data["train"]
  if gray.dtype == np.uint8:
    gray = gray.astype(np.float32) / np.float32(255)
  indices = data["indices"].astype(np.int32)
  inputs = [jax.device_put(value) for value in (gray, indices, data["pixel_seeds"])]
  parts = {
    name: [
      jax.device_put(part)
      for part in np.split(
        whole, range(plan["eval_batch_size"], len(whole), plan["eval_batch_size"])
      )
    ]
    for name in ("valid", "test")
    for whole in [floats(data[name])]
  }
  rows = []
  for interval, step in enumerate(
    range(plan["summarize_every"], plan["steps"] + 1, plan["summarize_every"])
  ):
    _reset(table, plan)
    for _ in range(plan["summarize_every"]):
      logs = programs["train"](table, *inputs)
    row = {"step": step, "train": _numbers(logs)}
    if "measure" in programs:
      row["train"] |= _signal_to_noise(
        programs["measure"], table, floats(data["measured"][interval]), step, plan
      )
    for name, batches in parts.items():
      _reset(table, plan)
      for batch in batches:
        logs = programs[f"test_{len(batch)}"](table, batch)
      row[name] = _numbers(logs)
    rows.append(row)
  _reset(table, plan)
  images = floats(data["test"])[: plan["num_images"]]
  size = plan["log_likelihood_batch_size"]
  found = [
    programs["log_likelihood"](
      table, images[i : i + size], np.int32([plan["log_likelihood_seed"], i // size]), update=False
    )
    for i in range(0, len(images), size)
  ]
  result = {
    "rows": rows,
    "evaluation": {
      name: np.concatenate([part[name] for part in found]).tolist() for name in found[0]
    },
    "device": jax.devices()[0].device_kind,
  }
  path.with_suffix(".json.gz").write_bytes(gzip.compress(json.dumps(result).encode()))
  parameters = {str(place): np.asarray(table[place]) for place in plan["parameters"]}
  np.savez_compressed(path.with_suffix(".npz"), **parameters)


def _reset(table: list, plan: dict) -> None:
  """Sets the running means to zero, as Keras does before an interval and an evaluation."""
  for place in plan["metrics"]:
    table[place] = jax.device_put(np.zeros_like(table[place]))


def _signal_to_noise(program: Loaded, table: list, images: np.ndarray, step: int, plan) -> dict:
  """Returns the signal-to-noise ratio of each gradient, as `dregs_tf.models.GradientSNR` does."""
  size = plan["batch_size"]
  count = len(images) // size
  totals, squares = {}, {}
  for i in range(count):
    numbers = np.int32([step, i])
    gradients = program(table, images[i * size : (i + 1) * size], numbers, update=False)
    for name, gradient in gradients.items():
      gradient = np.asarray(gradient)
      totals[name] = totals.get(name, 0) + gradient
      squares[name] = squares.get(name, 0.0) + float(np.sum(gradient**2))
  found = {}
  for name, total in totals.items():
    square = float(np.sum(total**2))
    signal = (square - squares[name]) / (count * (count - 1))
    noise = (squares[name] - square / count) / (count - 1)
    found[f"{name}_gradient_snr"] = np.sqrt(max(signal, 0.0) / noise)
  return found


def _numbers(logs: dict) -> dict:
  return {name: float(np.ravel(value)[0]) for name, value in logs.items()}


if __name__ == "__main__":
  main()
