"""Trains, evaluates and compares models as configured: the functions behind the commands.

`train(TrainConfig(...))`, `evaluate(EvalConfig(...))` and `compare(CompareConfig(...))` do what
`dregs-train`, `dregs-eval` and `dregs-compare` do. Configurations are checked without TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING

from dregs_tf.training.config import CompareConfig, EvalConfig, TrainConfig
from dregs_tf.training.errors import ConfigError, Interrupted, WorkerLost
from dregs_tf.training.run_directory import Run

if TYPE_CHECKING:
  from dregs_tf.training.runners import build_model, compare, evaluate, train

__all__ = [
  "CompareConfig",
  "ConfigError",
  "EvalConfig",
  "Interrupted",
  "Run",
  "TrainConfig",
  "WorkerLost",
  "build_model",
  "compare",
  "evaluate",
  "train",
]

_RUNNERS = ("build_model", "compare", "evaluate", "train")


def __getattr__(name: str):
  if name in _RUNNERS:
    return getattr(importlib.import_module("dregs_tf.training.runners"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *_RUNNERS})
