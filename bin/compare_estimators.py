"""Compares gradient estimators on a trained model: signal, noise and bias, and which to take.

python bin/compare_estimators.py --logdir=LOGDIR --bounds=iwae,iwae_dreg --num_samples=1,8,64
"""

from dregs_tf.training import commands

if __name__ == "__main__":
  commands.compare()
