"""Runs compiled functions eagerly, where their graphs would be built for a few calls only."""

import contextlib
import warnings

import tensorflow as tf


@contextlib.contextmanager
def functions_run_eagerly():
  """Functions of TensorFlow, and Keras' steps among them, run eagerly inside the block."""
  tf.config.run_functions_eagerly(True)
  try:
    with warnings.catch_warnings():
      # Those of tf.data do not, which TensorFlow warns of.
      warnings.filterwarnings("ignore", "Even though the .*run_functions_eagerly", UserWarning)
      yield
  finally:
    tf.config.run_functions_eagerly(False)
