"""Computes statistics of repeated measurements of gradients: signal, noise, and a test of bias.

E is the number of estimators, P the number of parameters, and n the number of measurements.
Estimators come in groups; the first of each group is the reference of the others.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_UPPER_5_PERCENT = 1.645  # The 95th percentile of a standard Normal.


class Measurements(NamedTuple):
  """Holds what the statistics need from n measurements of gradients g.

  The halves are the first n // 2 measurements and the rest.

  - center: [E, P], close to the mean of the first half. Subtracting it preserves precision.
  - total: [E, P], the sum of g - center.
  - squares: [_, P], for each estimator that is not a reference, the sum of squares of its g -
    center minus its reference's.
  - grams: [n, E, E], the inner products of each measurement's g - center.
  - projections: [n, E, E], the inner products of each measurement's g with the mean gradients of
    the other half.
  """

  center: np.ndarray
  total: np.ndarray
  squares: np.ndarray
  grams: np.ndarray
  projections: np.ndarray


def summarize(measured: Measurements, groups: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
  """Computes the statistics of each estimator.

  Args:
    measured: the measurements.
    groups: the index of the first estimator of each group, and the index after its last.

  Returns:
    For each estimator, the fields of `report.Row` that are statistics, by name.
  """
  n, size = len(measured.grams), measured.center.shape[1]
  shift = measured.total / n
  mean = measured.center + shift
  # [E, E]: traces of covariances, and inner products of expectations.
  traces = (measured.grams.sum(axis=0) - n * shift @ shift.T) / (n - 1)
  products = mean @ mean.T - traces / n
  projections = measured.projections
  rows = []
  lengths = []
  for i in range(len(mean)):
    square, trace = max(0.0, float(products[i, i])), max(0.0, float(traces[i, i]))
    # An upper estimate of the standard error of `square`: with the signal g and the covariance S of
    # the noise, its variance is 4 g'Sg / n + 2 tr(S^2) / n^2, this 4 g'Sg / n + 8 tr(S^2) / n^2.
    error = 2 * _deviation(projections[:, i, i]) / math.sqrt(n)
    lengths.append(math.sqrt(square) if square > 2 * error else math.nan)
    snr, snr_error = _snr(square, error, trace, _deviation(measured.grams[:, i, i]), n)
    rows.append(
      {
        "norm": math.sqrt(square),
        "variance": trace / size,
        "snr": snr,
        "snr_error": snr_error,
        **_NO_BIAS,
      }
    )
  squares = iter(measured.squares)
  for start, end in groups:
    for i in range(start + 1, end):
      p = projections
      variance = _variance(next(squares), shift[i] - shift[start], n)
      cosine = products[i, start] / (lengths[i] * lengths[start])
      rows[i] |= {
        "cosine": float(np.clip(cosine, -1, 1)),
        **_bias(
          mean[i] - mean[start],
          variance,
          p[:, i, i] - p[:, i, start] - p[:, start, i] + p[:, start, start],
          lengths[start],
        ),
      }
  return rows


_NO_BIAS = {
  "cosine": 1.0,
  "bias": 0.0,
  "bias_limit": 0.0,
  "t_statistic": 0.0,
  "p_value": 1.0,
  "max_t": 0.0,
}


def _snr(
  square: float, error: float, trace: float, deviation: float, n: int
) -> tuple[float, float]:
  """Computes the signal-to-noise ratio and its standard error; NaN without noise.

  Args:
    square: an estimate of |E g|^2.
    error: its standard error.
    trace: the trace of the covariance of g.
    deviation: the standard deviation of the squared distance of g to its mean.
    n: the number of measurements.
  """
  if not trace:
    return math.nan, math.nan
  snr = math.sqrt(square / trace)
  of_signal = math.sqrt((square + error) / trace) - snr
  of_noise = snr * deviation / math.sqrt(n) / (2 * trace)
  return snr, math.hypot(of_signal, of_noise)


def _bias(
  difference: np.ndarray, variance: np.ndarray, along: np.ndarray, length: float
) -> dict[str, float]:
  """Computes size, upper limit and tests of a bias.

  Args:
    difference: the mean of an estimator minus its reference, [P].
    variance: the variances of that difference in one measurement, [P].
    along: the projections of the differences on the mean difference of the other half, [n].
    length: the norm of the reference's expectation.
  """
  n = len(along)
  square = max(0.0, float(difference @ difference - variance.sum() / n))
  t, p_value = bias_test(along[: n // 2], along[n // 2 :])
  return {
    "bias": math.sqrt(square) / length,
    "bias_limit": math.sqrt(_upper_limit(square, variance, along)) / length,
    "t_statistic": t,
    "p_value": p_value,
    "max_t": _largest_t(difference, variance, n),
  }


def bias_test(*halves: np.ndarray) -> tuple[float, float]:
  """Tests whether the means of both halves' projections are above 0; see `compare`.

  A skewed distribution whose tail was not sampled looks like one with another mean: its t-statistic
  is large. Hall's statistic corrects for the skewness g of the sample (Hall, "On the removal of
  skewness by transformation", J. R. Statist. Soc. B 54, 1992). With W = mean / deviation it is

    sqrt(n) (W + g W^2 / 3 + g^2 W^3 / 27 + g / (6 n)),

  which increases with W for any g. If the projections have few directions, each half may mislead,
  but independently, so rarely both do.

  Args:
    *halves: the projections of each half of the measurements, [num_projections].

  Returns:
    Hall's statistic of the less significant half, and its one-sided p-value by Student's
    t-distribution.
  """
  tests = []
  for values in halves:
    n, mean, deviation = len(values), float(values.mean()), _deviation(values)
    if deviation:
      ratio = mean / deviation
      skewness = n * np.sum(((values - mean) / deviation) ** 3) / ((n - 1) * (n - 2))
      cubic = ratio + skewness * ratio**2 / 3 + skewness**2 * ratio**3 / 27
      t = float(math.sqrt(n) * (cubic + skewness / (6 * n)))
    else:
      t = math.copysign(math.inf, mean) if mean else 0.0
    tests.append((t, float(stats.t.sf(t, n - 1))))
  return max(tests, key=lambda test: test[1])


def _upper_limit(square: float, variance: np.ndarray, along: np.ndarray) -> float:
  """Computes a 95 % upper confidence limit of |d|^2, for the expectation d of a difference.

  The estimate `square`, |mean|^2 minus the contribution of noise, has variance 4 d'Sd / n +
  2 tr(S^2) / n^2, where S is the covariance of a difference. The projections `along` on the mean of
  the other half have variance d'Sd + 2 tr(S^2) / n on average. This is sharp if the noise has many
  directions; with few, a half's mean may happen to be small. So the limit is also at least that of
  independent coordinates, with d'Sd as for a direction of the noise: the largest |d|^2 that is
  consistent with `square`.
  """
  n = len(along)
  by_projections = square + 2 * _UPPER_5_PERCENT * _deviation(along) / math.sqrt(n)
  total, total_square = variance.sum(), np.sum(variance**2)
  per_square = 4 * total_square / total / n if total else 0.0  # of |d|^2
  slope = _UPPER_5_PERCENT**2 * per_square
  constant = _UPPER_5_PERCENT**2 * 2 * total_square / n**2
  by_coordinates = square + slope / 2 + math.sqrt(slope * square + constant + slope**2 / 4)
  return max(by_projections, float(by_coordinates))


def _largest_t(difference: np.ndarray, variance: np.ndarray, n: int) -> float:
  """Computes the paired t-statistic that is farthest from 0 over all coordinates."""
  with np.errstate(divide="ignore", invalid="ignore"):
    t = np.where(difference == 0, 0.0, difference / np.sqrt(variance / n))
  return float(t[np.argmax(np.abs(t))])


def _variance(squares: np.ndarray, shift: np.ndarray, n: int) -> np.ndarray:
  return np.maximum(0.0, squares - n * shift**2) / (n - 1)


def _deviation(values: np.ndarray) -> float:
  return float(np.std(values, ddof=1))
