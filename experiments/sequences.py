"""Measures the variance of the proposal's gradient on sequences, fivo against fivo_dreg.

The model is linear-Gaussian, with a small shift of its optimal filtering proposal. All sequences of
the batch are the same, each with its own shift parameter, so one backward pass gives an independent
gradient for each:

python -m experiments.sequences --num_samples=4,16,64 --num_steps=10,100
"""

import dataclasses
import pathlib
from typing import Any

from dregs_tf import catalogue, output
from dregs_tf.training import checks, commands, flags
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.flags import flag

_FIGURES = pathlib.Path(__file__).parent / "figures"


@dataclasses.dataclass(frozen=True)
class SequencesConfig:
  """Holds the flags of this experiment; lists may hold strings."""

  num_samples: tuple[int, ...] = flag((4, 16, 64), list, "Values of K, particles of each sequence.")
  num_steps: tuple[int, ...] = flag((10, 100), list, "Values of T, steps of each sequence.")
  num_measurements: int = flag(1000, int, "Independent gradients at each K and T.")
  shift: float = flag(0.1, float, "Distance of the proposal's mean from its optimum.")
  seed: int = flag(0, int, "Seed of the sequence and of the particles.")
  output_dir: str = flag(str(_FIGURES), str, "Directory of sequences.csv and sequences.png.")

  def __post_init__(self):
    for name in ("num_samples", "num_steps"):
      values = tuple(map(checks.as_int, getattr(self, name)))
      for value in values:
        checks.check_int(name, value, at_least=1, note=", or several separated by commas")
      object.__setattr__(self, name, values)
    checks.check_int("num_measurements", self.num_measurements, at_least=2)
    checks.check_int("seed", self.seed, at_least=0)
    if not checks.is_number(self.shift):
      raise ConfigError(f"--shift must be a number, got {self.shift!r}.")


def measure(settings: SequencesConfig) -> list[dict[str, Any]]:
  """Returns mean and variance of the gradient for each bound that resamples, T and K."""
  import numpy as np
  import tensorflow as tf
  import tensorflow_probability as tfp

  from dregs_tf import sequential

  one = tf.ones([1, 1])

  class Shifted(sequential.LinearGaussianSSM):
    """z_t ~ N(0.9 z_{t-1}, 1), x_t ~ N(z_t, 1)."""

    def __init__(self):
      super().__init__(0.9 * one, one, one, one, 0 * one[0], one)
      self.shift = tf.fill([settings.num_measurements, 1], settings.shift)

    def proposal(self, x, z_previous, state):
      best = super().proposal(x, z_previous, state)
      return tfp.distributions.MultivariateNormalTriL(best.loc + self.shift, best.scale_tril)

  model, rows = Shifted(), []
  for num_steps in settings.num_steps:
    x = model.sample(1, num_steps, seed=[settings.seed, 0])
    x = tf.repeat(x, settings.num_measurements, axis=0)
    for num_samples in settings.num_samples:
      for name in (name for name, row in catalogue.SEQUENCE_BOUNDS.items() if row.resamples):
        with tf.GradientTape() as tape:
          tape.watch(model.shift)
          estimate = sequential.estimate(name, model, x, num_samples, seed=settings.seed)
        gradients = np.asarray(tape.gradient(estimate.objective, model.shift))[:, 0]
        moments = {"mean": gradients.mean(), "variance": gradients.var(ddof=1)}
        rows.append(
          {"bound": name, "num_steps": num_steps, "num_samples": num_samples}
          | {key: float(value) for key, value in moments.items()}
        )
  return rows


def table(rows: list[dict[str, Any]]) -> str:
  """Formats the result of `measure` as a Markdown table: each bound's variance, and their ratio."""
  found = {(row["bound"], row["num_steps"], row["num_samples"]): row for row in rows}
  lines = ["| T | K | fivo | fivo_dreg | ratio |", "| --- | --- | --- | --- | --- |"]
  for steps, samples in dict.fromkeys((row["num_steps"], row["num_samples"]) for row in rows):
    plain, dreg = (found[name, steps, samples]["variance"] for name in ("fivo", "fivo_dreg"))
    lines.append(f"| {steps} | {samples} | {plain:.3g} | {dreg:.3g} | {plain / dreg:.2f} |")
  return "\n".join(lines)


def figure(path: pathlib.Path, rows: list[dict[str, Any]], title: str) -> None:
  """Writes a PNG of the variances against K, a panel for each T."""
  from matplotlib.figure import Figure

  all_samples, all_steps = (
    list(dict.fromkeys(row[column] for row in rows)) for column in ("num_samples", "num_steps")
  )
  fig = Figure(figsize=(4.5 * len(all_steps), 3.6), layout="constrained")
  panels = fig.subplots(1, len(all_steps), squeeze=False)[0]
  for axes, num_steps in zip(panels, all_steps, strict=True):
    for name, (color, dashes) in zip(("fivo", "fivo_dreg"), output.STYLES, strict=False):
      of_bound = [r for r in rows if (r["bound"], r["num_steps"]) == (name, num_steps)]
      points = [[row[column] for row in of_bound] for column in ("num_samples", "variance")]
      label = catalogue.SEQUENCE_BOUNDS[name].label
      axes.plot(*points, marker="o", color=color, linestyle=dashes, label=label)
    axes.set(xscale="log", yscale="log", xlabel="K", title=f"T = {num_steps}")
    axes.set_xticks(all_samples, all_samples)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
  panels[0].set_ylabel("variance of the proposal's gradient")
  panels[0].legend()
  fig.suptitle(title)
  fig.savefig(path, dpi=100)


def main(settings: SequencesConfig) -> None:
  """Measures, prints the table, and writes a CSV file and a figure."""
  commands.load_tensorflow()
  rows = measure(settings)
  directory = pathlib.Path(settings.output_dir)
  directory.mkdir(parents=True, exist_ok=True)
  output.write_csv(directory / "sequences.csv", rows, digits=6)
  title = f"linear-Gaussian model, {settings.num_measurements} gradients, shift {settings.shift:g}"
  figure(directory / "sequences.png", rows, title)
  print(table(rows))


if __name__ == "__main__":
  flags.run(SequencesConfig, main, __doc__)
