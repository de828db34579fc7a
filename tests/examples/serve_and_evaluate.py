"""Loads trained examples in a process of its own, evaluates and serves them, and prints results.

    python -m tests.examples.serve_and_evaluate NAME:FOLDER ...

A folder holds a checkpoint, `best.keras`, and the exported `served`. Prints one line of JSON: the
evaluations, and what was served, by folder.
"""

import json
import pathlib
import sys

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


def main(arguments: list[str]) -> dict[str, dict]:
  """Returns the results by folder."""
  results = {}
  for argument in arguments:
    name, folder = argument.split(":", 1)
    _, valid = EXAMPLES[name].data()
    model = keras.models.load_model(pathlib.Path(folder) / "best.keras")
    logs = model.evaluate(*valid, batch_size=40, verbose=0, return_dict=True)
    served = tf.saved_model.load(str(pathlib.Path(folder) / "served"))
    outputs = served.serve(valid[0] if len(valid) == 1 else valid).numpy()
    results[folder] = {
      "dtype": model.dtype_policy.name,
      "logs": logs,
      "shape": outputs.shape,
      "mean": float(outputs.mean()),
    }
  return results


if __name__ == "__main__":
  print(json.dumps(main(sys.argv[1:])))
