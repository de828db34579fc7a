"""Runs one contender in a process of its own: reads numbers of steps, prints seconds a step.

So one library's threads do not wait for another's, and its peak memory is its own.
"""

import resource
import sys
import time


def main() -> None:
  """Runs `worker.py MODULE NAME BATCH_SIZE NUM_SAMPLES`; reads a number of steps on each line."""
  module, name, batch_size, num_samples = sys.argv[1:5]
  run = _contender(module).make(name, int(batch_size), int(num_samples))
  run(3)
  print("ready", flush=True)
  for line in sys.stdin:
    steps = int(line)
    start = time.perf_counter()
    steps = run(steps) or steps
    seconds = (time.perf_counter() - start) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds!r} {peak!r}", flush=True)


def _contender(module: str):
  """Returns the module; each loads a library that the others do not need."""
  if module == "ours":
    from benchmarks.contenders import ours as contender
  elif module == "tensorflow_plain":
    from benchmarks.contenders import tensorflow_plain as contender
  elif module == "pytorch":
    from benchmarks.contenders import pytorch as contender
  elif module == "jax_step":
    from benchmarks.contenders import jax_step as contender
  elif module == "parts":
    from benchmarks.contenders import parts as contender
  elif module == "exported":
    from benchmarks.contenders import exported as contender
  elif module == "floor":
    from benchmarks.contenders import floor as contender
  elif module == "sequence_step":
    from benchmarks.contenders import sequence_step as contender
  else:
    raise ValueError(f"There is no contender {module!r}.")
  return contender


if __name__ == "__main__":
  main()
