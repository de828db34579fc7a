"""Reads results of runs, and groups them into trials."""

import csv
import dataclasses
import functools
import glob
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from dregs_tf import catalogue
from dregs_tf.training import bound_flags, config
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.flags import flag
from dregs_tf.training.run_directory import Run
from experiments.definitions import num_evaluated

LABELS = {name: row.label for name, row in (catalogue.BOUNDS | catalogue.SEQUENCE_BOUNDS).items()}
_DATASETS = {"digits": "digits", "mnist": "MNIST", "omniglot": "Omniglot (TFDS, not Burda's file)"}

# Runs that differ only in these fields are trials of one configuration. Besides the seed, they are
# paths, devices and measurements during training.
_OF_A_TRIAL = (
  *("seed", "data_dir", "logdir", "distribute", "num_devices", "checkpoint_every"),
  *("follow_test", "gradient_statistics", "track_variance"),
)

# The bound's own options are compared separately, since these fields may also be options of tracked
# bounds.
_OPTIONS = ("initial_alpha", *bound_flags.OPTION_FIELDS.values())

# Gradient statistics are moving averages over about a hundred steps, so a table averages the rows
# of the last part of training.
LAST_PART = 0.25


@dataclasses.dataclass(frozen=True)
class Result:
  """Holds the results of a run.

  settings: its configuration.
  metrics: the columns of metrics.csv by name, each [num_rows]; `step` is one of them.
  test_bound: the bound on the test set in nats; None before the last step.
  evaluation: the result of `bin/eval.py` with `num_evaluated` samples at the last step, or None.
  """

  settings: config.TrainConfig
  metrics: dict[str, np.ndarray]
  test_bound: float | None = None
  evaluation: dict | None = None


Curve = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Group:
  """Holds the trials of one configuration: runs that differ in their seeds."""

  runs: tuple[Result, ...]

  @property
  def settings(self) -> config.TrainConfig:
    """Returns the settings that the trials share, with the first one's seed and paths."""
    return self.runs[0].settings

  def trials(self, column: str) -> list[Curve]:
    """Returns (steps, values) of a column, for each trial that has it."""
    runs = [run for run in self.runs if column in run.metrics]
    return [(run.metrics["step"], run.metrics[column]) for run in runs]

  def mean(self, column: str) -> Curve:
    """Returns (steps, mean over those trials), at the steps that all of them have reached."""
    return mean_curve(self.trials(column))


def late_mean(run: Result, column: str, last: float) -> float | None:
  """Returns the mean of a column over the last part of the steps up to `last`, None without it."""
  steps = run.metrics["step"]
  is_late = ((1 - LAST_PART) * last < steps) & (steps <= last)
  return run.metrics[column][is_late].mean() if column in run.metrics and is_late.any() else None


def final_mean(run: Result, column: str) -> float | None:
  """Returns the mean of a column over the last part of a run, None before it is finished."""
  return late_mean(run, column, run.settings.max_steps) if run.test_bound is not None else None


def mean_curve(curves: Sequence[Curve]) -> Curve:
  """Returns (steps, mean) at the steps that all curves have."""
  if not curves:
    return np.zeros(0), np.zeros(0)
  common = functools.reduce(np.intersect1d, [steps for steps, _ in curves])
  return common, np.mean([values[np.isin(steps, common)] for steps, values in curves], axis=0)


def runs_flag():
  """Returns the field of --runs."""
  text = "Directories of runs; *, ? and [] match as in a shell: quote them."
  return flag((), list, text)


# --- reading -------------------------------------------------------------------------------------


def read(patterns: Sequence[str]) -> list[Result]:
  """Reads the runs in the directories that match.

  Args:
    patterns: directories of runs; *, ? and [] as in a shell.

  Raises:
    ConfigError: if a pattern matches no run, or a run cannot be read; names --runs.
  """
  if not patterns:
    raise ConfigError("--runs must name directories of runs, such as --runs='runs/reduced/*'.")
  found = {}
  for pattern in patterns:
    paths = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    runs = [path for path in paths if Run(path).is_there()]
    if not runs:
      raise ConfigError(
        f"--runs={pattern} matches no directory of a run, with a config.json in it."
        + (f" For those in it: --runs='{pattern.rstrip('/')}/*'." if os.path.isdir(pattern) else "")
      )
    found |= {os.path.realpath(path): path for path in runs}
  runs = [_read(pathlib.Path(path)) for path in found.values()]
  begun = [run for run in runs if run is not None]
  if not begun:
    raise ConfigError(f"--runs={','.join(patterns)}: none of the runs has reached a summary yet.")
  return begun


def _read(directory: pathlib.Path) -> Result | None:
  """Reads the run in a directory; None if it has no row of metrics.csv yet."""
  run = Run(directory)
  try:
    settings = run.read_config()
    metrics = _with_own_variance(run.read_metrics(), settings.bound)
    result = _of_last_step(run.read_result(), settings)
    evaluation = _of_last_step(run.read_evaluation(num_samples=num_evaluated(settings)), settings)
    test_bound = result and float(result["test_bound"])
  except FileNotFoundError:
    return None
  except (OSError, TypeError, ValueError, LookupError, csv.Error) as error:
    raise ConfigError(f"--runs: {directory} cannot be read: {error!r}.") from error
  return Result(settings, metrics, test_bound, evaluation) if len(metrics["step"]) else None


def _with_own_variance(metrics: dict[str, np.ndarray], bound: str) -> dict[str, np.ndarray]:
  """Returns the columns, with tracked ones of the run's own bound also under its own names."""
  own = {
    f"train_proposal_gradient_{name}": metrics[f"train_{bound}_gradient_{name}"]
    for name in ("variance", "snr")
    if f"train_{bound}_gradient_{name}" in metrics
  }
  return own | metrics


def _of_last_step(found: dict | None, settings: config.TrainConfig) -> dict | None:
  """Returns a result if it belongs to the run's last step, None otherwise."""
  return found if found and found["step"] >= settings.max_steps else None


# --- grouping ------------------------------------------------------------------------------------


def grouped(runs: Iterable[Result]) -> list[Group]:
  """Groups runs that are trials of one configuration, in the order of `LABELS`.

  Raises:
    ConfigError: if two runs have the same configuration and the same seed.
  """
  groups = {}
  for run in runs:
    settings = run.settings
    options = str(settings.bound_options), settings.adapt_alpha
    trials = groups.setdefault((settings.bound, options, shared_settings(settings)), {})
    seed = settings.seed
    if seed in trials:
      raise ConfigError(
        f"--runs: {trials[seed].settings.directory} and {settings.directory} have the same "
        "configuration and the same seed: leave one out."
      )
    trials[seed] = run
  members = [Group(tuple(trials[seed] for seed in sorted(trials))) for trials in groups.values()]
  return sorted(members, key=lambda group: _order(group.settings))


def shared_settings(settings: config.TrainConfig) -> tuple:
  """Returns the settings that runs must share to be compared: all but the bound's and a trial's."""
  left_out = ("bound", *_OF_A_TRIAL, *_OPTIONS)
  fields = dataclasses.asdict(settings)
  return tuple((name, str(value)) for name, value in fields.items() if name not in left_out)


def _order(settings: config.TrainConfig) -> tuple:
  start = settings.bound_options.get("alpha", 0.0)
  return (
    *(settings.dataset, settings.task, settings.num_samples, settings.model != "vae"),
    *(list(LABELS).index(settings.bound), settings.adapt_alpha, start, str(settings)),
  )


def by_problem(groups: Iterable[Group]) -> dict[tuple[str, str, int], list[Group]]:
  """Returns the groups by data set, task and number of samples, within which they are comparable.

  The task also names latents other than the paper's, and images that are read row by row.
  """
  problems = {}
  for group in groups:
    settings = group.settings
    of_model = {"vae": "", "vrnn": ", row by row"}
    task = settings.task + of_model.get(settings.model, f", {settings.model} latents")
    problems.setdefault((settings.dataset, task, settings.num_samples), []).append(group)
  return problems


def problem_name(dataset: str, task: str) -> str:
  """Names a data set and a task for a title."""
  return f"{_DATASETS.get(dataset, pathlib.Path(dataset).stem)}, {task}"


def labels(groups: Sequence[Group]) -> list[str]:
  """Names each group by its bound, and by the settings in which the groups differ."""
  named = ("bound", "dataset", "task", "num_samples", *_OF_A_TRIAL, *_OPTIONS)
  fields = [
    {k: str(v) for k, v in dataclasses.asdict(group.settings).items() if k not in named}
    | {
      bound_flags.OPTION_FIELDS[option]: str(value)
      for option, value in group.settings.bound_options.items()
      if group.settings.bound != "dreg_alpha"  # Its label holds alpha.
    }
    for group in groups
  ]
  names = []
  for group, each in zip(groups, fields, strict=True):
    differing = [
      f"{name}={value}"
      for name, value in each.items()
      if any(other.get(name, value) != value for other in fields)
    ]
    names.append(", ".join([bound_label(group.settings), *differing]))
  return names


def bound_label(settings: config.TrainConfig) -> str:
  """Names a bound in figures and tables, with the alpha of dreg_alpha."""
  if settings.bound != "dreg_alpha":
    return LABELS[settings.bound]
  alpha = f"{settings.bound_options['alpha']:g}"
  return f"alpha adapted, from {alpha}" if settings.adapt_alpha else f"alpha = {alpha}"
