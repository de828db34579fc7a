"""Formats results of runs as Markdown tables."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from dregs_tf import catalogue
from dregs_tf.training import checks
from dregs_tf.training.flags import flag
from experiments.definitions import num_evaluated
from experiments.differences import (
  Interval,
  common_seeds,
  interval,
  late_bound_differences,
  log_likelihood_differences,
  pairs,
)
from experiments.results import (
  LABELS,
  LAST_PART,
  Group,
  by_problem,
  labels,
  late_mean,
  problem_name,
  runs_flag,
)

TABLES = ("runs", "where")


@dataclasses.dataclass(frozen=True)
class SummarizeConfig:
  """Holds the flags of `bin/summarize.py`."""

  runs: Sequence[str] = runs_flag()
  table: str = flag(
    "runs",
    str,
    "runs: the results of each configuration; where: what each bound gains from its DReG, over K.",
    TABLES,
  )

  def __post_init__(self):
    checks.check_choice("table", self.table, TABLES)


# A single value of a bound is as noisy as the last iterate, so late values are averaged.
_LATE_BOUNDS = {"test bound, late": "test_bound", "train bound, late": "train_bound"}
_STATISTICS = {
  "proposal gradient variance": "train_proposal_gradient_variance",
  "model gradient variance": "train_model_gradient_variance",
  "prior gradient variance": "train_prior_gradient_variance",
}
_TRACKED = re.compile(r"train_(?!proposal_|model_|prior_)(\w+)_gradient_variance")


def tables(groups: Sequence[Group]) -> str:
  """Formats Markdown tables for each data set, task and K.

  The tables show the groups, their differences if there are several seeds, and tracked variances.
  """
  parts = []
  for (dataset, task, num_samples), members in by_problem(groups).items():
    parts.append(f"**{problem_name(dataset, task)}, K = {num_samples}**")
    parts.append(_table(members))
    differences = _differences_table(members)
    if differences:
      parts.append(
        "Differences between runs of the same seed, in nats, with 95 % t-intervals of their mean "
        "over the seeds:"
      )
      parts.append(differences)
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
      return [[each and each.get(name) for each in group] for group in evaluations]

    columns[f"{_log_likelihood(groups)} (nats)"] = [
      _over_trials(group, ".3f") for group in values("log_likelihood")
    ]
    columns["standard error over images"] = [
      _over_trials(group, ".3f", spread=False) for group in values("standard_error")
    ]
    if any(each is not None for group in values("untrusted") for each in group):
      columns["images with k-hat > 0.7"] = [
        _over_trials(group, ".1%", spread=False) for group in values("untrusted")
      ]
  for title, column in _STATISTICS.items():
    if any(group.trials(column) for group in groups):
      columns[title] = [_late(group, column) for group in groups]
  text = markdown(columns)
  notes = ["± is the standard deviation over the seeds."]
  if any(title in columns for title in (*_LATE_BOUNDS, *_STATISTICS)):
    notes.append(f"Late, and of gradients: the mean over the last {LAST_PART:.0%} of the steps.")
  objectives = {catalogue.row(group.settings.bound).objective for group in groups}
  if "jvi" in objectives:
    notes.append("JVI's objective is not a bound.")
  if "elbo" in objectives:
    notes.append("The ELBO's is the mean log-weight: a looser bound than the others'.")
  if objectives - {"iwae", "jvi", "elbo"}:
    notes.append("Values of different objectives cannot be compared; log p(x) can.")
  return f"{text}\n\n{' '.join(notes)}"


def _differences_table(groups: Sequence[Group]) -> str | None:
  """Formats the differences of the pairs that have several seeds in common, None without one."""
  names = dict(zip(map(id, groups), labels(groups), strict=True))
  differences = {
    "test bound, late": late_bound_differences,
    _log_likelihood(groups): log_likelihood_differences,
  }
  rows = []
  for group, base in pairs(groups):
    seeds = common_seeds(group, base)
    cells = [_cell(difference(group, base), len(seeds)) for difference in differences.values()]
    if len(seeds) > 1 and any(cells):
      rows.append([names[id(group)], names[id(base)], ", ".join(map(str, seeds)), *cells])
  if not rows:
    return None
  titles = ("trained with", "minus", "seeds", *differences)
  columns = dict(zip(titles, map(list, zip(*rows, strict=True)), strict=True))
  text = markdown({title: cells for title, cells in columns.items() if any(cells)})
  return f"{text}\n\nUnresolved: the interval holds 0, so the order cannot be told."


def _log_likelihood(groups: Sequence[Group]) -> str:
  """Returns the title of log-likelihoods; the groups of a problem have the same kind of model."""
  return f"log p(x), {num_evaluated(groups[0].settings)} samples"


def _cell(differences: Sequence[float], num_seeds: int) -> str:
  if not differences:
    return ""
  missing = f" ({len(differences)} of {num_seeds} seeds)" if len(differences) < num_seeds else ""
  return interval_cell(interval(differences), "+.3f", 0.0, missing)


def interval_cell(found: Interval, number: str, even: float, note: str = "") -> str:
  """Formats a mean and its limits, and says if `even`, which favors neither, lies between them."""
  mean, low, high = found
  text = f"{mean:{number}} ({low:{number}} to {high:{number}}){note}"
  return f"{text}, unresolved" if low <= even <= high else text


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
  ordered = sorted(names, key=lambda name: list(LABELS).index(name) if name in LABELS else -1)
  columns = {"trained with": labels(tracking)}
  for name in ordered:
    columns[LABELS.get(name, name)] = [_late(group, names[name]) for group in tracking]
  return markdown(columns)


def _steps(group: Group) -> str:
  last, least = group.settings.max_steps, min(run.metrics["step"][-1] for run in group.runs)
  return f"{last}" if least >= last else f"{least:.0f} of {last}"


def _late(group: Group, column: str, style: str | None = None, spread: bool = False) -> str:
  """Averages a column over trials and over the last part of the steps that all have reached."""
  last = min(run.metrics["step"][-1] for run in group.runs)
  values = [late_mean(run, column, last) for run in group.runs]
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


def markdown(columns: dict[str, list[str]]) -> str:
  """Formats columns of cells by their titles as a Markdown table."""
  rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)
