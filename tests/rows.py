"""The rows beyond the paper, written out literally in NumPy, and three functions of strangers."""

import itertools
import math

import numpy as np
import tensorflow as tf

from tests import oracles

# (name, options) of every row whose coefficients are checked here.
ROWS = [
  ("elbo_loo", {}),
  ("vimco", {}),
  ("vimco_star", {}),
  ("ovis", {"gamma": 0.3}),
  ("ovis", {"gamma": 1.0}),
  ("iwae_cv", {"a": 0.3, "b": 0.6, "g": 0.2, "d": -0.4}),
  *[(name, {"alpha": alpha}) for name in ("vr_iwae", "vr_iwae_dreg") for alpha in (0, 0.3, 1)],
  *[(name, {"beta": beta}) for name in ("ciwae", "ciwae_dreg") for beta in (0.05, 1)],
  *[(name, {"groups": 2}) for name in ("miwae", "miwae_dreg", "piwae", "piwae_dreg")],
  ("miselbo", {}),  # of one component
  ("miselbo_dreg", {}),
  *[(name, {"betas": (0, 0.1, 0.45, 1)}) for name in ("tvo", "tvo_dreg")],
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in ROWS]


def value(name, l, options):
  """The bound in nats, [batch_size]."""
  if name in ("vr_iwae", "vr_iwae_dreg"):
    s = 1 - options["alpha"]
    return oracles.log_mean_exp(s * l) / s if s else l.mean(axis=0)
  if name in ("ciwae", "ciwae_dreg"):
    beta = options["beta"]
    return beta * l.mean(axis=0) + (1 - beta) * oracles.log_mean_exp(l)
  if name in ("miwae", "miwae_dreg"):
    parts = np.split(l, options["groups"])
    return np.mean([oracles.log_mean_exp(part) for part in parts], axis=0)
  if name in ("tvo", "tvo_dreg"):
    return sum(
      (following - beta) * np.sum(oracles.softmax(beta * l) * l, axis=0)
      for beta, following in itertools.pairwise(options["betas"])
    )
  return l.mean(axis=0) if name == "elbo_loo" else oracles.log_mean_exp(l)


def coefficients(name, l, options):
  """a, b, c of the row, each [num_samples, batch_size]: as they were published."""
  num_samples = len(l)
  wbar = oracles.softmax(l)
  zero = np.zeros_like(l)
  others = np.stack([oracles.log_mean_exp(np.delete(l, i, 0)) for i in range(num_samples)])
  added = oracles.log_mean_exp(l) + math.log(num_samples / (num_samples - 1)) - others  # s
  kappa = math.log(1 - 1 / num_samples)
  if name == "elbo_loo":
    means = np.stack([np.delete(l, i, 0).mean(axis=0) for i in range(num_samples)])
    return zero + 1 / num_samples, zero, (l - means) / num_samples
  if name == "vimco":
    return wbar, zero, added - wbar + kappa
  if name == "vimco_star":
    return wbar, zero, added - wbar
  if name == "ovis":
    gamma = options["gamma"]
    return wbar, zero, added - (1 - gamma) * wbar + gamma * kappa
  if name == "iwae_cv":
    a, b, g, d = (options[key] for key in "abgd")
    signal = oracles.log_mean_exp(l) - (1 - g) * others
    c = a * signal + (1 - b) * ((1 - d) / num_samples - wbar)
    return wbar, (1 - a) * wbar + b * (wbar**2 - wbar), c
  total = not name.endswith("_dreg")
  if name.startswith("vr_iwae"):
    alpha = options["alpha"]
    u = oracles.softmax((1 - alpha) * l)
    b = alpha * u + (1 - alpha) * u**2
  elif name.startswith("ciwae"):
    beta = options["beta"]
    u = beta / num_samples + (1 - beta) * wbar
    b = beta / num_samples + (1 - beta) * wbar**2
  elif name.startswith("miselbo"):
    u, b = wbar, wbar**2
  elif name.startswith(("miwae", "piwae")):
    groups = options["groups"]
    inside = np.concatenate([oracles.softmax(part) for part in np.split(l, groups)])
    u, b = inside / groups, inside**2 / groups
    if name.startswith("piwae"):
      return (wbar, u, -u) if total else (wbar, b, zero)
  else:
    u, b = zero, zero
    for beta, following in itertools.pairwise(options["betas"]):
      weights = oracles.softmax(beta * l)
      d = l - np.sum(weights * l, axis=0)
      step = following - beta
      u = u + step * weights * (1 + beta * d)
      b = b + step * weights * (
        (1 - 2 * beta) + beta * (1 - beta) * d + 2 * beta * weights * (1 + beta * d)
      )
  return (u, u, -u) if total else (u, b, zero)


def asymmetric(l):
  return (
    tf.tanh(l[0] * l[1] / 10) + 0.3 * tf.math.softplus(tf.reduce_logsumexp(l, 0)) + 0.05 * l[2] ** 2
  )


def of_groups(l):
  """Not exchangeable over groups: the first half counts twice."""
  size = l.shape[0] // 2
  return 2 * tf.reduce_logsumexp(l[:size], 0) + tf.sin(tf.reduce_sum(l[size:], 0))


def linear(l):
  return tf.reduce_sum(l * (1.0 + tf.range(l.shape[0], dtype=l.dtype))[:, None], axis=0)


FUNCTIONS = [asymmetric, of_groups, linear]
