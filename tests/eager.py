"""Runs compiled functions eagerly, where their graphs would be built for a few calls only."""

import contextlib

import tensorflow as tf


@contextlib.contextmanager
def functions_run_eagerly():
  """Functions of TensorFlow, and Keras' steps among them, run eagerly inside the block."""
  tf.config.run_functions_eagerly(True)
  try:
    yield
  finally:
    tf.config.run_functions_eagerly(False)
