"""Checks that the memory of the default training run does not grow with the steps.

python tools/resident_memory.py --first=2000 --last=20000
"""

import argparse
import csv
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
  """Prints the resident memory at two steps; exits with status 1 if it grew by more than 5 %."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--first", type=int, default=2000)
  parser.add_argument("--last", type=int, default=20000)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    flags = [f"--logdir={folder}/run", f"--max_steps={arguments.last + 500}"]
    process = subprocess.Popen(
      [sys.executable, str(ROOT / "bin" / "train.py"), *flags],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    first, last = (
      _memory_at(process, pathlib.Path(folder) / "run" / "metrics.csv", step)
      for step in (arguments.first, arguments.last)
    )
    process.kill()
    process.wait()
  print(f"step {arguments.first}: {first:.0f} MiB, step {arguments.last}: {last:.0f} MiB", end=" ")
  print(f"({last / first - 1:+.1%})")
  sys.exit(1 if last > 1.05 * first else 0)


def _memory_at(process: subprocess.Popen, metrics: pathlib.Path, step: int) -> float:
  """Returns the process' resident memory in MiB once metrics.csv has reached a step."""
  while not (metrics.exists() and _last_step(metrics) >= step):
    if process.poll() is not None:
      raise RuntimeError(f"The run ended before step {step}.")
    time.sleep(0.2)
  status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  return next(int(line.split()[1]) for line in status.splitlines() if line[:6] == "VmRSS:") / 1024


def _last_step(metrics: pathlib.Path) -> int:
  with open(metrics, newline="") as file:
    rows = [row for row in csv.reader(file) if row]
  return int(rows[-1][0]) if len(rows) > 1 else 0


if __name__ == "__main__":
  main()
