"""Compares gradient estimators on a trained model: signal, noise and bias of each, what to take.

python bin/compare_estimators.py --logdir=LOGDIR --bounds=iwae,iwae_dreg --num_samples=1,8,64
"""

from absl import flags

from dregs_tf import cli, config

_DEFAULTS = config.CompareConfig(logdir="RUN")

flags.DEFINE_string("logdir", "", "The directory of a training run.")
flags.DEFINE_list("bounds", list(_DEFAULTS.bounds), f"Any of {', '.join(config.BOUNDS)}.")
flags.DEFINE_list(
  "num_samples",
  [str(k) for k in _DEFAULTS.num_samples],
  "The K's, samples of each image. A bound is left out where K is too small for it.",
)
flags.DEFINE_integer(
  "num_measurements", _DEFAULTS.num_measurements, "Measurements of the gradients at each K."
)
flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Images; the first ones of the split.")
flags.DEFINE_enum("split", _DEFAULTS.split, config.SPLITS, "Which images to take.")
flags.DEFINE_string("data_dir", None, "Folder of prepared TensorFlow Datasets; else the run's.")
flags.DEFINE_boolean("jit_compile", None, "Compile with XLA; else as the run did.")
flags.DEFINE_boolean(
  "measure_cost", _DEFAULTS.measure_cost, "Time a training step's gradient of each bound, too."
)
flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of the samples.")
flags.DEFINE_string(
  "output_dir", None, "Where comparison.csv and comparison.png are left; else the run's directory."
)


def main():
  """Checks the flags, then loads TensorFlow and measures."""
  settings = cli.from_flags(config.CompareConfig)
  cli.load_runners().compare(settings)


if __name__ == "__main__":
  cli.run(main)
