"""Computes statistics of measured gradients: SNR, bias, variance and tests of bias."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

# Rounding error of a float64 sum of squares, relative.
_ROUNDING = 1e-13


class Moments(NamedTuple):
  """Sums over measurements, each [num_trials, num_coordinates], float64, and the exact gradient.

  exact: the expected gradient of the bound. error and error_squares: of gradient - exact.
  difference and difference_squares: of gradient - that of its unbiased reference, same samples.
  """

  exact: np.ndarray
  error: np.ndarray
  error_squares: np.ndarray
  difference: np.ndarray
  difference_squares: np.ndarray


def summarize(moments: Moments, num_measurements: int) -> dict[str, float]:
  """Returns SNR, bias, variance and tests, over all trials and coordinates of `moments`.

  snr: sqrt(mean squared expectation / mean variance) over coordinates and trials, the authors'. The
    squared mean of n measurements is too large by variance / n on average, which is taken off:
    otherwise no SNR below 1 / sqrt(n) could be seen. 0 if nothing is left, NaN without variance.
  bias_squared: (mean of the measurements - exact gradient)^2, averaged. Without bias that is
    variance / n on average; nothing is taken off.
  variance: of one measurement, averaged.
  t_statistic, p_value: paired t-test of gradient - reference on the same samples. Of the
    t-statistics of all coordinates and trials it is the one farthest from 0, with its sign: biases
    of opposite signs do not cancel. The p-value is Bonferroni's, the two-sided p-value of that t
    (n - 1 degrees of freedom) times their number. It holds for coordinates that depend on each
    other in any way; dependence can make it too large, not too small. An estimator that is its own
    reference has 0 and 1.
  exact_t_statistic, exact_p_value: the same test of gradient - exact gradient. It sees a smaller
    bias where the reference is noisier than the estimator, and tests the reference as well.
  """
  n = num_measurements
  variance = _variance(moments.error, moments.error_squares, n)
  mean = moments.exact + moments.error / n
  signal = np.mean(mean**2) - np.mean(variance) / n
  has_variance = np.mean(variance) > 0
  t, p = _t_test(moments.difference, moments.difference_squares, n)
  exact_t, exact_p = _t_test(moments.error, moments.error_squares, n)
  return {
    "snr": math.sqrt(max(0.0, signal) / np.mean(variance)) if has_variance else math.nan,
    "bias_squared": float(np.mean((moments.error / n) ** 2)),
    "variance": float(np.mean(variance)),
    "t_statistic": t,
    "p_value": p,
    "exact_t_statistic": exact_t,
    "exact_p_value": exact_p,
  }


def slope(results: Sequence[dict], name: str, column: str, at_least: int = 1) -> float:
  """Fits the exponent of K in a column by least squares in logs; NaN below two positive values."""
  rows = [row for row in results if row["bound"] == name and row["num_samples"] >= at_least]
  points = [(row["num_samples"], row[column]) for row in rows if row[column] > 0]
  if len(points) < 2:
    return math.nan
  return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def _variance(total, squares, n):
  centered = squares - total**2 / n
  # Rounding errors of a constant are no variance.
  return np.where(centered > _ROUNDING * squares, centered, 0.0) / (n - 1)


def _t_test(total, squares, n) -> tuple[float, float]:
  """Returns the t-statistic farthest from 0, and its p-value times the number of coordinates."""
  with np.errstate(divide="ignore", invalid="ignore"):
    t = (total / n) / np.sqrt(_variance(total, squares, n) / n)
  t = np.where(total == 0, 0.0, t).ravel()
  largest = t[np.argmax(np.abs(t))]
  return float(largest), float(min(1.0, 2 * stats.t.sf(abs(largest), n - 1) * t.size))
