"""Trains the runs of an experiment where there is no TensorFlow: as programs that JAX runs.

  python -m experiments.exported.write --experiment=mnist_seeds --seeds=0,1,2
  python -m experiments.exported.run --directory=runs/reduced/exported
  python -m experiments.exported.read --experiment=mnist_seeds --seeds=0,1,2

The first command writes each run's training step, evaluation and measurements as StableHLO, with
the values that its variables begin with; the second, which needs JAX alone, runs them; the third
writes the files of the runs' directories, all but checkpoints. A run begins with the variables of
`bin/train.py`, draws latents as it does and computes the same; the order of the images and their
pixels are drawn otherwise.
"""
