"""Tests of the configurations: what is refused, in which words, and what may change."""

import dataclasses
import math

import pytest

from dregs_tf import config
from dregs_tf.errors import ConfigError

BAD = [
  ({"bound": "svi"}, "--bound", "'svi'", "iwae_dreg"),
  ({"task": "both"}, "--task", "'both'", "structured"),
  ({"num_samples": 0}, "--num_samples", "got 0", "at least 1"),
  ({"num_samples": -3}, "--num_samples", "got -3", "at least 1"),
  ({"num_samples": 2.5}, "--num_samples", "got 2.5", "whole number"),
  ({"num_samples": True}, "--num_samples", "got True", "whole number"),
  ({"num_samples": 1, "bound": "jvi"}, "--num_samples", "got 1", "at least 2 for --bound=jvi"),
  (
    {"num_samples": 3, "bound": "jvi_dreg", "jvi_order": 3},
    "--num_samples",
    "got 3",
    "at least 4 for --bound=jvi_dreg",
  ),
  ({"num_backward_samples": 0}, "--num_backward_samples", "got 0", "at least 1"),
  ({"num_backward_samples": 65}, "--num_backward_samples", "got 65", "at most --num_samples=64"),
  ({"bound": "jvi", "jvi_order": 0}, "--jvi_order", "got 0", "at least 1"),
  ({"jvi_order": 2}, "--jvi_order", "--bound=iwae_dreg", "--bound=jvi or jvi_dreg"),
  ({"alpha": 0.5}, "--alpha", "--bound=iwae_dreg", "--bound=dreg_alpha"),
  ({"bound": "dreg_alpha", "alpha": math.nan}, "--alpha", "got nan", "[0, 1]"),
  ({"bound": "dreg_alpha", "alpha": "much"}, "--alpha", "got 'much'", "[0, 1], or auto"),
  ({"alpha": "auto"}, "--alpha", "--bound=iwae_dreg", "--bound=dreg_alpha"),
  ({"alpha": "auto", "track_variance": "dreg_alpha"}, "--alpha=auto", "--bound=dreg_alpha"),
  ({"bound": "dreg_alpha", "initial_alpha": 0.5}, "--initial_alpha", "--alpha=auto"),
  ({"bound": "dreg_alpha", "alpha": "auto", "initial_alpha": 2.0}, "--initial_alpha", "[0, 1]"),
  ({"track_variance": "iwae,none"}, "--track_variance", "'none'", "iwae_dreg"),
  ({"track_variance": "iwae,iwae"}, "--track_variance", "twice", "iwae,iwae"),
  ({"track_variance": True}, "--track_variance", "True"),
  ({"track_variance": "jvi", "num_samples": 1}, "--num_samples", "--track_variance=jvi", "got 1"),
  ({"track_variance": "iwae", "num_backward_samples": 4}, "--track_variance", "--num_backward"),
  ({"freeze_model": True}, "--freeze_model", "--init_from"),
  ({"bound": "dreg_alpha", "alpha": 1.5}, "--alpha", "got 1.5", "[0, 1]"),
  ({"batch_size": 0}, "--batch_size", "got 0", "at least 1"),
  ({"latent_dim": -1}, "--latent_dim", "got -1", "at least 1"),
  ({"max_steps": 0}, "--max_steps", "got 0", "at least 1"),
  ({"summarize_every": 0}, "--summarize_every", "got 0", "at least 1"),
  ({"checkpoint_every": -5}, "--checkpoint_every", "got -5", "at least 1"),
  ({"seed": -1}, "--seed", "got -1", "at least 0"),
  ({"learning_rate": 0.0}, "--learning_rate", "got 0.0", "positive"),
  ({"learning_rate": math.nan}, "--learning_rate", "got nan", "positive"),
  ({"learning_rate": math.inf}, "--learning_rate", "got inf", "positive"),
]


@pytest.mark.parametrize("case", BAD, ids=[str(case[0]) for case in BAD])
def test_bad_values_are_refused_in_one_line(case):
  values, *words = case
  with pytest.raises(ConfigError) as error:
    config.TrainConfig(**values)
  message = str(error.value)
  assert "\n" not in message
  for word in words:
    assert word in message


@pytest.mark.parametrize(
  "values, word",
  [
    ({}, "--logdir"),
    ({"logdir": "x", "num_samples": 0}, "--num_samples"),
    ({"logdir": "x", "split": "dev"}, "--split"),
    ({"logdir": "x", "batch_size": 0}, "--batch_size"),
    ({"logdir": "x", "seed": -1}, "--seed"),
  ],
)
def test_bad_values_of_an_evaluation_are_refused(values, word):
  with pytest.raises(ConfigError, match=word):
    config.EvalConfig(**values)


def test_saved_and_loaded(tmp_path):
  settings = config.TrainConfig(bound="jvi", jvi_order=2, logdir=str(tmp_path), learning_rate=1e-2)
  settings.save()
  assert config.load(tmp_path) == settings
  assert config.load(tmp_path / "nothing") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bound": "x"}', '{"unknown": 1}', "\x00"])
def test_a_damaged_configuration_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ConfigError, match=r"config\.json"):
    config.load(tmp_path)


def test_only_some_flags_may_change_on_resuming():
  saved = config.TrainConfig(logdir="a")
  dataclasses.replace(saved, max_steps=10**6).check_resumes(saved)
  with pytest.raises(ConfigError) as error:
    dataclasses.replace(saved, seed=3, batch_size=5).check_resumes(saved)
  assert "--seed was 0, now 3" in str(error.value)
  assert "--batch_size was 32, now 5" in str(error.value)


def test_default_directories_tell_runs_apart():
  runs = [
    config.TrainConfig(),
    config.TrainConfig(seed=1),
    config.TrainConfig(bound="jvi"),
    config.TrainConfig(bound="jvi", jvi_order=2),
    config.TrainConfig(bound="dreg_alpha", alpha=0.25),
    config.TrainConfig(task="structured"),
    config.TrainConfig(dataset="mnist"),
    config.TrainConfig(num_samples=8),
    config.TrainConfig(num_samples=8, num_backward_samples=4),
  ]
  assert len({run.directory for run in runs}) == len(runs)
