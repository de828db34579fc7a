"""Times training steps in turn: this library's, others', and the matrix products alone.

  python -m benchmarks.train_step --output_dir=/tmp/benchmarks

Every contender is a process of its own; they take turns, a few steps each, all in one go, and the
medians over the turns are compared. Nothing else should be running. PyTorch and JAX are optional:
what is not installed is left out, with a word.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys

from absl import app, flags

from dregs_tf import config

_SHAPES = flags.DEFINE_list("shapes", ["32x64", "32x256", "128x64"], "BATCHxSAMPLES to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 25, "Turns of each contender.", lower_bound=3)
_ONLY = flags.DEFINE_list("only", [], "Contenders to measure, module/name; all unless given.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where to write JSON and PNG.")

_BASE = "ours/iwae_dreg"
_FLOORS = ("floor/tf", "floor/xla", "floor/torch")
_SECONDS_A_TURN = 0.4


def contenders(num_samples: int) -> list[str]:
  """What is measured, as module/name; the sparse steps with the numbers of samples of interest."""
  sparse = {64: 16, 256: 32}.get(num_samples, max(1, num_samples // 4))
  return [
    *_FLOORS,
    *(f"ours/{bound}" for bound in config.BOUNDS),
    "ours/iwae_dreg:graph",
    f"ours/iwae_dreg:{sparse}",
    *(f"tensorflow_plain/{name}" for name in ("literal", "literal-xla", "authors", "authors-xla")),
    "pytorch/eager",
    "pytorch/compile",
    "jax_step/jit",
  ]


def main(argv) -> None:
  """Measures, prints the tables, writes JSON and a figure."""
  del argv
  results = {}
  for shape in _SHAPES.value:
    batch_size, num_samples = map(int, shape.split("x"))
    names = _ONLY.value or contenders(num_samples)
    results[shape] = measure([n for n in names if _is_installed(n)], batch_size, num_samples)
    print(table(shape, results[shape]), flush=True)
  if _OUTPUT_DIR.value:
    folder = pathlib.Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_step.json").write_text(json.dumps(results, indent=2) + "\n")
    figure(folder / "train_step.png", results)


def measure(names: list[str], batch_size: int, num_samples: int) -> dict[str, dict]:
  """Median, quartiles of a step's seconds, and peak memory in MiB, by contender."""
  with contextlib.ExitStack() as stack:
    workers = {}
    for name in names:
      worker = stack.enter_context(_worker(name, batch_size, num_samples))
      if worker.stdout.readline().strip() == "ready":
        workers[name] = worker
      else:
        print(f"{name} failed to start; run it alone to see why.", file=sys.stderr)
    steps = {n: max(1, round(_SECONDS_A_TURN / _ask(w, 2)[0])) for n, w in workers.items()}
    turns = {name: [] for name in workers}
    for _ in range(_ROUNDS.value):
      for name, worker in workers.items():
        turns[name].append(_ask(worker, steps[name]))
  return {
    name: {
      "median": statistics.median(seconds for seconds, _ in values),
      "quartiles": statistics.quantiles([seconds for seconds, _ in values], n=4)[::2],
      "peak_memory": max(peak for _, peak in values),
    }
    for name, values in turns.items()
  }


@contextlib.contextmanager
def _worker(name: str, batch_size: int, num_samples: int):
  command = [sys.executable, "-m", "benchmarks.worker", *name.split("/")]
  process = subprocess.Popen(
    [*command, str(batch_size), str(num_samples)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
  )
  try:
    yield process
  finally:
    process.kill()
    process.wait()


def _ask(worker, steps: int) -> tuple[float, float]:
  worker.stdin.write(f"{steps}\n")
  worker.stdin.flush()
  seconds, peak = worker.stdout.readline().split()
  return float(seconds), float(peak)


def _is_installed(name: str) -> bool:
  library = "torch" if "torch" in name else "jax" if name.startswith("jax") else "tensorflow"
  found = importlib.util.find_spec(library) is not None
  if not found:
    print(f"{name} left out: {library} is not installed.", file=sys.stderr)
  return found


def table(shape: str, results: dict[str, dict]) -> str:
  """Medians in milliseconds, and their ratios to the floor and to this library's step."""
  floor = min((results[n]["median"] for n in _FLOORS if n in results), default=float("nan"))
  base = results.get(_BASE, {"median": float("nan")})["median"]
  lines = [
    f"(batch x samples) {shape}",
    f"{'':32} {'ms':>8} {'quartiles':>15} {'x floor':>8} {'x ours':>7} {'MiB':>6}",
  ]
  for name, r in results.items():
    low, high = (1e3 * q for q in r["quartiles"])
    lines.append(
      f"{name:32} {1e3 * r['median']:8.2f} {low:7.2f}-{high:7.2f} {r['median'] / floor:8.2f} "
      f"{r['median'] / base:7.2f} {r['peak_memory']:6.0f}"
    )
  return "\n".join(lines) + "\n"


def figure(path: pathlib.Path, results: dict[str, dict[str, dict]]) -> None:
  """A panel of horizontal bars for each shape."""
  from matplotlib.figure import Figure

  picture = Figure(figsize=(5 * len(results), 7), layout="constrained")
  panels = picture.subplots(1, len(results), squeeze=False)[0]
  for axes, (shape, contenders_of_shape) in zip(panels, results.items(), strict=True):
    names = list(contenders_of_shape)[::-1]
    values = [1e3 * contenders_of_shape[n]["median"] for n in names]
    kinds = ("floor", "ours")
    colours = [
      "C7" if n.startswith(kinds[0]) else "C0" if n.startswith(kinds[1]) else "C1" for n in names
    ]
    axes.barh(names, values, color=colours)
    axes.set_title(f"batch x samples = {shape}")
    axes.set_xlabel("ms a step (median)")
    axes.grid(axis="x", alpha=0.3)
  picture.savefig(path, dpi=110)


if __name__ == "__main__":
  app.run(main)
