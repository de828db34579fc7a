"""Doubly reparameterised gradient estimators for Monte Carlo objectives, in TensorFlow."""

import importlib

__version__ = "0.1.0"

__all__ = [
  "PathOnly",
  "bounds",
  "data",
  "diagnostics",
  "gradients",
  "importance_weights",
  "models",
  "stop_parameters",
  "training",
]


# Loaded at first use: `bin/train.py --help` must not wait for TensorFlow.
def __getattr__(name: str):
  if name in ("PathOnly", "stop_parameters"):
    return getattr(importlib.import_module("dregs_tf.gradients"), name)
  if name in __all__:
    return importlib.import_module(f"dregs_tf.{name}")
  raise AttributeError(f"module 'dregs_tf' has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *__all__])
