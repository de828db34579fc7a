"""The running means that training and evaluation report."""

import keras
import tensorflow as tf

from dregs_tf.models import batches, steps


@keras.saving.register_keras_serializable("dregs_tf")
class Mean(keras.metrics.Mean):
  """Keras' mean, saved with the model: an interrupted run goes on in the middle of one."""

  def save_own_variables(self, store) -> None:
    """Writes the total and the count."""
    for i, variable in enumerate(self.variables):
      store[str(i)] = variable.numpy()

  def load_own_variables(self, store) -> None:
    """Reads what `save_own_variables` wrote, where it did."""
    for i, variable in enumerate(self.variables):
      if str(i) in store:
        variable.assign(store[str(i)])


class ReportingModel(keras.Model):
  """A Keras model that reports means over examples: bound, effective sample size and losses.

  The losses of layers are reported once there are any, as `regularization`.
  """

  _has_losses = False

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    # Made here and not by `compile`: a model that was built takes no further metrics.
    self._bound_metric = Mean(name="bound")
    self._sample_size_metric = Mean(name="effective_sample_size")
    self._regularization_metric = Mean(name="regularization")
    self._num_seen = keras.metrics.Sum(name="num_seen")

  @property
  def metrics(self) -> list[keras.metrics.Metric]:
    """The running means that training and evaluation report, and a subclass' own metrics."""
    hidden = [self._loss_tracker, self._num_seen]
    if not self._has_losses:
      hidden.append(self._regularization_metric)
    return [metric for metric in super().metrics if all(metric is not other for other in hidden)]

  def compile(self, *args, **kwargs) -> None:
    """Compiles as Keras does, and starts the means anew."""
    super().compile(*args, **kwargs)
    self.reset_metrics()
    self._has_losses = False

  def reset_metrics(self) -> None:
    """Starts the means anew, as Keras does before an epoch and an evaluation."""
    super().reset_metrics()
    self._num_seen.reset_state()

  def _update_metrics(self, batch: batches.Batch, values: steps.Values) -> dict[str, tf.Tensor]:
    """Takes in what a step reports, and returns the means."""
    size, weights = batches.size(batch.x), batch.sample_weight
    self._num_seen.update_state(size)
    for metric, value in (
      (self._bound_metric, values.objective),
      (self._sample_size_metric, values.sample_size),
    ):
      if weights is not None:
        value = tf.where(weights == 0, tf.zeros_like(value), value)  # It may be infinite.
      metric.update_state(value, sample_weight=weights)
    if values.losses is not None:
      self._has_losses = True
      self._regularization_metric.update_state(values.losses, sample_weight=size)
    return {metric.name: metric.result() for metric in self.metrics}

  def _get_metrics_result_or_logs(self, logs) -> dict:
    """Keras' hook: what an epoch reports. The metrics' own values, which are of all replicas."""
    return {**(logs or {}), **self.get_metrics_result()}


def as_logs(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """The logs as Keras averages them over replicas: across workers it takes vectors."""
  if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}
  return logs
