"""Times `diagnostics.compare` for eight estimators and for one, on the paper's MNIST networks.

  python -m benchmarks.comparison

Whole calls are timed in turns. A call traces and compiles first, so the time of a further
measurement is the difference between two calls. Nothing else should be running.
"""

import statistics
import time

import keras
import numpy as np
from absl import app, flags

from dregs_tf import diagnostics, models

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each call.")

_BOUNDS = {
  "iwae": ["iwae"],
  "iwae_dreg": ["iwae_dreg"],  # and iwae, its reference
  "eight": ["iwae", "iwae_dreg", "rws", "rws_dreg", "stl", "dreg_alpha", "jvi", "jvi_dreg"],
}
_FEW, _MANY = 50, 250


def main(argv) -> None:
  """Measures, and prints a line for each list of estimators."""
  del argv
  keras.utils.set_random_seed(0)
  model = models.VAE(np.full(784, 0.3))
  model.compile("adam", num_samples=64, seed=0)
  x = np.random.default_rng(0).random((32, 784)) > 0.7

  def seconds(bounds, num_measurements):
    begun = time.perf_counter()
    diagnostics.compare(model, x, bounds, 64, num_measurements)
    return time.perf_counter() - begun

  seconds(["iwae"], _FEW)  # The first call in a process does more.
  calls = [(name, n) for name in _BOUNDS for n in (_FEW, _MANY)]
  times = {call: [] for call in calls}
  for _ in range(_ROUNDS.value):
    for name, n in calls:
      times[name, n].append(seconds(_BOUNDS[name], n))
  whole = {call: statistics.median(several) for call, several in times.items()}
  for name in _BOUNDS:
    pairs = zip(times[name, _FEW], times[name, _MANY], strict=True)
    each = statistics.median((many - few) / (_MANY - _FEW) for few, many in pairs)
    total = f"{_MANY} of them {whole[name, _MANY]:5.2f} s"
    print(f"{name:10} a measurement {1e3 * each:5.1f} ms, {total}", flush=True)


if __name__ == "__main__":
  app.run(main)
