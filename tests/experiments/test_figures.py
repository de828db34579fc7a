"""Tests of the figures: which curves their panels have, how they are drawn, and the binaries."""

import re

import numpy as np
import pytest

from dregs_tf.training import config
from dregs_tf.training.errors import ConfigError
from experiments import drawing, figures, where
from experiments.tables import tables
from tests import binaries
from tests.experiments.helpers import groups_in, values_of, with_variance, write


def test_pairs_have_the_variance_above_the_objective(tmp_path):
  for i, bound in enumerate(["iwae", "iwae_dreg", "jvi", "jvi_dreg", "stl"]):
    for seed in (0, 1):
      write(tmp_path / f"{bound}{seed}", bound=bound, seed=seed, columns=with_variance(i + seed))
  columns = figures.panels(groups_in(tmp_path), "pairs")
  assert [[line.label for line in column[0].lines] for column in columns] == [
    ["IWAE", "IWAE-DReG"],
    ["JVI", "JVI-DReG"],
  ]
  (above, below), (_, jvi) = columns
  assert above.scale == "log"
  assert values_of(above.lines[1].mean) == ([10, 20, 30, 40], [1.5] * 4)
  assert below.ylabel == "Test bound (nats)"
  assert jvi.ylabel == "Test JVI objective (nats)"
  assert len(below.lines[0].trials) == 2
  # The original is dashed, its doubly reparameterized form is solid, of the same color.
  original, dreg = below.lines
  assert original.color == dreg.color
  assert (original.dashes, dreg.dashes) == ((0, (5, 2)), "-")


def test_variances_along_one_trajectory(tmp_path):
  tracked = {"iwae": 3.0, "iwae_dreg": 1.0, "rws": 5.0}
  write(tmp_path / "a", columns=with_variance(1.0, **tracked))
  write(tmp_path / "b", bound="iwae", columns=with_variance(7.0))
  columns = figures.panels(groups_in(tmp_path), "variance", "iwae_dreg")
  lines = [line for column in columns for panel in column for line in panel.lines]
  assert {line.label: line.mean[1][0] for line in lines} == {
    **{"IWAE": 3.0, "IWAE-DReG": 1.0, "RWS": 5.0},
  }
  assert "along the runs of IWAE-DReG" in columns[0][0].ylabel


def test_trajectories_of_other_problems_and_other_configurations(tmp_path):
  columns = {f"train_{name}_gradient_variance": [1.0] * 4 for name in ("iwae", "iwae_dreg")}
  write(tmp_path / "a", bound="stl", columns=columns)
  write(tmp_path / "b", bound="stl", columns=columns, learning_rate=1e-3)
  ((panel,),) = figures.panels(groups_in(tmp_path), "variance", "stl")
  assert sorted(line.label for line in panel.lines) == [
    *("IWAE, learning_rate=0.0003", "IWAE, learning_rate=0.001"),
    *("IWAE-DReG, learning_rate=0.0003", "IWAE-DReG, learning_rate=0.001"),
  ]
  assert len({(line.color, str(line.dashes)) for line in panel.lines}) == 4
  write(tmp_path / "c", bound="stl", columns=columns, num_samples=8)
  with pytest.raises(ConfigError, match="K = 8; .*K = 64"):
    figures.panels(groups_in(tmp_path), "variance", "stl")


def test_gradients_of_a_prior(tmp_path):
  """The variance above the objective; both gradients of the prior are named and told apart."""
  for i, kind in enumerate(("direct", "dreg")):
    columns = with_variance(1.0) | {"train_prior_gradient_variance": [3.0 - i] * 4}
    options = {"task": "structured", "prior_gradient": kind}
    write(tmp_path / kind, columns=columns, **options)
  ((variance, objective),) = figures.panels(groups_in(tmp_path), "prior")
  assert {line.label: line.mean[1][0] for line in variance.lines} == {
    "IWAE-DReG, prior_gradient=direct": 3.0,
    "IWAE-DReG, prior_gradient=dreg": 2.0,
  }
  assert len({(line.color, str(line.dashes)) for line in variance.lines}) == 2
  assert objective.ylabel == "Test bound (nats)"
  write(tmp_path / "others" / "a", columns=with_variance(1.0))
  with pytest.raises(ConfigError, match="--figure=prior"):
    figures.panels(groups_in(tmp_path / "others"), "prior")


def test_the_validation_bound_where_there_is_no_test_bound(tmp_path):
  write(tmp_path / "a")
  write(tmp_path / "b", bound="iwae", columns={"valid_bound": [1.0, 2.0, 3.0, 4.0]})
  ((panel,),) = figures.panels(groups_in(tmp_path), "bounds")
  assert panel.ylabel == "Validation bound (nats)"
  assert values_of(panel.lines[0].mean)[1] == [1, 2, 3, 4]


def test_neither_column(tmp_path):
  write(tmp_path / "a", columns={"train_bound": [1.0, 2.0, 3.0, 4.0]})
  with pytest.raises(ConfigError, match=r"--runs: metrics.csv in .*/a has no column valid_bound"):
    figures.panels(groups_in(tmp_path), "bounds")


def test_a_panel_of_bounds_for_each_number_of_samples(tmp_path):
  for bound in ("iwae", "elbo", "jvi_dreg"):
    write(tmp_path / bound, bound=bound)
  write(tmp_path / "K8", num_samples=8)
  columns = figures.panels(groups_in(tmp_path), "bounds")
  assert [(panel.title, panel.ylabel) for (panel,) in columns] == [
    ("K = 8", "Test bound (nats)"),
    ("K = 64", "Test objective (nats)"),
  ]
  assert [line.label for line in columns[1][0].lines] == ["ELBO", "IWAE", "JVI-DReG"]


def test_every_bound_looks_different(tmp_path):
  for bound in config.BOUNDS:
    write(tmp_path / bound, bound=bound)
  write(tmp_path / "again", bound="iwae", learning_rate=1.0)
  ((panel,),) = figures.panels(groups_in(tmp_path), "bounds")
  looks = {(line.color, str(line.dashes)) for line in panel.lines}
  assert len(looks) == len(panel.lines) == len(config.BOUNDS) + 1


@pytest.mark.parametrize("base", [{"bound": "iwae_dreg"}, {"bound": "dreg_alpha", "alpha": 0.0}])
def test_alpha_is_drawn_as_a_difference_at_the_same_steps_and_seeds(base, tmp_path):
  def columns(values):
    return {"test_bound": values, "valid_bound": values}

  write(tmp_path / "base0", **base, columns=columns([1.0, 2.0, 3.0, 4.0]))
  write(tmp_path / "base1", **base, seed=1, columns=columns([2.0, 3.0, 4.0, 5.0]))
  alphas = {"bound": "dreg_alpha", "alpha": 0.5}
  write(tmp_path / "half0", **alphas, columns=columns([1.5, 2.5, 3.5, 4.5]))
  write(tmp_path / "half1", **alphas, seed=1, steps=(20, 30), columns=columns([4.0, 5.0]))
  write(tmp_path / "half7", **alphas, seed=7, columns=columns([9.0, 9.0, 9.0, 9.0]))
  write(tmp_path / "auto7", bound="dreg_alpha", alpha="auto", seed=7, columns=columns([9.0] * 4))
  write(tmp_path / "rws", bound="rws_dreg", columns=columns([2.0, 2.0, 2.0, 2.0]))
  write(tmp_path / "iwae", bound="iwae", columns=columns([0.0] * 4))
  ((panel,),) = figures.panels(groups_in(tmp_path), "alpha")
  assert panel.ylabel == "Test bound less that of IWAE-DReG (nats)"
  zero, half, one, auto = panel.lines
  assert zero.label == ("alpha = 0, IWAE-DReG" if base["bound"] == "iwae_dreg" else "alpha = 0")
  assert values_of(zero.mean) == ([10, 20, 30, 40], [0, 0, 0, 0])
  assert half.label == "alpha = 0.5"
  assert [values_of(trial) for trial in half.trials] == [
    ([10, 20, 30, 40], [0.5] * 4),
    ([20, 30], [1.0, 1.0]),
  ]
  assert values_of(half.mean) == ([20, 30], [0.75, 0.75])
  assert one.label == "alpha = 1, RWS-DReG"
  assert values_of(one.mean)[1] == [1, 0, -1, -2]
  assert auto.label == "alpha adapted, from 0.5 (no seed in common)"
  drawing.draw(tmp_path / "figure.png", [[panel]])


def test_adapted_alphas(tmp_path):
  for start in (0.0, 1.0):
    values = {"bound": "dreg_alpha", "alpha": "auto", "initial_alpha": start}
    write(tmp_path / f"{start}", **values, columns={"train_alpha": [start, 0.5, 0.5, 0.5]})
  write(tmp_path / "base")
  ((panel,),) = figures.panels(groups_in(tmp_path), "adapted_alpha")
  assert [line.label for line in panel.lines] == [
    "alpha adapted, from 0",
    "alpha adapted, from 1",
  ]
  assert panel.lines[1].mean[1][0] == 1


@pytest.mark.parametrize(
  "figure,runs,words",
  [
    ("pairs", [{"bound": "stl"}], "needs runs of iwae, rws or jvi"),
    ("pairs", [{"bound": "iwae"}], "--gradient_statistics"),
    ("pairs", [{}, {"num_samples": 8}], "digits, generative, K = 8; digits, generative, K = 64"),
    ("variance", [{}], "--gradient_statistics"),
    ("alpha", [{}, {"bound": "rws_dreg"}], "of other values of alpha"),
    ("alpha", [{"bound": "dreg_alpha", "alpha": 0.5}], "needs runs of iwae_dreg"),
    ("alpha", [{}, {"learning_rate": 1.0}], "one configuration for each alpha"),
    ("adapted_alpha", [{}], "--alpha=auto"),
    ("log_likelihoods", [{}], "--evaluate"),
  ],
)
def test_runs_without_what_the_figure_shows(figure, runs, words, tmp_path):
  for i, values in enumerate(runs):
    write(tmp_path / str(i), **values)
  with pytest.raises(ConfigError, match=f"--figure={figure} .*{re.escape(words)}"):
    figures.panels(groups_in(tmp_path), figure)


def test_log_likelihoods_are_of_the_last_step_for_each_kind_of_latents(tmp_path):
  evaluation = {"step": 40, "standard_error": 0.2}
  for seed, value in enumerate((-21.0, -23.0)):
    write(tmp_path / f"a{seed}", seed=seed, evaluation=evaluation | {"log_likelihood": value})
  discrete = {"model": "discrete", "bound": "vimco_star"}
  write(tmp_path / "b", evaluation=evaluation | {"log_likelihood": -25.0}, **discrete)
  write(tmp_path / "c", bound="iwae")
  (one,), (other,) = figures.panels(groups_in(tmp_path), "log_likelihoods")
  assert [line.label for line in one.lines] == ["IWAE-DReG"]
  assert [values_of(trial) for trial in one.lines[0].trials] == [([40], [-21.0]), ([40], [-23.0])]
  assert values_of(one.lines[0].mean) == ([40], [-22.0])
  assert other.title == "digits, generative, discrete latents, K = 64"
  assert values_of(other.lines[0].mean) == ([40], [-25.0])
  settings = figures.PlotConfig(figure=["log_likelihoods"], output=str(tmp_path / "figure.png"))
  figures.plot(settings, groups_in(tmp_path))
  assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_limits_leave_out_the_first_part_only():
  steps = np.arange(1, 11)
  values = np.array([-500.0, -90, -20, -15, -14, -13, -12, -11, -10, -10])
  low, high, least, greatest = drawing.limits([(steps, values)], cut=0.25)
  assert -21 < low < -20
  assert -10 < high < -9
  assert (least, greatest) == (-500, -10)
  whole = drawing.limits([(steps, values)], cut=0.0)
  assert whole[0] < -500


@pytest.mark.parametrize(
  "curves",
  [
    [],
    [([10], [3.0])],
    [([10, 20], [0.0, 0.0])],
    [([10, 20], [np.nan, np.inf])],
    [([10, 20], [-np.inf, -3.0])],
  ],
)
def test_limits_of_odd_curves(curves):
  curves = [(np.array(steps), np.array(values)) for steps, values in curves]
  low, high, _, _ = drawing.limits(curves, cut=0.25)
  assert np.isfinite([low, high]).all()
  assert low < high


@pytest.mark.parametrize(
  "values,words",
  [
    ({"figure": ["fig2"]}, ["--figure", "'fig2'", "pairs"]),
    ({"figure": []}, ["--figure", "''"]),
    ({"figure": ["pairs", "bounds"]}, ["--figure=pairs", "alone"]),
    ({"trajectory": "svi", "figure": ["pairs"]}, ["--trajectory", "'svi'", "iwae_dreg"]),
    ({"trajectory": "iwae"}, ["--trajectory", "--figure=pairs"]),
    ({"cut": 1.0}, ["--cut", "[0, 1)", "1.0"]),
    ({"output": None}, ["--output", ".png", "None"]),
    ({"output": "figure.pdf"}, ["--output", ".png", "'figure.pdf'"]),
  ],
)
def test_bad_values_of_flags(values, words):
  with pytest.raises(ConfigError) as error:
    figures.PlotConfig(**{"output": "figure.png"} | values)
  for word in words:
    assert word in str(error.value)


def test_an_output_that_cannot_be_written(tmp_path):
  write(tmp_path / "a")
  settings = figures.PlotConfig(output=str(tmp_path / "a" / "config.json" / "x.png"))
  with pytest.raises(ConfigError, match="--output=.* cannot be written"):
    figures.plot(settings, groups_in(tmp_path / "a" / ".."))


def test_plot_and_summarize(tmp_path, capfd):
  for seed in (0, 1):
    for bound in ("iwae", "iwae_dreg"):
      directory = tmp_path / "runs" / f"{bound}_{seed}"
      write(directory, bound=bound, seed=seed, columns=with_variance(1.0 + seed))
  runs = f"--runs={tmp_path}/runs/*"
  output = tmp_path / "figures" / "fig2.png"
  assert binaries.run("plot.py", runs, "--figure=pairs", f"--output={output}") == 0
  assert capfd.readouterr() == (f"Wrote {output}.\n", "")
  assert output.read_bytes().startswith(b"\x89PNG")
  assert binaries.run("summarize.py", runs) == 0
  assert capfd.readouterr() == (tables(groups_in(tmp_path / "runs")), "")
  assert binaries.run("summarize.py", runs, "--table=where") == 0
  assert capfd.readouterr() == (where.table(groups_in(tmp_path / "runs")), "")

  assert binaries.run("plot.py", f"--runs={tmp_path}/none", f"--output={output}") == 1
  (line,) = capfd.readouterr().err.splitlines()
  assert line.startswith(f"plot.py: error: --runs={tmp_path}/none matches no")
  assert binaries.run("summarize.py") == 1
  assert capfd.readouterr().err.startswith("summarize.py: error: --runs must name")


@pytest.mark.parametrize("figure", ["bounds", "bounds,alpha", "alpha,adapted_alpha"])
def test_figures_of_several_panels_are_drawn_without_a_warning(figure, tmp_path, recwarn):
  alphas = [{"bound": "dreg_alpha", "alpha": 0.5}, {"bound": "dreg_alpha", "alpha": "auto"}]
  for i, values in enumerate([{}, {"num_samples": 8}, {"steps": (10,), "seed": 1}, *alphas]):
    write(tmp_path / "runs" / str(i), **values)
  bounds = {"test_bound": [1.0] * 4, "valid_bound": [1.0] * 4}
  adapted = alphas[1] | {"seed": 1, "columns": {"train_alpha": [0.5] * 4} | bounds}
  write(tmp_path / "runs" / "adapted", **adapted)
  settings = figures.PlotConfig(figure=figure.split(","), output=str(tmp_path / "figure.png"))
  figures.plot(settings, groups_in(tmp_path / "runs"))
  assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
  assert not recwarn.list


def test_the_title_says_what_is_drawn(tmp_path):
  write(tmp_path / "a")
  write(tmp_path / "b", seed=1, steps=(10, 20))
  write(tmp_path / "c", bound="iwae")
  title = drawing._title(groups_in(tmp_path), "; ")
  assert title == (
    "digits, generative, K = 64; bold: mean of 1 to 2 seeds; not all runs are finished"
  )
  write(tmp_path / "d", dataset="omniglot", num_samples=8)
  omniglot = [g for g in groups_in(tmp_path) if g.settings.dataset == "omniglot"]
  assert drawing._title(omniglot, "; ") == ("Omniglot (TFDS, not Burda's file), generative, K = 8")
