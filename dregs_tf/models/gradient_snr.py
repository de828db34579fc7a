"""Measures the signal-to-noise ratio of gradients at fixed parameters."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from dregs_tf.models import keras_privates, steps


class GradientSNR(keras.callbacks.Callback):
  """Adds the signal-to-noise ratio of the gradients that a model follows to each epoch's logs.

  The gradients are those of `compile(gradient_statistics=True, track_variance=...)`. With g the
  gradient of one batch, over the draw of its examples and of its samples z,

    SNR^2 = |E g|^2 / tr Cov g.

  Training pauses while g_1, ..., g_M are drawn at the parameters of the epoch's end, with noise
  that training does not use. Products of different gradients estimate the signal, and deviations
  from their mean the noise:

    |E g|^2 ~ sum_{i != j} g_i . g_j / (M (M - 1)),   tr Cov g ~ sum_i |g_i - mean g|^2 / (M - 1).

  Both are unbiased for batches that are drawn independently. If the batches are disjoint parts of
  one epoch of n batches, the noise of the examples lowers SNR^2 by up to 1 / n. If the noise is
  about normal and M >= 50, the standard error of SNR^2 is at most about

    sqrt(2 / (M (M - 1)) + (4 SNR^2 + 2 SNR^4) / M),

  divided by about sqrt(d) if the noise spreads over d directions. A negative estimate of |E g|^2 is
  reported as 0. So with M = 50, an SNR below 0.17 need not be a signal; if the noise spreads over
  50 directions, one below 0.06.

  Averages along a run do not estimate this ratio. Each step moves the parameters along the noise
  of its gradient, and the next gradients point back: products of gradients from different steps are
  too small, most of all for the estimator that is trained on.

  The logs are proposal_gradient_snr, model_gradient_snr and, for each tracked bound,
  NAME_gradient_snr. Place this callback before those that read the logs.

  Args:
    batches: training batches as `fit` takes them, a `tf.data.Dataset` or a distributed one; or a
      function of the number of steps taken that returns them.
    num_batches: M, at least 2. A measurement costs about as much as M steps of training.

  Raises:
    ValueError: if num_batches is less than 2; in `fit`, if there are fewer than 2 batches or if the
      model follows no gradient.
  """

  def __init__(self, batches: Iterable | Callable[[int], Iterable], num_batches: int = 50):
    super().__init__()
    if num_batches < 2:
      raise ValueError(f"num_batches must be at least 2, got {num_batches}.")
    self._batches = batches if callable(batches) else lambda step: batches
    self._num_batches = num_batches
    self._measured: tuple = ()  # What the gradients' graph was traced for.

  def on_train_begin(self, logs: dict[str, Any] | None = None):
    """Raises a ValueError if the model follows no gradient."""
    followers = self.model.followers
    if followers is None or followers.moments is None:
      raise ValueError(
        "GradientSNR needs a model that follows gradients: compile it with gradient_statistics or "
        "track_variance, got neither."
      )

  def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None):
    """Measures, and adds the results to the logs."""
    measured = self.model.followers, self.model.num_backward_samples
    if measured != self._measured:
      self._measured, self._gradients = measured, _gradients_function(self.model)
    step = int(steps.number(self.model))
    totals, squares, count = {}, {}, 0
    with _kept(keras_privates.statistics(self.model)):
      for batch in itertools.islice(self._batches_at(step), self._num_batches):
        for name, gradient in self._gradients(batch, tf.constant([step, count], tf.int32)).items():
          totals[name] = totals.get(name, 0.0) + gradient
          squares[name] = squares.get(name, 0.0) + float(tf.reduce_sum(gradient**2))
        count += 1
    if count < 2:
      raise ValueError(f"GradientSNR needs at least 2 batches, got {count}.")
    for name, total in totals.items():
      snr = _snr(float(tf.reduce_sum(total**2)), squares[name], count)
      logs[f"{name}_gradient_snr"] = snr

  def _batches_at(self, step: int) -> Iterable:
    batches, strategy = self._batches(step), self.model.distribute_strategy
    if strategy.num_replicas_in_sync > 1 and isinstance(batches, tf.data.Dataset):
      return strategy.experimental_distribute_dataset(batches)
    return batches


@contextlib.contextmanager
def _kept(variables: list[keras.Variable]) -> Iterator[None]:
  """Restores the variables' values at the end, since layers in training mode change them."""
  values = [variable.numpy() for variable in variables]
  yield
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)


def _snr(square_of_sum: float, sum_of_squares: float, count: int) -> float:
  """Returns the SNR, given |sum_i g_i|^2 and sum_i |g_i|^2 of `count` gradients."""
  signal = (square_of_sum - sum_of_squares) / (count * (count - 1))
  noise = (sum_of_squares - square_of_sum / count) / (count - 1)
  return math.sqrt(max(signal, 0.0) / noise) if noise > 0 else math.nan


def _gradients_function(model) -> Callable:
  """Returns (batch, numbers) -> gradients by name, compiled as the model's training step is."""
  strategy = model.distribute_strategy
  if strategy.num_replicas_in_sync == 1:
    function = model.gradient_step
  else:

    def function(batch, numbers):
      gradients = strategy.run(model.gradient_step, args=(batch, numbers))
      return tf.nest.map_structure(lambda g: strategy.experimental_local_results(g)[0], gradients)

  if model.run_eagerly:
    return function
  options = {"jit_compile": model.jit_compile, "autograph": False, "reduce_retracing": True}
  return tf.function(function, **options)
