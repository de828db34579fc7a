"""Measures contenders in turns: processes of their own, a few steps each, in one run."""

import contextlib
import os
import statistics
import subprocess
import sys

_SECONDS_A_TURN = 0.4

# A contender as module/name, its batch size and its number of samples.
Case = tuple[str, int, int]


def measure(cases: list[Case], rounds: int = 25) -> dict[Case, dict]:
  """Returns median and quartiles of a step's seconds, and peak memory in MiB, of each case."""
  with contextlib.ExitStack() as stack:
    started = [(case, stack.enter_context(_worker(*case))) for case in cases]
    workers = {}
    for case, worker in started:
      if worker.stdout.readline().strip() == "ready":
        workers[case] = worker
      else:
        print(f"{case[0]} failed to start; run it alone to see why.", file=sys.stderr)
    steps = {c: max(1, round(_SECONDS_A_TURN / _ask(w, 2)[0])) for c, w in workers.items()}
    answers = {case: [] for case in workers}
    for _ in range(rounds):
      for case, worker in workers.items():
        answers[case].append(_ask(worker, steps[case]))
  return {
    case: {
      "median": statistics.median(seconds for seconds, _ in values),
      "quartiles": statistics.quantiles([seconds for seconds, _ in values], n=4)[::2],
      "peak_memory": max(peak for _, peak in values),
    }
    for case, values in answers.items()
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
