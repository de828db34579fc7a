"""Measures SNR, bias and variance of gradient estimators on a Gaussian model: the paper's Fig. 1.

python bin/toy_gaussian.py --num_samples=1,10,100 --bounds=iwae,iwae_dreg
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dregs_tf.training import commands, flags
from experiments.toy_gaussian.config import ToyConfig


def main(settings: ToyConfig) -> None:
  """Loads TensorFlow, measures and reports."""
  commands.load_tensorflow()
  from experiments.toy_gaussian import run

  run.run(settings)


if __name__ == "__main__":
  flags.run(ToyConfig, main, __doc__)
