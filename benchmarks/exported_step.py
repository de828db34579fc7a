"""Times exported steps beside JAX and PyTorch, on a machine without TensorFlow; on a GPU if it can.

  python -m benchmarks.exported_step --directory=/tmp/exported

`benchmarks.export_step` writes the programs. Contenders take turns, as in `benchmarks.train_step`;
those whose library is not installed fail to start, with a message.
"""

import argparse
import json
import os
import pathlib

from benchmarks import turns

_PRECISIONS = ("float32", "tf32", "bfloat16")
_OTHERS = ("jax_step/jit", "pytorch/compile", "pytorch/eager")


def main() -> None:
  """Measures, prints a table for each shape, writes exported_step.json."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--directory", required=True, help="Where the programs are.")
  parser.add_argument("--shapes", default="32x64,32x256,32x1024", help="BATCHxSAMPLES to measure.")
  parser.add_argument("--only", default="", help="Contenders to measure; all by default.")
  parser.add_argument("--rounds", type=int, default=7, help="Turns of each contender, 3 or more.")
  parser.add_argument("--output_dir", help="Where to write the figures as JSON.")
  arguments = parser.parse_args()
  os.environ["EXPORTED_STEPS"] = arguments.directory
  os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # Contenders share the memory of a GPU.
  names = arguments.only.split(",") if arguments.only else contenders()
  results = {}
  for shape in arguments.shapes.split(","):
    batch_size, num_samples = map(int, shape.split("x"))
    cases = [(name, batch_size, num_samples) for name in names]
    measured = turns.measure(cases, arguments.rounds)
    results[shape] = {name: values for (name, *_), values in measured.items()}
    print(table(shape, results[shape]), flush=True)
    if arguments.output_dir:
      folder = pathlib.Path(arguments.output_dir)
      folder.mkdir(parents=True, exist_ok=True)
      (folder / "exported_step.json").write_text(json.dumps(results, indent=2) + "\n")


def contenders() -> list[str]:
  """Returns the contenders, as module/name: each in float32, TF32 and bfloat16."""
  names = []
  for precision in _PRECISIONS:
    ending = "" if precision == "float32" else f"-{precision}"
    names += [f"exported/{precision}", *(f"{other}{ending}" for other in _OTHERS)]
  return names


def table(shape: str, results: dict[str, dict]) -> str:
  """Formats medians and quartiles in milliseconds."""
  lines = [f"(batch x samples) {shape}", f"{'':28} {'ms':>8} {'quartiles':>17}"]
  for name, values in results.items():
    low, high = (1e3 * quartile for quartile in values["quartiles"])
    lines.append(f"{name:28} {1e3 * values['median']:8.3f} {low:8.3f}-{high:8.3f}")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
