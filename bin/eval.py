"""Evaluates a trained model: its log-likelihood on a split, as a bound with many samples.

python bin/eval.py --logdir=LOGDIR --num_samples=5000 --split=test
"""

from dregs_tf.training import commands

if __name__ == "__main__":
  commands.evaluate()
