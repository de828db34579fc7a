"""Tests of the experiments: their flagfiles, which runs they take, and running those."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dregs_tf.training import runners
from dregs_tf.training.errors import ConfigError, Interrupted
from experiments import definitions, runs
from tests import binaries

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGFILES = sorted(path.stem for path in (ROOT / "experiments").glob("*.flags"))

# A stand-in for bin/train.py that fails, dies or waits for a signal where the bound says so.
TRAIN = """
import json, os, pathlib, signal, sys, time
from dregs_tf.training import run_directory
from experiments import runs

settings = runs.parsed(sys.argv[1:])
settings.directory.mkdir(parents=True, exist_ok=True)
run_directory.Run(settings.directory).write_config(settings)
with open("log", "a") as log:
  log.write(f"train {settings.directory.name}\\n")
if settings.bound == "rws":
  sys.exit(3)
if settings.bound == "stl":
  os.kill(os.getpid(), signal.SIGKILL)
if settings.bound == "elbo":
  def stop(number, frame):
    with open("log", "a") as log:
      log.write(f"got {signal.Signals(number).name}\\n")
    sys.exit(130)
  signal.signal(signal.SIGTERM, stop)
  signal.signal(signal.SIGINT, stop)
  pathlib.Path("waiting").touch()
  time.sleep(60)
result = {"step": settings.max_steps, "test_bound": -1.0}
(settings.directory / "result.json").write_text(json.dumps(result))
"""
EVAL = """
import json, pathlib, sys
logdir = pathlib.Path(sys.argv[1].partition("=")[2])
with open("log", "a") as log:
  log.write(f"eval {logdir.name}\\n")
result = json.loads((logdir / "result.json").read_text())
(logdir / "evaluation_test_5000.json").write_text(json.dumps({"step": result["step"]}))
"""


def settings(**values) -> runs.ExperimentConfig:
  return runs.ExperimentConfig(**{"experiment": "digits_generative"} | values)


@pytest.fixture
def in_root(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture
def project(tmp_path, monkeypatch):
  """A folder like the repository's root, the current one; its binaries say what they were told."""
  shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin" / "train.py").write_text(TRAIN)
  (tmp_path / "bin" / "eval.py").write_text(EVAL)
  shutil.copy(ROOT / "bin" / "run_experiment.py", tmp_path / "bin")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def train(monkeypatch):
  """The configurations that bin/train.py is called with."""
  called = []
  monkeypatch.setattr(runners, "train", called.append)
  return called


def log(project) -> list[str]:
  return (project / "log").read_text().splitlines() if (project / "log").exists() else []


# --- flagfiles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLAGFILES)
def test_every_flagfile_is_read_by_the_binary_as_by_the_runner(name, in_root, train):
  arguments = [f"--flagfile=experiments/{name}.flags", "--bound=iwae", "--seed=2"]
  assert binaries.run("train.py", *arguments) == 0
  assert train == [runs.parsed(arguments)]


@pytest.mark.parametrize("name", definitions.EXPERIMENTS)
def test_every_run_is_read_by_the_binary_as_by_the_runner(name, in_root, train):
  planned = runs.all_runs(settings(experiment=name, seeds=["7"], data_dir="somewhere"))
  for run in planned:
    assert binaries.run("train.py", *run.arguments) == 0
    assert run.settings.seed == 7
    assert run.settings.data_dir == "somewhere"
  assert train == [run.settings for run in planned]


def test_every_flagfile_belongs_to_an_experiment():
  assert {each.flags for each in definitions.EXPERIMENTS.values()} == set(FLAGFILES)


@pytest.mark.parametrize("name", [f"fig{number}" for number in range(2, 8)])
def test_full_experiments_have_the_settings_of_the_paper(name, in_root):
  for run in runs.all_runs(settings(experiment=name)):
    assert run.settings.max_steps == 5_000_000
    assert run.settings.batch_size == 32
    assert run.settings.latent_dim == 50
    assert run.settings.learning_rate == 3e-4
    assert run.settings.num_samples in (32, 64, 256)
    assert run.settings.follow_test
    assert run.settings.bound in (*run.settings.tracked_bounds, "dreg_alpha")


def test_reduced_experiments_differ_in_their_length_alone(in_root):
  lengths = {"max_steps", "summarize_every", "checkpoint_every"}
  for name in FLAGFILES:
    if name.endswith("_reduced"):
      full, reduced = (
        vars(runs.parsed([f"--flagfile=experiments/{each}.flags"]))
        for each in (name.removesuffix("_reduced"), name)
      )
      assert {key for key in full if full[key] != reduced[key]} == lengths


def test_the_readme_lists_the_experiments():
  text = (ROOT / "experiments" / "README.md").read_text()
  table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
  for name in definitions.EXPERIMENTS:
    assert f"`{name}`" in table
  named = re.findall(r"--experiment=(\w+)", text)
  assert named
  assert set(named) <= set(definitions.EXPERIMENTS)


# --- which runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", definitions.EXPERIMENTS)
def test_runs_of_an_experiment_have_directories_of_their_own(name, in_root):
  planned = runs.all_runs(settings(experiment=name))
  assert len({run.settings.directory for run in planned}) == len(planned)


def test_figures_share_runs_that_have_the_same_settings(in_root):
  by_directory = {}
  for name in definitions.EXPERIMENTS:
    for run in runs.all_runs(settings(experiment=name)):
      assert by_directory.setdefault(run.settings.directory, run.settings) == run.settings
  fig4, fig7 = (
    {run.name for run in runs.all_runs(settings(experiment=name))} for name in ("fig4", "fig7")
  )
  assert len(fig4 & fig7) == 12


def test_the_first_seed_of_fig_2_is_found_by_the_experiment_of_seeds(in_root):
  """By name and settings in the results of this repository, which have no checkpoints."""
  planned = runs.all_runs(
    settings(experiment="mnist_seeds", seeds=["0"], output_dir="experiments/results")
  )
  assert len(planned) == 8
  if not (ROOT / "experiments" / "results").exists():
    pytest.skip("a source distribution has no results")
  done = {run.settings.bound for run in planned if run.is_done() and run.is_evaluated()}
  assert {"iwae", "iwae_dreg", "rws", "rws_dreg", "stl", "jvi", "jvi_dreg"} <= done


@pytest.mark.parametrize("num_shards", [1, 3, 11])
def test_shards_cover_all_runs_once(num_shards, project, capfd):
  options = {"experiment": "digits_generative_alpha", "seeds": ["5"], "dry_run": True}
  printed = []
  for shard in range(num_shards):
    runs.run(settings(**options, shard=f"{shard}/{num_shards}"), project)
    printed += capfd.readouterr().out.splitlines()
  runs.run(settings(**options), project)
  whole = capfd.readouterr().out.splitlines()
  assert len(whole) == 9
  assert sorted(line for line in printed if line.startswith("python")) == sorted(whole)
  assert log(project) == []


def test_a_dry_run_prints_the_commands(project, capfd):
  options = {"seeds": ["1"], "only": ["*_alpha0.9_*"], "evaluate": True, "output_dir": "out"}
  runs.run(settings(**options, dry_run=True, train_flags="--latent_dim=2"), project)
  directory = "out/digits_generative_dreg_alpha_alpha0.9_K64_seed1"
  assert capfd.readouterr().out.splitlines() == [
    "python bin/train.py --flagfile=experiments/digits_generative.flags --latent_dim=2 "
    f"--bound=dreg_alpha --alpha=0.9 --seed=1 --logdir={directory}",
    f"python bin/eval.py --logdir={directory} --num_samples=5000 --split=test",
  ]
  assert not (project / "out").exists()


@pytest.mark.parametrize(
  "values,words",
  [
    ({"experiment": "fig9"}, ["--experiment", "'fig9'", "fig2_reduced"]),
    ({"experiment": None}, ["--experiment", "None"]),
    ({"seeds": []}, ["--seeds", "''"]),
    ({"seeds": ["0", "x"]}, ["--seeds", "'0,x'"]),
    ({"seeds": ["-1"]}, ["--seeds", "'-1'"]),
    ({"seeds": ["1", "01"]}, ["--seeds", "twice"]),
    ({"shard": "2/2"}, ["--shard", "'2/2'", "0 to N - 1"]),
    ({"shard": "1"}, ["--shard", "'1'"]),
    ({"only": ["nothing"]}, ["--only=nothing", "digits_generative_iwae_K64_seed0"]),
    ({"train_flags": "--max_step=3"}, ["--train_flags", "max_step"]),
    ({"train_flags": "--max_steps=x"}, ["--train_flags", "max_steps"]),
    ({"train_flags": "--max_steps=0"}, ["--max_steps", "got 0"]),
    ({"train_flags": "stray"}, ["--train_flags", "'stray'"]),
    ({"train_flags": "--latent_dim 2 --seed=7"}, ["--train_flags", "--seed", "the experiment"]),
    ({"train_flags": "--bound elbo"}, ["--train_flags", "--bound", "the experiment"]),
    ({"train_flags": "--logdir=x"}, ["--train_flags", "--logdir", "the experiment"]),
    ({"train_flags": "'"}, ["--train_flags", "quotation"]),
  ],
)
def test_bad_values_are_refused_before_anything_runs(values, words, project):
  with pytest.raises(ConfigError) as error:
    runs.run(settings(**values), project)
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)
  assert log(project) == []


# --- running them --------------------------------------------------------------------------------


def test_runs_that_are_done_are_passed_over(project, capfd):
  options = {"seeds": ["0"], "only": ["*_iwae_K*", "*_jvi_o*"]}
  runs.run(settings(**options), project)
  names = ["digits_generative_iwae_K64_seed0", "digits_generative_jvi_order1_K64_seed0"]
  assert log(project) == [f"train {name}" for name in names]
  out = capfd.readouterr().out
  assert "[1/2] digits_generative_iwae_K64_seed0\n" in out
  assert "--figure=bounds" in out
  assert "'--runs=" in out

  runs.run(settings(**options, evaluate=True), project)
  assert log(project)[2:] == [f"eval {name}" for name in names]
  runs.run(settings(**options, evaluate=True), project)
  assert len(log(project)) == 4
  assert "[2/2] digits_generative_jvi_order1_K64_seed0: done before\n" in capfd.readouterr().out

  # A run that is to be longer, one with a damaged result, and one with other settings are not done.
  longer = settings(**options, train_flags="--max_steps=30000")
  (project / "runs/reduced" / names[0] / "result.json").write_text('{"step": ')
  runs.run(longer, project)
  assert log(project)[4:] == [f"train {name}" for name in names]
  runs.run(settings(**options, train_flags="--max_steps=30000 --batch_size=3"), project)
  assert log(project)[6:] == [f"train {name}" for name in names]


def test_a_run_that_fails_is_named_and_the_others_run(project):
  options = {"seeds": ["0"], "only": ["*_rws_K*", "*e_stl_*", "*_jvi_o*"], "evaluate": True}
  with pytest.raises(ChildProcessError) as error:
    runs.run(settings(**options), project)
  assert str(error.value) == (
    "2 of 3 runs failed: digits_generative_rws_K64_seed0 (bin/train.py: exit status 3), "
    "digits_generative_stl_K64_seed0 (bin/train.py: killed by SIGKILL)."
  )
  assert "eval digits_generative_jvi_order1_K64_seed0" in log(project)
  assert "eval digits_generative_rws_K64_seed0" not in log(project)


def test_places_are_seen_from_where_the_command_was_given(
  project, tmp_path_factory, monkeypatch, capfd
):
  elsewhere = tmp_path_factory.mktemp("elsewhere")
  monkeypatch.chdir(elsewhere)
  (elsewhere / "own.npz").touch()
  options = {"seeds": ["0"], "only": ["*_iwae_K*"], "data_dir": "data"}
  options["train_flags"] = "--dataset=own.npz --init_from 'a run' --debug"
  runs.run(settings(**options, output_dir="out"), project)
  assert capfd.readouterr().out.splitlines()[1] == f"cd {project}"
  saved = json.loads((elsewhere / "out/own_generative_iwae_K64_seed0/config.json").read_text())
  assert saved["data_dir"] == str(elsewhere / "data")
  assert saved["dataset"] == str(elsewhere / "own.npz")
  assert saved["init_from"] == str(elsewhere / "a run")
  assert pathlib.Path.cwd() == elsewhere


def test_a_shard_without_a_run_says_so(project, capfd):
  runs.run(settings(seeds=["0"], only=["*_iwae_K*"], shard="1/2"), project)
  assert capfd.readouterr().out == "There is no run for --shard=1/2.\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run_and_stops_the_experiment(number, project):
  command = [sys.executable, "bin/run_experiment.py", "--experiment=digits_generative"]
  process = subprocess.Popen(
    [*command, "--seeds=0,1", "--only=*_elbo_K*"],
    cwd=project,
    env=os.environ,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    while not (project / "waiting").exists():
      assert process.poll() is None
      time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
  finally:
    process.kill()
  assert process.returncode == 130
  assert f"Stopped by {number.name}." in errors
  assert log(project) == ["train digits_generative_elbo_K64_seed0", f"got {number.name}"]


def test_no_run_begins_after_a_signal(project):
  with runs._Children() as children:
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
      children.call([sys.executable, "-c", "open('begun', 'w')"])
  assert not (project / "begun").exists()


def test_the_command_is_quick_and_does_not_load_tensorflow(tmp_path):
  code = (
    "import runpy, sys\n"
    "try:\n  runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "except SystemExit as stop:\n  assert not stop.code\n"
    "sys.exit('tensorflow' in sys.modules)"
  )
  program = f"import sys; sys.argv = ['bin/run_experiment.py', '--help']\n{code}"
  begun = time.monotonic()
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, timeout=60
  )
  assert done.returncode == 0, done.stderr
  assert b"--shard" in done.stdout
  assert time.monotonic() - begun < 20
