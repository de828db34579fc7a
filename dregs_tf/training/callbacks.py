"""Defines the Keras callbacks of a run: summaries, checkpoints, progress, and an orderly stop.

A Keras epoch is an interval between two summaries: it ends at a multiple of `summarize_every`, or
at the last step. `step` counts the steps of the run, as the optimizer does.
"""

import contextlib
import math
import signal
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dregs_tf import output
from dregs_tf.training import pictures, run_directory
from dregs_tf.training.config import TrainConfig
from dregs_tf.training.devices import Devices
from dregs_tf.training.errors import Interrupted
from dregs_tf.training.run_directory import Run

# Workers exchange stop requests only this often, since a message takes a millisecond.
_STEPS_BETWEEN_QUESTIONS = 10


class StepCallback(keras.callbacks.Callback):
  """Counts the steps for a callback."""

  def __init__(self, start_step: int):
    super().__init__()
    self.step = start_step

  def on_train_batch_end(self, batch: Any, logs: dict[str, Any] | None = None):
    self.step += 1
    self.on_step_end(self.step, logs or {})

  def on_step_end(self, step: int, logs: dict) -> None:
    """Runs after each step."""


class StopOnNonFinite(StepCallback):
  """Stops a run whose bound becomes NaN or +inf, before the broken state is saved."""

  def __init__(self, start_step: int, run: Run):
    super().__init__(start_step)
    self._run = run

  def on_step_end(self, step: int, logs: dict[str, Any] | None):
    value = float(np.ravel(logs["bound"])[0])
    if math.isnan(value) or value == math.inf:
      raise FloatingPointError(
        f"The bound {_bound_name(self.model)} became {value} at step {step}: a log-weight is NaN "
        f"or +inf. {_last_good(self._run)}"
      )


def _bound_name(model: keras.Model) -> str:
  """Returns the name of the bound that a model is trained with."""
  return getattr(model.bound, "name", model.bound)


def _last_good(run: Run) -> str:
  saved = run.checkpoints()
  return f"The last good checkpoint is {saved[-1][1]}." if saved else "There is no checkpoint."


class RestoreMetrics(keras.callbacks.Callback):
  """Restores the running means of an interrupted interval, once; Keras resets them."""

  def __init__(self, metrics: list[keras.metrics.Metric]):
    super().__init__()
    self._values = [variable.numpy() for metric in metrics for variable in metric.variables]

  def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None):
    variables = [variable for metric in self.model.metrics for variable in metric.variables]
    for variable, value in zip(variables, self._values, strict=False):
      variable.assign(value)
    self._values = []


class FollowTest(keras.callbacks.Callback):
  """Adds the test set's metrics to the logs of each interval."""

  def __init__(self, batches: tf.data.Dataset, steps: int):
    super().__init__()
    self._batches, self._steps = batches, steps

  def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None):
    # Keras passes the same logs to later callbacks.
    values = self.model.evaluate(self._batches, steps=self._steps, verbose=0, return_dict=True)
    logs |= {f"test_{name}": value for name, value in values.items()}


class FollowLayers(keras.callbacks.Callback):
  """Adds the KL divergence and the number of active units of each layer of latents to the logs."""

  def __init__(self, example: tf.Tensor):
    super().__init__()
    self._example = example

  def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None):
    # Keras passes the same logs to later callbacks.
    divergences = self.model.kl_divergence(self._example)
    active = self.model.active_units(self._example)
    logs |= {f"val_kl_{name}": float(tf.reduce_mean(kl)) for name, kl in divergences.items()}
    logs |= {f"val_active_units_{name}": float(count) for name, count in active.items()}


class Summaries(StepCallback):
  """Writes a row of metrics.csv, TensorBoard scalars and pictures at the end of each interval."""

  def __init__(self, start_step: int, run: Run, example: Any, image_shape: tuple[int, int]):
    super().__init__(start_step)
    self._run = run
    run.keep_metrics(start_step)
    self._writer = tf.summary.create_file_writer(str(run.tensorboard))
    self._example = example
    self._image_shape = image_shape

  def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None):
    self._begun_at, self._begun_step = time.monotonic(), self.step

  def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None):
    values = by_split(logs or {})
    self._run.add_metrics({"step": self.step} | values)
    seconds = time.monotonic() - self._begun_at
    with self._writer.as_default(step=self.step):
      for name, value in values.items():
        split, _, metric = name.partition("_")
        tf.summary.scalar(f"{metric}/{split}", value)
      tf.summary.scalar("steps_per_second", (self.step - self._begun_step) / seconds)
      for name, picture in pictures.pictures(self.model, self._example, self._image_shape).items():
        tf.summary.image(name, np.atleast_3d(picture)[None])
    self._writer.flush()


class Checkpoints(StepCallback):
  """Saves the model at regular steps, at the end, and when the process is asked to stop."""

  def __init__(self, start_step: int, settings: TrainConfig, stop: "StopRequest", devices: Devices):
    super().__init__(start_step)
    self._settings = settings
    self._run = Run(settings.directory)
    self._stop = stop
    self._devices = devices

  def on_step_end(self, step: int, logs: dict[str, Any] | None):
    ends_interval = step % self._settings.summarize_every == 0 or step == self._settings.max_steps
    if not ends_interval:
      self._save_if_due()

  def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None):
    # Saved only now: a checkpoint guarantees the rows of metrics.csv up to its step.
    self._save_if_due()

  def _save_if_due(self):
    due = self.step % self._settings.checkpoint_every == 0 or self.step == self._settings.max_steps
    asked = self._asked_to_stop(due)
    if asked or due:
      self._check_finite()
      if self._devices.is_chief:
        self._run.save(self.model, self.step)
      else:
        run_directory.take_part_in_saving(self.model)
      # A signal may have come during the writing of the file, which takes longer than a step.
      asked = asked or self._asked_to_stop(due)
    if asked:
      self._devices.from_chief(0)  # No worker leaves before the file is written.
      raise Interrupted(
        f"Stopped by {self._stop.signal_name or 'another worker'} at step {self.step}, saved in "
        f"{self._run.directory}. Run the same command again to resume."
      )

  def _check_finite(self):
    """Raises if the model has variables that are not finite, so that they are not saved."""
    model = self.model
    followed = model.followers.variables if model.followers is not None else []
    for variable in [*model.variables, *model.optimizer.variables, *followed]:
      value = tf.convert_to_tensor(variable)
      if value.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(value)):
        raise FloatingPointError(
          f"{variable.path} is no longer finite at step {self.step}, trained with the bound "
          f"{_bound_name(self.model)}. {_last_good(self._run)}"
        )

  def _asked_to_stop(self, due: bool) -> bool:
    """Returns whether this process, or any worker at a step where they communicate, should stop."""
    asked = self._stop.signal_name is not None
    if self._devices.num_workers == 1:
      return asked
    together = due or self.step % _STEPS_BETWEEN_QUESTIONS == 0
    return together and self._devices.any_worker(asked)


class StopRequest:
  """Records the name of a SIGTERM or Ctrl-C; a second signal stops the process at once."""

  signal_name: str | None = None

  def _on_signal(self, number, frame):
    if self.signal_name:
      raise KeyboardInterrupt
    self.signal_name = signal.Signals(number).name

  @contextlib.contextmanager
  def listening(self):
    """Handles the signals inside the block."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, self._on_signal) for number in numbers}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


class Progress(StepCallback):
  """Shows a bar in a terminal, and a line at each summary."""

  def __init__(self, start_step: int, last_step: int, enabled: bool = True):
    super().__init__(start_step)
    self._last_step = last_step
    self._progress = output.Progress(last_step, "steps", start_step, enabled)

  def on_step_end(self, step: int, logs: dict[str, Any] | None):
    self._progress.update()

  def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None):
    values = by_split(logs or {})
    text = ", ".join(f"{split} {values[f'{split}_bound']:.2f}" for split in ("train", "valid"))
    step = f"{self.step:>{len(str(self._last_step))}}/{self._last_step}"
    self._progress.write(f"step {step}  bound in nats: {text}")

  def close(self) -> None:
    """Closes the bar, and leaves it on the screen."""
    self._progress.close()


def by_split(logs: dict) -> dict[str, float]:
  """Returns Keras' logs with `train_`, `valid_` or `test_` before each metric, in this order.

  The loss, which is the negative bound, is left out.
  """
  values = {}
  for prefix, split in (("", "train"), ("val_", "valid"), ("test_", "test")):
    for name, value in logs.items():
      metric = name.removeprefix(prefix)
      if name.startswith(prefix) and metric != "loss" and not metric.startswith(("val_", "test_")):
        values[f"{split}_{metric}"] = float(value)
  return values
