"""Results of runs: read, grouped into trials, and formatted as Markdown tables."""

import csv
import dataclasses
import functools
import glob
import math
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from dregs_tf import catalogue
from dregs_tf.training import bound_flags, config
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.flags import flag
from dregs_tf.training.run_directory import Run

LABELS = {name: row.label for name, row in catalogue.BOUNDS.items()}
_DATASETS = {"digits": "digits", "mnist": "MNIST", "omniglot": "Omniglot (TFDS, not Burda's file)"}

# Runs that differ in these alone are trials of one configuration: except for the seed, they are
# paths, devices and measurements during training.
_OF_A_TRIAL = (
  *("seed", "data_dir", "logdir", "distribute", "num_devices", "checkpoint_every"),
  *("follow_test", "gradient_statistics", "track_variance"),
)

# The bound's own options are compared as such. These fields may also be options of tracked bounds.
_OPTIONS = ("initial_alpha", *bound_flags.OPTION_FIELDS.values())

# Gradient statistics are moving averages over some hundred steps: a table averages the rows of the
# last part of training.
LAST_PART = 0.25


@dataclasses.dataclass(frozen=True)
class Result:
  """The results of a run.

  settings: its configuration.
  metrics: the columns of metrics.csv by name, each [num_rows]; `step` is one of them.
  test_bound: the bound on the test set in nats; None before the last step.
  evaluation: the result of `bin/eval.py --num_samples=5000` at the last step, or None.
  """

  settings: config.TrainConfig
  metrics: dict[str, np.ndarray]
  test_bound: float | None = None
  evaluation: dict | None = None


Curve = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Group:
  """The trials of one configuration: runs that differ in their seeds."""

  runs: tuple[Result, ...]

  @property
  def settings(self) -> config.TrainConfig:
    """The settings that the trials share, with the first one's seed and paths."""
    return self.runs[0].settings

  def trials(self, column: str) -> list[Curve]:
    """Returns (steps, values) of a column, for each trial that has it."""
    runs = [run for run in self.runs if column in run.metrics]
    return [(run.metrics["step"], run.metrics[column]) for run in runs]

  def mean(self, column: str) -> Curve:
    """Returns (steps, mean over those trials), at the steps that all of them have reached."""
    return mean_curve(self.trials(column))


def mean_curve(curves: Sequence[Curve]) -> Curve:
  """Returns (steps, mean) at the steps that all curves have."""
  if not curves:
    return np.zeros(0), np.zeros(0)
  common = functools.reduce(np.intersect1d, [steps for steps, _ in curves])
  return common, np.mean([values[np.isin(steps, common)] for steps, values in curves], axis=0)


def runs_flag():
  """Returns the field of --runs."""
  text = "Directories of runs; *, ? and [] stand for the same as in a shell: quote them."
  return flag((), list, text)


@dataclasses.dataclass(frozen=True)
class SummarizeConfig:
  """Flags of `bin/summarize.py`."""

  runs: Sequence[str] = runs_flag()


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
    evaluation = _of_last_step(run.read_evaluation(), settings)
    test_bound = result and float(result["test_bound"])
  except FileNotFoundError:
    return None
  except (OSError, TypeError, ValueError, LookupError, csv.Error) as error:
    raise ConfigError(f"--runs: {directory} cannot be read: {error!r}.") from error
  return Result(settings, metrics, test_bound, evaluation) if len(metrics["step"]) else None


def _with_own_variance(metrics: dict[str, np.ndarray], bound: str) -> dict[str, np.ndarray]:
  """Returns the columns, and those of the run's own bound as its own, if it tracks that."""
  own = {
    f"train_proposal_gradient_{name}": metrics[f"train_{bound}_gradient_{name}"]
    for name in ("variance", "snr")
    if f"train_{bound}_gradient_{name}" in metrics
  }
  return own | metrics


def _of_last_step(found: dict | None, settings: config.TrainConfig) -> dict | None:
  """Returns a result if it is of the run's last step; None if there is none, or of an earlier."""
  return found if found and found["step"] >= settings.max_steps else None


# --- grouping ------------------------------------------------------------------------------------


def grouped(runs: Iterable[Result]) -> list[Group]:
  """Groups runs that are trials of one configuration, in the order of `config.BOUNDS`.

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
    *(settings.dataset, settings.task, settings.num_samples, settings.model != "vae"),
    *(config.BOUNDS.index(settings.bound), settings.adapt_alpha, start, str(settings)),
  )


def by_problem(groups: Iterable[Group]) -> dict[tuple[str, str, int], list[Group]]:
  """Returns the groups by data set, task and number of samples: those can be compared.

  The task says so where the latents are other than the paper's.
  """
  problems = {}
  for group in groups:
    settings = group.settings
    latents = "" if settings.model == "vae" else f", {settings.model} latents"
    task = settings.task + latents
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


# --- tables --------------------------------------------------------------------------------------

# A single value of a bound is as noisy as the last iterate, so that late ones are averaged.
_LATE_BOUNDS = {"test bound, late": "test_bound", "train bound, late": "train_bound"}
_STATISTICS = {
  "proposal gradient variance": "train_proposal_gradient_variance",
  "model gradient variance": "train_model_gradient_variance",
}
_TRACKED = re.compile(r"train_(?!proposal_|model_)(\w+)_gradient_variance")


def tables(groups: Sequence[Group]) -> str:
  """Formats Markdown tables of groups, and of tracked variances, for each data set, task and K."""
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
  objectives = {catalogue.BOUNDS[group.settings.bound].objective for group in groups}
  if "jvi" in objectives:
    notes.append("JVI's objective is not a bound.")
  if "elbo" in objectives:
    notes.append("The ELBO's is the mean log-weight: a looser bound than the others'.")
  if objectives - {"iwae", "jvi", "elbo"}:
    notes.append("Values of different objectives cannot be compared; log p(x) can.")
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
  """Averages a column over the last part of the steps that all have reached, and over trials."""
  last = min(run.metrics["step"][-1] for run in group.runs)
  values = []
  for run in group.runs:
    steps = run.metrics["step"]
    is_late = ((1 - LAST_PART) * last < steps) & (steps <= last)
    has_values = column in run.metrics and is_late.any()
    values.append(run.metrics[column][is_late].mean() if has_values else None)
  return _over_trials(values, style or (".2e" if "variance" in column else ".2f"), spread=spread)


def _over_trials(values: Sequence[float | None], number: str, spread: bool = True) -> str:
  """Formats the mean of the values, and their standard deviation; notes if trials are missing."""
  present = [value for value in values if value is not None and not math.isnan(value)]
  if not present:
    return ""
  text = f"{np.mean(present):{number}}"
  if spread and len(present) > 1:
    text += f" ± {np.std(present, ddof=1):{number}}"
  return text if len(present) == len(values) else f"{text} ({len(present)} of {len(values)} seeds)"


def _markdown(columns: dict[str, list[str]]) -> str:
  rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)
