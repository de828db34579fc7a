"""Implements training steps of IWAE-DReG on the authors' MNIST networks, each at its best.

Every module here has `make(name, batch_size, num_samples)`, which returns a function that takes a
number of steps and runs them. Only this library's own goes through its public path.
"""

DATA_DIM, LATENT_DIM, HIDDEN = 784, 50, 200
LEARNING_RATE, EPSILON = 3e-4, 1e-8
