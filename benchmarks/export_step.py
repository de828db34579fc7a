"""Exports the training step as StableHLO programs, for machines without TensorFlow.

  python -m benchmarks.export_step --directory=/tmp/exported

Writes a program for each number of samples and precision, and the values of their variables once:
variables, batch and state are arguments of a program. `benchmarks.exported_step` runs them. The
programs are those of a machine with a GPU, where samples are not cut into pieces.
"""

import gzip
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.contenders import DATA_DIM, EPSILON, LATENT_DIM, LEARNING_RATE
from dregs_tf import models
from experiments.exported import program

_DIRECTORY = flags.DEFINE_string("directory", None, "Where to write the programs.", required=True)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples in a step.")
_NUM_SAMPLES = flags.DEFINE_list("num_samples", ["64", "256", "1024"], "K's to export.")
_HIDDEN = flags.DEFINE_list("hidden_units", ["200", "200"], "Sizes of the hidden layers.")

# The policy of the layers, and whether float32 products may be taken in TF32.
PRECISIONS = {
  "float32": ("float32", False),
  "tf32": ("float32", True),
  "bfloat16": ("mixed_bfloat16", True),
}


def main(argv) -> None:
  """Writes the programs and the values that they begin with."""
  del argv
  directory = pathlib.Path(_DIRECTORY.value)
  directory.mkdir(parents=True, exist_ok=True)
  for precision in PRECISIONS:
    for num_samples in map(int, _NUM_SAMPLES.value):
      with program.for_a_gpu():
        exported, values = export(_BATCH_SIZE.value, num_samples, precision)
      name = f"{_BATCH_SIZE.value}x{num_samples}-{precision}"
      (directory / f"{name}.mlir.gz").write_bytes(gzip.compress(exported.text.encode()))
      (directory / f"{name}.json").write_text(json.dumps(exported._replace(text="")._asdict()))
      np.savez_compressed(directory / "values.npz", *values)  # The same for every program.
      print(f"{directory / name}.mlir.gz: {len(exported.text) / 2**20:.1f} MiB", flush=True)


def export(batch_size: int, num_samples: int, precision: str):
  """Returns the program of a step, and the values of a batch and of the variables."""
  policy, tf32 = PRECISIONS[precision]
  tf.config.experimental.enable_tensor_float_32_execution(tf32)
  keras.utils.set_random_seed(0)
  gray = np.random.default_rng(0).random((2000, DATA_DIM), np.float32)
  model = models.VAE(
    gray.mean(0), latent_dim=LATENT_DIM, hidden_units=tuple(map(int, _HIDDEN.value)), dtype=policy
  )
  model.compile(
    keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON),
    bound="iwae_dreg",
    num_samples=num_samples,
    seed=0,
    jit_compile=True,
  )
  model.optimizer.build(model.trainable_variables)
  x = tf.constant(gray[:batch_size] > 0.5, tf.float32)
  table = program.variables(model)
  exported = program.export(model.train_step, [x], table)
  return exported, [x.numpy(), *(variable.numpy() for variable in table)]


if __name__ == "__main__":
  app.run(main)
