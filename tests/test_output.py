"""Tests of progress, CSV files and styles."""

import csv
import sys

import pytest

from dregs_tf import output


def read(path):
  with open(path, newline="") as file:
    return list(csv.reader(file))


def test_csv_files_have_the_columns_of_the_first_row_or_those_given(tmp_path):
  rows = [{"name": "iwae", "value": 1 / 3}, {"name": "a,b", "value": 2}]
  output.write_csv(tmp_path / "a.csv", rows)
  assert read(tmp_path / "a.csv") == [["name", "value"], ["iwae", repr(1 / 3)], ["a,b", "2"]]
  output.write_csv(tmp_path / "a.csv", rows[:1], ["value"], digits=3)
  assert read(tmp_path / "a.csv") == [["value"], ["0.333"]]
  with pytest.raises(KeyError):
    output.write_csv(tmp_path / "a.csv", rows, ["value", "other"])


def test_appended_rows_share_a_header(tmp_path):
  for i in range(3):
    output.write_csv(tmp_path / "a.csv", [{"step": i}], append=True)
  assert (tmp_path / "a.csv").read_bytes() == b"step\n0\n1\n2\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(is_terminal, monkeypatch, capsys):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
  with output.Progress(4, "steps", initial=1) as progress:
    progress.update(2)
    progress.write("always")
    progress.write_without_bar("elsewhere")
  shown = capsys.readouterr().err
  assert "always\n" in shown
  assert ("elsewhere\n" in shown) == (not is_terminal)
  assert ("3/4" in shown) == is_terminal


def test_every_style_is_different():
  assert len({(color, str(dashes)) for color, dashes in output.STYLES}) == len(output.STYLES)
  assert len({color for color, _ in output.STYLES[: len(output.COLORS)]}) == len(output.COLORS)
