"""Configures the toy experiment; checked before TensorFlow is loaded."""

import ast
import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from dregs_tf import catalogue
from dregs_tf.training import checks
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.flags import flag

# The quadrature of the exact gradient would need more nodes for more latent dimensions.
_LARGEST_LATENT_DIM = 50

# The exact gradients of these objectives are known: L_K's with tempered weights, and their sums.
_OBJECTIVES = ("elbo", "iwae", "jvi", "ciwae", "miwae", "vr_iwae")
BOUNDS = tuple(name for name, row in catalogue.BOUNDS.items() if row.objective in _OBJECTIVES)


def parse(text: str) -> tuple[str, dict[str, Any]]:
  """Returns a bound's name and options: of "vr_iwae_dreg(alpha=0.2)", or of a name alone."""
  match = re.fullmatch(r"(\w+)\((\w+)=([^=()]+)\)", text)
  if not match:
    return text, {}
  name, option, value = match.groups()
  with contextlib.suppress(ValueError, SyntaxError):
    value = ast.literal_eval(value)
  return name, {option: value}


def unparse(name: str, options: Mapping[str, Any]) -> str:
  """Returns the text that `parse` takes."""
  return name + "".join(f"({option}={value})" for option, value in options.items())


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  """Holds the flags of `bin/toy_gaussian.py`; lists may hold strings."""

  bounds: tuple[str, ...] = flag(
    ("elbo", "iwae", "stl", "iwae_dreg"),
    list,
    f"Any of {', '.join(BOUNDS)}; with an option as in 'vr_iwae_dreg(alpha=0.2)'.",
  )
  num_samples: tuple[int, ...] = flag(
    (1, 3, 10, 30, 100, 300, 1000),
    list,
    "Values of K, samples of each observation. A bound is skipped where K is too small for it.",
  )
  num_trials: int = flag(10, int, "Draws of data and parameters.")
  num_measurements: int = flag(1000, int, "Gradient samples for each trial and K.")
  batch_size: int = flag(
    128,
    int,
    "Observations that a gradient averages over, the same throughout a trial. Time is "
    "proportional to it, and variances to its inverse.",
  )
  num_observations: int = flag(
    1024, int, "Observations drawn; the parameters are close to the optimum for all of them."
  )
  latent_dim: int = flag(20, int, "D, the dimension of latents and observations.")
  seed: int = flag(0, int, "Seed of data, parameters and noise.")
  output_dir: str = flag(
    "runs/toy_gaussian", str, "Directory for results.csv, trials.csv and the figures."
  )

  def __post_init__(self):
    checks.check_lists(self, BOUNDS, parse)
    for name in self.bounds:
      checks.check_defined(*parse(name), self.num_samples)
    for name in ("num_trials", "batch_size", "num_observations", "latent_dim"):
      checks.check_int(name, getattr(self, name), at_least=1)
    checks.check_int("num_measurements", self.num_measurements, 2, ", for a variance")
    checks.check_int("seed", self.seed, at_least=0)
    if self.batch_size > self.num_observations:
      raise ConfigError(
        f"--batch_size must be at most --num_observations={self.num_observations}, "
        f"got {self.batch_size}."
      )
    if self.latent_dim > _LARGEST_LATENT_DIM:
      raise ConfigError(
        f"--latent_dim must be at most {_LARGEST_LATENT_DIM}, got {self.latent_dim}."
      )
    if not self.output_dir:
      raise ConfigError("--output_dir must name a directory.")
