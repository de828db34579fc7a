"""What the runs of an experiment have given: read, grouped into trials, and as Markdown tables."""

import csv
import dataclasses
import functools
import glob
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from dregs_tf import catalogue, config
from dregs_tf.errors import ConfigError

LABELS = {name: row.label for name, row in catalogue.BOUNDS.items()}
_DATASETS = {"digits": "digits", "mnist": "MNIST", "omniglot": "Omniglot (TFDS, not Burda's file)"}

# Runs that differ in these alone are trials of one configuration: but for the seed, they say where
# and on what a run is trained, and what is measured on the way, not what is trained.
_OF_A_TRIAL = (
  *("seed", "data_dir", "logdir", "distribute", "num_devices", "checkpoint_every"),
  *("follow_test", "gradient_statistics", "track_variance"),
)

# What a bound takes of these is in its options; of others, such as those tracked, they say nothing
# of what is trained.
_OPTIONS = ("alpha", "initial_alpha", "jvi_order")

# The statistics of gradients are followed over some hundred steps: a table averages the rows of the
# last part of training.
LAST_PART = 0.25

_EVALUATION = "evaluation_test_5000.json"


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's directory, read.

  settings: its config.json.
  metrics: the columns of metrics.csv by name, each [num_rows]; `step` is one of them.
  test_bound: of result.json, in nats; None while the run is not at its last step.
  evaluation: what `bin/eval.py --num_samples=5000` has left of the last step, None if nothing.
  """

  settings: config.TrainConfig
  metrics: dict[str, np.ndarray]
  test_bound: float | None = None
  evaluation: dict | None = None


Curve = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Group:
  """The trials of one configuration: runs that differ in their seeds."""

  runs: tuple[Run, ...]

  @property
  def settings(self) -> config.TrainConfig:
    """What the trials share; the seed and the places are the first one's."""
    return self.runs[0].settings

  def trials(self, column: str) -> list[Curve]:
    """(steps, values) of a column, for each trial that has it."""
    runs = [run for run in self.runs if column in run.metrics]
    return [(run.metrics["step"], run.metrics[column]) for run in runs]

  def mean(self, column: str) -> Curve:
    """(steps, mean over those trials), at the steps that all of them have come to."""
    return mean_curve(self.trials(column))


def mean_curve(curves: Sequence[Curve]) -> Curve:
  """(steps, mean) at the steps that all curves have: later it would be the mean of others."""
  if not curves:
    return np.zeros(0), np.zeros(0)
  common = functools.reduce(np.intersect1d, [steps for steps, _ in curves])
  return common, np.mean([values[np.isin(steps, common)] for steps, values in curves], axis=0)


# --- reading -------------------------------------------------------------------------------------


def read(patterns: Sequence[str]) -> list[Run]:
  """The runs in the directories that match.

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
    runs = [path for path in paths if os.path.exists(os.path.join(path, "config.json"))]
    if not runs:
      raise ConfigError(
        f"--runs={pattern} matches no directory of a run, with a config.json in it."
        + (f" Of those in it: --runs='{pattern.rstrip('/')}/*'." if os.path.isdir(pattern) else "")
      )
    found |= {os.path.realpath(path): path for path in runs}
  runs = [_read(pathlib.Path(path)) for path in found.values()]
  begun = [run for run in runs if run is not None]
  if not begun:
    raise ConfigError(f"--runs={','.join(patterns)}: none of the runs has come to a summary yet.")
  return begun


def _read(directory: pathlib.Path) -> Run | None:
  """The run in a directory, None if it has no row of metrics.csv yet."""
  try:
    settings = config.load(directory)
    metrics = _with_own_variance(_columns(directory / "metrics.csv"), settings.bound)
    result = _of_last_step(directory / "result.json", settings)
    evaluation = _of_last_step(directory / _EVALUATION, settings)
    test_bound = result and float(result["test_bound"])
  except FileNotFoundError:
    return None
  except (OSError, TypeError, ValueError, LookupError, csv.Error) as error:
    raise ConfigError(f"--runs: {directory} cannot be read: {error!r}.") from error
  return Run(settings, metrics, test_bound, evaluation) if len(metrics["step"]) else None


def _with_own_variance(metrics: dict[str, np.ndarray], bound: str) -> dict[str, np.ndarray]:
  """The columns; a run that tracks its own bound has followed its own gradient."""
  own = {
    f"train_proposal_gradient_{name}": metrics[f"train_{bound}_gradient_{name}"]
    for name in ("variance", "snr")
    if f"train_{bound}_gradient_{name}" in metrics
  }
  return own | metrics


def _of_last_step(path: pathlib.Path, settings: config.TrainConfig) -> dict | None:
  """What a run has left at its last step; None if there is nothing, or of an earlier step."""
  found = json.loads(path.read_text()) if path.exists() else None
  return found if found and found["step"] >= settings.max_steps else None


def _columns(path: pathlib.Path) -> dict[str, np.ndarray]:
  with open(path, newline="") as file:
    header, *rows = list(csv.reader(file)) or [["step"]]
  if header[0] != "step":
    raise ValueError("the first column of metrics.csv is not the step")
  if rows and len(rows[-1]) != len(header):
    rows.pop()  # The run is writing it.
  values = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
  return dict(zip(header, values.T, strict=True))


# --- grouping ------------------------------------------------------------------------------------


def grouped(runs: Iterable[Run]) -> list[Group]:
  """The runs as trials, in the order of `config.BOUNDS` and of their settings.

  Raises:
    ConfigError: if two runs have the same configuration and the same seed.
  """
  groups = {}
  for run in runs:
    fields = dataclasses.asdict(run.settings)
    fields |= {"options": run.settings.bound_options, "adapt_alpha": run.settings.adapt_alpha}
    left_out = (*_OF_A_TRIAL, *_OPTIONS)
    key = tuple((name, str(value)) for name, value in fields.items() if name not in left_out)
    trials = groups.setdefault(key, {})
    seed = run.settings.seed
    if seed in trials:
      raise ConfigError(
        f"--runs: {trials[seed].settings.directory} and {run.settings.directory} have the same "
        "configuration and the same seed: leave one out."
      )
    trials[seed] = run
  members = [Group(tuple(trials[seed] for seed in sorted(trials))) for trials in groups.values()]
  return sorted(members, key=lambda group: _order(group.settings))


def _order(settings: config.TrainConfig) -> tuple:
  start = settings.bound_options.get("alpha", 0.0)
  return (
    *(settings.dataset, settings.task, settings.num_samples),
    *(config.BOUNDS.index(settings.bound), settings.adapt_alpha, start, str(settings)),
  )


def by_problem(groups: Iterable[Group]) -> dict[tuple[str, str, int], list[Group]]:
  """The groups that can be compared: of one data set, task and number of samples."""
  problems = {}
  for group in groups:
    settings = group.settings
    problems.setdefault((settings.dataset, settings.task, settings.num_samples), []).append(group)
  return problems


def problem_name(dataset: str, task: str) -> str:
  """How a title names a data set and a task."""
  return f"{_DATASETS.get(dataset, pathlib.Path(dataset).stem)}, {task}"


def labels(groups: Sequence[Group]) -> list[str]:
  """What each is called beside the others: its bound, and the settings in which they differ."""
  own = ("bound", "alpha", "initial_alpha", "dataset", "task", "num_samples", *_OF_A_TRIAL)
  # An option that a bound does not take would say nothing.
  fields = [
    {
      name: str(value)
      for name, value in dataclasses.asdict(group.settings).items()
      if name not in own and (name != "jvi_order" or "jvi" in group.settings.bound)
    }
    for group in groups
  ]
  names = []
  for group, each in zip(groups, fields, strict=True):
    told = [
      f"{name}={value}"
      for name, value in each.items()
      if any(other.get(name, value) != value for other in fields)
    ]
    names.append(", ".join([bound_label(group.settings), *told]))
  return names


def bound_label(settings: config.TrainConfig) -> str:
  """A bound's name in figures and tables, with its alpha."""
  if settings.bound != "dreg_alpha":
    return LABELS[settings.bound]
  alpha = f"{settings.bound_options['alpha']:g}"
  return f"alpha adapted, from {alpha}" if settings.adapt_alpha else f"alpha = {alpha}"


# --- tables --------------------------------------------------------------------------------------

# A single value of a bound is as noisy as the last iterate.
_LATE_BOUNDS = {"test bound, late": "test_bound", "train bound, late": "train_bound"}
_STATISTICS = {
  "proposal gradient variance": "train_proposal_gradient_variance",
  "its SNR": "train_proposal_gradient_snr",
  "model gradient variance": "train_model_gradient_variance",
}
_TRACKED = re.compile(r"train_(?!proposal_|model_)(\w+)_gradient_variance")


def tables(groups: Sequence[Group]) -> str:
  """Markdown: for each data set, task and K a table of the groups, and of the variances tracked."""
  parts = []
  for (dataset, task, num_samples), members in by_problem(groups).items():
    parts.append(f"**{problem_name(dataset, task)}, K = {num_samples}**")
    parts.append(_table(members))
    tracked = _tracked_table(members)
    if tracked:
      parts.append(
        "Variance of several estimators' gradient of the proposal along the same runs "
        f"(mean over the last {LAST_PART:.0%} of the steps):"
      )
      parts.append(tracked)
  return "\n\n".join(parts) + "\n"


def _table(groups: Sequence[Group]) -> str:
  columns = {
    "trained with": labels(groups),
    "seeds": [", ".join(str(run.settings.seed) for run in group.runs) for group in groups],
    "steps": [_steps(group) for group in groups],
    "test bound (nats)": [_over_trials([r.test_bound for r in g.runs], ".3f") for g in groups],
  }
  for title, column in _LATE_BOUNDS.items():
    if any(group.trials(column) for group in groups):
      columns[title] = [_late(group, column, ".3f", spread=True) for group in groups]
  evaluations = [[run.evaluation for run in group.runs] for group in groups]
  if any(each for group in evaluations for each in group):

    def values(name):
      return [[each and each[name] for each in group] for group in evaluations]

    columns["log p(x), 5000 samples (nats)"] = [
      _over_trials(group, ".3f") for group in values("log_likelihood")
    ]
    columns["standard error over images"] = [
      _over_trials(group, ".3f", spread=False) for group in values("standard_error")
    ]
  for title, column in _STATISTICS.items():
    if any(group.trials(column) for group in groups):
      columns[title] = [_late(group, column) for group in groups]
  text = _markdown(columns)
  notes = ["± is the standard deviation over the seeds."]
  if any(title in columns for title in (*_LATE_BOUNDS, *_STATISTICS)):
    notes.append(f"Late, and of gradients: the mean over the last {LAST_PART:.0%} of the steps.")
  if "its SNR" in columns:
    notes.append(
      "SNR: 0.07 is what independent noise has, the mean gradient being a moving average."
    )
  bounds = {group.settings.bound for group in groups}
  if bounds & {"jvi", "jvi_dreg"}:
    notes.append("JVI's objective is not a bound.")
  if bounds & {"elbo", "elbo_stl"}:
    notes.append("The ELBO's is the mean log-weight: a looser bound than the others'.")
  return f"{text}\n\n{' '.join(notes)}"


def _tracked_table(groups: Sequence[Group]) -> str | None:
  names = {
    match[1]: match[0]
    for group in groups
    for run in group.runs
    for column in run.metrics
    if (match := _TRACKED.fullmatch(column))
  }
  tracking = [g for g in groups if any(g.trials(column) for column in names.values())]
  if not tracking:
    return None
  ordered = sorted(names, key=lambda name: config.BOUNDS.index(name) if name in LABELS else -1)
  columns = {"trained with": labels(tracking)}
  for name in ordered:
    columns[LABELS.get(name, name)] = [_late(group, names[name]) for group in tracking]
  return _markdown(columns)


def _steps(group: Group) -> str:
  last, least = group.settings.max_steps, min(run.metrics["step"][-1] for run in group.runs)
  return f"{last}" if least >= last else f"{least:.0f} of {last}"


def _late(group: Group, column: str, style: str | None = None, spread: bool = False) -> str:
  """The mean of a column over the last part of the steps that all have come to, and over trials."""
  last = min(run.metrics["step"][-1] for run in group.runs)
  values = []
  for run in group.runs:
    steps = run.metrics["step"]
    is_late = ((1 - LAST_PART) * last < steps) & (steps <= last)
    there = column in run.metrics and is_late.any()
    values.append(run.metrics[column][is_late].mean() if there else None)
  return _over_trials(values, style or (".2e" if "variance" in column else ".2f"), spread=spread)


def _over_trials(values: Sequence[float | None], number: str, spread: bool = True) -> str:
  """The mean of what there is, and its standard deviation; says if not all trials have it."""
  there = [value for value in values if value is not None and not math.isnan(value)]
  if not there:
    return ""
  text = f"{np.mean(there):{number}}"
  if spread and len(there) > 1:
    text += f" ± {np.std(there, ddof=1):{number}}"
  return text if len(there) == len(values) else f"{text} ({len(there)} of {len(values)} seeds)"


def _markdown(columns: dict[str, list[str]]) -> str:
  rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)
