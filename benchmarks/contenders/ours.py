"""Runs this library's step, through `model.fit` and the data pipeline of `bin/train.py`."""

import queue
import threading

import keras
import numpy as np

from benchmarks.contenders import DATA_DIM, EPSILON, LATENT_DIM, LEARNING_RATE
from dregs_tf import bounds, data, models


def make(name: str, batch_size: int, num_samples: int):
  """Makes steps of a bound; the name `iwae_dreg:16` records 16 samples for the backward pass.

  `iwae_dreg:graph` turns XLA off, `iwae_dreg:in10` runs ten steps per execution,
  `iwae_dreg:bfloat16` has the policy mixed_bfloat16. Options can be combined, as in
  `iwae_dreg:16:in10`. A step of `log_likelihood` evaluates the whole batch.
  """
  bound, *options = name.split(":")
  gray = np.random.default_rng(0).random((2000, DATA_DIM), np.float32)
  policy = "mixed_bfloat16" if "bfloat16" in options else "float32"
  model = models.VAE(gray.mean(0), latent_dim=LATENT_DIM, dtype=policy)
  if bound == "log_likelihood":
    return _log_likelihood(model, gray[:batch_size].round(), num_samples)
  steps_per_execution = next((int(each[2:]) for each in options if each.startswith("in")), 1)
  model.compile(
    keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON),
    bound=bounds.get(bound),
    num_samples=num_samples,
    num_backward_samples=next((int(each) for each in options if each.isdigit()), None),
    seed=0,
    jit_compile="graph" not in options,
    steps_per_execution=steps_per_execution,
  )
  batches = data.train_batches(gray, batch_size, 0, image_shape=(28, 28))
  turns = _Turns(steps_per_execution)
  endless = {"steps_per_epoch": 10**9, "callbacks": [turns], "verbose": 0, "shuffle": False}
  threading.Thread(target=model.fit, args=(batches,), kwargs=endless, daemon=True).start()
  return turns.run


class _Turns(keras.callbacks.Callback):
  """Runs one long `fit` some steps at a time, so that its start is not measured."""

  def __init__(self, steps_per_execution: int):
    super().__init__()
    self._at_a_time = steps_per_execution
    self._left = 0
    self._asked = queue.SimpleQueue()
    self._gone = threading.Semaphore(0)

  def on_train_batch_begin(self, batch, logs=None):
    if not self._left:
      self._left = self._asked.get()

  def on_train_batch_end(self, batch, logs=None):
    self._left -= 1
    if not self._left:  # Not at each step: changing threads takes a while.
      self._gone.release()

  def run(self, steps: int) -> int:
    """Runs a whole number of executions, of so many steps or more; says how many steps."""
    executions = -(-steps // self._at_a_time)
    self._asked.put(executions)
    self._gone.acquire()
    return executions * self._at_a_time


def _log_likelihood(model, x, num_samples: int):
  model.compile(jit_compile=True)

  def run(steps: int) -> None:
    for _ in range(steps):
      model.log_likelihood(x, num_samples).numpy()

  return run
