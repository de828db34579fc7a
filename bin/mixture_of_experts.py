"""Trains mixtures of experts on halves of digits, by the exact gradient and by a biased one.

python bin/mixture_of_experts.py --num_samples=1,10 --num_seeds=1
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dregs_tf.training import commands, flags
from experiments.mixture_of_experts.config import ExpertsConfig


def main(settings: ExpertsConfig) -> None:
  """Loads TensorFlow, trains and reports."""
  commands.load_tensorflow()
  from experiments.mixture_of_experts import run

  run.run(settings)


if __name__ == "__main__":
  flags.run(ExpertsConfig, main, __doc__)
