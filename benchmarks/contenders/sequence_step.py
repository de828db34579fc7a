"""Trains a VRNN: this library's step, and a hand-written loop without resampling and gates."""

import keras
import numpy as np
import tensorflow as tf

from dregs_tf import models, sequential

NUM_STEPS = DATA_DIM = 28


def make(name: str, batch_size: int, num_samples: int):
  """Makes steps of a bound of sequences, or of `plain`; with XLA if the name ends in `-xla`."""
  kind, _, xla = name.partition("-")
  keras.utils.set_random_seed(0)
  model = models.VRNN(np.full(DATA_DIM, 0.2), latent_dim=16, hidden_units=(64,), rnn_units=64)
  optimizer = keras.optimizers.Adam(1e-3)
  variables = model.trainable_variables
  optimizer.build(variables)
  shape = [batch_size, NUM_STEPS, DATA_DIM]
  x = tf.constant(np.random.default_rng(0).random(shape) < 0.2, tf.float32)

  @tf.function(autograph=False, jit_compile=xla == "xla")
  def step(seed):
    with tf.GradientTape() as tape:
      if kind == "plain":
        objective = _plain(model, x, num_samples, seed)
      else:
        objective = sequential.estimate(kind, model, x, num_samples, seed=seed).objective
      loss = -tf.reduce_mean(objective)
    optimizer.apply(tape.gradient(loss, variables), variables)
    return loss

  def run(steps: int) -> None:
    for i in range(steps):
      loss = step(tf.constant([i, 0]))
    loss.numpy()

  return run


def _plain(model, x, num_samples: int, seed):
  """The K-sample bound of the joint latent, as one would write it down."""
  state = tuple(
    tf.tile(leaf[tf.newaxis], [num_samples, 1, 1]) for leaf in model.initial_state(x.shape[0])
  )

  def body(t, state, log_weights):
    x_t = tf.gather(x, t, axis=1)
    q = model.proposal(x_t, None, state)
    z = q.sample(seed=tf.random.experimental.stateless_fold_in(seed, t))
    log_weights += model.prior(None, state).log_prob(z) - q.log_prob(z)
    log_weights += model.likelihood(z, state).log_prob(x_t)
    return t + 1, model.next_state(state, z, x_t), log_weights

  _, _, log_weights = tf.while_loop(
    lambda t, *_: t < NUM_STEPS,
    body,
    (0, state, tf.zeros([num_samples, x.shape[0]])),
    maximum_iterations=NUM_STEPS,
  )
  return tf.reduce_logsumexp(log_weights, axis=0) - np.log(num_samples)
