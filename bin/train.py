"""Trains a latent-variable model with a Monte Carlo bound; the same command again resumes it.

python bin/train.py --bound=jvi_dreg --num_samples=64
"""

from dregs_tf.training import commands

if __name__ == "__main__":
  commands.train()
