"""The toy experiment (Sec. 6.1, Fig. 1): SNR, bias and variance of gradients as K grows.

Each trial draws a `models.gaussian` problem, then gradient samples ("measurements") of the bound's
mean over a batch of observations, with respect to the proposal's A and b. All bounds share their
samples, and a smaller K takes the first K of them. Coefficients are those of `dregs_tf.bounds`.

The batch stays the same throughout a trial: drawing it anew would add the variance between
observations, which falls only like K^-2 and would hide the K^-3 of IWAE-DReG.
"""

import concurrent.futures
import csv
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy import stats
from tqdm import tqdm

from dregs_tf import bounds, config, toy_plot
from dregs_tf.errors import ConfigError
from dregs_tf.models import gaussian

# Samples times rows (observations times measurements) at a time: float32 noise of about 20 MB.
_PAIRS = 2**18

# Of a float64 sum of squares, relative.
_ROUNDING = 1e-13

# From this K on, slopes are printed as asymptotic.
_ASYMPTOTIC = 10


class Moments(NamedTuple):
  """Sums over measurements, each [num_trials, num_coordinates], float64, and the exact gradient.

  exact: the expected gradient of the bound. error and error_squares: of gradient - exact.
  difference and difference_squares: of gradient - its unbiased reference's on the same samples.
  """

  exact: np.ndarray
  error: np.ndarray
  error_squares: np.ndarray
  difference: np.ndarray
  difference_squares: np.ndarray


def run(settings: config.ToyConfig) -> list[dict]:
  """Runs the experiment; leaves results.csv, trials.csv and two figures in its output directory.

  toy_gaussian.png averages over the coordinates of (A, b); toy_gaussian_coordinate.png shows a
  single randomly chosen one, as the paper does.

  Returns:
    The rows of results.csv (see `summarize`).

  Raises:
    ConfigError: if the directory cannot be written.
  """
  directory = pathlib.Path(settings.output_dir)
  text = json.dumps(dataclasses.asdict(settings), indent=2) + "\n"
  try:  # Before the work, not after it.
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "toy_config.json").write_text(text)
  except OSError as error:
    raise ConfigError(f"--output_dir={directory} cannot be written: {error.strerror}.") from error
  for name in settings.bounds:
    left_out = [k for k in settings.num_samples if k < bounds.get(name).min_samples]
    if left_out:
      print(f"{name} is left out at K = {left_out[0]}: it needs more samples.", flush=True)
  trials = measure(settings)
  coordinate = choose_coordinate(settings)

  results, rows = [], []
  for (name, num_samples), moments in trials.items():
    key = {"bound": name, "num_samples": num_samples}
    n = settings.num_measurements
    results.append(key | _both(moments, n, coordinate) | {"reference": reference(name)})
    for trial in range(settings.num_trials):
      one = Moments(*(part[trial : trial + 1] for part in moments))
      rows.append({"trial": trial} | key | _both(one, n, coordinate))
  _write_csv(directory / "results.csv", results)
  _write_csv(directory / "trials.csv", rows)
  about = (
    f"D = {settings.latent_dim}, {settings.batch_size} observations, {settings.num_trials} trials "
    f"of {settings.num_measurements} measurements, mean in bold"
  )
  figures = {
    "toy_gaussian.png": ("", f"Average over (A, b): {about}"),
    "toy_gaussian_coordinate.png": (
      "coordinate_",
      f"{_name_of(coordinate, settings.latent_dim)}: {about}",
    ),
  }
  for file, (prefix, title) in figures.items():
    toy_plot.figure(directory / file, title, results, rows, settings.num_measurements, prefix)
  print(_report(results), flush=True)
  print(f"Results:   {directory / 'results.csv'}, {directory / 'trials.csv'}")
  print(f"Figures:   {', '.join(str(directory / file) for file in figures)}", flush=True)
  return results


def reference(name: str) -> str:
  """The name of the unbiased estimator of the gradient of what the bound called `name` reports."""
  return bounds.get(name).total.name


def choose_coordinate(settings: config.ToyConfig) -> int:
  """The index of a random coordinate of (A, b), the same in all trials."""
  size = settings.latent_dim * (settings.latent_dim + 1)
  return int(np.random.default_rng([settings.seed, 0, 1]).integers(size))


def _name_of(coordinate: int, latent_dim: int) -> str:
  row, column = divmod(coordinate, latent_dim + 1)
  return f"b[{row}]" if column == latent_dim else f"A[{row}, {column}]"


# --- measuring ----------------------------------------------------------------------------------


def measure(settings: config.ToyConfig) -> dict[tuple[str, int], Moments]:
  """The gradients' moments, for each (bound, K) that the bound is defined for.

  Coordinates are those of [A, b], [D, D + 1], row by row. Sums are in float64. The gradients are
  float32: nothing in them cancels, and at K = 1000 rounding is at most 1e-4 of a measurement's
  standard deviation, for every bound.
  """
  names = tuple(dict.fromkeys([*settings.bounds, *map(reference, settings.bounds)]))
  gradients = tf.function(
    lambda noise, shift, x: estimate(noise, shift, x, names, settings.num_samples)
  )
  bar = tqdm(total=settings.num_trials, unit=" trials", disable=not sys.stderr.isatty())
  trials = []
  with bar:
    for trial in range(settings.num_trials):
      trials.append(_measure_trial(settings, trial, gradients))
      bar.update()
      if bar.disable:
        print(f"{trial + 1} of {settings.num_trials} trials", file=sys.stderr, flush=True)
  return {
    key: Moments(*map(np.stack, zip(*(moments[key] for moments in trials), strict=True)))
    for key in trials[0]
  }


def _measure_trial(settings, trial: int, gradients) -> dict[tuple[str, int], Moments]:
  """One trial's moments, without the first axis."""
  generator = np.random.default_rng([settings.seed, trial])
  parameters, x = gaussian.draw(generator, settings.latent_dim, settings.num_observations)
  x = x[: settings.batch_size]
  shift = gaussian.shifts(parameters, x)
  keys = [
    (name, k)
    for name in settings.bounds
    for k in settings.num_samples
    if k >= bounds.get(name).min_samples
  ]
  exact = exact_gradients(shift, x, keys)
  sums = {key: np.zeros([4, exact[key].size]) for key in keys}
  shift, x = (tf.constant(part, tf.float32) for part in (shift, x))
  for noise in _noise(settings, generator):
    measured = {
      key: gradient.numpy().astype(np.float64)
      for key, gradient in gradients(noise, shift, x).items()
    }
    for (name, k), total in sums.items():
      error = measured[name, k] - exact[name, k]
      difference = measured[name, k] - measured[reference(name), k]
      for j, part in enumerate((error, error**2, difference, difference**2)):
        total[j] += part.sum(axis=0)
  return {key: Moments(exact[key], *sums[key]) for key in keys}


def _noise(settings, generator: np.random.Generator) -> Iterator[tf.Tensor]:
  """A trial's noise, [some measurements, batch_size, largest K, D] at a time.

  Drawing it is most of the work, so the next part is drawn while one is used. NumPy's generator
  takes two thirds of the time of TensorFlow's here.
  """
  most = max(settings.num_samples)
  at_once = max(1, _PAIRS // (most * settings.batch_size))
  n = settings.num_measurements
  counts = [min(at_once, n - start) for start in range(0, n, at_once)]

  def draw(count):
    shape = [count, settings.batch_size, most, settings.latent_dim]
    return generator.standard_normal(shape, np.float32)

  with concurrent.futures.ThreadPoolExecutor(1) as ahead:
    following = ahead.submit(draw, counts[0])
    for count in [*counts[1:], None]:
      noise = following.result()
      following = count and ahead.submit(draw, count)
      yield tf.constant(noise)


def estimate(
  noise: tf.Tensor, shift: tf.Tensor, x: tf.Tensor, names: Sequence[str], all_num_samples
) -> dict[tuple[str, int], tf.Tensor]:
  """Gradients of the batch's mean bound in [A, b], of several bounds and K's on the same samples.

  Args:
    noise: [num_measurements, batch_size, largest K, D], standard normal.
    shift: `gaussian.shifts`, [batch_size, D].
    x: the observations, [batch_size, D].
    names: of the bounds.
    all_num_samples: the K's: each takes the first K samples.

  Returns:
    For each (name, K) that the bound is defined for, [num_measurements, D * (D + 1)].
  """
  num_measurements, batch_size, most, latent_dim = noise.shape
  rows = num_measurements * batch_size
  log_weights = gaussian.log_weights(noise, shift[:, tf.newaxis])
  log_weights = tf.transpose(tf.reshape(log_weights, [rows, most]))
  noise = tf.reshape(noise, [rows, most, latent_dim])
  shift = tf.tile(shift, [num_measurements, 1])
  inputs = tf.concat([x, tf.ones_like(x[:, :1])], axis=-1)

  gradients = {}
  for k in all_num_samples:
    defined = [name for name in names if k >= bounds.get(name).min_samples]
    coefficients = [bounds.get(name).coefficients(log_weights[:k]) for name in defined]
    if not defined:
      continue
    per_row = gaussian.loc_gradients(noise[:, :k], shift, coefficients)
    per_row = tf.reshape(per_row, [len(defined), num_measurements, batch_size, latent_dim])
    # loc = A x + b: dloc_i / dA_ij = x_j, dloc_i / db_i = 1.
    mean = tf.einsum("jmbd,be->jmde", per_row, inputs) / batch_size
    flat = tf.reshape(mean, [len(defined), num_measurements, -1])
    gradients |= {(name, k): flat[j] for j, name in enumerate(defined)}
  return gradients


def exact_gradients(
  shift: np.ndarray, x: np.ndarray, keys: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], np.ndarray]:
  """The expected gradient of what each bound reports, not of its estimator, in [A, b].

  Args:
    shift: `gaussian.shifts`, [batch_size, D].
    x: the observations, [batch_size, D].
    keys: (name, K) pairs.

  Returns:
    For each key, [D * (D + 1)] in float64.
  """

  def parts(name, k):
    """(factor, K) pairs: the objective is the sum of factor * L_K."""
    if reference(name) == "elbo":
      return [(1, 1)]
    if reference(name) == "iwae":
      return [(1, k)]
    m = dict(bounds.get(name).options)["order"]
    return [
      ((-1) ** j * (k - j) ** m / (math.factorial(m - j) * math.factorial(j)), k - j)
      for j in range(m + 1)
    ]

  needed = sorted({k for key in keys for _, k in parts(*key)})
  by_num_samples = gaussian.exact_loc_gradients(shift, needed)
  inputs = np.concatenate([x, np.ones_like(x[:, :1])], axis=-1)
  return {
    key: sum(factor * by_num_samples[k].T @ inputs / len(x) for factor, k in parts(*key)).ravel()
    for key in keys
  }


# --- what is reported ---------------------------------------------------------------------------


def summarize(moments: Moments, num_measurements: int) -> dict[str, float]:
  """SNR, bias, variance and tests, over all trials and coordinates of `moments`.

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
    bias where the reference is noisier than the estimator, and tests the reference, too.
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
  """The exponent of K in a column, by least squares in logs; NaN without two values above 0."""
  rows = [row for row in results if row["bound"] == name and row["num_samples"] >= at_least]
  points = [(row["num_samples"], row[column]) for row in rows if row[column] > 0]
  if len(points) < 2:
    return math.nan
  return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def _variance(total, squares, n):
  centred = squares - total**2 / n
  # What rounding leaves of a constant is no variance.
  return np.where(centred > _ROUNDING * squares, centred, 0.0) / (n - 1)


def _t_test(total, squares, n) -> tuple[float, float]:
  """The t-statistic that is farthest from 0, and its p-value times the number of them."""
  with np.errstate(divide="ignore", invalid="ignore"):
    t = (total / n) / np.sqrt(_variance(total, squares, n) / n)
  t = np.where(total == 0, 0.0, t).ravel()
  largest = t[np.argmax(np.abs(t))]
  return float(largest), float(min(1.0, 2 * stats.t.sf(abs(largest), n - 1) * t.size))


def _both(moments, n, coordinate) -> dict[str, float]:
  """The columns over all coordinates, then those of the chosen one."""
  chosen = Moments(*(part[:, coordinate : coordinate + 1] for part in moments))
  single = {f"coordinate_{column}": value for column, value in summarize(chosen, n).items()}
  return summarize(moments, n) | single


def _write_csv(path, rows) -> None:
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
      writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def _report(results) -> str:
  """The results as a table, and the slopes."""
  lines = [f"{'bound':15}{'K':>6}{'SNR':>11}{'bias^2':>11}{'variance':>11}{'p-value':>11}"]
  for row in results:
    numbers = "".join(
      f"{row[column]:11.3g}" for column in ("snr", "bias_squared", "variance", "p_value")
    )
    lines.append(f"{row['bound']:15}{row['num_samples']:6}{numbers}")
  for name in dict.fromkeys(row["bound"] for row in results):
    parts = []
    smallest = min(row["num_samples"] for row in results if row["bound"] == name)
    for start in dict.fromkeys([smallest, max(smallest, _ASYMPTOTIC)]):
      snr, variance = (slope(results, name, column, start) for column in ("snr", "variance"))
      if not math.isnan(snr + variance):
        parts.append(
          f"from K = {start} on, SNR like K^{snr:.2f} and variance like K^{variance:.2f}"
        )
    if parts:
      lines.append(f"{name}: {'; '.join(parts)}.")
  return "\n".join(lines)
