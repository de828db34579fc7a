"""Doubly reparameterized gradient estimators for Monte Carlo objectives, in TensorFlow.

The second reparameterization of Tucker, Lawson, Gu and Maddison (ICLR 2019,
https://arxiv.org/abs/1810.04152) for any multi-sample bound, in one evaluation of the model.

Estimators, for a model of your own:
  bounds              the bounds by name, and `estimate`, which turns one into a gradient
  sequential          the same for sequences: particle filters, `estimate` with FIVO's bounds
  importance_weights  functions of log-weights: log-mean, normalization, effective sample size
  gradients           stopped parameters and gated samples, from which the estimators are made
  stop_parameters     returns a distribution with its parameters stopped
  PathOnly            the same for a distribution whose parameters are out of reach
  StratifiedMixture   a mixture as a proposal, with samples of each component

For training and measuring:
  models              Keras models that train on a bound with `compile` and `fit`
  diagnostics         compares estimators of one gradient: variance, signal-to-noise ratio, bias
  data                data sets and batches
  training            training runs and their evaluation, as the commands start them

Everything is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from dregs_tf import (
    bounds,
    data,
    diagnostics,
    gradients,
    importance_weights,
    models,
    sequential,
    training,
  )
  from dregs_tf.gradients import PathOnly, stop_parameters
  from dregs_tf.mixtures import StratifiedMixture

__version__ = "0.2.0.dev0"

__all__ = [
  "PathOnly",
  "StratifiedMixture",
  "bounds",
  "data",
  "diagnostics",
  "gradients",
  "importance_weights",
  "models",
  "sequential",
  "stop_parameters",
  "training",
]

# The modules that define the names that are not modules.
_HOMES = {
  "PathOnly": "gradients",
  "StratifiedMixture": "mixtures",
  "stop_parameters": "gradients",
}


# `dregs-train --help` must not wait for TensorFlow.
def __getattr__(name: str) -> Any:
  if name in _HOMES:
    return getattr(importlib.import_module(f"dregs_tf.{_HOMES[name]}"), name)
  if name in __all__:
    return importlib.import_module(f"dregs_tf.{name}")
  raise AttributeError(f"module 'dregs_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
