"""Pareto k-hat of one vector of log-weights, in NumPy and in the steps of the papers."""

import math

import numpy as np


def k_hat(log_weights):
  """Vehtari et al. (2024), with the fit of Zhang and Stephens (2009), as ArviZ 0.21 has them."""
  x = np.sort(np.asarray(log_weights, np.float64))
  x -= x[-1]
  num_tail = math.ceil(min(len(x) / 5, 3 * math.sqrt(len(x))))
  cutoff = x[-num_tail - 1] if num_tail < len(x) else -math.inf
  cutoff = max(cutoff, math.log(np.finfo(np.float64).tiny))
  tail = np.exp(x[x > cutoff]) - math.exp(cutoff)
  if len(tail) < 5:
    return math.inf
  n, largest, quartile = len(tail), tail[-1], tail[math.floor(len(tail) / 4 + 0.5) - 1]
  m = 30 + math.floor(math.sqrt(n))
  b = [1 / largest + (1 - math.sqrt(m / (j - 0.5))) / (3 * quartile) for j in range(1, m + 1)]
  k = [np.mean(np.log1p(-each * tail)) for each in b]
  log_likelihood = [
    n * (math.log(-each / shape) - shape - 1) for each, shape in zip(b, k, strict=True)
  ]
  weights = np.exp(np.array(log_likelihood) - max(log_likelihood))
  mean_b = np.sum(weights * b) / np.sum(weights)
  return (n * np.mean(np.log1p(-mean_b * tail)) + 5) / (n + 10)


def random_log_weights(seed, num_samples):
  """Vectors of NumPy's frozen generator with tails from light to heavy, [num_samples, 100]."""
  random = np.random.RandomState(seed)
  scales = random.uniform(0.05, 6, 100)
  draws = [random.normal, random.exponential, lambda size: random.standard_t(3, size=size)]
  columns = [draws[i % 3](size=num_samples) * scale for i, scale in enumerate(scales)]
  return np.stack(columns, axis=1) + random.normal() * 100
