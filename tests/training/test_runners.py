"""Tests of whole runs: what a run leaves behind, exact resumption, refusals, evaluation."""

import csv
import dataclasses
import json
import shlex
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import data
from dregs_tf.models import products
from dregs_tf.training import callbacks, config, run_data, runners
from dregs_tf.training.errors import ConfigError, Interrupted
from dregs_tf.training.run_directory import Run
from tests import binaries
from tests.eager import functions_run_eagerly


def settings(directory, **changes) -> config.TrainConfig:
  values = {
    "bound": "dreg_alpha",
    "alpha": "auto",
    "track_variance": "rws",
    "follow_test": True,
    "num_samples": 3,
    "latent_dim": 2,
    "batch_size": 7,
    "max_steps": 10,
    "summarize_every": 4,
    "checkpoint_every": 3,
    "gradient_statistics": True,
    "jit_compile": False,
    "missing_fraction": 0.25,
  }
  return config.TrainConfig(logdir=str(directory), **values | changes)


# Without what follows gradients.
NOT_FOLLOWED = {"alpha": None, "track_variance": None, "gradient_statistics": False}
PLAIN = {"bound": "rws_dreg", "follow_test": False} | NOT_FOLLOWED


def rows(directory) -> list[dict]:
  with open(directory / "metrics.csv", newline="") as file:
    return list(csv.DictReader(file))


def final_variables(directory) -> list[np.ndarray]:
  _, model = Run(directory).load_newest()
  return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


@pytest.fixture(autouse=True, scope="module")
def few_measurements():
  """Fewer batches to measure gradients with: what is exact stays so."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runners, "NUM_MEASURED", 3)
    yield


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
  """A run that was never stopped, of eager steps; test_kill_and_resume.py has their graphs."""
  directory = tmp_path_factory.mktemp("runs") / "whole"
  with functions_run_eagerly():
    return directory, runners.train(settings(directory))


def test_a_run_leaves_what_it_should(whole_run):
  directory, result = whole_run
  assert [row["step"] for row in rows(directory)] == ["4", "8", "10"]
  assert list(rows(directory)[0])[0] == "step"
  columns = {"train_bound", "valid_bound", "test_bound", "train_alpha"}
  columns |= {f"train_{name}_gradient_snr" for name in ("proposal", "model", "rws")}
  assert columns <= set(rows(directory)[0])
  assert all(np.isfinite(float(value)) for row in rows(directory) for value in row.values())
  assert json.loads((directory / "result.json").read_text()) == result
  assert result["step"] == 10
  versions = json.loads((directory / "config.json").read_text())["versions"]
  expected = {m.__name__: m.__version__ for m in (dregs_tf, tf, keras, tfp)}
  assert versions == expected
  assert [step for step, _ in Run(directory).checkpoints()] == [6, 9, 10]
  assert (directory / "run.png").read_bytes().startswith(b"\x89PNG")
  tags = {
    value.tag
    for path in (directory / "tensorboard").iterdir()
    for event in tf.compat.v1.train.summary_iterator(str(path))
    for value in event.summary.value
  }
  assert {"bound/train", "bound/valid", "reconstructions", "samples"} <= tags


@pytest.mark.slow
@functions_run_eagerly()
def test_a_run_that_is_interrupted_in_every_way_ends_with_the_same_numbers(
  whole_run, tmp_path, monkeypatch
):
  """It is stopped before a checkpoint and while one is written, dies, ends early and goes on."""
  whole, result = whole_run
  save = Run.save

  def interrupted(error, function):
    with monkeypatch.context() as patched, pytest.raises(error) as caught:
      patched.setattr(*function)
      runners.train(settings(tmp_path))
    return str(caught.value), Run(tmp_path).checkpoints()[-1][0]

  def stop_at(last):
    def on_step_end(self, step, logs):
      if step == last:
        signal.raise_signal(signal.SIGTERM)

    return callbacks.StopOnNonFinite, "on_step_end", on_step_end

  def stop_while_saving(self, model, step):
    save(self, model, step)
    if step == 6:
      signal.raise_signal(signal.SIGTERM)

  def die(self, step, logs):
    if step == 8:
      raise KeyboardInterrupt  # not asked for: nothing is saved

  for last, function in (
    (1, stop_at(1)),
    (4, stop_at(4)),
    (6, (Run, "save", stop_while_saving)),
  ):
    message, saved = interrupted(Interrupted, function)
    assert f"SIGTERM at step {last}," in message
    assert saved == last
  # Only the steps since the checkpoint are lost.
  assert interrupted(KeyboardInterrupt, (callbacks.StopOnNonFinite, "on_step_end", die))[1] == 6
  assert runners.train(settings(tmp_path, max_steps=8))["step"] == 8
  assert runners.train(settings(tmp_path)) == result
  assert (tmp_path / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
  for ours, theirs in zip(final_variables(tmp_path), final_variables(whole), strict=True):
    np.testing.assert_array_equal(ours, theirs)


@functions_run_eagerly()
def test_an_extended_run_measures_only_the_steps_since_its_end(whole_run, tmp_path):
  """It ended within an interval, with a row; its last checkpoint holds validation metrics."""
  shutil.copytree(whole_run[0], tmp_path, dirs_exist_ok=True)
  longer = settings(tmp_path, max_steps=11)
  step, model = Run(tmp_path).load_newest()
  batches = run_data.train_batches(longer, run_data.load(longer, None), step)
  model.reset_metrics()
  bound = model.train_on_batch(next(iter(batches)), return_dict=True)["bound"]
  runners.train(longer)
  assert [row["step"] for row in rows(tmp_path)] == ["4", "8", "10", "11"]
  assert float(rows(tmp_path)[-1]["train_bound"]) == pytest.approx(float(bound), rel=1e-6)


def test_a_structured_run_is_evaluated_by_the_command_that_it_prints_from_elsewhere(
  tmp_path, monkeypatch, capsys
):
  """On a file that was given by a relative path."""
  monkeypatch.chdir(tmp_path)
  np.savez("own.npz", train=data.load("digits", None).train.reshape([-1, 8, 8]))
  changes = {"task": "structured", "missing_fraction": 0, "max_steps": 3, "dataset": "own.npz"}
  runners.train(settings("a run", **PLAIN | changes))
  printed = capsys.readouterr().out.splitlines()
  (command,) = [line.split(":", 1)[1] for line in printed if line.startswith("Evaluate:")]
  (look,) = [line.split(":", 1)[1] for line in printed if line.startswith("TensorBoard:")]
  assert f"--logdir={tmp_path / 'a run'}" in shlex.split(look)
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  program, *arguments = shlex.split(command)
  assert program == "dregs-eval"
  assert binaries.run("eval.py", *arguments, "--num_samples=20") == 0
  assert "standard error" in capsys.readouterr().out
  result = json.loads((tmp_path / "a run" / "evaluation_test_20.json").read_text())
  assert np.isfinite(result["log_likelihood"])


def test_fewer_steps_than_there_are_is_refused(whole_run):
  directory, result = whole_run
  with pytest.raises(ConfigError, match=rf"--max_steps must be at least {result['step']}.*got 3"):
    runners.train(settings(directory, max_steps=3))
  assert json.loads((directory / "result.json").read_text()) == result
  assert Run(directory).read_config().max_steps == result["step"]


@functions_run_eagerly()
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(whole_run, tmp_path):
  whole, result = whole_run
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  newest = Run(tmp_path).checkpoints()[-1][1]
  newest.write_bytes(newest.read_bytes()[:1000])
  with pytest.warns(UserWarning, match=newest.name):
    assert runners.train(settings(tmp_path)) == result


@pytest.mark.filterwarnings("ignore:Checkpoint:UserWarning")
def test_a_run_is_not_begun_anew_over_unreadable_checkpoints(whole_run, tmp_path):
  shutil.copytree(whole_run[0], tmp_path, dirs_exist_ok=True)
  for _, path in Run(tmp_path).checkpoints():
    path.write_bytes(b"junk")
  with pytest.raises(ConfigError, match="none of its checkpoints can be read"):
    runners.train(settings(tmp_path))
  assert [row["step"] for row in rows(tmp_path)] == ["4", "8", "10"]
  with pytest.raises(ConfigError, match="--init_from=.*none of its checkpoints can be read"):
    runners.train(settings(tmp_path / "new", init_from=str(tmp_path)))
  assert not (tmp_path / "new" / "config.json").exists()


def test_another_configuration_is_refused_and_nothing_is_touched(whole_run):
  directory, _ = whole_run
  before = {p: p.stat().st_mtime_ns for p in directory.rglob("*.keras")}
  with pytest.raises(ConfigError, match="--seed was 0, now 1"):
    runners.train(settings(directory, seed=1))
  assert {p: p.stat().st_mtime_ns for p in directory.rglob("*.keras")} == before


def test_a_directory_in_use_is_refused(tmp_path):
  with Run(tmp_path).locked(), pytest.raises(ConfigError, match="in use"):
    runners.train(settings(tmp_path))


def test_a_bound_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
  original = callbacks.StopOnNonFinite.on_step_end

  def poison(self, step, logs):
    original(self, step, logs | ({"bound": np.nan} if step == 8 else {}))

  monkeypatch.setattr(callbacks.StopOnNonFinite, "on_step_end", poison)
  with pytest.raises(FloatingPointError) as error:
    runners.train(settings(tmp_path, **NOT_FOLLOWED))
  assert "dreg_alpha" in str(error.value)
  assert "step 8" in str(error.value)
  assert str(Run(tmp_path).checkpoints()[-1][1]) in str(error.value)
  assert Run(tmp_path).checkpoints()[-1][0] == 6


def test_variables_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
  def poison(self, step, logs):
    if step == 6:
      self.model.encoder.trainable_variables[0].assign_add(tf.fill([64, 200], np.nan))

  monkeypatch.setattr(callbacks.StopOnNonFinite, "on_step_end", poison)
  with pytest.raises(FloatingPointError, match=r"kernel is no longer finite at step 6.*dreg_alpha"):
    runners.train(settings(tmp_path, **NOT_FOLLOWED))
  assert Run(tmp_path).checkpoints()[-1][0] == 3


def test_the_inference_network_alone_is_trained_from_another_run(whole_run, tmp_path):
  whole, _ = whole_run
  frozen = settings(tmp_path, init_from=str(whole), freeze_model=True, **PLAIN | {"max_steps": 3})
  runners.train(frozen)
  (_, start), (step, end) = (Run(path).load_newest() for path in (whole, tmp_path))
  assert step == 3
  for old, new in zip(start.decoder.get_weights(), end.decoder.get_weights(), strict=True):
    np.testing.assert_array_equal(old, new)
  pairs = zip(start.encoder.get_weights(), end.encoder.get_weights(), strict=True)
  assert all(0 < np.abs(new - old).max() < 0.01 for old, new in pairs)
  runners.train(dataclasses.replace(frozen, max_steps=4))
  assert Run(tmp_path).load_newest()[0] == 4, "a frozen run goes on, too"


def test_starting_from_another_model_is_refused(whole_run, tmp_path):
  whole, _ = whole_run
  with pytest.raises(ConfigError, match=r"--init_from=.*another model, different in latent_dim"):
    runners.train(settings(tmp_path, init_from=str(whole), latent_dim=3))
  words = r"different in data_mean:.* --latent_dims, and also --missing_fraction and --seed\."
  with pytest.raises(ConfigError, match=words):
    runners.train(settings(tmp_path, init_from=str(whole), seed=3))
  with pytest.raises(ConfigError, match=r"--init_from=.*no checkpoint"):
    runners.train(settings(tmp_path, init_from=str(tmp_path / "nothing")))


@functions_run_eagerly()
def test_evaluation_averages_over_all_images(whole_run):
  directory, _ = whole_run
  evaluation = config.EvalConfig(
    logdir=str(directory), num_samples=11, split="valid", batch_size=15
  )
  result = runners.evaluate(evaluation)
  assert result["num_images"] == 50
  assert result["step"] == 10
  again = runners.evaluate(dataclasses.replace(evaluation))
  assert again["log_likelihood"] == result["log_likelihood"]
  more = runners.evaluate(dataclasses.replace(evaluation, num_samples=60, batch_size=50))
  assert result["log_likelihood"] < more["log_likelihood"] < 0
  assert 0 < result["standard_error"] < 5
  assert json.loads((directory / "evaluation_valid_11.json").read_text()) == result


def test_an_evaluation_says_how_far_to_trust_it(whole_run, capsys):
  directory, _ = whole_run
  result = runners.evaluate(config.EvalConfig(logdir=str(directory), num_samples=30))
  with open(directory / "evaluation_test_30.csv", newline="") as file:
    by_image = list(csv.DictReader(file))
  assert [int(row["image"]) for row in by_image] == list(range(50))
  columns = {name: np.array([float(row[name]) for row in by_image]) for name in by_image[0]}
  assert np.mean(columns["log_likelihood"]) == pytest.approx(result["log_likelihood"], rel=1e-6)
  assert np.mean(columns["pareto_k"] > 0.7) == pytest.approx(result["untrusted"])
  assert np.all(columns["upper"] > columns["log_likelihood"])
  assert (directory / "evaluation_test_30.png").read_bytes().startswith(b"\x89PNG")
  printed = capsys.readouterr().out
  assert f"{result['upper']:.3f}" in printed
  assert f"{result['untrusted']:.1%}" in printed
  # A quarter of the pixels is missing: 48 are there, of about 0.4 nats each.
  _, model = Run(directory).load_newest()
  assert model.missing == "nan"
  assert -26 < result["log_likelihood"] < -14
  # Ten steps are too few to impute better than by the mean image.
  assert 0.3 < result["imputation_error"] < 0.5
  assert 0.3 < result["mean_imputation_error"] < 0.45


def test_evaluating_what_is_no_run_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"no config\.json"):
    runners.evaluate(config.EvalConfig(logdir=str(tmp_path)))
  Run(tmp_path).write_config(settings(tmp_path))
  with pytest.raises(ConfigError, match="no checkpoint"):
    runners.evaluate(config.EvalConfig(logdir=str(tmp_path)))


@pytest.mark.parametrize(
  "start, end, every, expected",
  [
    (0, 10, 4, [(0, 2, 4), (8, 1, 2)]),
    (0, 8, 4, [(0, 2, 4)]),
    (3, 10, 4, [(3, 1, 1), (4, 1, 4), (8, 1, 2)]),
    (3, 5, 10, [(3, 1, 2)]),
    (8, 10, 4, [(8, 1, 2)]),
    (10, 10, 4, []),
  ],
)
def test_segments(start, end, every, expected):
  assert runners.segments(start, end, every) == expected


def test_checkpoints_load_without_our_code_knowing_the_run(whole_run):
  directory, _ = whole_run
  model = keras.saving.load_model(Run(directory).checkpoints()[-1][1])
  assert int(model.optimizer.iterations) == 10


@pytest.mark.parametrize("has_products", [True, False])
def test_the_step_is_described(has_products, monkeypatch):
  monkeypatch.setattr(products, "multiplies_bfloat16", lambda: has_products)
  described = runners._describe_step(config.TrainConfig(dtype_policy="mixed_bfloat16"))
  assert "products of bfloat16" in described
  assert ("float32" in described) != has_products
