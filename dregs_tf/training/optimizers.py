"""Makes the optimizer of a run, whose learning rate may follow a schedule."""

import keras

from dregs_tf.training.config import TrainConfig

# The schedule of Burda et al. (2015), Sec. 5: stage i takes 3^i passes over the data.
_NUM_STAGES = 8


def optimizer(settings: TrainConfig, num_images: int) -> keras.optimizers.Adam:
  """Returns the optimizer of a new run that trains on `num_images` images."""
  rate = settings.learning_rate
  if settings.learning_rate_schedule == "burda":
    rate = burda_schedule(rate, steps_per_pass=num_images // settings.batch_size)
  return keras.optimizers.Adam(rate, epsilon=1e-8)


def burda_schedule(
  rate: float, steps_per_pass: int
) -> keras.optimizers.schedules.PiecewiseConstantDecay:
  """Returns the schedule of Burda et al. (2015): `rate` * 10^(-i/7) for 3^i passes, i = 0 to 7.

  The last rate stays after these 3280 passes. The paper's `rate` is 0.001.

  Args:
    rate: the learning rate of the first pass.
    steps_per_pass: steps of a pass over the data.
  """
  passes = [sum(3**i for i in range(stage)) for stage in range(1, _NUM_STAGES)]
  # Keras counts steps from 0, and a boundary is the last step before a change.
  boundaries = [each * steps_per_pass - 1 for each in passes]
  rates = [rate * 10 ** (-stage / 7) for stage in range(_NUM_STAGES)]
  return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
