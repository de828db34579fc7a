"""Times training steps on sequences in turns: this library's, and a plain hand-written loop.

  python -m benchmarks.sequences --shape=16x16

`plain` has no resampling, no ancestors and no gates: the bound `iwae`. A ratio is that of medians.
"""

from absl import app, flags

from benchmarks import turns
from dregs_tf import catalogue

_SHAPE = flags.DEFINE_string("shape", "16x16", "BATCHxPARTICLES to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each contender.", lower_bound=3)
_XLA = flags.DEFINE_boolean("xla", True, "Whether to compile the steps with XLA.")


def main(argv) -> None:
  """Measures and prints a line for each contender."""
  del argv
  shape = tuple(map(int, _SHAPE.value.split("x")))
  suffix = "-xla" if _XLA.value else ""
  names = [f"sequence_step/{name}{suffix}" for name in ("plain", *catalogue.SEQUENCE_BOUNDS)]
  results = turns.measure([(name, *shape) for name in names], _ROUNDS.value)
  plain = results[names[0], *shape]["median"]
  for (name, *_), found in results.items():
    print(f"{name:32} {1e3 * found['median']:8.2f} ms  {found['median'] / plain:5.2f} x plain")


if __name__ == "__main__":
  app.run(main)
