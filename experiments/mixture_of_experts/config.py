"""Configures the multi-modal experiment; checked before TensorFlow is loaded."""

import dataclasses

from dregs_tf.training import checks
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.flags import flag

BOUNDS = ("iwae", "iwae_dreg", "miselbo", "miselbo_dreg")


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
  """Holds the flags of `bin/mixture_of_experts.py`; lists may hold strings."""

  bounds: tuple[str, ...] = flag(
    ("miselbo_dreg",),
    list,
    f"Any of {', '.join(BOUNDS)}; each _dreg is also trained with the hook.",
  )
  num_samples: tuple[int, ...] = flag((1, 10, 30), list, "Values of K, samples of each expert.")
  num_seeds: int = flag(1, int, "Runs of each configuration, with different seeds.")
  max_steps: int = flag(2000, int, "Steps of a run.")
  batch_size: int = flag(32, int, "Digits in a batch.")
  learning_rate: float = flag(1e-3, float, "Adam's learning rate.")
  latent_dim: int = flag(10, int, "The number of latents.")
  hidden_units: int = flag(64, int, "The size of the hidden layer of each net.")
  output_dir: str = flag(
    "runs/mixture_of_experts", str, "Directory for results.csv and the figures."
  )

  def __post_init__(self):
    checks.check_lists(self, BOUNDS)
    for name in ("num_seeds", "max_steps", "batch_size", "latent_dim", "hidden_units"):
      checks.check_int(name, getattr(self, name), at_least=1)
    if not self.learning_rate > 0:
      raise ConfigError(f"--learning_rate must be above 0, got {self.learning_rate}.")
    if not self.output_dir:
      raise ConfigError("--output_dir must name a directory.")
