"""This library's training step, through `model.fit` and the data pipeline of `bin/train.py`."""

import keras
import numpy as np

from benchmarks.contenders import DATA_DIM, EPSILON, LATENT_DIM, LEARNING_RATE
from dregs_tf import bounds, data, models


def make(name: str, batch_size: int, num_samples: int):
  """Steps of a bound; a name such as `iwae_dreg:16` records 16 samples for the backward pass.

  `iwae_dreg:graph` turns XLA off.
  """
  bound, _, option = name.partition(":")
  grey = np.random.default_rng(0).random((2000, DATA_DIM), np.float32)
  model = models.VAE(grey.mean(0), latent_dim=LATENT_DIM)
  model.compile(
    keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON),
    bound=bounds.get(bound),
    num_samples=num_samples,
    num_backward_samples=int(option) if option.isdigit() else None,
    seed=0,
    jit_compile=option != "graph",
  )
  batches = data.train_batches(grey, batch_size, 0, image_shape=(28, 28))

  def run(steps: int) -> None:
    model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False)

  return run
