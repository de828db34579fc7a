"""Writes the runs of an experiment as StableHLO programs, with the values that they begin with.

python -m experiments.exported.write --experiment=mnist_seeds --seeds=0,1,2

It takes the flags of bin/run_experiment.py. Programs are in OUTPUT_DIR/exported, one folder for
the runs that differ in nothing but the seed; data and first values beside them.
"""

import contextlib
import gzip
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from dregs_tf import data, evaluation, seeds
from dregs_tf.training import config, flags, runners
from dregs_tf.training.errors import ConfigError
from experiments import runs
from experiments.exported import program

_EVALUATION = config.EvalConfig(logdir="unused")

# Samples times images that a log-likelihood evaluates at once.
_ROWS_AT_A_TIME = 125_000


def write(settings: runs.ExperimentConfig) -> None:
  """Writes programs and values of the experiment's runs.

  Raises:
    ConfigError: if a run cannot be exported.
  """
  directory = pathlib.Path(settings.directory) / "exported"
  groups: dict[str, list[config.TrainConfig]] = {}
  for each in runs.all_runs(settings):
    _check(each.settings)
    groups.setdefault(each.name.rpartition("_seed")[0], []).append(each.settings)
  with _for_a_gpu():
    _write_groups(directory, groups, settings.experiment)


@contextlib.contextmanager
def _for_a_gpu() -> Iterator[None]:
  """Has no pieces that fit a processor's cache, and products of float32 as on a processor."""
  is_tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
  tf.config.experimental.enable_tensor_float_32_execution(False)
  try:
    with (
      program.for_a_gpu(),
      mock.patch.object(evaluation, "_ROWS_AT_A_TIME", _ROWS_AT_A_TIME),
    ):
      yield
  finally:
    tf.config.experimental.enable_tensor_float_32_execution(is_tf32)


def _write_groups(
  directory: pathlib.Path, groups: dict[str, list[config.TrainConfig]], experiment: str
) -> None:
  """Writes the programs and the values of runs that differ in nothing but the seed."""
  values: dict[str, np.ndarray] = {}
  for name, members in groups.items():
    images = data.load(members[0].dataset, members[0].data_dir)
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    plan = _write_programs(folder, members[0], images)
    plan["seeds"] = {
      member.seed: [_stored(values, value) for value in _first_values(member, images)]
      for member in members
    }
    plan["images"] = _write_images(directory, members[0].dataset, images)
    (folder / "plan.json").write_text(json.dumps(plan, indent=1))
    print(f"{folder}: {len(members)} runs", flush=True)
  np.savez_compressed(directory / f"values-{experiment}.npz", **values)


def _check(settings: config.TrainConfig) -> None:
  """Raises unless the run is one that programs of fixed shapes can make."""
  given = {
    "model": settings.model == "vrnn",
    "num_backward_samples": settings.num_backward_samples == "auto",
    "missing_fraction": settings.missing_fraction != 0,
    "init_from": settings.init_from is not None,
    "distribute": settings.distribute != "none",
  }
  for name, is_given in given.items():
    if is_given:
      raise ConfigError(f"--{name}={getattr(settings, name)} cannot be exported.")
  if settings.max_steps % settings.summarize_every:
    raise ConfigError(
      f"--max_steps must be a multiple of --summarize_every={settings.summarize_every} to be "
      f"exported, got {settings.max_steps}."
    )


def _write_programs(folder: pathlib.Path, settings, images: data.Images) -> dict:
  """Writes the programs of a run; returns what `run` has to know, all but values."""
  model, table = _new_model(settings, images)

  def as_batch(flat):
    return _as_batch(settings, images, flat)

  def train(gray, indices, pixel_seeds):
    # Not indices[step]: XLA would take the step for a constant.
    step = tf.cast(model.optimizer.iterations, tf.int32)
    chosen, seed = tf.gather(indices, step), tf.gather(pixel_seeds, step)
    return model.train_step(as_batch(data.binarize(tf.gather(gray, chosen), seed)))

  def log_likelihood(flat, seed):
    batch = as_batch(flat)
    context, x = batch if isinstance(batch, tuple) else (None, batch)
    found = model.log_likelihood(
      x, _EVALUATION.num_samples, context, seed=seed, return_diagnostics=True
    )
    return found._asdict()

  def flat_images(number: int) -> tf.Tensor:
    return tf.zeros([number, images.train.shape[1]])

  steps = settings.max_steps
  draws = tf.zeros([steps, settings.batch_size], tf.int32), tf.zeros([steps, 2], tf.int32)
  functions = {"train": (train, (flat_images(len(images.train)), *draws))}
  # One program evaluates both splits, without a remainder.
  common = math.gcd(len(images.valid), len(images.test))
  batch_size = max(i for i in range(1, runners.eval_batch_size(settings) + 1) if common % i == 0)
  functions["test"] = (lambda flat: model.test_step(as_batch(flat))), (flat_images(batch_size),)
  number = _EVALUATION.batch_size
  functions["log_likelihood"] = log_likelihood, (flat_images(number), tf.zeros([2], tf.int32))
  if settings.gradient_statistics or settings.track_variance:
    functions["measure"] = (
      lambda flat, numbers: model.gradient_step(as_batch(flat), numbers),
      (flat_images(settings.batch_size), tf.zeros([2], tf.int32)),
    )
  return {
    "steps": steps,
    "summarize_every": settings.summarize_every,
    "eval_batch_size": batch_size,
    "log_likelihood_batch_size": number,
    "log_likelihood_seed": _EVALUATION.seed,
    "metrics": _places(table, [v for m in program.metrics(model) for v in m.variables]),
    "parameters": _places(table, model.trainable_variables),
    "batch_size": settings.batch_size,
    "num_measured": runners.NUM_MEASURED,
    "programs": {name: _write(folder / name, *f, table) for name, f in functions.items()},
  }


def _new_model(settings, images: data.Images):
  """Returns a model as a run begins with it, and the table of its variables."""
  model = runners.build_model(settings, images)
  model(_as_batch(settings, images, tf.zeros([1, images.train.shape[1]])))
  model.optimizer.build(model.trainable_variables)
  # As a variable, so that one program serves all seeds.
  seed = model.seed = tf.Variable(seeds.words(settings.seed), dtype=tf.int32)
  return model, [*program.variables(model), seed]


def _as_batch(settings, images: data.Images, flat: tf.Tensor):
  """Returns flat images as a batch of the run's task."""
  if settings.task == "structured":
    return data.top_and_bottom(flat, images.image_shape)
  return flat


def _places(table: list[tf.Variable], variables: Iterable[keras.Variable]) -> list[int]:
  by_handle = {id(variable.handle): i for i, variable in enumerate(table)}
  return [by_handle[id(variable.value.handle)] for variable in variables]


def _write(path: pathlib.Path, function: Callable, inputs, table) -> dict:
  """Writes a program; returns the rest of it."""
  exported = program.export(function, inputs, table)
  path.with_suffix(".mlir.gz").write_bytes(gzip.compress(exported.text.encode()))
  return {key: value for key, value in exported._asdict().items() if key != "text"}


def _first_values(settings, images: data.Images) -> list[np.ndarray]:
  _, table = _new_model(settings, images)
  return [variable.numpy() for variable in table]


def _stored(values: dict[str, np.ndarray], value: np.ndarray) -> str:
  """Stores a value once, and returns its key."""
  key = hashlib.sha256(repr((value.shape, value.dtype)).encode() + value.tobytes()).hexdigest()[:16]
  values[key] = value
  return key


def _write_images(directory: pathlib.Path, dataset: str, images: data.Images) -> str:
  """Writes gray images to train on and binary ones to evaluate on; returns the file's name."""
  path = directory / f"images-{hashlib.sha256(dataset.encode()).hexdigest()[:16]}.npz"
  if not path.exists():
    gray = np.round(images.train * 255).astype(np.uint8)
    is_exact = np.array_equal(gray.astype(np.float32) / np.float32(255), images.train)
    np.savez_compressed(
      path,
      train=gray if is_exact else images.train,
      valid=_bits(images.valid, images.image_shape),
      test=_bits(images.test, images.image_shape),
      width=images.train.shape[1],
    )
  return path.name


def _bits(gray: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
  """Returns the binary images that a run evaluates on, eight pixels in a byte."""
  batches = data.eval_batches(gray, 500, image_shape=image_shape)
  return np.packbits(np.concatenate([batch.numpy() for batch in batches]).astype(bool), axis=-1)


if __name__ == "__main__":
  flags.run(runs.ExperimentConfig, write, __doc__)
