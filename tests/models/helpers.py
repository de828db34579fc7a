"""Small models and data, and the gradient by hand, that the tests of the models share."""

import numpy as np
import tensorflow as tf

from dregs_tf import models
from tests.seeding import seed_layers

DATA_MEAN = np.linspace(0.1, 0.9, 6)
CONTEXT_MEAN = np.linspace(0.2, 0.6, 4)


def binary(batch_size, size, seed=0, dtype="float32"):
  return np.random.RandomState(seed).binomial(1, 0.4, (batch_size, size)).astype(dtype)


def vae(seed=0, **options):
  seed_layers(seed)
  return models.VAE(DATA_MEAN, **({"latent_dim": 3, "hidden_units": (5, 4)} | options))


def structured(seed=0, **options):
  seed_layers(seed)
  options = {"latent_dim": 3, "hidden_units": (5, 4)} | options
  return models.StructuredVAE(CONTEXT_MEAN, DATA_MEAN, **options)


def compiled(model, **options):
  """The model compiled for quick tests: few samples, a fixed seed, SGD, no XLA."""
  defaults = {"optimizer": "sgd", "num_samples": 5, "seed": 1, "jit_compile": False}
  model.compile(**(defaults | options))
  return model


def compiled_with_adam(model, **options):
  """As `compiled`, with an optimizer that has averages to save, and takes longer to trace."""
  return compiled(model, **({"optimizer": "adam"} | options))


def perturb(layer, seed=0):
  """Gives every variable of the layer other values: biases do not stay 0."""
  random = np.random.RandomState(seed)
  for variable in layer.trainable_variables:
    variable.assign(variable + 0.3 * random.normal(size=variable.shape))


def values(model):
  return [variable.numpy() for variable in model.trainable_variables]


def record_seeds(model):
  """The seeds of the model's estimates, a list that grows with every eager step."""
  seeds = []
  original = model.estimate

  def estimate(*args, **kwargs):
    seeds.append(kwargs["seed"].numpy().tolist())
    return original(*args, **kwargs)

  model.estimate = estimate
  return seeds


def gradient_of_step(model, data):
  """What one `train_step` with SGD(1.0) adds to the parameters, and the seed that it used."""
  seeds = record_seeds(model)
  before = values(model)
  model.train_step(tf.nest.map_structure(tf.constant, data))
  (seed,) = seeds
  return [new - old for new, old in zip(values(model), before, strict=True)], seed


def gradient_by_hand(model, x, context, seed, num_samples, coefficients):
  """Eqs. 11-17 read literally: the gradient of the mean objective, each part on its own.

  a weighs the model's gradient at samples that are numbers; b, the derivative of log w in the
  samples alone, carried on to the parameters through the samples; c the proposal's score.
  """
  variables = model.trainable_variables
  with tf.GradientTape(persistent=True) as tape:
    proposal = model.proposal(x, context)
    samples = proposal.sample(num_samples, seed=seed)
    numbers = tf.nest.map_structure(tf.stop_gradient, samples)
    log_p = model.target_log_prob(x, numbers, context)
    log_q = proposal.log_prob(numbers)
  with tf.GradientTape() as slopes_tape:
    leaves = [tf.identity(leaf) for leaf in tf.nest.flatten(numbers)]
    slopes_tape.watch(leaves)
    moved = tf.nest.pack_sequence_as(samples, leaves)
    log_w = model.target_log_prob(x, moved, context) - model.proposal(x, context).log_prob(moved)
  slopes = slopes_tape.gradient(log_w, leaves)
  a, b, c = coefficients(log_w.numpy())
  total = [np.zeros(variable.shape) for variable in variables]

  def add(target, upstream):
    gradients = tape.gradient(target, variables, output_gradients=upstream)
    for i, gradient in enumerate(gradients):
      if gradient is not None:
        total[i] = total[i] + tf.convert_to_tensor(gradient).numpy() / log_w.shape[1]

  add(log_p, tf.constant(a))
  add(log_q, tf.constant(c))
  for sample, slope in zip(tf.nest.flatten(samples), slopes, strict=True):
    add(sample, slope * b.reshape(b.shape + (1,) * (slope.shape.rank - 2)))
  return total


def _normalize(log_w):
  w = np.exp(log_w - log_w.max(axis=0))
  return w / w.sum(axis=0)


def iwae_dreg(log_w):
  """a, b, c of Eq. 12."""
  w = _normalize(log_w)
  return w, w**2, np.zeros_like(w)


def iwae(log_w):
  """a, b, c of Eq. 11."""
  w = _normalize(log_w)
  return w, w, -w


def rws(log_w):
  """a, b, c of Eq. 13."""
  w = _normalize(log_w)
  return w, np.zeros_like(w), w


def jvi_dreg(log_w):
  """a, b, c of Sec. 4.2 at order 1: K times the weights on all samples, less those on subsets."""
  num_samples = log_w.shape[0]
  w = _normalize(log_w)
  first, second = num_samples * w, num_samples * w**2
  for out in range(num_samples):
    others = np.delete(np.arange(num_samples), out)
    part = _normalize(log_w[others])
    first[others] -= (num_samples - 1) / num_samples * part
    second[others] -= (num_samples - 1) / num_samples * part**2
  return first, second, np.zeros_like(w)


BY_HAND = {"iwae": iwae, "iwae_dreg": iwae_dreg, "rws": rws, "jvi_dreg": jvi_dreg}
