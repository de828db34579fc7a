"""Tests of the configurations: what is refused, in which words, and what may change."""

import dataclasses
import json
import math
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from dregs_tf import bounds, catalogue, data
from dregs_tf.training import bound_flags, config
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"

BAD = [
  ({"bound": "svi"}, "--bound", "'svi'", "iwae_dreg"),
  ({"task": "both"}, "--task", "'both'", "structured"),
  ({"bound": "iwae_drag"}, "--bound", "'iwae_drag'", "Did you mean iwae_dreg?"),
  ({"bound": ["iwae"]}, "--bound", "iwae_dreg"),
  ({"num_samples": 0}, "--num_samples", "got 0", "at least 1"),
  ({"num_samples": 1, "bound": "vimco"}, "--num_samples", "got 1", "at least 2 for --bound=vimco"),
  ({"num_samples": 4, "bound": "miwae"}, "--num_samples", "got 4", "at least 8 for --bound=miwae"),
  ({"num_samples": 9, "bound": "piwae", "groups": 2}, "--num_samples", "--groups=2", "got 9"),
  ({"bound": "miwae", "groups": 0}, "--groups", "got 0", "1 or more"),
  ({"bound": "ciwae", "beta": 1.1}, "--beta", "got 1.1", "[0, 1]"),
  ({"bound": "tvo", "betas": [0, 0.5]}, "--betas", "0.5", "rises from 0 to 1"),
  ({"bound": "tvo", "betas": ["0", "x"]}, "--betas", "'x'", "rises from 0 to 1"),
  ({"beta": 0.1}, "--beta", "--bound=iwae_dreg", "--bound=ciwae or ciwae_dreg"),
  ({"gamma": 0.1}, "--gamma", "--bound=iwae_dreg", "--bound=ovis"),
  ({"track_variance": "ovis", "a": 0.1}, "--a", "--bound=iwae_dreg", "--bound=iwae_cv"),
  ({"track_variance": "iwae_cv", "b": 1.0}, "--track_variance=iwae_cv", "--a, --g, --d", "--bound"),
  (
    {"bound": "iwae_cv", "a": 0.5, "num_backward_samples": 3},
    "--bound=iwae_cv, without --b, --g, --d,",
    "--num_backward_samples=3",
  ),
  ({"bound": "vr_iwae", "alpha": "auto"}, "--alpha=auto", "--bound=vr_iwae", "dreg_alpha"),
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
  ({"bound": "jvi", "jvi_order": -1}, "--jvi_order", "got -1", "0 or more"),
  ({"bound": "jvi", "jvi_order": 1.0}, "--jvi_order", "got 1.0", "int"),
  ({"jvi_order": 2}, "--jvi_order", "--bound=iwae_dreg", "--bound=jvi or jvi_dreg"),
  ({"alpha": 0.5}, "--alpha", "--bound=iwae_dreg", "--bound=dreg_alpha"),
  ({"bound": "dreg_alpha", "alpha": math.nan}, "--alpha", "got nan", "[0, 1]"),
  ({"bound": "dreg_alpha", "alpha": "much"}, "--alpha", "got 'much'", "[0, 1], or auto"),
  ({"alpha": "auto"}, "--alpha", "--bound=iwae_dreg", "--bound=dreg_alpha"),
  (
    {"bound": "dreg_alpha", "track_variance": "iwae,vr_iwae", "alpha": 0.1},
    "--alpha has another meaning for dreg_alpha than for vr_iwae",
    "got 0.1",
  ),
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


def test_every_option_of_a_bound_is_a_flag():
  """Otherwise a bound could not be trained with it."""
  options = {option for row in catalogue.BOUNDS.values() for option in row.options}
  assert set(bound_flags.OPTION_FIELDS) == options
  assert set(bound_flags.OPTION_FIELDS.values()) <= set(config.TrainConfig.__dataclass_fields__)


@pytest.mark.parametrize(
  "values, expected",
  [
    ({"bound": "vr_iwae_dreg", "alpha": "0.25"}, {"vr_iwae_dreg": {"alpha": 0.25}}),
    ({"bound": "tvo", "betas": ["0", "0.3", "1"]}, {"tvo": {"betas": (0.0, 0.3, 1.0)}}),
    ({"bound": "tvo"}, {"tvo": {"betas": (0.0, 0.1, 0.4, 1.0)}}),
    ({"bound": "iwae_cv", "g": 0.5}, {"iwae_cv": {"a": None, "b": None, "g": 0.5, "d": None}}),
    # Each bound has its own default of alpha.
    (
      {"bound": "dreg_alpha", "track_variance": "vr_iwae,miwae", "groups": 4},
      {"dreg_alpha": {"alpha": 0.9}, "vr_iwae": {"alpha": 0.5}, "miwae": {"groups": 4}},
    ),
    (
      {"bound": "vr_iwae", "track_variance": "vr_iwae_dreg", "alpha": 0.1},
      {"vr_iwae": {"alpha": 0.1}, "vr_iwae_dreg": {"alpha": 0.1}},
    ),
    (
      {"bound": "dreg_alpha", "track_variance": "vr_iwae", "alpha": "auto", "initial_alpha": 0.2},
      {"dreg_alpha": {"alpha": 0.2}, "vr_iwae": {"alpha": 0.5}},
    ),
  ],
)
def test_options_reach_their_bounds(values, expected):
  settings = config.TrainConfig(**values)
  options = {settings.bound: settings.bound_options} | settings.tracked_bounds
  assert options == expected
  for name, each in options.items():
    assert catalogue.options_of(name, each) == each


@pytest.mark.parametrize(
  "values, bound, expected",
  [
    ({"bound": "vr_iwae_dreg", "alpha": 0.2}, "vr_iwae", {"alpha": 0.2}),
    ({"bound": "vr_iwae_dreg", "alpha": 0.2}, "dreg_alpha", {"alpha": 0.9}),
    ({"bound": "vr_iwae_dreg"}, "dreg_alpha", {"alpha": 0.9}),
    ({"bound": "dreg_alpha", "alpha": 0.2}, "vr_iwae", {"alpha": 0.5}),
    ({"track_variance": "piwae", "groups": 4}, "miwae", {"groups": 4}),
  ],
)
def test_other_bounds_take_a_runs_option_only_in_its_meaning(values, bound, expected):
  assert config.TrainConfig(**values).options_of(bound) == expected


@pytest.mark.parametrize("bound", ["jvi", "tvo", "iwae_cv"])
def test_saved_and_loaded(bound, tmp_path):
  order = 2 if bound == "jvi" else None
  settings = config.TrainConfig(
    bound=bound, jvi_order=order, logdir=str(tmp_path), learning_rate=1e-2
  )
  Run(settings.directory).write_config(settings, {"keras": "3.15.0"})
  assert json.loads((tmp_path / "config.json").read_text())["versions"] == {"keras": "3.15.0"}
  assert Run(tmp_path).read_config() == settings
  assert Run(tmp_path / "nothing").read_config() is None


def test_a_configuration_of_the_first_release_is_read(tmp_path):
  """It has neither versions nor the options of later bounds."""
  old = EXPERIMENTS / "results" / "digits_generative_jvi_order1_K64_seed0" / "config.json"
  if not old.exists():
    pytest.skip("a source distribution has no results")
  fields = json.loads(old.read_text())
  assert not {"versions", "betas"} & fields.keys()
  (tmp_path / "config.json").write_text(old.read_text())
  saved = Run(tmp_path).read_config()
  assert {name: getattr(saved, name) for name in fields} == fields | {"logdir": str(tmp_path)}
  del fields["logdir"]
  config.TrainConfig(**fields, logdir=str(tmp_path)).check_resumes(saved)
  assert config.TrainConfig(**fields).directory.name == old.parent.name


def test_a_configuration_keeps_absolute_paths(tmp_path, monkeypatch):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "link").symlink_to(tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  paths = {"dataset": "own.npz", "data_dir": "~/tfds", "init_from": "other"}
  settings = config.TrainConfig(logdir="run", **paths)
  name = dataclasses.replace(settings, logdir=None).directory
  assert "own_" in name.name
  settings.directory.mkdir()
  Run("run").write_config(settings)
  assert settings.without_paths()["dataset"] == "own.npz"  # The same for workers in other folders.
  monkeypatch.chdir(tmp_path / "elsewhere")
  saved = Run("../run").read_config()
  assert saved.dataset == str(tmp_path / "own.npz")
  assert saved.data_dir == str(tmp_path / "tfds")
  assert saved.init_from == str(tmp_path / "other")
  assert dataclasses.replace(saved, logdir=None).directory == name
  # Another spelling of the same paths resumes the run, also of one whose paths are relative.
  for dataset, init_from in (
    ("../own.npz", "../other"),
    ("~/own.npz", f"{tmp_path}/link/other"),
  ):
    again = dataclasses.replace(saved, dataset=dataset, init_from=init_from)
    again.check_resumes(saved)
    saved.check_resumes(again)
  with pytest.raises(ConfigError, match=f"--dataset was {tmp_path}/own.npz, now .*/elsewhere/own"):
    dataclasses.replace(saved, dataset="own.npz").check_resumes(saved)


def test_only_paths_are_made_absolute():
  assert not any(pathlib.Path(name).suffix for name in data.names())
  for name in data.names():
    assert config.TrainConfig(dataset=name, data_dir="gs://bucket/tfds").absolute_paths == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bound": "x"}', '{"unknown": 1}', "\x00"])
def test_a_damaged_configuration_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ConfigError, match=r"config\.json"):
    Run(tmp_path).read_config()


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
    config.TrainConfig(bound="tvo"),
    config.TrainConfig(bound="tvo", betas=(0, 0.3, 1)),
    config.TrainConfig(task="structured"),
    config.TrainConfig(dataset="mnist"),
    config.TrainConfig(num_samples=8),
    config.TrainConfig(num_samples=8, num_backward_samples=4),
  ]
  assert len({run.directory for run in runs}) == len(runs)


_anything = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-3, 70),
  st.integers(),
  st.floats(allow_nan=True),
  st.text(max_size=5),
  st.sampled_from([*config.BOUNDS, *config.TASKS]),
  st.lists(st.integers(), max_size=2),
)


@hypothesis.settings(max_examples=500, derandomize=True, deadline=None, database=None)
@hypothesis.given(kind=st.sampled_from([config.TrainConfig, config.EvalConfig]), data=st.data())
def test_any_configuration_is_valid_or_refused_in_one_line(kind, data):
  names = st.sampled_from(sorted(kind.__dataclass_fields__))
  values = data.draw(st.dictionaries(names, _anything, max_size=4))
  try:
    settings = kind(**values)
  except ConfigError as error:
    assert "\n" not in str(error)
    assert any(f"--{name}" in str(error) for name in [*values, "num_samples", "logdir"])
  else:
    assert settings == kind(**values)
    assert settings.num_samples >= 1
    if kind is config.TrainConfig:
      bounds.check_num_samples(
        settings.num_samples, bounds.get(settings.bound, **settings.bound_options)
      )
