"""Defines the commands `dregs-train`, `dregs-eval` and `dregs-compare`, which bin/ also calls."""

import contextlib
import os
import sys

from dregs_tf.training import config, flags


def train() -> None:
  """Trains a latent-variable model with a Monte Carlo bound; the same command again resumes.

  dregs-train --bound=jvi_dreg --num_samples=64
  """
  flags.run(config.TrainConfig, lambda settings: _runners().train(settings), _text(train))


def evaluate() -> None:
  """Evaluates a trained model: its log-likelihood on a split, as a bound with many samples.

  dregs-eval --logdir=LOGDIR --num_samples=5000 --split=test
  """
  flags.run(config.EvalConfig, lambda settings: _runners().evaluate(settings), _text(evaluate))


def compare() -> None:
  """Compares gradient estimators on a trained model: signal, noise and bias, and which to take.

  dregs-compare --logdir=LOGDIR --bounds=iwae,iwae_dreg --num_samples=1,8,64
  """
  flags.run(config.CompareConfig, lambda settings: _runners().compare(settings), _text(compare))


def load_tensorflow() -> None:
  """Loads TensorFlow without the messages that it prints at startup."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with _stderr_to_devnull():
    import tensorflow as tf
    import tensorflow_probability  # noqa: F401 - it also prints messages
  tf.get_logger().setLevel("ERROR")


def _runners():
  """Loads and returns the module `runners`, which takes seconds: flags are checked before."""
  load_tensorflow()
  from dregs_tf.training import runners

  return runners


def _text(command) -> str:
  return "\n".join(line.strip() for line in command.__doc__.splitlines())


@contextlib.contextmanager
def _stderr_to_devnull():
  """Discards the output of native code on standard error."""
  sys.stderr.flush()
  saved = os.dup(2)
  devnull = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(devnull, 2)
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(devnull)
