"""Tests of flags: made from the fields of configurations, for every command alike."""

import dataclasses
import subprocess
import sys

import pytest

from dregs_tf.training import commands, config, flags, runners
from dregs_tf.training.errors import ConfigError, Interrupted
from experiments import figures, runs, tables
from experiments.toy_gaussian.config import ToyConfig
from tests import binaries

CONFIGURATIONS = {
  "train.py": config.TrainConfig,
  "eval.py": config.EvalConfig,
  "compare_estimators.py": config.CompareConfig,
  "plot.py": figures.PlotConfig,
  "summarize.py": tables.SummarizeConfig,
  "run_experiment.py": runs.ExperimentConfig,
  "toy_gaussian.py": ToyConfig,
}


@dataclasses.dataclass
class Settings:
  name: str = flags.flag("x", str, "A name.", ("x", "y"))
  count: int | None = flags.flag(None, int, "A count.")
  part: float = flags.flag(0.5, float, "A part.")
  is_on: bool = flags.flag(True, bool, "Whether.")
  values: tuple = flags.flag((1, 2), list, "Several.")


def parsed(*arguments) -> Settings:
  return flags.configuration(Settings, flags.parse(Settings, arguments))


def test_defaults_are_those_of_the_fields():
  assert parsed() == dataclasses.replace(Settings(), values=["1", "2"])


def test_values_are_of_the_kind_of_their_flag(tmp_path):
  (tmp_path / "inner.flags").write_text("# comment\n--count=3\n--part=1e-2\n")
  (tmp_path / "outer.flags").write_text(f"--flagfile={tmp_path}/inner.flags\n--count=4\n")
  arguments = [f"--flagfile={tmp_path}/outer.flags", "--nois_on", "--values=a, b", "--name", "y"]
  assert parsed(*arguments) == Settings("y", 4, 0.01, False, ["a", "b"])


@pytest.mark.parametrize(
  "argument, words",
  [
    ("--count=1.5", ["--count", "'1.5'", "whole number"]),
    ("--part=x", ["--part", "'x'", "a number"]),
    ("--is_on=2", ["--is_on", "'2'", "true or false"]),
    ("--cuont=1", ["'cuont'", "count"]),
    ("--name", ["name"]),
    ("stray", ["'stray'", "--name=value"]),
  ],
)
def test_a_wrong_argument_is_named(argument, words):
  with pytest.raises(ConfigError) as error:
    parsed(argument)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize("program", CONFIGURATIONS)
def test_help_lists_every_field(program, capsys):
  assert binaries.run(program, "--help") == 0
  shown = capsys.readouterr().out
  for field in dataclasses.fields(CONFIGURATIONS[program]):
    no = "[no]" if field.metadata["kind"] is bool else ""
    assert f"--{no}{field.name}: " in shown
    assert field.metadata["help"].split()[0] in shown


@pytest.mark.parametrize("command", ["train", "evaluate", "compare"])
def test_the_installed_commands_are_the_binaries(command, monkeypatch):
  called = []
  monkeypatch.setattr(runners, command, called.append)
  monkeypatch.setattr(sys, "argv", ["dregs", "--logdir=x", "--seed=3"])
  getattr(commands, command)()
  (settings,) = called
  assert (settings.logdir, settings.seed) == ("x", 3)


def test_options_of_bounds_are_flags(monkeypatch):
  called = []
  monkeypatch.setattr(runners, "train", called.append)
  for arguments in (
    ["--bound=vr_iwae_dreg", "--alpha=0.5"],
    ["--bound=miwae_dreg", "--groups=4"],
    ["--bound=tvo_dreg", "--betas=0,0.1,0.4,1"],
    ["--bound=iwae_cv", "--a=-1", "--g=0.25"],
  ):
    assert binaries.run("train.py", *arguments) == 0
  assert [settings.bound_options for settings in called] == [
    {"alpha": 0.5},
    {"groups": 4},
    {"betas": (0.0, 0.1, 0.4, 1.0)},
    {"a": -1.0, "b": None, "g": 0.25, "d": None},
  ]


@pytest.mark.parametrize(
  "error, status, words",
  [
    (Interrupted("Stopped by SIGTERM."), 130, "Stopped by SIGTERM."),
    (KeyboardInterrupt(), 130, "dregs: stopped"),
    (OSError("no\nroom"), 1, "dregs: error: no room"),
  ],
)
def test_errors_become_one_line_and_an_exit_status(error, status, words, monkeypatch, capsys):
  def fail(settings):
    raise error

  monkeypatch.setattr(sys, "argv", ["bin/dregs"])
  with pytest.raises(SystemExit) as stop:
    flags.run(Settings, fail, "")
  assert stop.value.code == status
  shown = capsys.readouterr().err
  assert shown.startswith(words)
  assert shown.count("\n") == 1


def test_an_error_that_nobody_expected_keeps_its_traceback(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["bin/dregs"])
  with pytest.raises(AttributeError):
    flags.run(Settings, lambda settings: settings.nothing, "")


def test_configurations_do_not_load_tensorflow():
  code = (
    "import sys; from dregs_tf import training; from experiments import figures, runs, tables; "
    "training.TrainConfig(); training.Run('x').read_config(); sys.exit('tensorflow' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=binaries.ROOT)
