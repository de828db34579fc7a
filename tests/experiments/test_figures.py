"""Tests of what is made of runs: reading and grouping them, means over seeds, figures, tables."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from dregs_tf.training import config
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run
from experiments import drawing, figures, results
from experiments.results import grouped, read, tables

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(directory, steps=(10, 20, 30, 40), columns=None, result=True, evaluation=None, **values):
  """A run's directory; its bound rises by 1 nat for each 10 steps, from its seed on."""
  values = {"bound": "iwae_dreg", "max_steps": 40, "summarize_every": 10} | values
  settings = config.TrainConfig(logdir=str(directory), **values)
  directory.mkdir(parents=True)
  Run(directory).write_config(settings)
  steps = np.array(steps)
  bound = settings.seed - 30 + steps / 10
  if columns is None:
    columns = {"valid_bound": bound, "test_bound": bound}
  table = {"step": steps} | columns
  lines = [",".join(table)] + [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
  (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
  if result and len(steps) and steps[-1] == settings.max_steps:
    text = json.dumps({"step": settings.max_steps, "test_bound": float(bound[-1])})
    (directory / "result.json").write_text(text)
  if evaluation:
    (directory / "evaluation_test_5000.json").write_text(json.dumps(evaluation))
  return directory


def groups_in(place):
  return grouped(read([f"{place}/*"]))


def values_of(curve):
  steps, values = curve
  return list(steps), list(values)


# --- reading -------------------------------------------------------------------------------------


def test_patterns_name_runs_once(tmp_path):
  write(tmp_path / "a0")
  write(tmp_path / "a1", seed=1)
  write(tmp_path / "b")
  (tmp_path / "notes").mkdir()
  (tmp_path / "figure.png").touch()
  assert len(read([f"{tmp_path}/*"])) == 3
  assert len(read([f"{tmp_path}/a?", f"{tmp_path}/a0"])) == 2
  assert [run.settings.seed for run in read([f"{tmp_path}/a1"])] == [1]


def test_what_a_run_in_progress_has(tmp_path):
  write(tmp_path / "begun", steps=())
  run_directory = write(tmp_path / "going", steps=(10, 20), seed=1)
  (tmp_path / "new").mkdir()
  Run(tmp_path / "new").write_config(config.TrainConfig(seed=2))
  with open(run_directory / "metrics.csv", "a") as file:
    file.write("30,-2")
  (run,) = read([f"{tmp_path}/*"])
  assert list(run.metrics["step"]) == [10, 20]
  assert run.test_bound is None


def test_a_result_and_an_evaluation_of_the_last_step_only(tmp_path):
  evaluation = {"step": 40, "log_likelihood": -20.0, "standard_error": 0.2}
  write(tmp_path / "done", evaluation=evaluation)
  write(tmp_path / "extended", evaluation=evaluation, seed=1)
  (tmp_path / "extended" / "config.json").write_text(
    (tmp_path / "extended" / "config.json")
    .read_text()
    .replace('"max_steps": 40', '"max_steps": 80')
  )
  write(tmp_path / "stale", evaluation=evaluation | {"step": 20}, seed=2)
  done, extended, stale = read([f"{tmp_path}/done", f"{tmp_path}/extended", f"{tmp_path}/stale"])
  assert done.test_bound == -26
  assert done.evaluation == evaluation
  assert extended.test_bound is None
  assert extended.evaluation is None
  assert stale.test_bound == -24
  assert stale.evaluation is None


BAD = {
  "config": ("config.json", '{"bound": "svi"}'),
  "metrics": ("metrics.csv", "step,valid_bound\nten,-3\n"),
  "columns": ("metrics.csv", "valid_bound,step\n-3,10\n"),
  "ragged": ("metrics.csv", "step,valid_bound\n10\n20,-3\n"),
  "bytes": ("metrics.csv", "\x00\x00"),
  "result": ("result.json", "{"),
  "keys": ("result.json", '{"steps": 3}'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_run_is_named(name, tmp_path):
  directory = write(tmp_path / "run")
  file, text = BAD[name]
  (directory / file).write_text(text)
  with pytest.raises(ConfigError) as error:
    read([str(directory)])
  assert "--runs" in str(error.value)
  assert str(directory) in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "patterns,words",
  [
    ([], ["--runs must name"]),
    (["{place}/none"], ["--runs={place}/none", "matches no directory"]),
    (["{place}/none*"], ["--runs={place}/none*", "matches no directory"]),
    (["{place}/run", "{place}/x*"], ["--runs={place}/x*", "matches no directory"]),
    (["{place}"], ["--runs={place}", "--runs='{place}/*'"]),
    (["{place}/begun"], ["--runs={place}/begun", "summary yet"]),
  ],
)
def test_patterns_without_a_run(patterns, words, tmp_path):
  write(tmp_path / "run")
  write(tmp_path / "begun", steps=())
  with pytest.raises(ConfigError) as error:
    read([pattern.replace("{place}", str(tmp_path)) for pattern in patterns])
  for word in words:
    assert word.replace("{place}", str(tmp_path)) in str(error.value)


# --- grouping ------------------------------------------------------------------------------------


def test_runs_are_grouped_by_all_but_the_seed_and_what_does_not_train(tmp_path):
  write(tmp_path / "a", seed=1)
  write(tmp_path / "b", seed=0, data_dir="elsewhere", gradient_statistics=True)
  write(tmp_path / "c", seed=2, track_variance="iwae", follow_test=True, checkpoint_every=7)
  write(tmp_path / "d", learning_rate=1e-2)
  write(tmp_path / "e", bound="dreg_alpha", alpha=0.5)
  write(tmp_path / "f", bound="dreg_alpha", alpha="auto")
  write(tmp_path / "g", bound="iwae")
  groups = groups_in(tmp_path)
  assert [[run.settings.seed for run in group.runs] for group in groups] == [
    *([0], [0, 1, 2], [0], [0], [0]),
  ]
  assert results.labels(groups) == [
    "IWAE, learning_rate=0.0003",
    "IWAE-DReG, learning_rate=0.0003",
    "IWAE-DReG, learning_rate=0.01",
    "alpha = 0.5, learning_rate=0.0003",
    "alpha adapted, from 0.5, learning_rate=0.0003",
  ]


def test_the_same_run_twice_is_refused(tmp_path):
  write(tmp_path / "a")
  write(tmp_path / "b")
  with pytest.raises(ConfigError, match=r"--runs: .*/a and .*/b .*same seed"):
    groups_in(tmp_path)


def test_groups_are_told_apart_by_what_they_can_be_compared_in(tmp_path):
  for i, values in enumerate(
    [{}, {"num_samples": 8}, {"task": "structured"}, {"dataset": "mnist"}, {"bound": "rws"}]
  ):
    write(tmp_path / str(i), **values)
  problems = results.by_problem(groups_in(tmp_path))
  assert list(problems) == [
    *(("digits", "generative", 8), ("digits", "generative", 64), ("digits", "structured", 64)),
    ("mnist", "generative", 64),
  ]
  assert [g.settings.bound for g in problems["digits", "generative", 64]] == ["iwae_dreg", "rws"]


def test_the_mean_is_over_the_steps_that_all_trials_have(tmp_path):
  write(tmp_path / "a")
  write(tmp_path / "b", seed=1)
  write(tmp_path / "c", seed=5, steps=(10, 20))
  (group,) = groups_in(tmp_path)
  assert values_of(group.mean("test_bound")) == ([10, 20], [-27, -26])
  assert [len(steps) for steps, _ in group.trials("test_bound")] == [4, 4, 2]


def test_the_mean_of_a_column_that_some_trials_have(tmp_path):
  write(tmp_path / "a")
  write(tmp_path / "b", seed=1, columns={"valid_bound": [1.0, 2.0, 3.0, 4.0]})
  (group,) = groups_in(tmp_path)
  assert values_of(group.mean("test_bound")) == ([10, 20, 30, 40], [-29, -28, -27, -26])
  assert group.trials("nothing") == []


# --- what is in the figures ----------------------------------------------------------------------

VARIANCE = "train_proposal_gradient_variance"


def with_variance(level, **tracked):
  bound = -np.array([5.0, 4.0, 3.0, 2.0]) - level
  columns = {VARIANCE: np.full(4, level), "valid_bound": bound, "test_bound": bound}
  columns |= {f"train_{name}_gradient_variance": np.full(4, each) for name, each in tracked.items()}
  return columns


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
  # The original is dashed, its doubly reparameterised form is solid, of the same color.
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
  ],
)
def test_runs_without_what_the_figure_shows(figure, runs, words, tmp_path):
  for i, values in enumerate(runs):
    write(tmp_path / str(i), **values)
  with pytest.raises(ConfigError, match=f"--figure={figure} .*{re.escape(words)}"):
    figures.panels(groups_in(tmp_path), figure)


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


# --- tables --------------------------------------------------------------------------------------


def row_of(table, name):
  (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_has_means_deviations_and_errors(tmp_path):
  evaluation = {"step": 40, "log_likelihood": -20.0, "standard_error": 0.2}
  columns = {VARIANCE: [9.0, 9.0, 9.0, 1e-3], "train_iwae_gradient_variance": [9.0] * 3 + [4e-3]}
  one, other = (columns | {"train_bound": [-9.0] * 3 + [last]} for last in (-7.0, -5.0))
  write(tmp_path / "a", columns=one, evaluation=evaluation)
  write(tmp_path / "b", columns=other, seed=2, evaluation=evaluation | {"log_likelihood": -22.0})
  write(tmp_path / "c", steps=(10, 20), bound="jvi")
  write(tmp_path / "d", bound="jvi", seed=1)
  text = tables(groups_in(tmp_path))
  assert "**digits, generative, K = 64**" in text
  assert row_of(text.partition("Variance of several")[0], "IWAE-DReG") == [
    *("IWAE-DReG", "0, 2", "40", "-25.000 ± 1.414", "", "-6.000 ± 1.414"),
    *("-21.000 ± 1.414", "0.200", "1.00e-03"),
  ]
  jvi = row_of(text, "JVI")
  assert jvi[:5] == ["JVI", "0, 1", "20 of 40", "-25.000 (1 of 2 seeds)", "-27.500 ± 0.707"]
  assert jvi[5:] == ["", "", "", ""]
  assert "JVI's objective is not a bound." in text
  assert "standard deviation over the seeds" in text
  tracked = text.partition("Variance of several")[2]
  assert row_of(tracked, "IWAE-DReG") == ["IWAE-DReG", "4.00e-03"]


def test_late_means_say_how_many_trials_they_are_of(tmp_path):
  write(tmp_path / "a", columns={"test_bound": [-9.0, -9.0, -9.0, -3.0]})
  write(tmp_path / "b", columns={}, seed=1)
  assert "| -3.000 (1 of 2 seeds) |" in tables(groups_in(tmp_path))


def test_defaults_are_the_same_configuration_as_when_they_are_given(tmp_path):
  pairs = [
    ({"bound": "dreg_alpha"}, {"bound": "dreg_alpha", "alpha": 0.9}),
    (
      {"bound": "dreg_alpha", "alpha": "auto"},
      {"bound": "dreg_alpha", "alpha": "auto", "initial_alpha": 0.5},
    ),
    ({"bound": "jvi"}, {"bound": "jvi", "jvi_order": 1}),
    ({}, {"track_variance": "iwae_dreg,dreg_alpha,jvi", "alpha": 0.3, "jvi_order": 2}),
  ]
  for i, pair in enumerate(pairs):
    for seed, values in enumerate(pair):
      write(tmp_path / f"{i}{seed}", seed=seed, **values)
  found = groups_in(tmp_path)
  assert [len(group.runs) for group in found] == [2] * len(pairs)
  assert results.labels(found) == [
    "IWAE-DReG",
    "alpha = 0.9",
    "alpha adapted, from 0.5",
    "JVI",
  ]


def test_a_table_without_what_there_is_not(tmp_path):
  write(tmp_path / "a", columns={})
  write(tmp_path / "b", columns={}, num_samples=8, bound="elbo")
  text = tables(groups_in(tmp_path))
  assert text.count("| trained with | seeds | steps | test bound (nats) |\n") == 2
  assert "looser" in text.partition("K = 64")[0]
  assert "looser" not in text.partition("K = 64")[2]


# --- the binaries --------------------------------------------------------------------------------


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


def binary(name, *arguments):
  command = [sys.executable, f"bin/{name}.py", *arguments]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
  )


def test_plot_and_summarize(tmp_path):
  for seed in (0, 1):
    for bound in ("iwae", "iwae_dreg"):
      directory = tmp_path / "runs" / f"{bound}_{seed}"
      write(directory, bound=bound, seed=seed, columns=with_variance(1.0 + seed))
  runs = f"--runs={tmp_path}/runs/*"
  output = tmp_path / "figures" / "fig2.png"
  done = binary("plot", runs, "--figure=pairs", f"--output={output}")
  assert (done.returncode, done.stdout, done.stderr) == (0, f"Wrote {output}.\n", "")
  assert output.read_bytes().startswith(b"\x89PNG")
  done = binary("summarize", runs)
  assert done.stderr == ""
  assert done.stdout == tables(groups_in(tmp_path / "runs"))

  done = binary("plot", f"--runs={tmp_path}/none", f"--output={output}")
  assert done.returncode == 1
  assert done.stderr.startswith(f"plot.py: error: --runs={tmp_path}/none matches no")
  assert len(done.stderr.splitlines()) == 1
  done = binary("summarize")
  assert done.returncode == 1
  assert done.stderr.startswith("summarize.py: error: --runs must name")


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


def test_the_fields_that_do_not_train_are_fields_of_the_configuration():
  names = {field.name for field in dataclasses.fields(config.TrainConfig)}
  assert set(results._OF_A_TRIAL) <= names
  assert set(figures._STYLES) == set(config.BOUNDS)
