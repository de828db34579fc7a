"""Runs the toy experiment (Sec. 6.1, Fig. 1): SNR, bias and variance of gradients as K grows."""

import dataclasses
import json
import math
import pathlib

import numpy as np

from dregs_tf import output
from dregs_tf.training.errors import ConfigError
from experiments.toy_gaussian import figure
from experiments.toy_gaussian.config import ToyConfig
from experiments.toy_gaussian.measure import (
  bound_of,
  exact_variances,
  is_defined,
  measure,
  reference,
)
from experiments.toy_gaussian.statistics import Moments, slope, summarize

# From this K on, slopes are printed as asymptotic.
_ASYMPTOTIC = 10


def run(settings: ToyConfig) -> list[dict]:
  """Runs the experiment; writes results.csv, trials.csv and two figures into its directory.

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
    left_out = [str(k) for k in settings.num_samples if not is_defined(name, k)]
    if left_out:
      print(f"{name} is left out at K = {', '.join(left_out)}: it is not defined there.")
  trials, exact = measure(settings), exact_variances(settings)
  coordinate = choose_coordinate(settings)

  results, rows = [], []
  for (name, num_samples), moments in trials.items():
    key = {"bound": name, "num_samples": num_samples}
    n = settings.num_measurements
    known = _exact(moments, exact.get((name, num_samples)), bound_of(name).is_unbiased(num_samples))
    results.append(key | _both(moments, n, coordinate) | {"reference": reference(name)} | known)
    for trial in range(settings.num_trials):
      one = Moments(*(part[trial : trial + 1] for part in moments))
      rows.append({"trial": trial} | key | _both(one, n, coordinate))
  output.write_csv(directory / "results.csv", results, digits=6)
  output.write_csv(directory / "trials.csv", rows, digits=6)
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
    figure.figure(directory / file, title, results, rows, settings.num_measurements, prefix)
  print(_report(results), flush=True)
  print(f"Results:   {directory / 'results.csv'}, {directory / 'trials.csv'}")
  print(f"Figures:   {', '.join(str(directory / file) for file in figures)}", flush=True)
  return results


def choose_coordinate(settings: ToyConfig) -> int:
  """Returns the index of a random coordinate of (A, b), the same in all trials."""
  size = settings.latent_dim * (settings.latent_dim + 1)
  return int(np.random.default_rng([settings.seed, 0, 1]).integers(size))


def _name_of(coordinate: int, latent_dim: int) -> str:
  row, column = divmod(coordinate, latent_dim + 1)
  return f"b[{row}]" if column == latent_dim else f"A[{row}, {column}]"


def _both(moments, n, coordinate) -> dict[str, float]:
  """Returns the columns over all coordinates, then those of the chosen one."""
  chosen = Moments(*(part[:, coordinate : coordinate + 1] for part in moments))
  single = {f"coordinate_{column}": value for column, value in summarize(chosen, n).items()}
  return summarize(moments, n) | single


def _exact(moments, variances: np.ndarray | None, is_unbiased: bool) -> dict[str, float]:
  """Returns the exact SNR and variance over all trials; NaN where they are not known."""
  if variances is None:
    return {"exact_snr": math.nan, "exact_variance": math.nan}
  variance = float(np.mean(variances))
  snr = math.sqrt(np.mean(moments.exact**2) / variance) if is_unbiased else math.nan
  return {"exact_snr": snr, "exact_variance": variance}


def _report(results) -> str:
  """Formats the results as a table, and the slopes."""
  columns = {
    **{"snr": "SNR", "exact_snr": "exact", "variance": "variance", "exact_variance": "exact"},
    **{"bias_squared": "bias^2", "p_value": "p-value"},
  }
  width = max(15, *(len(row["bound"]) for row in results))
  lines = [f"{'bound':{width}}{'K':>6}" + "".join(f"{title:>11}" for title in columns.values())]
  for row in results:
    numbers = "".join(
      f"{'':11}" if math.isnan(row[column]) and "exact" in column else f"{row[column]:11.3g}"
      for column in columns
    )
    lines.append(f"{row['bound']:{width}}{row['num_samples']:6}{numbers}")
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
