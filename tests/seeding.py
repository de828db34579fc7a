"""Seeds of what tests draw without a seed."""

import random


def seed_layers(seed: int) -> None:
  """Fixes the weights of layers made next, whose seeds Keras draws from Python's `random`.

  `keras.utils.set_random_seed` also sets TensorFlow's seed, and with it drops all its kernels.
  """
  random.seed(seed)
