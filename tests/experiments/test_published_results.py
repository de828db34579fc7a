"""Tests that the numbers of experiments/RESULTS.md are those that its commands print."""

import csv
import pathlib
import re

import numpy as np
import pytest

from experiments import results, tables, where
from experiments.toy_gaussian import measure, model, statistics
from experiments.toy_gaussian.config import ToyConfig

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
RESULTS = (EXPERIMENTS / "RESULTS.md").read_text()
pytestmark = pytest.mark.skipif(
  not (EXPERIMENTS / "results").exists(), reason="a source distribution has no results"
)
OBJECTIVES = (EXPERIMENTS.parent / "docs" / "which_objective.md").read_text()
_COMMAND = r"python bin/summarize\.py --runs='([^']+)'"
SHOWN = re.findall(_COMMAND, RESULTS)
TABLES = re.findall(f"{_COMMAND}\n", RESULTS)


def test_the_table_over_k_is_what_summarize_prints(monkeypatch):
  monkeypatch.chdir(EXPERIMENTS.parent)
  (runs,) = re.findall(rf"{_COMMAND} --table=where", RESULTS)
  assert where.table(results.grouped(results.read([runs]))).strip() in RESULTS


@pytest.mark.parametrize("runs", TABLES)
def test_tables_are_what_summarize_prints(runs, monkeypatch):
  monkeypatch.chdir(EXPERIMENTS.parent)
  groups = results.grouped(results.read([runs]))
  printed = tables.tables(groups).strip()
  assert printed in RESULTS
  if runs in re.findall(_COMMAND, OBJECTIVES):
    assert printed in OBJECTIVES


def test_every_finished_run_is_in_a_table():
  shown = [path for runs in SHOWN for path in EXPERIMENTS.parent.glob(runs)]
  runs = [path.parent for path in (EXPERIMENTS / "results").rglob("config.json")]
  assert sorted(shown) == sorted(runs)


def test_intervals_of_the_readme_are_in_a_table():
  text = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
  intervals = re.findall(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)", text)
  assert len(intervals) >= 5
  for mean, low, high in intervals:
    assert f"| {mean} ({low} to {high})" in RESULTS


def test_the_page_of_objectives_has_a_table():
  assert set(re.findall(_COMMAND, OBJECTIVES)) & set(TABLES)


def test_the_exact_signal_of_the_page_of_objectives():
  """In its table of the toy Gaussian, at K = 64, of the two trials of its command."""
  rows = re.findall(r"^\| `([\w()=.]+)` \| ([\d.]+) \| \$K", OBJECTIVES, flags=re.MULTILINE)
  assert len(rows) >= 5
  names = [name for name, _ in rows]
  settings = ToyConfig(bounds=names, num_samples=[64], num_trials=2)
  variances = measure.exact_variances(settings)
  signals = [[], []]
  for trial, signal in enumerate(signals):
    parameters, x = model.draw(np.random.default_rng([0, trial]), 20, settings.num_observations)
    x = x[: settings.batch_size]
    gradients = measure.exact_gradients(model.shifts(parameters, x), x, list(variances))
    signal += [np.mean(gradient**2) for gradient in gradients.values()]
  ratios = np.mean(signals, axis=0) / [np.mean(each) for each in variances.values()]
  assert [text for _, text in rows] == [f"{ratio**0.5:.3g}" for ratio in ratios]


@pytest.mark.parametrize("dataset", ["digits", "mnist"])
def test_the_page_of_sequences_has_the_bounds_of_each_seed(dataset):
  text = (EXPERIMENTS.parent / "docs" / "sequences.md").read_text()
  groups = results.grouped(results.read([str(EXPERIMENTS / "results" / f"{dataset}_vrnn_*")]))
  assert len(groups) == 4
  for group in groups:
    columns = [
      [run.test_bound for run in group.runs],
      [run.evaluation["log_likelihood"] for run in group.runs],
    ]
    cells = [", ".join(f"{value:.2f}" for value in column) for column in columns]
    assert f"| `{group.settings.bound}` | {' | '.join(cells)} |" in text


def test_slopes_of_the_toy_gaussian():
  with open(EXPERIMENTS / "toy_gaussian" / "results.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    row |= {column: float(row[column]) for column in ("num_samples", "snr", "variance")}
  for column in ("SNR", "variance"):
    for label, name in (("IWAE", "iwae"), ("IWAE-DReG", "iwae_dreg")):
      (line,) = re.findall(rf"^\| {column}, {label} \|.*$", RESULTS, flags=re.MULTILINE)
      measured = [line.split("|")[i].strip() for i in (2, 4)]
      slopes = [statistics.slope(rows, name, column.lower(), start) for start in (1, 10)]
      assert measured == [f"{slope:+.2f}" for slope in slopes]
