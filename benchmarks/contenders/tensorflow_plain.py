"""Implements IWAE-DReG in plain TensorFlow as published: the literal surrogate, two gradients.

Both leave the paper's equations as they are. `literal` evaluates the decoder twice, once for
log p~(x, z) and once for log w^ (Eq. 12). `authors` evaluates it once, with two backward passes, as
the released code does: with wbar for the model's parameters, with wbar^2 for the encoder's.
"""

import itertools

import numpy as np
import tensorflow as tf

from benchmarks.contenders import DATA_DIM, EPSILON, HIDDEN, LATENT_DIM, LEARNING_RATE


def make(name: str, batch_size: int, num_samples: int):
  """Makes steps of `literal` or `authors`, with XLA if the name ends in `-xla`."""
  kind, _, xla = name.partition("-")
  sizes = [DATA_DIM, HIDDEN, HIDDEN, 2 * LATENT_DIM], [LATENT_DIM, HIDDEN, HIDDEN, DATA_DIM]
  encoder, decoder = ([_dense(*pair) for pair in itertools.pairwise(s)] for s in sizes)
  phi, theta = ([v for layer in net for v in layer] for net in (encoder, decoder))
  optimizer = _Adam(phi + theta)
  x_all = tf.constant(np.random.default_rng(0).random((2000, DATA_DIM)) < 0.2, tf.float32)

  def log_q(z, loc, scale):
    return tf.reduce_sum(
      -0.5 * ((z - loc) / scale) ** 2 - tf.math.log(scale) - 0.5 * np.log(2 * np.pi), axis=-1
    )

  def log_p(x, z, net):
    rows = tf.reshape(z, [-1, LATENT_DIM])
    logits = tf.reshape(_mlp(rows, net), [num_samples, batch_size, DATA_DIM])
    likelihood = -tf.reduce_sum(
      tf.nn.sigmoid_cross_entropy_with_logits(tf.broadcast_to(x, tf.shape(logits)), logits), axis=-1
    )
    return likelihood + tf.reduce_sum(-0.5 * z**2 - 0.5 * np.log(2 * np.pi), axis=-1)

  def propose(x, seed):
    loc, raw = tf.split(_mlp(x, encoder), 2, axis=-1)
    scale = tf.math.softplus(raw + 0.25)
    noise = tf.random.stateless_normal([num_samples, *loc.shape], seed, alg="philox")
    return loc, scale, loc + scale * noise

  def literal(x, seed):
    with tf.GradientTape() as tape:
      loc, scale, z = propose(x, seed)
      log_p_tilde = log_p(x, tf.stop_gradient(z), decoder)
      stopped = [[tf.stop_gradient(v) for v in layer] for layer in decoder]
      log_w_hat = log_p(x, z, stopped) - log_q(z, tf.stop_gradient(loc), tf.stop_gradient(scale))
      weights = tf.stop_gradient(tf.nn.softmax(log_w_hat, axis=0))
      surrogate = tf.reduce_sum(weights * log_p_tilde + weights**2 * log_w_hat, axis=0)
      loss = -tf.reduce_mean(surrogate)
    return tape.gradient(loss, phi + theta)

  def authors(x, seed):
    with tf.GradientTape(persistent=True) as tape:
      loc, scale, z = propose(x, seed)
      joint = log_p(x, z, decoder)
      log_w_hat = joint - log_q(z, tf.stop_gradient(loc), tf.stop_gradient(scale))
      weights = tf.stop_gradient(tf.nn.softmax(log_w_hat, axis=0))
      model_loss = -tf.reduce_mean(tf.reduce_sum(weights * joint, axis=0))
      proposal_loss = -tf.reduce_mean(tf.reduce_sum(weights**2 * log_w_hat, axis=0))
    return tape.gradient(proposal_loss, phi) + tape.gradient(model_loss, theta)

  @tf.function(jit_compile=bool(xla))
  def step(x, seed):
    optimizer.apply({"literal": literal, "authors": authors}[kind](x, seed))

  counter = iter(range(10**9))

  def run(steps: int) -> None:
    for _ in range(steps):
      i = next(counter)
      start = i * batch_size % (len(x_all) - batch_size)
      step(x_all[start : start + batch_size], tf.constant([0, i]))

  return run


def _dense(fan_in: int, fan_out: int) -> list[tf.Variable]:
  limit = np.sqrt(6 / (fan_in + fan_out))
  return [
    tf.Variable(tf.random.uniform([fan_in, fan_out], -limit, limit)),
    tf.Variable(tf.zeros(fan_out)),
  ]


def _mlp(rows, net):
  for kernel, bias in net[:-1]:
    rows = tf.tanh(rows @ kernel + bias)
  kernel, bias = net[-1]
  return rows @ kernel + bias


class _Adam:
  def __init__(self, variables):
    self._variables = variables
    self._first = [tf.Variable(tf.zeros_like(v)) for v in variables]
    self._second = [tf.Variable(tf.zeros_like(v)) for v in variables]
    self._step = tf.Variable(0.0)

  def apply(self, gradients):
    step = self._step.assign_add(1.0)
    rate = LEARNING_RATE * tf.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    for v, m, s, g in zip(self._variables, self._first, self._second, gradients, strict=True):
      first = m.assign(0.9 * m + 0.1 * g)
      second = s.assign(0.999 * s + 0.001 * g**2)
      v.assign_sub(rate * first / (tf.sqrt(second) + EPSILON))
