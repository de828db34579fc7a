"""Tests that the numbers of experiments/RESULTS.md are those that its commands print."""

import csv
import pathlib
import re

import pytest

from experiments import results
from experiments.toy_gaussian import statistics

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
RESULTS = (EXPERIMENTS / "RESULTS.md").read_text()
pytestmark = pytest.mark.skipif(
  not (EXPERIMENTS / "results").exists(), reason="a source distribution has no results"
)
TABLES = re.findall(r"python bin/summarize\.py --runs='([^']+)'", RESULTS)


@pytest.mark.parametrize("runs", TABLES)
def test_tables_are_what_summarize_prints(runs, monkeypatch):
  monkeypatch.chdir(EXPERIMENTS.parent)
  groups = results.grouped(results.read([runs]))
  assert results.tables(groups).strip() in RESULTS


def test_every_finished_run_is_in_a_table():
  shown = [path for runs in TABLES for path in EXPERIMENTS.parent.glob(runs)]
  assert sorted(shown) == sorted((EXPERIMENTS / "results").iterdir())


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
