"""One contender in a process of its own: told a number of steps, it answers with seconds a step.

Apart, so that one library's threads do not wait on another's, and that peak memory is its own.
"""

import importlib
import resource
import sys
import time


def main() -> None:
  """`worker.py MODULE NAME BATCH_SIZE NUM_SAMPLES`; reads numbers of steps, one a line."""
  module, name, batch_size, num_samples = sys.argv[1:5]
  make = importlib.import_module(f"benchmarks.contenders.{module}").make
  run = make(name, int(batch_size), int(num_samples))
  run(3)
  print("ready", flush=True)
  for line in sys.stdin:
    steps = int(line)
    start = time.perf_counter()
    run(steps)
    seconds = (time.perf_counter() - start) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds!r} {peak!r}", flush=True)


if __name__ == "__main__":
  main()
