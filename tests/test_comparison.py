"""What a comparison of estimators says: its recommendation, its table, its files."""

import csv
import dataclasses
import math

import numpy as np

from dregs_tf import comparison, diagnostics
from tests.models import helpers

FIELDS = [field.name for field in dataclasses.fields(comparison.Row)]


def a_row(bound, **values):
  """A row with a large SNR and without bias, unless told."""
  reference = "jvi" if bound.startswith("jvi") else "iwae"
  row = dict.fromkeys(FIELDS, 0.0) | {"bound": bound, "num_samples": 8, "reference": reference}
  row |= {"snr": 1.0, "snr_error": 0.02, "cosine": 1.0, "bias_limit": 0.05, "p_value": 0.5}
  row["unbiased"] = not bound.startswith(("stl", "rws", "dreg_alpha"))
  return comparison.Row(**row | values)


def says(*rows):
  return comparison.Comparison(rows, 200, 1000, 32).recommendation.splitlines()


BIASED = {"p_value": 1e-9, "bias": 0.5}


def test_the_highest_snr_without_bias_is_recommended():
  (line,) = says(a_row("iwae"), a_row("iwae_dreg", snr=4.0), a_row("stl", snr=4.1, **BIASED))
  assert line == (
    "L_K, K = 8: take iwae_dreg. Its SNR is 4 +- 0.02, 4 times that of iwae (1 +- 0.02). No bias "
    "was found, p = 0.5: it is less than 5 % of the gradient."
  )


def test_a_biased_one_of_much_more_signal_is_mentioned():
  lines = says(
    a_row("iwae"),
    a_row("iwae_dreg", snr=4.0),
    a_row("stl", snr=9.0, cosine=0.7, **BIASED),
    a_row("rws_dreg", snr=8.0, cosine=0.9, **BIASED),
    a_row("rws", snr=9.0, cosine=0.2, **BIASED),
  )
  assert len(lines) == 2
  assert lines[1] == (
    "rws_dreg is biased for L_K, by 50 % of the gradient (p = 1e-09), but its mean points much the "
    "same way (cosine 0.90), and its SNR is 2 times that of iwae_dreg: it may train better all the "
    "same. So may stl (cosine 0.70)."
  )


def test_what_is_biased_by_construction_is_not_recommended():
  """Also where too few measurements were taken to see it."""
  lines = says(
    a_row("iwae"), a_row("iwae_dreg", snr=2.0), a_row("dreg_alpha", snr=4.0, bias_limit=0.6)
  )
  assert lines[0].startswith("L_K, K = 8: take iwae_dreg. Its SNR is 2 ")
  assert "dreg_alpha is biased for L_K, by less than 60 % of the gradient here" in lines[1]


def test_a_bias_that_should_not_be_is_told():
  lines = says(a_row("iwae"), a_row("iwae_dreg", snr=2.0, **BIASED))
  assert (
    lines[0] == "L_K, K = 8: take iwae. Its SNR is 1 +- 0.02, the highest of those without bias."
  )
  assert lines[1] == (
    "iwae_dreg is unbiased by construction, but a bias was found (p = 1e-09): by chance, one time "
    "in a thousand, or because log p(x, z) is not continuous in z."
  )


def test_what_is_not_known_is_said_with_the_measurements_that_it_takes():
  (line,) = says(a_row("iwae"), a_row("iwae_dreg", snr=4.0, bias_limit=0.4))
  assert "less than 40 %" in line
  assert line.endswith("To see one of 10 %, take about 3000 measurements.")
  (line,) = says(a_row("iwae", snr=0.01), a_row("iwae_dreg", snr=0.02))
  assert "no signal stands out of the noise" in line
  assert line.endswith("take 800 measurements.")
  lost = {"bias_limit": math.nan, "bias": math.nan, "cosine": math.nan}
  (line,) = says(a_row("iwae", snr=0.0), a_row("iwae_dreg", **lost))
  assert "the mean of iwae is lost in the noise: take 800 measurements" in line


def test_each_bound_and_each_k_that_differs_has_its_own_sentence():
  lines = says(
    a_row("iwae", num_samples=1, snr=3.0),
    a_row("iwae_dreg", num_samples=1, snr=2.0),
    a_row("iwae"),
    a_row("iwae_dreg", snr=2.0),
    a_row("iwae_dreg(also)", snr=1.99),
    a_row("jvi(order=2)", reference="jvi(order=2)"),
    a_row("jvi_dreg(order=2)", reference="jvi(order=2)", snr=3.0),
  )
  assert [line.split(". ")[0] for line in lines] == [
    "L_K, K = 8: take iwae_dreg",
    "L_K, K = 1: take iwae",
    "JVI (order=2), K = 8: take jvi_dreg(order=2)",
  ]
  assert "as high as that of iwae_dreg(also)" in lines[0]


def test_table_csv_and_figures(tmp_path):
  """An estimator whose gradient is 0, rws_dreg at K = 1, included."""
  result = diagnostics.compare(
    helpers.vae(), helpers.binary(4, 6), "rws_dreg", 1, 30, measure_cost=False, jit_compile=False
  )
  lines = result.table().splitlines()
  assert lines[0] == "30 measurements on 4 examples, 89 parameters of the proposal:"
  headings = ["bound", "K", "norm", "variance", "SNR", "cosine", "bias", "p", "max", "|t|"]
  assert lines[1].split() == headings
  assert [line.split()[:2] for line in lines[2:]] == [["iwae", "1"], ["rws_dreg", "1"]]
  assert "nan" not in result.table()
  result.to_csv(tmp_path / "comparison.csv")
  with open(tmp_path / "comparison.csv", newline="") as file:
    reader = csv.DictReader(file)
    rows = list(reader)
  assert reader.fieldnames == FIELDS
  for row, text in zip(result.rows, rows, strict=True):
    assert (text["bound"], text["reference"]) == (row.bound, row.reference)
    for name in FIELDS[4:-1]:
      np.testing.assert_allclose(float(text[name]), getattr(row, name), rtol=1e-5)
  several = (*result.rows, a_row("iwae"), a_row("stl", bias=0.5, p_value=1e-9))
  no_bias_panel = [a_row("iwae", num_samples=k) for k in (1, 8)]
  for name, rows in {"a": result.rows, "b": several, "c": no_bias_panel}.items():
    dataclasses.replace(result, rows=rows).plot(tmp_path / f"{name}.png")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
