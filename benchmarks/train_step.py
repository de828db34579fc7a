"""Times training steps in turns: this library's, others', and the matrix products alone.

  python -m benchmarks.train_step --output_dir=/tmp/benchmarks

Every contender is a process of its own. They take turns of a few steps each, in one run, and the
medians over the turns are compared. Nothing else should be running. PyTorch and JAX are optional:
contenders whose library is not installed are left out, with a message. Ratios to the floor are to
the products of the same precision. The last lines say what a step of this library is made of.
"""

import importlib.util
import json
import pathlib
import sys

from absl import app, flags

from benchmarks import machine, turns
from dregs_tf.training import config

_SHAPES = flags.DEFINE_list("shapes", ["32x64", "32x256", "128x64"], "BATCHxSAMPLES to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 25, "Turns of each contender.", lower_bound=3)
_ONLY = flags.DEFINE_list("only", [], "Contenders to measure, module/name; all by default.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where to write JSON and PNG.")

_BASE = "ours/iwae_dreg"
_FLOORS = ("floor/tf", "floor/xla", "floor/torch")
_PARTS = ("parts/noise", "parts/optimizer", "parts/fixed")
_BFLOAT16 = "bfloat16"


def contenders(num_samples: int) -> list[str]:
  """Returns the contenders, as module/name."""
  sparse = {64: 16, 256: 32}.get(num_samples, max(1, num_samples // 4))
  return [
    *_FLOORS,
    *(f"{name}-{_BFLOAT16}" for name in _FLOORS),
    *_PARTS,
    *(f"ours/{bound}" for bound in config.BOUNDS),
    "ours/iwae_dreg:graph",
    "ours/iwae_dreg:in10",
    f"ours/iwae_dreg:{sparse}",
    f"ours/iwae_dreg:{sparse}:in10",
    f"ours/iwae_dreg:{_BFLOAT16}",
    f"ours/iwae_dreg:{_BFLOAT16}:graph",
    f"ours/iwae_dreg:{sparse}:{_BFLOAT16}",
    *(f"tensorflow_plain/{name}" for name in ("literal", "literal-xla", "authors", "authors-xla")),
    "pytorch/eager",
    "pytorch/compile",
    f"pytorch/compile-{_BFLOAT16}",
    "jax_step/jit",
    f"jax_step/jit-{_BFLOAT16}",
  ]


def main(argv) -> None:
  """Measures, prints the tables, writes JSON and a figure."""
  del argv
  print(machine.describe(), flush=True)
  results = {}
  for shape in _SHAPES.value:
    batch_size, num_samples = map(int, shape.split("x"))
    names = _ONLY.value or contenders(num_samples)
    results[shape] = measure([n for n in names if _is_installed(n)], batch_size, num_samples)
    print(table(shape, results[shape]), flush=True)
  if _OUTPUT_DIR.value:
    folder = pathlib.Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine.describe(), **results}
    (folder / "train_step.json").write_text(json.dumps(content, indent=2) + "\n")
    figure(folder / "train_step.png", results)


def measure(names: list[str], batch_size: int, num_samples: int) -> dict[str, dict]:
  """Returns median and quartiles of a step's seconds, and peak memory in MiB, by contender."""
  cases = [(name, batch_size, num_samples) for name in names]
  return {case[0]: result for case, result in turns.measure(cases, _ROUNDS.value).items()}


def _is_installed(name: str) -> bool:
  library = "torch" if "torch" in name else "jax" if name.startswith("jax") else "tensorflow"
  found = importlib.util.find_spec(library) is not None
  if not found:
    print(f"{name} left out: {library} is not installed.", file=sys.stderr)
  return found


def table(shape: str, results: dict[str, dict]) -> str:
  """Formats medians in milliseconds, and their ratios to the floor and to this library's step."""
  floors = {is_narrow: _floor(results, is_narrow) for is_narrow in (False, True)}
  base = results.get(_BASE, {"median": float("nan")})["median"]
  lines = [
    f"(batch x samples) {shape}",
    f"{'':32} {'ms':>8} {'quartiles':>15} {'x floor':>8} {'x ours':>7} {'MiB':>6}",
  ]
  for name, r in results.items():
    low, high = (1e3 * q for q in r["quartiles"])
    floor = floors[_BFLOAT16 in name]
    lines.append(
      f"{name:32} {1e3 * r['median']:8.2f} {low:7.2f}-{high:7.2f} {r['median'] / floor:8.2f} "
      f"{r['median'] / base:7.2f} {r['peak_memory']:6.0f}"
    )
  return "\n".join([*lines, *breakdown(results)]) + "\n"


def _floor(results: dict[str, dict], is_narrow: bool) -> float:
  """Returns the seconds of the products alone, in the library that is fastest."""
  names = [f"{name}-{_BFLOAT16}" if is_narrow else name for name in _FLOORS]
  return min((results[n]["median"] for n in names if n in results), default=float("nan"))


def breakdown(results: dict[str, dict]) -> list[str]:
  """Formats what a step is made of; elementwise work is what the other parts leave."""
  names = (_BASE, "floor/xla", *_PARTS)
  if not all(name in results for name in names):
    return []
  step, products, noise, optimizer, fixed = (1e3 * results[name]["median"] for name in names)
  parts = {
    "products": products,
    "elementwise": step - products - noise - fixed,
    "noise": noise,
    "optimizer": optimizer,
    "dispatch": fixed - optimizer,
  }
  return [f"{_BASE} in ms: " + ", ".join(f"{name} {ms:.2f}" for name, ms in parts.items())]


def figure(path: pathlib.Path, results: dict[str, dict[str, dict]]) -> None:
  """Draws a panel of horizontal bars for each shape."""
  from matplotlib.figure import Figure

  picture = Figure(figsize=(5 * len(results), 7), layout="constrained")
  panels = picture.subplots(1, len(results), squeeze=False)[0]
  for axes, (shape, contenders_of_shape) in zip(panels, results.items(), strict=True):
    names = list(contenders_of_shape)[::-1]
    values = [1e3 * contenders_of_shape[n]["median"] for n in names]
    kinds = ("floor", "ours")
    colors = [
      "C7" if n.startswith(kinds[0]) else "C0" if n.startswith(kinds[1]) else "C1" for n in names
    ]
    axes.barh(names, values, color=colors)
    axes.set_title(f"batch x samples = {shape}")
    axes.set_xlabel("ms a step (median)")
    axes.grid(axis="x", alpha=0.3)
  picture.savefig(path, dpi=110)


if __name__ == "__main__":
  app.run(main)
