"""Measures the variance that the sparse backward pass adds to the gradient of a trained model.

  python -m benchmarks.sparse_variance --logdir=RUN --num_samples=64 --num_backward_samples=16

On one batch, it computes the dense gradient g and the sparse gradient s with the same samples. Over
many draws of samples, E|s - g|^2 is the added variance, and E|g - E g|^2 the variance without it.
The proposal's and the model's parameters are reported separately.
"""

import numpy as np
import tensorflow as tf
from absl import app, flags

from dregs_tf import bounds, data
from dregs_tf.training.run_directory import Run

_LOGDIR = flags.DEFINE_string("logdir", None, "A training run.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared TensorFlow Datasets.")
_BOUNDS = flags.DEFINE_list("bounds", ["iwae", "iwae_dreg", "rws_dreg", "jvi_dreg"], "Bounds.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "K.")
_NUM_BACKWARD = flags.DEFINE_integer("num_backward_samples", 16, "M.")
_NUM_DRAWS = flags.DEFINE_integer("num_draws", 200, "Draws of the samples.")


def main(argv) -> None:
  """Prints a line for each bound."""
  del argv
  run = Run(_LOGDIR.value).read_config()
  _, model = Run(run.directory).load_newest()
  images = data.load(run.dataset, _DATA_DIR.value or run.data_dir)
  batches = data.train_batches(images.train, run.batch_size, 0, image_shape=images.image_shape)
  x = next(iter(batches))
  for name in _BOUNDS.value:
    print(f"{name:12} " + ", ".join(f"{k}: {v:+.2%}" for k, v in added(model, x, name).items()))


def added(model, x, name: str) -> dict[str, float]:
  """Returns the added variance of each group of parameters, over that of the dense gradient."""
  groups = {"proposal": model.encoder, "model": model.decoder}

  @tf.function(jit_compile=True)
  def gradients(seed, sparse):
    with tf.GradientTape() as tape:
      objective = model.estimate(
        x,
        bound=bounds.get(name),
        num_samples=_NUM_SAMPLES.value,
        seed=seed,
        num_backward_samples=_NUM_BACKWARD.value if sparse else None,
      ).objective
      mean = tf.reduce_mean(objective)
    variables = [layer.trainable_variables for layer in groups.values()]
    return [
      tf.concat([tf.reshape(g, [-1]) for g in part], axis=0)
      for part in tape.gradient(mean, variables)
    ]

  sums = {group: [0.0, 0.0, 0.0] for group in groups}
  for draw in range(_NUM_DRAWS.value):
    seed = tf.constant([7, draw])
    dense, sparse = gradients(seed, False), gradients(seed, True)
    for group, g, s in zip(groups, dense, sparse, strict=True):
      g, s = g.numpy().astype(np.float64), s.numpy().astype(np.float64)
      terms = (np.sum((s - g) ** 2), np.sum(g**2), g)
      sums[group] = [total + term for total, term in zip(sums[group], terms, strict=True)]
  draws = _NUM_DRAWS.value
  return {
    group: (difference / draws) / ((square - np.sum(total**2) / draws) / (draws - 1))
    for group, (difference, square, total) in sums.items()
  }


if __name__ == "__main__":
  app.run(main)
