"""The running mean that training and evaluation report."""

import keras


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
