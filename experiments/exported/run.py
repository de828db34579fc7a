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
  parser.add_argument("--directory", required=True, help="Folder of the plans.")
  parser.add_argument("--output_dir", help="Folder of the results; the same by default.")
  parser.add_argument("--only", default="*", help="Names of plans, in order; * for any.")
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
  plans = [p for pattern in patterns for p in plans if fnmatch(p.name, pattern)]
  plans = list(dict.fromkeys(plans))
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
    print(f"{folder.name}: compiled in {compiled - begun:.0f} s", flush=True)
    images = dict(np.load(folder.parent / plan["images"]))
    plan |= {"name": folder.name, "num_images": num_images}
    plan["steps"] = max_steps or plan["steps"]
    for seed, keys in plan["seeds"].items():
      table = _first_values(folder.parent, keys)
      _run_seed(programs, table, images, plan, int(seed), output_dir)
  return f"{folder.name}: done in {time.perf_counter() - begun:.0f} s"


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
  return [jax.device_put(values[key]) for key in keys]


def _run_seed(
  programs: dict, table: list, images: dict, plan: dict, seed: int, output_dir: pathlib.Path
) -> None:
  """Trains, measures and evaluates a run; writes its results at each summary."""
  name = f"{plan['name']}_seed{seed}"
  gray = images["train"]
  if gray.dtype == np.uint8:
    gray = gray.astype(np.float32) / np.float32(255)
  inputs = [jax.device_put(value) for value in (gray, *_draws(len(gray), plan, seed))]
  size = plan["eval_batch_size"]
  flat = {split: _unpacked(images, split) for split in ("valid", "test")}
  parts = {
    split: [jax.device_put(whole[i : i + size]) for i in range(0, len(whole), size)]
    for split, whole in flat.items()
  }
  every, begun = plan["summarize_every"], time.perf_counter()
  result = {"rows": [], "device": jax.devices()[0].device_kind}
  for step in range(every, plan["steps"] + 1, every):
    _reset(table, plan)
    for _ in range(every):
      logs = programs["train"](table, *inputs)
    row = {"step": step, "train": _numbers(logs)}
    if "measure" in programs:
      row["train"] |= _signal_to_noise(programs["measure"], table, gray, plan, seed, step)
    for split, batches in parts.items():
      _reset(table, plan)
      for batch in batches:
        logs = programs["test"](table, batch)
      row[split] = _numbers(logs)
    result["rows"].append(row)
    _write(output_dir / f"{name}.json.gz", result)
    parameters = {str(place): np.asarray(table[place]) for place in plan["parameters"]}
    np.savez_compressed(output_dir / f"{name}.npz", **parameters)
    seconds = time.perf_counter() - begun
    print(f"{name}: step {step}, {row['test']['bound']:.2f} nats, {seconds:.0f} s", flush=True)
  result["evaluation"] = _log_likelihoods(programs["log_likelihood"], table, flat["test"], plan)
  _write(output_dir / f"{name}.json.gz", result)


def _write(path: pathlib.Path, result: dict) -> None:
  path.write_bytes(gzip.compress(json.dumps(result).encode()))


def _draws(num_images: int, plan: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns each step's images, [steps, batch_size], and the seed of their pixels, [steps, 2].

  As in `dregs_tf.data.train_batches`, an epoch goes through the images in an order of its own, and
  leaves out the remainder.
  """
  steps, size = plan["steps"], plan["batch_size"]
  epochs = -(-steps // (num_images // size))
  orders = [
    np.random.default_rng([seed, 0, epoch]).permutation(num_images)[: num_images // size * size]
    for epoch in range(epochs)
  ]
  indices = np.concatenate(orders).astype(np.int32).reshape(-1, size)[:steps]
  seeds = np.random.default_rng([seed, 1]).integers(2**31, size=(steps, 2), dtype=np.int32)
  return indices, seeds


def _unpacked(images: dict, split: str) -> np.ndarray:
  """Returns the binary images of a split, [N, width] in float32."""
  return np.unpackbits(images[split], axis=-1, count=int(images["width"])).astype(np.float32)


def _log_likelihoods(program: Loaded, table: list, images: np.ndarray, plan: dict) -> dict:
  """Returns the figures that bin/eval.py has of each image, by name, each a list."""
  images, size = images[: plan["num_images"]], plan["log_likelihood_batch_size"]
  found = []
  for i in range(0, len(images), size):
    seed = np.int32([plan["log_likelihood_seed"], i // size])
    found.append(program(table, images[i : i + size], seed, update=False))
  return {
    name: [float(f"{value:.7g}") for part in found for value in np.asarray(part[name])]
    for name in found[0]
  }


def _reset(table: list, plan: dict) -> None:
  """Sets the running means to zero, as Keras does before an interval and an evaluation."""
  for place in plan["metrics"]:
    table[place] = jax.device_put(np.zeros_like(table[place]))


def _signal_to_noise(
  program: Loaded, table: list, gray: np.ndarray, plan: dict, seed: int, step: int
) -> dict:
  """Returns the signal-to-noise ratio of each gradient, as `dregs_tf.models.GradientSNR` does."""
  draws = np.random.default_rng([seed, 2, step])
  count = plan["num_measured"]
  totals, squares = {}, {}
  for i in range(count):
    batch = gray[draws.integers(len(gray), size=plan["batch_size"])]
    batch = (draws.random(batch.shape, np.float32) < batch).astype(np.float32)
    for name, gradient in program(table, batch, np.int32([step, i]), update=False).items():
      totals[name] = totals.get(name, 0.0) + gradient
      squares[name] = squares.get(name, 0.0) + jax.numpy.vdot(gradient, gradient)
  found = {}
  for name, total in totals.items():
    square, squares_sum = float(jax.numpy.vdot(total, total)), float(squares[name])
    signal = (square - squares_sum) / (count * (count - 1))
    noise = (squares_sum - square / count) / (count - 1)
    ratio = max(signal, 0.0) / noise if noise > 0 else np.nan
    found[f"{name}_gradient_snr"] = float(np.sqrt(ratio))
  return found


def _numbers(logs: dict) -> dict:
  return {name: float(np.ravel(value)[0]) for name, value in logs.items()}


if __name__ == "__main__":
  main()
