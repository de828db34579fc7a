"""Kills training runs at random moments, resumes them, and compares them with an unstopped one.

    python tools/kill_and_resume.py --runs=25 -- --bound=jvi_dreg --max_steps=600 ...

Each run is started and killed by SIGKILL a few times, at moments drawn uniformly from the time that
the whole run takes: during start-up, steps, checkpoints and summaries. Then it may finish.
metrics.csv and result.json have to be the same bytes, and all variables of the last checkpoint,
including the optimizer's, the same bits.
"""

import argparse
import io
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import zipfile

import h5py
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
_DEFAULT_FLAGS = (
  "--bound=jvi_dreg",
  "--gradient_statistics",
  "--max_steps=600",
  "--summarize_every=70",
  "--checkpoint_every=40",
)


def main() -> None:
  """Runs, kills, resumes and compares; exits with status 1 if any run differs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=int, default=25)
  parser.add_argument("--kills", type=int, default=2, help="times that each run is killed")
  parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
  parser.add_argument("flags", nargs="*", default=_DEFAULT_FLAGS, help="flags of bin/train.py")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    differing = compare(pathlib.Path(folder), **vars(arguments))
  same = arguments.runs - len(differing)
  print(f"{same} of {arguments.runs} runs identical to the unstopped one.")
  sys.exit(1 if differing else 0)


def compare(folder: pathlib.Path, runs: int, kills: int, seed: int, flags) -> list[int]:
  """Returns the numbers of the runs that differ."""
  moments = random.Random(seed)
  start = time.monotonic()
  _finish(folder / "whole", flags)
  duration = time.monotonic() - start
  differing = []
  for run in range(runs):
    directory = folder / f"run-{run}"
    killed_at = [_kill(directory, flags, moments.uniform(0, duration)) for _ in range(kills)]
    _finish(directory, flags)
    differences = different_files(folder / "whole", directory)
    print(
      f"run {run}: killed after {', '.join(killed_at)}: "
      + (f"DIFFERS in {', '.join(differences)}" if differences else "identical"),
      flush=True,
    )
    if differences:
      differing.append(run)
  return differing


def _start(directory: pathlib.Path, flags) -> subprocess.Popen:
  command = [sys.executable, str(ROOT / "bin" / "train.py"), *flags, f"--logdir={directory}"]
  return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _kill(directory: pathlib.Path, flags, seconds: float) -> str:
  """Kills a run after some seconds; returns when, and the step of its newest checkpoint."""
  process = _start(directory, flags)
  try:
    process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()
    process.communicate()
  saved = sorted(path.name for path in (directory / "checkpoints").glob("step-*.keras"))
  return f"{seconds:.1f} s ({int(saved[-1][5:-6]) if saved else 0} steps saved)"


def _finish(directory: pathlib.Path, flags) -> None:
  process = _start(directory, flags)
  _, errors = process.communicate()
  if process.returncode:
    raise RuntimeError(f"A run failed: {errors}")


def different_files(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """Returns the names of the results in which two runs differ."""
  names = [
    name
    for name in ("metrics.csv", "result.json")
    if (one / name).read_bytes() != (other / name).read_bytes()
  ]
  a, b = (_variables(run) for run in (one, other))
  same = a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
  return names if same else [*names, "the last checkpoint"]


def _variables(run: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns every array of a run's last checkpoint, by name."""
  newest = max((run / "checkpoints").glob("step-*.keras"))
  with zipfile.ZipFile(newest) as archive:
    weights = io.BytesIO(archive.read("model.weights.h5"))
  arrays = {}
  with h5py.File(weights) as file:
    file.visititems(
      lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
    )
  return arrays


if __name__ == "__main__":
  main()
