"""Tests of --figure=where: variance ratios and leads over K, with intervals over the seeds."""

import math

import numpy as np
import pytest

from dregs_tf.training.errors import ConfigError
from experiments import differences, drawing, figures, tables, where
from tests.experiments.helpers import groups_in, write


def made_up(place, bound, num_samples, seed, late, variances=(), **values):
  """A run whose last summary, its last quarter, has these values."""
  columns = {"test_bound": [-90.0, -90.0, -90.0, late]}
  for name, variance in zip((bound, f"{bound}_dreg"), variances, strict=False):
    columns[f"train_{name}_gradient_variance"] = [7.0, 7.0, 7.0, variance]
  values |= {"bound": bound, "num_samples": num_samples, "seed": seed}
  name = "_".join(map(str, [bound, num_samples, seed, *values.values()]))
  write(place / name, columns=columns, **values)


@pytest.fixture
def place(tmp_path):
  """Two seeds of IWAE on both tasks and of RWS on one; K = 1 has one seed."""
  for task, level in (("generative", -20.0), ("structured", -10.0)):
    made_up(tmp_path, "iwae", 8, 0, level, (4.0, 1.0), task=task)
    made_up(tmp_path, "iwae", 8, 1, level + 5, (9.0, 1.0), task=task)
    made_up(tmp_path, "iwae_dreg", 8, 0, level + 1.0, task=task)
    made_up(tmp_path, "iwae_dreg", 8, 1, level + 6.5, task=task)
    made_up(tmp_path, "iwae", 1, 0, level, (1.5, 1.0), task=task)
    made_up(tmp_path, "iwae_dreg", 1, 0, level - 0.25, task=task)
  made_up(tmp_path, "rws", 8, 0, -20.0, (5.0,))
  made_up(tmp_path, "rws_dreg", 8, 0, -18.0)
  made_up(tmp_path, "stl", 8, 0, -18.0)
  return tmp_path


def test_points_and_intervals_by_hand(place):
  (variance, lead), (other_variance, other_lead) = figures.panels(groups_in(place), "where")
  assert (variance.title, other_variance.title) == ("digits, generative", "digits, structured")
  assert [line.label for line in lead.lines] == ["IWAE", "RWS"]
  assert [line.label for line in other_lead.lines] == ["IWAE"]
  # The ratios of K = 8 are 4 and 9: 6 is their geometric mean, log 1.5 the distance of their
  # logarithms, and 12.7062 the quantile of t.
  (ratio,) = variance.lines  # The runs of RWS have not followed RWS-DReG.
  reach = math.exp(12.7062 * math.log(1.5))
  np.testing.assert_array_equal(ratio.mean[0], [1, 8])
  np.testing.assert_allclose(ratio.mean[1], [1.5, 6.0])
  np.testing.assert_allclose(ratio.errors[:, 1], [6 - 6 / reach, 6 * reach - 6], rtol=1e-5)
  assert ratio.errors[1, 0] == math.inf
  # The leads of K = 8 are 1 and 1.5: see test_differences.
  np.testing.assert_allclose(lead.lines[0].mean[1], [-0.25, 1.25])
  np.testing.assert_allclose(lead.lines[0].errors[:, 1], [3.176551] * 2, rtol=1e-6)
  np.testing.assert_allclose(lead.lines[1].mean, [[8], [2.0]])


def test_the_table_by_hand(place):
  """The same numbers as in the figure."""
  made_up(place, "jvi", 8, 0, -20.0)
  reach = math.exp(12.7062 * math.log(1.5))
  ratio = f"6.00 ({6 / reach:.2f} to {6 * reach:.2f}), unresolved"
  lines = where.table(groups_in(place)).splitlines()
  cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
  assert cells[2:] == [
    ["digits, generative", "IWAE", "1", "1.50 (one seed)", "-0.250 (one seed)"],
    ["digits, generative", "IWAE", "8", ratio, "+1.250 (-1.927 to +4.427), unresolved"],
    ["digits, generative", "RWS", "8", "", "+2.000 (one seed)"],
    ["digits, structured", "IWAE", "1", "1.50 (one seed)", "-0.250 (one seed)"],
    ["digits, structured", "IWAE", "8", ratio, "+1.250 (-1.927 to +4.427), unresolved"],
  ]


def test_resolved_cells():
  cell = tables.interval_cell(differences.Interval(2.0, 1.5, 2.5), ".2f", 1.0)
  assert cell == "2.00 (1.50 to 2.50)"
  cell = tables.interval_cell(differences.Interval(2.0, 0.5, 3.5), ".1f", 1.0, " (2 of 3 seeds)")
  assert cell == "2.0 (0.5 to 3.5) (2 of 3 seeds), unresolved"


def test_it_is_drawn(place, recwarn):
  settings = figures.PlotConfig(figure=["where"], output=str(place / "figure.png"))
  figures.plot(settings, groups_in(place))
  assert (place / "figure.png").read_bytes().startswith(b"\x89PNG")
  assert not [w for w in recwarn.list if not issubclass(w.category, DeprecationWarning)]


def test_bars_are_where_the_intervals_are(place):
  from matplotlib.figure import Figure

  axes = Figure().subplots()
  (_, lead), _ = where.panels(groups_in(place))
  drawing._draw_over_samples(axes, lead)
  bars = [segment for bars in axes.collections for segment in bars.get_segments()]
  limits = [segment[:, 1] for segment in bars if len(segment)]
  np.testing.assert_allclose(limits, [[1.25 - 3.176551, 1.25 + 3.176551]], rtol=1e-6)
  assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "8"]


def test_runs_that_it_cannot_show(place):
  dregs = [group for group in groups_in(place) if group.settings.bound.endswith("_dreg")]
  with pytest.raises(ConfigError, match="--table=where needs"):
    where.table(dregs)
  with pytest.raises(ConfigError, match="--table must be one of runs, where, got 'here'"):
    tables.SummarizeConfig(runs=["runs/*"], table="here")
  rws = [group for group in groups_in(place) if group.settings.bound.startswith("rws")]
  with pytest.raises(ConfigError, match="--figure=where .*--track_variance"):
    where.panels(rws)
  for bound in ("iwae", "iwae_dreg"):
    made_up(place, bound, 8, 0, -20.0, learning_rate=1.0)
  for make in (where.panels, where.table):
    with pytest.raises(ConfigError, match="--figure=where and --table=where show one"):
      make(groups_in(place))
  with pytest.raises(ConfigError, match="--figure=where has two rows"):
    figures.PlotConfig(figure=["bounds", "where"], output="figure.png")
