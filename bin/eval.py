"""Evaluates a trained model: its log-likelihood on a split, as a bound with many samples.

python bin/eval.py --logdir=LOGDIR --num_samples=5000 --split=test
"""

from absl import flags

from dregs_tf import cli, config

flags.DEFINE_string("logdir", "", "The directory of a training run.")
flags.DEFINE_integer("num_samples", 5000, "Samples of each example.")
flags.DEFINE_enum("split", "test", config.SPLITS, "Which images to evaluate on.")
flags.DEFINE_integer("batch_size", 100, "Images at a time.")
flags.DEFINE_string("data_dir", None, "Folder of prepared TensorFlow Datasets; else the run's.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")


def main():
  """Checks the flags, then loads TensorFlow and evaluates."""
  settings = cli.from_flags(config.EvalConfig)
  cli.load_runners().evaluate(settings)


if __name__ == "__main__":
  cli.run(main)
