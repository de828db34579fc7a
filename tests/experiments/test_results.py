"""Tests of results: runs read and grouped, means over seeds, tables."""

import dataclasses

import pytest

from dregs_tf.training import config
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run
from experiments import results
from experiments.results import read
from experiments.tables import tables
from tests.experiments.helpers import VARIANCE, groups_in, values_of, write


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


def test_a_table_for_each_kind_of_latents_and_a_note_on_objectives(tmp_path):
  write(tmp_path / "a", bound="vr_iwae")
  write(tmp_path / "b", bound="elbo_loo", model="discrete")
  first, second = tables(groups_in(tmp_path)).split("**digits, generative, discrete latents")
  assert "**digits, generative, K = 64**" in first and "cannot be compared" in first
  assert "looser" in second and "cannot be compared" not in second


def test_the_fields_that_do_not_train_are_fields_of_the_configuration():
  names = {field.name for field in dataclasses.fields(config.TrainConfig)}
  assert set(results._OF_A_TRIAL) <= names
  assert set(results._OPTIONS) <= names
