"""Loads the data of a run according to its flags, and makes batches."""

from typing import Any

import tensorflow as tf

from dregs_tf import data
from dregs_tf.training import config, model_flags


def load(settings: config.TrainConfig, data_dir: str | None) -> data.Images:
  """Loads the data of a run, without the pixels that --missing_fraction removes."""
  if settings.model == "vrnn":
    return data.load_sequences(settings.dataset, data_dir)
  images = data.load(settings.dataset, data_dir)
  if not settings.missing_fraction:
    return images
  return data.with_missing(images, settings.missing_fraction, settings.seed)


def train_batches(
  settings: config.TrainConfig, images: data.Images, start_step: int
) -> tf.data.Dataset:
  """Returns the batches to train on, starting from a step."""
  options = _batch_options(settings, images, "train")
  return data.train_batches(
    images.train, settings.batch_size, settings.seed, start_step=start_step, **options
  )


def eval_batches(
  settings: config.TrainConfig, images: data.Images, split: str, batch_size: int
) -> tf.data.Dataset:
  """Returns the batches to evaluate on."""
  options = _batch_options(settings, images, split)
  return data.eval_batches(getattr(images, split), batch_size, **options)


def _batch_options(settings: config.TrainConfig, images: data.Images, split: str) -> dict[str, Any]:
  """Returns the keyword arguments of `data.train_batches` and `data.eval_batches` for a split."""
  options: dict[str, Any] = {
    "image_shape": images.image_shape,
    "task": model_flags.data_task(settings),
  }
  if isinstance(images, data.Sequences):
    lengths = None if images.lengths is None else images.lengths[split]
    options |= {"dynamic_binarization": images.is_gray, "lengths": lengths}
  return options
