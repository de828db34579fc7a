"""Measures log-likelihoods, memory and start-up.

  python -m benchmarks.limits --output_dir=/tmp/benchmarks

`log_likelihood` with 5000 samples is timed in turns with the matrix products of its decoder alone.
Peak memory is that of a process that trains or evaluates, start-up that of the binaries. Nothing
else should be running.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks import turns

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where to write limits.json.")
_ROOT = pathlib.Path(__file__).parents[1]

_IMAGES, _SAMPLES = 100, 5000
_FLOOR_SAMPLES = 50  # the rows that `log_likelihood` takes at a time


def main(argv) -> None:
  """Measures, and prints a line for each result."""
  del argv
  results = {**log_likelihood(), **memory(), **start_up()}
  for name, value in results.items():
    print(f"{name:60} {value:8.2f}", flush=True)
  if _OUTPUT_DIR.value:
    folder = pathlib.Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "limits.json").write_text(json.dumps(results, indent=2) + "\n")


def log_likelihood() -> dict[str, float]:
  """Compares its rate with that of its decoder's matrix products, in the fastest library."""
  ours = ("ours/log_likelihood", _IMAGES, _SAMPLES)
  floors = [(f"floor/{name}-forward", _IMAGES, _FLOOR_SAMPLES) for name in ("tf", "xla", "torch")]
  measured = turns.measure([ours, *floors])
  seconds = measured[ours]["median"]
  floor = min(measured[f]["median"] for f in floors if f in measured) * _SAMPLES / _FLOOR_SAMPLES
  return {
    "log_likelihood, 5000 samples: ms an image": 1e3 * seconds / _IMAGES,
    "log_likelihood, 5000 samples: rate over the floor's": floor / seconds,
    "log_likelihood, 5000 samples: peak memory, MiB": measured[ours]["peak_memory"],
  }


def memory() -> dict[str, float]:
  """Returns the peak memory of training, in MiB."""
  cases = [("iwae", 1024), ("jvi_dreg", 1024), ("iwae_dreg", 1024), ("iwae_dreg:64", 4096)]
  results = {}
  for bound, num_samples in cases:
    case = (f"ours/{bound}", 32, num_samples)
    peak = turns.measure([case], rounds=3)[case]["peak_memory"]
    results[f"training, {bound}, batch 32, K = {num_samples}: peak memory, MiB"] = peak
  return results


def start_up() -> dict[str, float]:
  """Returns the seconds from a command to its answer, or to its first checkpoint."""
  results = {}
  for arguments in (["--help"], ["--bond=iwae"]):
    seconds = []
    for _ in range(5):
      begun = time.perf_counter()
      subprocess.run(_train(*arguments), cwd=_ROOT, capture_output=True, check=False)
      seconds.append(time.perf_counter() - begun)
    results[f"bin/train.py {arguments[0]}: seconds"] = statistics.median(seconds)
  with tempfile.TemporaryDirectory() as folder:
    begun = time.perf_counter()
    command = _train("--bound=jvi_dreg", "--checkpoint_every=1", f"--logdir={folder}")
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL) as process:
      while not list(pathlib.Path(folder).glob("checkpoints/step-*.keras")):
        time.sleep(0.05)
      results["bin/train.py, first step trained and saved: seconds"] = time.perf_counter() - begun
      process.kill()
  return results


def _train(*arguments: str) -> list[str]:
  return [sys.executable, "bin/train.py", *arguments]


if __name__ == "__main__":
  app.run(main)
