"""Trains a latent-variable model with a Monte Carlo bound; the same command again resumes it.

python bin/train.py --bound=jvi_dreg --num_samples=64
"""

from absl import flags

from dregs_tf import cli, config

_DEFAULTS = config.TrainConfig()

flags.DEFINE_enum("bound", _DEFAULTS.bound, config.BOUNDS, "Bound and its gradient estimator.")
flags.DEFINE_integer("num_samples", _DEFAULTS.num_samples, "K, samples of each example.")
flags.DEFINE_integer(
  "num_backward_samples",
  None,
  "M, samples of each example that the gradient is taken through; all K unless given.",
)
flags.DEFINE_string(
  "alpha",
  None,
  "For --bound=dreg_alpha: weight of RWS-DReG, in [0, 1], or auto: adapted while training. "
  f"({config.DEFAULT_ALPHA})",
)
flags.DEFINE_float(
  "initial_alpha",
  None,
  f"For --alpha=auto: where it starts, in [0, 1]. ({config.DEFAULT_INITIAL_ALPHA})",
)
flags.DEFINE_integer(
  "jvi_order", None, f"For --bound=jvi, jvi_dreg: order of the jackknife. ({config.DEFAULT_ORDER})"
)
flags.DEFINE_string(
  "dataset",
  _DEFAULTS.dataset,
  "digits (comes with the package), mnist, omniglot, or a path to an .npz or .mat file.",
)
flags.DEFINE_enum(
  "task",
  _DEFAULTS.task,
  config.TASKS,
  "generative: model whole images; structured: predict the bottom half from the top half.",
)
flags.DEFINE_string(
  "data_dir", None, "Folder of prepared TensorFlow Datasets; else $TFDS_DATA_DIR or a download."
)
flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Examples in a step, on all devices.")
flags.DEFINE_integer("latent_dim", _DEFAULTS.latent_dim, "Latent variables.")
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Adam's learning rate.")
flags.DEFINE_integer("max_steps", _DEFAULTS.max_steps, "Steps to train; may grow on resuming.")
flags.DEFINE_integer("summarize_every", _DEFAULTS.summarize_every, "Steps between summaries.")
flags.DEFINE_integer("checkpoint_every", _DEFAULTS.checkpoint_every, "Steps between checkpoints.")
flags.DEFINE_boolean(
  "gradient_statistics",
  _DEFAULTS.gradient_statistics,
  "Follow variance and SNR of the proposal's and the model's gradients.",
)
flags.DEFINE_string(
  "track_variance",
  None,
  "Bounds, such as iwae,rws_dreg: follow variance and SNR of their estimators of the proposal's "
  "gradient along this run.",
)
flags.DEFINE_boolean(
  "follow_test",
  _DEFAULTS.follow_test,
  "Evaluate on the test set at each summary, too, as the paper's figures do.",
)
flags.DEFINE_string("init_from", None, "Directory of a run whose newest parameters to start from.")
flags.DEFINE_boolean(
  "freeze_model", _DEFAULTS.freeze_model, "With --init_from: train the inference network alone."
)
flags.DEFINE_boolean("jit_compile", _DEFAULTS.jit_compile, "Compile the step with XLA.")
flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of variables, data order and noise.")
flags.DEFINE_enum(
  "distribute",
  _DEFAULTS.distribute,
  config.DISTRIBUTE,
  "mirrored: on several devices of this machine; multi_worker: on several machines, see "
  "docs/distribution.md. The numbers stay the same.",
)
flags.DEFINE_integer(
  "num_devices",
  None,
  "For --distribute=mirrored: so many GPUs, or CPU devices where there is no GPU; all GPUs unless "
  "given.",
)
flags.DEFINE_string("logdir", None, "Where the run is kept; a folder in ./runs unless given.")


def main():
  """Checks the flags, then loads TensorFlow and trains."""
  settings = cli.from_flags(config.TrainConfig)
  cli.load_runners().train(settings)


if __name__ == "__main__":
  cli.run(main)
