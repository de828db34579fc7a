"""Trains, evaluates and compares models as configured: the functions behind the commands."""

import contextlib
import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dregs_tf import bounds, data, diagnostics, models, output, seeds
from dregs_tf.models import products
from dregs_tf.training import (
  callbacks,
  checks,
  config,
  model_flags,
  optimizers,
  pictures,
  run_data,
  sequences,
  trust,
)
from dregs_tf.training.devices import start as start_devices
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run

# Libraries whose versions config.json records; all of them are loaded.
_VERSIONS = ("dregs_tf", "tensorflow", "keras", "tensorflow_probability")

# The number of batches that measure the gradients' signal-to-noise ratio, and their seed's purpose.
NUM_MEASURED, _MEASURED = 50, 1

# The number of log-weights (samples times images) in a batch when the bound is evaluated.
_EVAL_ROWS = 12800

# The number of validation images that show a model's layers and pictures along training.
_NUM_FOLLOWED = 500


def train(settings: config.TrainConfig) -> dict[str, float]:
  """Trains a model, or resumes the same run where it was interrupted, and evaluates it.

  It writes the files of the run's directory (see `Run`).

  Returns:
    The content of result.json: the step, and the bound on the test set in nats.

  Raises:
    ConfigError: if the directory holds a run with another configuration, or is in use.
    DataError: if the data set cannot be loaded.
    FloatingPointError: if the bound becomes NaN or +inf.
    Interrupted: after SIGTERM or Ctrl-C; the run is saved.
    WorkerLost: if another worker of a distributed run is gone.
  """
  devices = start_devices(settings)
  run = Run(settings.directory)
  with devices.watching(), run.locked() if devices.is_chief else contextlib.nullcontext():
    devices.check_same_flags(settings)
    saved = run.read_config()
    found = run.checkpoints()
    if saved and found and devices.is_chief:  # Others may have been started in another folder.
      settings.check_resumes(saved, step=found[-1][0])
    images = run_data.load(settings, settings.data_dir)
    _say(f"{images.description}\n{devices.describe()} {_describe_step(settings)}")
    step, model = _load_or_build(settings, images, devices)
    if devices.is_chief:
      run.write_config(settings, {name: sys.modules[name].__version__ for name in _VERSIONS})
    if step:
      _say(f"Resuming at step {step} of {settings.max_steps}.")
    _fit(model, settings, images, devices, step)
    return _conclude(model, settings, images, devices)


def _describe_step(settings) -> str:
  compiler = "XLA" if settings.jit_compile else "TensorFlow's graphs"
  dtype = settings.dtype_policy.removeprefix("mixed_")
  if dtype == "bfloat16" and not products.multiplies_bfloat16():
    dtype += " that the processor computes in float32"
  return f"Steps run in {compiler}, with matrix products of {dtype}."


def _load_or_build(settings, images, devices) -> tuple[int, keras.Model]:
  """Returns (step, model) on the devices, from the newest good checkpoint or for a new run."""
  run = Run(settings.directory)
  if devices.num_workers == 1:
    with devices.strategy.scope():
      return run.load_newest() or (0, _new_model(settings, images))
  # All workers must load together, so the chief first finds out which checkpoint is good.
  newest = run.load_newest() if devices.is_chief else None
  step = devices.from_chief(newest[0] if newest else 0)
  with devices.strategy.scope():
    if not step:
      return 0, _new_model(settings, images)
    path = run.checkpoint(step)
    if devices.any_worker(not path.exists()):
      raise ConfigError(
        f"--logdir must be on a file system that all workers share: one does not see {path}."
      )
    return step, run.load(step)


def _new_model(settings, images) -> models.LatentVariableModel:
  """Returns the model that a run starts from: a new one, or the one of --init_from."""
  model = build_model(settings, images)
  if settings.init_from:
    loaded = Run(settings.init_from, flag="init_from").load_newest()
    if loaded is None:
      raise ConfigError(f"--init_from={settings.init_from} holds no checkpoint to start from.")
    _, trained = loaded
    old, new = ({**m.get_config(), "name": type(m).__name__} for m in (trained, model))
    differ = [name for name in old if name != "dtype" and old[name] != new.get(name)]
    if differ:
      of_mean = ", and also --missing_fraction and --seed" if "data_mean" in differ else ""
      raise ConfigError(
        f"--init_from={settings.init_from} holds another model, different in {', '.join(differ)}: "
        f"give that run's --dataset, --task, --model, --latent_dim and --latent_dims{of_mean}."
      )
    for net, source in zip(model.layers, trained.layers, strict=True):
      net.set_weights(source.get_weights())
  return model


def build_model(settings: config.TrainConfig, images: data.Images) -> models.LatentVariableModel:
  """Returns the compiled model of a new run; its initial variables depend on the seed alone."""
  keras.utils.set_random_seed(settings.seed)
  if isinstance(images, data.Sequences):
    return sequences.build(settings, images)
  if settings.task == "structured":
    top, bottom = data.top_and_bottom(images.mean, images.image_shape)
    model = models.StructuredVAE(top, bottom, settings.latent_dim, dtype=settings.dtype_policy)
  elif settings.model == "hierarchical":
    model = models.HierarchicalVAE(images.mean, settings.latent_dims, dtype=settings.dtype_policy)
  else:
    kind = {"vae": models.VAE, "discrete": models.DiscreteVAE}[settings.model]
    model = kind(images.mean, settings.latent_dim, dtype=settings.dtype_policy)
  kl_weight = settings.kl_weight
  if settings.kl_warmup_steps:
    kl_weight = keras.optimizers.schedules.PolynomialDecay(
      0.0, settings.kl_warmup_steps, end_learning_rate=kl_weight
    )
  model.compile(
    optimizer=optimizers.optimizer(settings, len(images.train)),
    bound=bounds.get(settings.bound, **settings.bound_options),
    num_samples=settings.num_samples,
    seed=settings.seed,
    num_backward_samples=settings.num_backward_samples,
    gradient_statistics=settings.gradient_statistics,
    track_variance=[bounds.get(name, **o) for name, o in settings.tracked_bounds.items()],
    adapt_alpha=settings.adapt_alpha,
    freeze_model=settings.freeze_model,
    kl_weight=kl_weight,
    missing="nan" if settings.missing_fraction else None,
    prior_gradient=settings.prior_gradient,
    jit_compile=settings.jit_compile,
  )
  return model


def _fit(model, settings, images, devices, start_step: int) -> None:
  """Calls Keras' fit with an epoch for each interval between summaries."""
  valid = run_data.eval_batches(settings, images, "valid", eval_batch_size(settings))
  run = Run(settings.directory)
  stop = callbacks.StopRequest()
  checkpointing = callbacks.Checkpoints(start_step, settings, stop, devices)
  observers = [callbacks.StopOnNonFinite(start_step, run), checkpointing]
  if settings.gradient_statistics or settings.track_variance:
    random_batches = _random_batches(settings, images, devices)
    observers.insert(1, models.GradientSNR(random_batches, NUM_MEASURED))
  progress = callbacks.Progress(start_step, settings.max_steps, enabled=devices.is_chief)
  if devices.is_chief:
    example = _example(run_data.eval_batches(settings, images, "valid", _NUM_FOLLOWED))
    summaries = callbacks.Summaries(start_step, run, example, images.image_shape)
    layers = [callbacks.FollowLayers(example)] if settings.model == "hierarchical" else []
    observers[-1:] = [*layers, summaries, checkpointing, progress]
  if settings.follow_test:
    test = run_data.eval_batches(settings, images, "test", eval_batch_size(settings))
    batches = devices.distribute(test, eval_batch_size(settings))
    observers.insert(1, callbacks.FollowTest(batches, int(test.cardinality())))
  # If the run had ended at this step, it has a row, and the next covers only the steps since.
  had_ended = devices.from_chief(int(devices.is_chief and run.has_metrics(start_step)))
  if start_step % settings.summarize_every and not had_ended:
    observers.insert(0, callbacks.RestoreMetrics(model.metrics))
  try:
    with stop.listening():
      for first, intervals, length in segments(
        start_step, settings.max_steps, settings.summarize_every
      ):
        batches = run_data.train_batches(settings, images, first)
        model.fit(
          devices.distribute(batches, settings.batch_size),
          epochs=intervals,
          steps_per_epoch=length,
          validation_data=devices.distribute(valid, eval_batch_size(settings)),
          validation_steps=int(valid.cardinality()),
          callbacks=observers,
          shuffle=False,
          verbose=0,
        )
  finally:
    progress.close()


def _random_batches(settings, images, devices):
  """Returns a function of the step that draws independent batches, for measurements there."""

  def batches(step: int):
    indices = np.random.default_rng([settings.seed, step]).integers(
      len(images.train), size=NUM_MEASURED * settings.batch_size
    )
    drawn = data.eval_batches(
      images.train[indices],
      settings.batch_size,
      image_shape=images.image_shape,
      task=model_flags.data_task(settings),
      seed=seeds.fold_in(seeds.stateless(settings.seed), _MEASURED, step),
    )
    return devices.distribute(drawn, settings.batch_size)

  return batches


def segments(start: int, end: int, every: int) -> list[tuple[int, int, int]]:
  """Cuts the steps from `start` to `end` at the multiples of `every`.

  Returns:
    Tuples (first step, number of intervals, their length): the remainder of an interrupted
    interval, the full ones, and a shorter last one; empty ones are left out.
  """
  remainder = min(-start % every, end - start)
  full = (end - start - remainder) // every
  last = end - start - remainder - full * every
  parts = [
    (start, 1, remainder),
    (start + remainder, full, every),
    (start + remainder + full * every, 1, last),
  ]
  return [part for part in parts if part[1] > 0 and part[2] > 0]


def _conclude(model, settings, images, devices) -> dict[str, float]:
  """Evaluates the trained model on the test set, and prints the commands to use next."""
  test = run_data.eval_batches(settings, images, "test", eval_batch_size(settings))
  batches = devices.distribute(test, eval_batch_size(settings))
  steps = int(test.cardinality())
  bound = model.evaluate(batches, steps=steps, verbose=0, return_dict=True)["bound"]
  result = {"step": settings.max_steps, "test_bound": bound}
  if devices.is_chief:
    _report(model, settings, images, _example(test), result)
  devices.from_chief(0)  # The other workers wait until the files are written.
  return result


def _report(model, settings, images, example, result) -> None:
  """Writes the result and the figure, and prints where they are."""
  run = Run(settings.directory)
  run.write_result(result)
  title = f"{images.name}, {settings.bound}, K = {settings.num_samples}"
  shown = pictures.pictures(model, example, images.image_shape)
  pictures.run_figure(run.figure, title, run.read_metrics(), shown)
  # The path is absolute, so that the commands can be pasted in any folder.
  logdir = shlex.quote(f"--logdir={run.directory.resolve()}")
  _say(
    f"Test bound ({settings.bound}, K = {settings.num_samples}) after {settings.max_steps} steps: "
    f"{result['test_bound']:.2f} nats.\n"
    f"Figure:      {run.figure}\n"
    f"TensorBoard: tensorboard {logdir}\n"
    f"Evaluate:    dregs-eval {logdir} --num_samples=5000 --split=test"
  )


def evaluate(settings: config.EvalConfig) -> dict[str, float]:
  """Estimates the log-likelihood of a split under a trained model, by a bound with many samples.

  Returns:
    The content of evaluation_SPLIT_K.json in the run's directory: the mean over examples in nats,
    its standard error, the diagnostics of `trust.summary`, and the settings. A CSV with the
    diagnostics of each image and a figure are written next to it.

  Raises:
    ConfigError: if the directory holds no run with a checkpoint.
    DataError: if the data set cannot be loaded.
  """
  trained, step, model = _load_run(settings.logdir)
  images = run_data.load(trained, settings.data_dir or trained.data_dir)
  batches = run_data.eval_batches(trained, images, settings.split, settings.batch_size)
  run = Run(settings.logdir)
  if trained.model == "vrnn":
    options = {"num_samples": settings.num_samples, "seed": settings.seed}
    found, rows = sequences.evaluate(model, batches, **options)
    result = dataclasses.asdict(settings) | {"step": step} | found
    run.write_evaluation(result, rows)
    _say(sequences.report(result))
    return result
  num_images = len(getattr(images, settings.split))
  figures, examples = _figures_of_trust(model, settings, batches, num_images)
  result = dataclasses.asdict(settings) | {"step": step} | trust.summary(figures)
  if trained.missing_fraction:
    complete = data.load(trained.dataset, settings.data_dir or trained.data_dir)
    whole = run_data.eval_batches(trained, complete, settings.split, settings.batch_size)
    pairs = zip(batches, whole, strict=True)
    result |= _imputation_errors(model, settings, pairs, images.mean)
  run.write_evaluation(result, trust.rows(figures))
  title = f"{images.name}, {trained.bound}, step {step}: {settings.split} set"
  name = settings.split, settings.num_samples
  trust.figure(run.evaluation_figure(*name), title, figures, examples, images.image_shape)
  _say(
    f"{trust.report(result)}\n"
    f"By image:  {run.evaluation_rows(*name)}\n"
    f"Figure:    {run.evaluation_figure(*name)}"
  )
  return result


def _figures_of_trust(model, settings, batches: tf.data.Dataset, num_images: int):
  """Estimates log p(x) of the images of batches; returns their diagnostics and whole images."""
  parts, examples = [], []
  with output.Progress(num_images, "images") as progress:
    for i, batch in enumerate(batches):
      context, x = batch if isinstance(batch, tuple) else (None, batch)
      seed = [settings.seed, i]
      parts.append(
        model.log_likelihood(x, settings.num_samples, context, seed, return_diagnostics=True)
      )
      examples.append(pictures.whole_images(x, context))
      progress.update(len(x))
      if (i + 1) % 20 == 0:
        progress.write_without_bar(f"{(i + 1) * settings.batch_size} of {num_images} images")
  return trust.joined(parts), np.concatenate(examples)


def _imputation_errors(model, settings, pairs, mean: np.ndarray) -> dict[str, float]:
  """Returns the errors of imputed pixels, given batches with missing pixels and whole ones."""
  errors, errors_of_mean = [], []
  for i, (x, complete) in enumerate(pairs):
    imputed = model.impute(x, settings.num_samples, seed=[settings.seed, i])
    is_missing = np.isnan(x)
    errors.append((imputed - complete)[is_missing])
    errors_of_mean.append((mean - complete)[is_missing])
  names = ("imputation_error", "mean_imputation_error")
  return {
    name: float(np.sqrt(np.mean(np.square(np.concatenate(parts)))))
    for name, parts in zip(names, (errors, errors_of_mean), strict=True)
  }


def compare(settings: config.CompareConfig) -> diagnostics.Comparison:
  """Compares estimators on a trained model and the first batch of a split; prints the report.

  It writes comparison.csv and comparison.png (with --gradient_of=prior, comparison_prior) to the
  output directory, the run's by default. Options of bounds are those of
  `TrainConfig.options_of`.

  Raises:
    ConfigError: if the directory holds no run with a checkpoint, the output directory cannot be
      written, or a bound is not defined for any of the K's.
    DataError: if the data set cannot be loaded.
  """
  trained, step, model = _load_run(settings.logdir)
  measure = sequences.comparison if trained.model == "vrnn" else _comparison
  compared = measure(model, settings, trained)  # Wrong flags raise here, before any work.
  images = run_data.load(trained, settings.data_dir or trained.data_dir)
  directory = pathlib.Path(settings.output_dir or trained.directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f"--output_dir={directory} cannot be written: {error.strerror}.") from error
  batches = run_data.eval_batches(trained, images, settings.split, settings.batch_size)
  result = compared(_example(batches))
  _say(
    f"{images.name}, {settings.split} set, step {step}.\n{result.table()}\n{result.recommendation}"
  )
  name = "comparison_prior" if settings.gradient_of == "prior" else "comparison"
  result.to_csv(directory / f"{name}.csv")
  _say(f"Results:   {directory / f'{name}.csv'}")
  result.plot(directory / f"{name}.png")
  _say(f"Figure:    {directory / f'{name}.png'}")
  return result


def _comparison(model, settings, trained) -> Callable[[Any], diagnostics.Comparison]:
  """Returns the function that compares estimators on a batch, for a run of images.

  Raises:
    ConfigError: if flags do not fit the run.
  """
  names = settings.bounds or model_flags.compared(trained.model)
  for name in names:
    checks.check_choice("bounds", name, config.BOUNDS)
  if settings.gradient_of == "prior":
    model_flags.check_learns_prior(trained, "--gradient_of=prior")
  options = {name: trained.options_of(name) for name in names}
  for name, values in options.items():
    checks.check_defined(name, values, settings.num_samples)
  return lambda batch: diagnostics.compare(
    model,
    batch,
    [bounds.get(name, **values) for name, values in options.items()],
    settings.num_samples,
    settings.num_measurements,
    seed=settings.seed,
    jit_compile=settings.jit_compile,
    measure_cost=settings.measure_cost,
    gradient_of=settings.gradient_of,
  )


def _load_run(logdir: str) -> tuple[config.TrainConfig, int, models.LatentVariableModel]:
  """Loads the configuration of a run, and the step and the model of its newest good checkpoint."""
  run = Run(logdir)
  settings = run.read_config()
  if settings is None:
    raise ConfigError(f"--logdir={logdir} holds no run: there is no config.json.")
  loaded = run.load_newest()
  if loaded is None:
    raise ConfigError(f"--logdir={logdir} holds no checkpoint to evaluate.")
  return settings, *loaded


def eval_batch_size(settings: config.TrainConfig) -> int:
  """Returns how many images a run evaluates at a time."""
  return max(1, min(500, _EVAL_ROWS // settings.num_samples))


def _example(batches: tf.data.Dataset):
  """Returns the first batch."""
  return next(iter(batches))


def _say(text: str) -> None:
  print(text, flush=True)
