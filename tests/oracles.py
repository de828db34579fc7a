"""Independent answers for the tests: the paper's equations written out, slowly and literally."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


def subsets(num_samples: int, num_left_out: int) -> list[list[int]]:
  """Every subset of the samples' indices that leaves out `num_left_out` of them."""
  size = num_samples - num_left_out
  return [list(subset) for subset in itertools.combinations(range(num_samples), size)]


def jackknife_scale(num_samples: int, order: int, j: int) -> float:
  """C(K, m, j) of Nowozin (2018)."""
  sign = (-1) ** j
  return sign * (num_samples - j) ** order / (math.factorial(order - j) * math.factorial(j))


def log_mean_exp(log_weights: np.ndarray) -> np.ndarray:
  """log (1/K) sum_i w_i over axis 0, in NumPy."""
  return np.logaddexp.reduce(log_weights, axis=0) - math.log(len(log_weights))


def softmax(log_weights: np.ndarray) -> np.ndarray:
  """wbar over axis 0, in NumPy; 0 throughout where every weight is 0."""
  largest = np.max(log_weights, axis=0)
  weights = np.exp(log_weights - np.where(np.isneginf(largest), 0.0, largest))
  total = weights.sum(axis=0)
  return weights / np.where(total == 0, 1.0, total)


def times_others(wbar):
  """wbar_i - wbar_i^2 as wbar_i times the sum of the others, which does not cancel; over axis 0."""
  return wbar * sum(
    [
      wbar[j] * (np.arange(len(wbar)) != j).reshape([-1] + [1] * (len(wbar.shape) - 1))
      for j in range(len(wbar))
    ]
  )


def jackknife(log_weights: np.ndarray, order: int):
  """JVI_m, u and v of log-weights [K, B], by listing the subsets one by one."""
  num_samples = len(log_weights)
  value = np.zeros(log_weights.shape[1:])
  u, v = np.zeros_like(log_weights), np.zeros_like(log_weights)
  for j in range(order + 1):
    groups = subsets(num_samples, j)
    scale = jackknife_scale(num_samples, order, j) / len(groups)
    for group in groups:
      value += scale * log_mean_exp(log_weights[group])
      inside = softmax(log_weights[group])
      u[group] += scale * inside
      v[group] += scale * inside**2
  return value, u, v


def table(name, log_weights, options):
  """value, a, b, c of log-weights [K, B]: the table of the paper, one row after the other."""
  wbar = softmax(log_weights)
  uniform = np.full_like(log_weights, 1 / len(log_weights))
  bound, elbo = log_mean_exp(log_weights), log_weights.mean(axis=0)
  if name == "elbo":
    return elbo, uniform, uniform, -uniform
  if name == "elbo_stl":
    return elbo, uniform, uniform, 0 * uniform
  if name == "iwae":
    return bound, wbar, wbar, -wbar
  if name == "iwae_dreg":
    return bound, wbar, wbar**2, 0 * wbar
  if name == "rws":
    return bound, wbar, 0 * wbar, wbar
  if name == "rws_dreg":
    return bound, wbar, wbar - wbar**2, 0 * wbar
  if name == "stl":
    return bound, wbar, wbar, 0 * wbar
  if name == "dreg_alpha":
    alpha = options["alpha"]
    return bound, wbar, alpha * wbar + (1 - 2 * alpha) * wbar**2, 0 * wbar
  if name == "iwae_dreg_norm":
    return bound, wbar, wbar**2 / (wbar**2).sum(axis=0), 0 * wbar
  if name == "rws_dreg_norm":
    path = times_others(wbar)
    return bound, wbar, path / path.sum(axis=0), 0 * wbar
  value, u, v = jackknife(log_weights, options["order"])
  return {"jvi": (value, u, u, -u), "jvi_dreg": (value, u, v, 0 * u)}[name]


class Problem(NamedTuple):
  """A model and a proposal that depend on the same parameters.

  parameters: list of Tensors or Variables.
  target: (parameters, samples) -> log p(x, z), [num_samples, batch_size].
  proposal: (parameters) -> q(z | x), a distribution of batch shape [batch_size].
  """

  parameters: list
  target: Callable[[list, Any], tf.Tensor]
  proposal: Callable[[list], tfd.Distribution]

  def live(self, samples):
    """log w as it is, everything live: what the bounds are functions of."""
    return self.target(self.parameters, samples) - self.density(self.parameters, samples)

  def hat(self, samples):
    """log w^: the parameters are stopped, the gradient flows through the samples."""
    parameters = [tf.stop_gradient(tf.convert_to_tensor(p)) for p in self.parameters]
    return self.target(parameters, samples) - self.density(parameters, samples)

  def tilde_p(self, samples):
    """log p~: the samples are stopped, the gradient flows to the parameters."""
    return self.target(self.parameters, tf.nest.map_structure(tf.stop_gradient, samples))

  def tilde_q(self, samples):
    """log q~: the samples are stopped, the gradient flows to the parameters."""
    return self.density(self.parameters, tf.nest.map_structure(tf.stop_gradient, samples))

  def density(self, parameters, samples):
    """log q of a proposal built afresh, at fresh Tensors: no bijector has them in its cache."""
    return self.proposal(parameters).log_prob(tf.nest.map_structure(tf.identity, samples))


def _total(terms):
  return tf.reduce_sum(terms, axis=0)


def _log_mean(log_weights):
  return tf.reduce_logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


def surrogate(name: str, problem: Problem, samples, options: dict | None = None) -> tf.Tensor:
  """[batch_size]: the surrogate of the paper's equation, whose gradient is the estimator's.

  Eqs. 11-17 with every tilde, hat and bar as it is printed; log p is evaluated once for each mark.
  A bound whose estimator is its total derivative is written as the bound, for autodiff to do.
  """
  options = options or {}
  log_w = problem.live(samples)
  wbar = tf.stop_gradient(tf.nn.softmax(log_w, axis=0))
  if name == "elbo":
    return tf.reduce_mean(log_w, axis=0)
  if name == "elbo_stl":
    return tf.reduce_mean(problem.tilde_p(samples) + problem.hat(samples), axis=0)
  if name == "iwae":  # Eq. 11
    return _log_mean(log_w)
  if name == "iwae_dreg":  # Eq. 12
    return _total(wbar * problem.tilde_p(samples) + wbar**2 * problem.hat(samples))
  if name == "rws":  # Eq. 13
    return _total(wbar * problem.tilde_p(samples) + wbar * problem.tilde_q(samples))
  if name == "rws_dreg":  # Eq. 14
    return _total(wbar * problem.tilde_p(samples) + (wbar - wbar**2) * problem.hat(samples))
  if name == "stl":  # Eq. 15
    return _total(wbar * (problem.tilde_p(samples) + problem.hat(samples)))
  if name == "dreg_alpha":  # Eq. 16
    alpha = options.get("alpha", 0.9)
    path = alpha * wbar + (1 - 2 * alpha) * wbar**2
    return _total(wbar * problem.tilde_p(samples) + path * problem.hat(samples))
  if name in ("iwae_dreg_norm", "rws_dreg_norm"):  # the authors' released code
    path = wbar**2 if name == "iwae_dreg_norm" else times_others(wbar)
    path /= tf.reduce_sum(path, axis=0)
    return _total(wbar * problem.tilde_p(samples) + path * problem.hat(samples))

  assert name in ("jvi", "jvi_dreg")
  tilde_p, hat = problem.tilde_p(samples), problem.hat(samples)
  order, num_samples = options.get("order", 1), log_w.shape[0]
  total = 0.0
  for j in range(order + 1):
    groups = subsets(num_samples, j)
    scale = jackknife_scale(num_samples, order, j) / len(groups)
    for group in groups:
      inside = tf.gather(log_w, group)
      if name == "jvi":  # the bound of every subset
        total += scale * _log_mean(inside)
      else:  # Eq. 12 on every subset
        wbar = tf.stop_gradient(tf.nn.softmax(inside, axis=0))
        total += scale * _total(wbar * tf.gather(tilde_p, group) + wbar**2 * tf.gather(hat, group))
  return total


def value(name: str, log_weights: tf.Tensor, options: dict | None = None) -> np.ndarray:
  """[batch_size]: the bound in nats, in NumPy."""
  log_weights = np.asarray(log_weights, np.float64)
  if name.startswith("elbo"):
    return log_weights.mean(axis=0)
  if name.startswith("jvi"):
    return jackknife(log_weights, (options or {}).get("order", 1))[0]
  return log_mean_exp(log_weights)


def gradients(tape: tf.GradientTape, objective: tf.Tensor, sources) -> list[tf.Tensor]:
  """The gradient of a sum in which every example counts differently, so that none hides another."""
  scale = tf.range(1, objective.shape[0] + 1 if objective.shape[0] else tf.size(objective) + 1)
  upstream = tf.cast(scale, objective.dtype) / 2
  return tape.gradient(objective, sources, upstream, unconnected_gradients="zero")
