"""Trains and evaluates a model as a configuration says: what the binaries call."""

import contextlib
import csv
import dataclasses
import json
import math
import pathlib
import shlex
import sys

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dregs_tf import (
  bounds,
  callbacks,
  checkpoints,
  config,
  data,
  diagnostics,
  distribution,
  models,
  plots,
)
from dregs_tf.errors import ConfigError

# Rows of log-weights (samples times images) that an evaluation of the bound takes at a time.
_EVAL_ROWS = 12800


def train(settings: config.TrainConfig) -> dict[str, float]:
  """Trains a model, or goes on where the same run was interrupted, and evaluates it.

  Leaves in the run's directory config.json, checkpoints, TensorBoard events, metrics.csv, run.png
  and result.json.

  Returns:
    What result.json holds: the step, and the bound on the test set in nats.

  Raises:
    ConfigError: if the directory holds a run with another configuration, or is in use.
    DataError: if the data set cannot be loaded.
    FloatingPointError: if the bound becomes NaN or +inf.
    Interrupted: if SIGTERM or Ctrl-C came; the run is saved.
    WorkerLost: if another worker of a distributed run is gone.
  """
  devices = distribution.start(settings)
  directory = settings.directory
  lock = checkpoints.locked(directory) if devices.is_chief else contextlib.nullcontext()
  with devices.watching(), lock:
    devices.check_same_flags(settings)
    saved = config.load(directory)
    found = checkpoints.find(directory)
    if saved and found:
      settings.check_resumes(saved, step=found[-1][0])
    images = data.load(settings.dataset, settings.data_dir)
    _say(f"{images.description}\n{devices.describe()}")
    step, model = _load_or_build(settings, images, devices)
    if devices.is_chief:
      settings.save()
    if step:
      _say(f"Resuming at step {step} of {settings.max_steps}.")
    _fit(model, settings, images, devices, step)
    return _conclude(model, settings, images, devices)


def _load_or_build(settings, images, devices) -> tuple[int, keras.Model]:
  """(step, model) on the devices: that of the newest good checkpoint, or a new one."""
  if devices.num_workers == 1:
    with devices.strategy.scope():
      return checkpoints.load_newest(settings.directory) or (0, _new_model(settings, images))
  # Loading on all workers takes all of them, so one looks which checkpoint is good first.
  newest = checkpoints.load_newest(settings.directory) if devices.is_chief else None
  step = devices.from_chief(newest[0] if newest else 0)
  with devices.strategy.scope():
    if not step:
      return 0, _new_model(settings, images)
    path = checkpoints.path_of(settings.directory, step)
    if devices.any_worker(not path.exists()):
      raise ConfigError(
        f"--logdir must be on a file system that all workers share: one does not see {path}."
      )
    return step, checkpoints.load(path)


def _new_model(settings, images) -> models.LatentVariableModel:
  """The model that a run starts from: a new one, or that of the run that --init_from names."""
  model = build_model(settings, images)
  if settings.init_from:
    loaded = checkpoints.load_newest(pathlib.Path(settings.init_from), flag="init_from")
    if loaded is None:
      raise ConfigError(f"--init_from={settings.init_from} holds no checkpoint to start from.")
    _, trained = loaded
    old, new = ({**m.get_config(), "name": type(m).__name__} for m in (trained, model))
    differ = [name for name in old if old[name] != new.get(name)]
    if differ:
      raise ConfigError(
        f"--init_from={settings.init_from} holds another model, different in {', '.join(differ)}: "
        "give that run's --dataset, --task and --latent_dim."
      )
    for net, source in zip(_nets(model), _nets(trained), strict=True):
      net.set_weights(source.get_weights())
  return model


def _nets(model) -> list[keras.layers.Layer]:
  return [model.encoder, *model.model_layers]


def build_model(settings: config.TrainConfig, images: data.Images) -> models.LatentVariableModel:
  """The compiled model of a new run; its initial variables are a function of the seed."""
  keras.utils.set_random_seed(settings.seed)
  if settings.task == "structured":
    means = data.top_and_bottom(images.mean, images.image_shape)
    model = models.StructuredVAE(*means, latent_dim=settings.latent_dim)
  else:
    model = models.VAE(images.mean, latent_dim=settings.latent_dim)
  model.compile(
    optimizer=keras.optimizers.Adam(settings.learning_rate, epsilon=1e-8),
    bound=bounds.get(settings.bound, **settings.bound_options),
    num_samples=settings.num_samples,
    seed=settings.seed,
    num_backward_samples=settings.num_backward_samples,
    gradient_statistics=settings.gradient_statistics,
    track_variance=[bounds.get(name, **o) for name, o in settings.tracked_bounds.items()],
    adapt_alpha=settings.adapt_alpha,
    freeze_model=settings.freeze_model,
    jit_compile=settings.jit_compile,
  )
  return model


def _fit(model, settings, images, devices, start_step: int) -> None:
  """Keras' fit, an epoch for each interval between summaries."""
  options = {"image_shape": images.image_shape, "task": settings.task}
  valid = data.eval_batches(images.valid, _eval_batch_size(settings), **options)
  stop = callbacks.StopRequest()
  checkpointing = callbacks.Checkpoints(start_step, settings, stop, devices)
  observers = [callbacks.StopOnNonFinite(start_step, settings.directory), checkpointing]
  progress = callbacks.Progress(start_step, settings.max_steps, enabled=devices.is_chief)
  if devices.is_chief:
    example = _example(valid)
    summaries = callbacks.Summaries(start_step, settings.directory, example, images.image_shape)
    observers[1:] = [summaries, checkpointing, progress]
  if settings.follow_test:
    test = data.eval_batches(images.test, _eval_batch_size(settings), **options)
    batches = devices.distribute(test, _eval_batch_size(settings))
    observers.insert(1, callbacks.FollowTest(batches, int(test.cardinality())))
  if start_step % settings.summarize_every:
    observers.insert(0, callbacks.RestoreMetrics(model.metrics))
  try:
    with stop.listening():
      for first, intervals, length in segments(
        start_step, settings.max_steps, settings.summarize_every
      ):
        batches = data.train_batches(
          images.train, settings.batch_size, settings.seed, start_step=first, **options
        )
        model.fit(
          devices.distribute(batches, settings.batch_size),
          epochs=intervals,
          steps_per_epoch=length,
          validation_data=devices.distribute(valid, _eval_batch_size(settings)),
          validation_steps=int(valid.cardinality()),
          callbacks=observers,
          shuffle=False,
          verbose=0,
        )
  finally:
    progress.close()


def segments(start: int, end: int, every: int) -> list[tuple[int, int, int]]:
  """Cuts the steps from `start` to `end` at the multiples of `every`.

  Returns:
    (first step, number of intervals, their length): the rest of an interrupted interval, the full
    ones, and what is left at the end; those that are empty are left out.
  """
  rest = min(-start % every, end - start)
  full = (end - start - rest) // every
  last = end - start - rest - full * every
  parts = [
    (start, 1, rest),
    (start + rest, full, every),
    (start + rest + full * every, 1, last),
  ]
  return [part for part in parts if part[1] > 0 and part[2] > 0]


def _conclude(model, settings, images, devices) -> dict[str, float]:
  """Evaluates the trained model on the test set, and says what to do next."""
  options = {"image_shape": images.image_shape, "task": settings.task}
  test = data.eval_batches(images.test, _eval_batch_size(settings), **options)
  batches = devices.distribute(test, _eval_batch_size(settings))
  steps = int(test.cardinality())
  bound = model.evaluate(batches, steps=steps, verbose=0, return_dict=True)["bound"]
  result = {"step": settings.max_steps, "test_bound": bound}
  if devices.is_chief:
    _report(model, settings, images, _example(test), result)
  devices.from_chief(0)  # The others stay until the files are written.
  return result


def _report(model, settings, images, example, result) -> None:
  """Leaves the result and the figure, and says where."""
  directory = settings.directory
  (directory / "result.json").write_text(json.dumps(result) + "\n")
  with open(directory / "metrics.csv", newline="") as file:
    rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
  title = f"{images.name}, {settings.bound}, K = {settings.num_samples}"
  pictures = plots.pictures(model, example, images.image_shape)
  plots.run_figure(directory / "run.png", title, rows, pictures)
  _say(
    f"Test bound ({settings.bound}, K = {settings.num_samples}) after {settings.max_steps} steps: "
    f"{result['test_bound']:.2f} nats.\n"
    f"Figure:    {directory / 'run.png'}\n"
    f"Look:      tensorboard {shlex.quote(f'--logdir={directory}')}\n"
    f"Evaluate:  python bin/eval.py {shlex.quote(f'--logdir={directory}')} --num_samples=5000 "
    "--split=test"
  )


def evaluate(settings: config.EvalConfig) -> dict[str, float]:
  """The log-likelihood of a split under a trained model, a lower bound with many samples.

  Returns:
    The mean over examples in nats, its standard error, and what it was measured with; the same is
    left in the run's directory as evaluation_SPLIT_K.json.

  Raises:
    ConfigError: if the directory holds no run with a checkpoint.
    DataError: if the data set cannot be loaded.
  """
  run, step, model = _load_run(settings.logdir)
  images = data.load(run.dataset, settings.data_dir or run.data_dir)
  grey = getattr(images, settings.split)
  batches = data.eval_batches(
    grey, settings.batch_size, image_shape=images.image_shape, task=run.task
  )
  values = []
  with tqdm(total=len(grey), unit=" images", disable=not sys.stderr.isatty()) as bar:
    for i, batch in enumerate(batches):
      context, x = batch if isinstance(batch, tuple) else (None, batch)
      seed = [settings.seed, i]
      values.append(
        model.log_likelihood(x, settings.num_samples, context=context, seed=seed).numpy()
      )
      bar.update(len(values[-1]))
      if bar.disable and (i + 1) % 20 == 0:
        _say(f"{(i + 1) * settings.batch_size} of {len(grey)} images", file=sys.stderr)
  values = np.concatenate(values).astype(np.float64)
  result = dataclasses.asdict(settings) | {
    "step": step,
    "num_images": len(values),
    "log_likelihood": float(values.mean()),
    "standard_error": float(values.std(ddof=1) / math.sqrt(len(values))),
  }
  name = f"evaluation_{settings.split}_{settings.num_samples}.json"
  (run.directory / name).write_text(json.dumps(result) + "\n")
  _say(
    f"log p(x) of the {settings.split} set ({len(values)} images, step {step}, lower bound with "
    f"{settings.num_samples} samples): {result['log_likelihood']:.3f} +- "
    f"{result['standard_error']:.3f} nats (standard error over images)."
  )
  return result


def compare(settings: config.CompareConfig) -> diagnostics.Comparison:
  """Compares estimators on a trained model and the first batch of a split, and says what it found.

  Leaves comparison.csv and comparison.png in the output directory, or the run's. What options the
  run has for a bound, alpha or the order, are taken over.

  Raises:
    ConfigError: if the directory holds no run with a checkpoint, the output directory cannot be
      written, or a bound is not defined for so few samples.
    DataError: if the data set cannot be loaded.
  """
  run, step, model = _load_run(settings.logdir)
  options = {name: run.options_of(name) for name in settings.bounds}
  if model.followers.adaptive_alpha is not None and run.bound in options:
    options[run.bound] = {"alpha": float(model.followers.adaptive_alpha.alpha)}
  compared = [bounds.get(name, **own) for name, own in options.items()]
  most = max(settings.num_samples)
  for bound in compared:
    if most < bound.min_samples:
      raise ConfigError(
        f"--num_samples must hold a number of at least {bound.min_samples} for the run's "
        f"{bound.name} of order {run.jvi_order}, got {most}."
      )
  images = data.load(run.dataset, settings.data_dir or run.data_dir)
  grey = getattr(images, settings.split)[: settings.batch_size]
  batches = data.eval_batches(grey, len(grey), image_shape=images.image_shape, task=run.task)
  directory = pathlib.Path(settings.output_dir or run.directory)
  try:  # Before the work, not after it.
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f"--output_dir={directory} cannot be written: {error.strerror}.") from error
  result = diagnostics.compare(
    model,
    _example(batches),
    compared,
    settings.num_samples,
    settings.num_measurements,
    seed=settings.seed,
    jit_compile=settings.jit_compile,
    measure_cost=settings.measure_cost,
  )
  _say(
    f"{images.name}, {settings.split} set, step {step}.\n{result.table()}\n{result.recommendation}"
  )
  result.to_csv(directory / "comparison.csv")
  _say(f"Results:   {directory / 'comparison.csv'}")
  result.plot(directory / "comparison.png")
  _say(f"Figure:    {directory / 'comparison.png'}")
  return result


def _load_run(logdir: str) -> tuple[config.TrainConfig, int, models.LatentVariableModel]:
  """The configuration of a run, and the step and the model of its newest good checkpoint."""
  run = config.load(logdir)
  if run is None:
    raise ConfigError(f"--logdir={logdir} holds no run: there is no config.json.")
  loaded = checkpoints.load_newest(run.directory)
  if loaded is None:
    raise ConfigError(f"--logdir={logdir} holds no checkpoint to evaluate.")
  return run, *loaded


def _eval_batch_size(settings) -> int:
  return max(1, min(500, _EVAL_ROWS // settings.num_samples))


def _example(batches: tf.data.Dataset):
  """The first batch."""
  return next(iter(batches))


def _say(text: str, file=None) -> None:
  print(text, file=file, flush=True)
