"""Makes the figure and the table of where double reparameterization pays, over tasks and K."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from dregs_tf.training.errors import ConfigError
from experiments.differences import Interval, interval, late_bound_differences, pairs
from experiments.drawing import Line, Panel
from experiments.results import LABELS, LAST_PART, Group, by_problem, final_mean, problem_name
from experiments.styles import STYLES
from experiments.tables import interval_cell, markdown

_NOTES = (
  "Variances are the proposal's, along the original's runs; the test bound is in nats. Both are "
  f"means over the last {LAST_PART:.0%} of the steps, with 95 % t-intervals over the seeds. "
  "Unresolved: the interval holds 1 or 0, so the order cannot be told. JVI's objective is not a "
  "bound."
)

# For a bound, by K: the runs of its doubly reparameterized form, and its own runs.
_Pairs = dict[int, tuple[Group, Group]]


def panels(groups: Sequence[Group]) -> list[list[Panel]]:
  """Returns, for each task, the ratio of variances above the lead in the bound, over K.

  Args:
    groups: the trials to draw.

  Raises:
    ConfigError: if the runs lack what it shows; names --figure.
  """
  columns = []
  for problem, found in _by_task(groups).items():
    ratios = [_line(bound, by_num_samples, _ratio) for bound, by_num_samples in found.items()]
    leads = [_line(bound, by_num_samples, _lead) for bound, by_num_samples in found.items()]
    variance = Panel(
      problem_name(*problem),
      "Variance of the gradient, original / DReG\n(proposal, along the original's runs)",
      [line for line in ratios if len(line.mean[0])],
      "samples_log",
      shared="variance",
    )
    lead = Panel(
      "", "Test bound, late:\nDReG less original (nats)", leads, "samples", shared="lead"
    )
    columns.append([variance, lead])
  if not any(column[0].lines for column in columns):
    raise ConfigError(
      "--figure=where needs runs of bounds and of their _dreg, the former trained with "
      "--track_variance of both; --runs has none."
    )
  return columns


def table(groups: Sequence[Group]) -> str:
  """Formats what the figure shows as a Markdown table.

  Args:
    groups: the trials to show.

  Raises:
    ConfigError: if the runs lack what it shows; names --table.
  """
  rows = [
    [problem_name(*problem), LABELS[bound], str(num_samples), *cells]
    for problem, found in _by_task(groups).items()
    for bound, by_num_samples in found.items()
    for num_samples, pair in sorted(by_num_samples.items())
    if any(cells := _cells(*pair))
  ]
  if not rows:
    raise ConfigError("--table=where needs runs of bounds and of their _dreg; --runs has none.")
  titles = (
    "problem",
    "original",
    "K",
    "variance, original / DReG",
    "test bound, DReG less original",
  )
  text = markdown(dict(zip(titles, map(list, zip(*rows, strict=True)), strict=True)))
  return f"{text}\n\n{_NOTES}\n"


def _cells(dreg: Group, base: Group) -> list[str]:
  """Formats the ratio of a pair's variances and the lead."""
  return [_cell(_ratio(dreg, base), ".2f", 1.0), _cell(_lead(dreg, base), "+.3f", 0.0)]


def _cell(found: Interval | None, number: str, even: float) -> str:
  if found is None:
    return ""
  if math.isinf(found.high):
    return f"{found.mean:{number}} (one seed)"
  return interval_cell(found, number, even)


def _by_task(groups: Sequence[Group]) -> dict[tuple[str, str], dict[str, _Pairs]]:
  """Returns the pairs of runs by (data set, task) and bound.

  Raises:
    ConfigError: if there are two pairs of a bound with the same K.
  """
  tasks = {}
  for (dataset, task, num_samples), members in by_problem(groups).items():
    for dreg, base in pairs(members):
      bound = base.settings.bound
      if dreg.settings.bound != f"{bound}_dreg":
        continue
      found = tasks.setdefault((dataset, task), {}).setdefault(bound, {})
      if num_samples in found:
        raise ConfigError(
          "--figure=where and --table=where show one configuration for each bound and number of "
          f"samples; --runs has {found[num_samples][1].settings.directory} and "
          f"{base.settings.directory}."
        )
      found[num_samples] = dreg, base
  return tasks


def _line(
  bound: str, by_num_samples: _Pairs, measure: Callable[[Group, Group], Interval | None]
) -> Line:
  """Returns the curve over K of a measure of the pairs, without pairs that lack it."""
  pairs_by_k = sorted(by_num_samples.items())
  points = [(k, point) for k, pair in pairs_by_k if (point := measure(*pair)) is not None]
  means, lows, highs = np.reshape([point for _, point in points], [-1, 3]).T
  return Line(
    tuple(group for pair in by_num_samples.values() for group in pair),
    LABELS[bound],
    *STYLES[f"{bound}_dreg"],
    [],
    (np.array([k for k, _ in points]), means),
    np.array([means - lows, highs - means]),
  )


def _ratio(dreg: Group, base: Group) -> Interval | None:
  """Returns the late ratio of variances along the original's runs, averaged in logs."""
  columns = "train_proposal_gradient_variance", f"train_{dreg.settings.bound}_gradient_variance"
  variances = [[final_mean(run, column) for column in columns] for run in base.runs]
  logs = [math.log(own / of_dreg) for own, of_dreg in variances if own and of_dreg]
  return Interval(*map(math.exp, interval(logs))) if logs else None


def _lead(dreg: Group, base: Group) -> Interval | None:
  differences = late_bound_differences(dreg, base)
  return interval(differences) if differences else None
