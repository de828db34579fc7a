"""Loads data sets by name or from files, and makes batches of them with dynamic binarization.

Naming and loading work without TensorFlow; functions that need it are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING

from dregs_tf.data.images import DataError, Images, with_missing
from dregs_tf.data.readers import load, load_sequences, names
from dregs_tf.data.sequences import Sequences

if TYPE_CHECKING:
  from dregs_tf.data.pipeline import (
    EVAL_SEED,
    TASKS,
    binarize,
    eval_batches,
    top_and_bottom,
    train_batches,
  )

__all__ = [
  "EVAL_SEED",
  "TASKS",
  "DataError",
  "Images",
  "Sequences",
  "binarize",
  "eval_batches",
  "load",
  "load_sequences",
  "names",
  "top_and_bottom",
  "train_batches",
  "with_missing",
]

_PIPELINE = ("EVAL_SEED", "TASKS", "binarize", "eval_batches", "top_and_bottom", "train_batches")


def __getattr__(name: str):
  if name in _PIPELINE:
    return getattr(importlib.import_module("dregs_tf.data.pipeline"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *_PIPELINE})
