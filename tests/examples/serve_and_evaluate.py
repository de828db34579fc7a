"""Loads trained examples, evaluates and serves them: to be called in a process of its own."""

import json
import pathlib

import keras
import tensorflow as tf

from tests.examples import (
  conditional_vae,
  convolutional_vae,
  eight_schools,
  keras_vae,
  plain_vae,
  tfp_vae,
  two_layers,
)

EXAMPLES = {
  "keras_vae": keras_vae,
  "tfp_vae": tfp_vae,
  "convolutional_vae": convolutional_vae,
  "two_layers": two_layers,
  "conditional_vae": conditional_vae,
  "eight_schools": eight_schools,
  "plain_vae": plain_vae,
}


def main(folders: list[tuple[str, str]]) -> None:
  """Prints one line of JSON: what was evaluated and served, by folder.

  Args:
    folders: (name of the example, folder) pairs. A folder holds a checkpoint, `best.keras`, and the
      exported `served`.
  """
  results = {}
  for name, folder in folders:
    _, valid = EXAMPLES[name].data()
    model = keras.models.load_model(pathlib.Path(folder) / "best.keras")
    logs = model.evaluate(*valid, batch_size=40, verbose=0, return_dict=True)
    served = tf.saved_model.load(str(pathlib.Path(folder) / "served"))
    outputs = served.serve(valid[0] if len(valid) == 1 else valid).numpy()
    results[folder] = {
      "dtype": model.dtype_policy.name,
      "logs": {name: float(value) for name, value in logs.items()},
      "shape": outputs.shape,
      "mean": float(outputs.mean()),
    }
  print(json.dumps(results))
