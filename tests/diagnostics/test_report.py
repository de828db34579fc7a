"""Tests the report of a comparison: its recommendation, its table, its files."""

import csv
import dataclasses
import math

import numpy as np

from dregs_tf import diagnostics
from tests.diagnostics.helpers import compare
from tests.models import helpers

FIELDS = [field.name for field in dataclasses.fields(diagnostics.Row)]


def a_row(bound, **values):
  """Returns a row with a large SNR and without bias, where `values` do not say otherwise."""
  reference = "jvi" if bound.startswith("jvi") else "iwae"
  row = dict.fromkeys(FIELDS, 0.0) | {"bound": bound, "num_samples": 8, "reference": reference}
  row |= {"snr": 1.0, "snr_error": 0.02, "cosine": 1.0, "bias_limit": 0.05, "p_value": 0.5}
  row["unbiased"] = not bound.startswith(("stl", "rws", "dreg_alpha"))
  return diagnostics.Row(**row | values)


def recommendation(*rows):
  return diagnostics.Comparison(rows, 200, 1000, 32).recommendation.splitlines()


def holds(text, *words):
  """Whether the words are in the text, in this order."""
  position = 0
  for word in words:
    position = text.find(word, position)
    if position < 0:
      return False
    position += len(word)
  return True


BIASED = {"p_value": 1e-9, "bias": 0.5}


def test_the_highest_snr_without_bias_is_recommended():
  (line,) = recommendation(
    a_row("iwae"), a_row("iwae_dreg", snr=4.0), a_row("stl", snr=4.1, **BIASED)
  )
  assert line.startswith("L_K, K = 8: take iwae_dreg. ")
  assert holds(line, "4 +- 0.02", "4 times", "iwae (1 +- 0.02)", "p = 0.5", "95 %", "5 %")
  assert "measurements" not in line


def test_a_biased_one_of_much_more_signal_is_mentioned():
  lines = recommendation(
    a_row("iwae"),
    a_row("iwae_dreg", snr=4.0),
    a_row("stl", snr=9.0, cosine=0.7, **BIASED),
    a_row("rws_dreg", snr=8.0, cosine=0.9, **BIASED),
    a_row("rws", snr=9.0, cosine=0.2, **BIASED),
  )
  assert len(lines) == 2
  assert holds(lines[1], "rws_dreg is biased for L_K", "50 %", "1e-09", "0.90", "2 times")
  assert holds(lines[1], "iwae_dreg", "stl (cosine 0.70)")
  assert "rws (" not in lines[1]


def test_what_is_biased_by_construction_is_not_recommended():
  """Also where too few measurements were taken to see it."""
  lines = recommendation(
    a_row("iwae"), a_row("iwae_dreg", snr=2.0), a_row("dreg_alpha", snr=4.0, bias_limit=0.6)
  )
  assert lines[0].startswith("L_K, K = 8: take iwae_dreg. ")
  assert holds(lines[1], "dreg_alpha is biased for L_K", "less than 60 %")


def test_a_bias_that_contradicts_the_theory_is_reported_with_its_causes():
  lines = recommendation(a_row("iwae"), a_row("iwae_dreg", snr=2.0, **BIASED))
  assert holds(lines[0], "L_K, K = 8: take iwae. ", "1 +- 0.02", "highest")
  assert holds(lines[1], "iwae_dreg is unbiased by construction", "1e-09", "2 in 1,000")
  for cause in ("log p(x, z) is not continuous in z", "support of the proposal", "derivatives"):
    assert cause in lines[1]


def test_what_is_not_resolved_is_named_with_the_measurements_that_it_takes():
  (line,) = recommendation(a_row("iwae"), a_row("iwae_dreg", snr=4.0, bias_limit=0.4))
  assert holds(line, "40 %", "About 3000 measurements", "10 %")
  (line,) = recommendation(a_row("iwae", snr=0.01), a_row("iwae_dreg", snr=0.02))
  assert holds(line, "no signal", "iwae_dreg: SNR 0.02", "num_measurements to 800")
  unresolved = {"bias_limit": math.nan, "bias": math.nan, "cosine": math.nan}
  (line,) = recommendation(a_row("iwae", snr=0.0), a_row("iwae_dreg", **unresolved))
  assert holds(line, "p = 0.5", "iwae's mean is not resolved", "num_measurements to 800")


def test_each_bound_and_each_k_that_differs_has_its_own_sentence():
  lines = recommendation(
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
  result = compare(helpers.vae(), helpers.binary(4, 6), "rws_dreg", 1, 30)
  about, headings, *lines, footer = result.table().splitlines()
  assert about == "30 measurements on 4 examples, 89 parameters of the proposal:"
  expected = ["bound", "K", "norm", "variance", "SNR", "cosine", "bias", "p", "max", "|t|"]
  assert headings.split() == expected
  assert [line.split()[:2] for line in lines] == [["iwae", "1"], ["rws_dreg", "1"]]
  assert holds(footer, "p", "0.001", "2 in 1,000")
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


def test_a_notebook_shows_the_table_and_the_recommendation():
  result = diagnostics.Comparison((a_row("iwae"), a_row("iwae_dreg", snr=4.0)), 200, 1000, 32)
  page = result._repr_html_()
  assert [page.count(f"<{tag}>") for tag in ("table", "caption", "tr", "th", "td")] == [
    1,
    1,
    3,
    10,
    20,
  ]
  assert holds(page, "200 measurements", "|t|", "<td>iwae_dreg</td>", "&lt; 5 %", "</table>")
  assert holds(page, "</table>", "2 in 1,000", "<br>", "take iwae_dreg")
