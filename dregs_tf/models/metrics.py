"""Defines the running means that training and evaluation report."""

import functools
from typing import Any

import keras
import tensorflow as tf

from dregs_tf import importance_weights as iw
from dregs_tf.models import batches, replicas, steps


@keras.saving.register_keras_serializable("dregs_tf")
class Mean(keras.metrics.Mean):
  """Saves Keras' mean with the model, so that an interrupted run resumes amid an average."""

  def save_own_variables(self, store: Any) -> None:
    """Writes the total and the count."""
    for i, variable in enumerate(self.variables):
      store[str(i)] = variable.numpy()

  def load_own_variables(self, store: Any) -> None:
    """Reads what `save_own_variables` wrote, if the store has it."""
    for i, variable in enumerate(self.variables):
      if str(i) in store:
        variable.assign(store[str(i)])


class ReportingModel(keras.Model):
  """Reports means over examples: loss, bound, effective sample size.

  The loss, which training minimizes, is the negative bound plus the losses of layers. The latter
  are reported as `regularization`, if there are any.
  """

  _has_losses = False

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    # They are made here, not in `compile`: a built model takes no further metrics.
    self._loss_metric = Mean(name="loss")  # Keras' own is not saved.
    self._bound_metric = Mean(name="bound")
    self._sample_size_metric = Mean(name="effective_sample_size")
    self._regularization_metric = Mean(name="regularization")
    self._num_seen = keras.metrics.Sum(name="num_seen")

  @property
  def metrics(self) -> list[keras.metrics.Metric]:
    """Returns the means that training and evaluation report, and a subclass' own metrics."""
    hidden = [self._loss_tracker, self._num_seen]
    if not self._has_losses:
      hidden.append(self._regularization_metric)
    return [metric for metric in super().metrics if all(metric is not other for other in hidden)]

  def compile(self, *args: Any, **kwargs: Any) -> None:
    """Compiles as Keras does, and resets the means.

    Raises:
      ValueError: if a loss or metrics are given: the objective is the bound.
    """
    for argument in ("loss", "metrics", "weighted_metrics", "loss_weights"):
      if kwargs.get(argument) is not None:
        raise ValueError(f"{argument} has no meaning here: the objective is the bound. Drop it.")
    # XLA compiles for one device: in a step on replicas, only each replica's own work.
    distributed = self.distribute_strategy.num_replicas_in_sync > 1
    jit_compile_replica = distributed and kwargs.get("jit_compile") is True
    if jit_compile_replica:
      kwargs["jit_compile"] = False
    super().compile(*args, **kwargs)
    options = {"jit_compile": True, "autograph": False, "reduce_retracing": True}
    compiled = functools.partial(tf.function, **options)
    wrap = compiled if jit_compile_replica else (lambda function: function)
    self._replica_gradients = wrap(functools.partial(steps.gradients_of, self))
    self._replica_evaluate = wrap(functools.partial(steps.evaluate, self))
    self.reset_metrics()
    self._has_losses = False

  def reset_metrics(self) -> None:
    """Resets the means, as Keras does before an epoch and an evaluation."""
    super().reset_metrics()
    self._num_seen.reset_state()

  def test_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Takes one step of Keras' `evaluate`: the bound, averaged over examples."""
    batch = batches.split(data, self.float_dtype)
    self._build_for(batch.x, batch.context)
    # The number of examples seen so far in the evaluation gives each batch its own seed.
    seen = tf.cast(self._num_seen.total, tf.int32)
    part = replicas.part_of_batch(batch.x, seen)
    seen = seen if part is None else part.seen
    return as_logs(self._update_metrics(batch, self._replica_evaluate(batch, seen, part)))

  def step_options(self, training: bool) -> dict:
    """Returns the options of `estimate` in a step."""
    del training
    return {}

  def sample_size(self, estimate: Any) -> tf.Tensor:
    """Returns the effective sample size of an estimate, [batch_size]."""
    return iw.effective_sample_size(estimate.log_weights)

  def _update_metrics(self, batch: batches.Batch, values: steps.Values) -> dict[str, tf.Tensor]:
    """Updates the means with the values of a step, and returns them."""
    self._check_overrides()
    bound, sample_size, losses, _ = values
    size, weights = batches.size(batch.x), batch.sample_weight
    self._num_seen.update_state(size)
    if weights is not None:
      # An example of weight 0 may have an infinite bound, which 0 would turn into NaN.
      bound, sample_size = (
        tf.where(weights == 0, tf.zeros_like(value), value) for value in (bound, sample_size)
      )
    self._bound_metric.update_state(bound, sample_weight=weights)
    self._sample_size_metric.update_state(sample_size, sample_weight=weights)
    loss = -bound if weights is None else -bound * tf.cast(weights, bound.dtype)
    if losses is not None:
      self._has_losses = True
      self._regularization_metric.update_state(losses, sample_weight=size)
      loss += tf.cast(losses, loss.dtype)
    self._loss_metric.update_state(loss)
    return self.get_metrics_result()

  def _check_overrides(self) -> None:
    """Raises if a subclass overrides a method of Keras that a step here does not call."""
    for method in ("compute_loss", "compute_metrics"):
      if getattr(type(self), method) is not getattr(keras.Model, method):
        raise TypeError(
          f"{type(self).__name__}.{method} is not called: the loss is the negative bound. Add "
          "terms to it with self.add_loss, or define train_step and test_step."
        )

  def _get_metrics_result_or_logs(self, logs) -> dict:
    """Returns an epoch's results (a hook of Keras): the metrics' own values, over all replicas.

    Logs that lack one of the metrics come from a subclass' own step, and are returned unchanged.
    """
    values = self.get_metrics_result()
    if isinstance(logs, dict) and values.keys() <= logs.keys():
      return logs | values
    return logs


def as_logs(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Returns the logs as vectors, since Keras averages only vectors across workers."""
  if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}
  return logs
