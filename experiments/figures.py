"""Makes the paper's figures from the runs of an experiment.

A figure is a grid of panels, and a panel holds curves. This module chooses them; `drawing` draws
them.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from dregs_tf import output
from dregs_tf.training import checks
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.flags import flag
from experiments import where
from experiments.drawing import CUT, Line, Panel, draw
from experiments.results import (
  LABELS,
  Curve,
  Group,
  by_problem,
  labels,
  mean_curve,
  problem_name,
  runs_flag,
)
from experiments.styles import STYLES

# (original, doubly reparameterized): the columns of Figs. 2, 5 and 7.
PAIRS = (("iwae", "iwae_dreg"), ("rws", "rws_dreg"), ("jvi", "jvi_dreg"))

_VARIANCE = "train_proposal_gradient_variance"
_PRIOR_VARIANCE = "train_prior_gradient_variance"

_C = output.COLORS


# --- the contents of panels ----------------------------------------------------------------------


def panels(
  groups: Sequence[Group], figure: str, trajectory: str | None = None
) -> list[list[Panel]]:
  """Returns the panels of a kind of figure: columns from left to right, each from top to bottom.

  Args:
    groups: the trials to draw.
    figure: one of `FIGURES`.
    trajectory: for pairs and variance: the bound of the runs that have followed the variances of
      all; None for the variance of each run's own gradient.

  Raises:
    ConfigError: if the runs lack what it shows; names --figure.
  """
  return FIGURES[figure](groups, trajectory)


def _pairs(groups: Sequence[Group], trajectory: str | None) -> list[list[Panel]]:
  """Returns Figs. 2, 5 and 7: variance of gradients above the objective, a column for each pair."""
  columns = []
  for pair in PAIRS:
    members = [group for group in groups if group.settings.bound in pair]
    if members:
      objective = dataclasses.replace(_objective_panel("", members), shared="objective")
      columns.append([_variance_panel(groups, pair, trajectory), objective])
  return _with_variances(groups, columns, "pairs", trajectory)


def _variance(groups: Sequence[Group], trajectory: str | None) -> list[list[Panel]]:
  """Returns the upper row of Figs. 2, 5 and 7."""
  columns = [[_variance_panel(groups, pair, trajectory)] for pair in PAIRS]
  return _with_variances(groups, [c for c in columns if c[0].lines], "variance", trajectory)


def _with_variances(groups: Sequence[Group], columns, figure: str, trajectory: str | None):
  """Returns the columns; raises if the groups lack variances, or are of several problems."""
  shown = {trajectory, *(bound for pair in PAIRS for bound in pair)}
  groups = [group for group in groups if group.settings.bound in shown]
  if len(by_problem(groups)) > 1:
    raise ConfigError(
      f"--figure={figure} shows runs of one data set, task and number of samples; --runs has "
      + "; ".join(f"{problem_name(d, t)}, K = {k}" for d, t, k in by_problem(groups))
      + "."
    )
  if not any(column[0].lines for column in columns):
    raise ConfigError(
      f"--figure={figure} needs runs of iwae, rws or jvi, or their _dreg, that were trained with "
      "--gradient_statistics, or with --trajectory runs of that bound that were trained with "
      "--track_variance; --runs has none."
    )
  return columns


def _variance_panel(groups: Sequence[Group], pair: tuple[str, str], trajectory) -> Panel:
  ylabel = "Variance of the proposal's gradient"
  if trajectory is None:
    members = [g for g in groups if g.settings.bound in pair and g.trials(_VARIANCE)]
    lines = _lines(members, _VARIANCE)
  else:
    ylabel += f"\nalong the runs of {LABELS[trajectory]}"
    members = [group for group in groups if group.settings.bound == trajectory]
    columns = {bound: f"train_{bound}_gradient_variance" for bound in pair}
    # Configurations of the same bound are labeled by the settings in which they differ.
    suffixes = [label.partition(", ")[2] for label in labels(members)]
    lines = _distinct(
      [
        Line((group,), label, *STYLES[bound], group.trials(column), group.mean(column))
        for group, suffix in zip(members, suffixes, strict=True)
        for bound, column in columns.items()
        if (label := ", ".join(filter(None, [LABELS[bound], suffix]))) and group.trials(column)
      ]
    )
  return Panel("", ylabel, lines, "log", shared="variance")


def _bounds(groups: Sequence[Group], trajectory: None) -> list[list[Panel]]:
  """Returns Figs. 3, 4 and 6, left and middle: each bound's objective, a panel for each K."""
  return [
    [_objective_panel(_name(problem, groups), members)]
    for problem, members in by_problem(groups).items()
  ]


def _alpha(groups: Sequence[Group], trajectory: None) -> list[list[Panel]]:
  """Returns Figs. 3, 4 and 6, right: each alpha's test bound minus IWAE-DReG's at that step."""
  columns = []
  for problem, members in by_problem(groups).items():
    at = _by_alpha(members)
    if (False, 0.0) not in at or not set(at) - {(False, 0.0), (False, 1.0)}:
      continue
    split, column = _objective(list(at.values()))
    base = at[False, 0.0]
    steps, _ = base.mean(column)
    styles = _alpha_styles(set(at) - {(False, 0.0)})
    lines = []
    for (alpha, group), label in zip(at.items(), labels(list(at.values())), strict=True):
      if group.settings.bound != "dreg_alpha":
        label = f"alpha = {alpha[1]:g}, {label}"
      if group is base:
        lines.append(
          Line((group,), label, _C["black"], output.SOLID, [], (steps, np.zeros(len(steps))))
        )
        continue
      differences = _differences(group, base, column)
      label += "" if differences else " (no seed in common)"
      lines.append(Line((group,), label, *styles[alpha], differences, mean_curve(differences)))
    ylabel = f"{split} bound less that of IWAE-DReG (nats)"
    columns.append([Panel(_name(problem, groups), ylabel, lines)])
  if not columns:
    raise ConfigError(
      "--figure=alpha needs runs of iwae_dreg, or dreg_alpha with --alpha=0, to compare with, and "
      "of other values of alpha; --runs lacks one of them."
    )
  return columns


def _by_alpha(groups: Sequence[Group]) -> dict[tuple[bool, float], Group]:
  """Returns the groups by (whether alpha is adapted, alpha), sorted.

  IWAE-DReG and RWS-DReG stand for alpha 0 and 1 unless there are groups of dreg_alpha.

  Raises:
    ConfigError: if two groups of a bound have the same alpha.
  """
  found = {}
  for group in sorted(groups, key=lambda group: group.settings.bound != "dreg_alpha"):
    alpha = _alpha_of(group)
    if alpha is None:
      continue
    other = found.setdefault(alpha, group)
    if other is not group and other.settings.bound == group.settings.bound:
      raise ConfigError(
        f"--figure=alpha shows one configuration for each alpha; --runs has "
        f"{other.settings.directory} and {group.settings.directory}."
      )
  return dict(sorted(found.items()))


def _differences(group: Group, base: Group, column: str) -> list[Curve]:
  """Returns a group's trials minus the base's of the same seeds, at the steps of both."""
  of_seed = {run.settings.seed: run for run in base.runs}
  curves = []
  for run in group.runs:
    other = of_seed.get(run.settings.seed)
    if other is not None:
      steps, ours, theirs = np.intersect1d(
        run.metrics["step"], other.metrics["step"], assume_unique=True, return_indices=True
      )
      if len(steps):
        curves.append((steps, run.metrics[column][ours] - other.metrics[column][theirs]))
  return curves


def _adapted_alpha(groups: Sequence[Group], trajectory: None) -> list[list[Panel]]:
  """Returns panels of alpha during training, for the runs that adapt it."""
  adapting = [g for g in groups if g.settings.adapt_alpha and g.trials("train_alpha")]
  if not adapting:
    raise ConfigError("--figure=adapted_alpha needs runs with --alpha=auto; --runs has none.")
  columns = []
  for problem, members in by_problem(adapting).items():
    lines = _lines(members, "train_alpha")
    columns.append([Panel(_name(problem, groups), "alpha", lines, "unit")])
  return columns


def _log_likelihoods(groups: Sequence[Group], trajectory: None) -> list[list[Panel]]:
  """Returns panels of log p(x) at the end of the runs, to compare objectives; DReG is blue."""
  evaluated = [group for group in groups if any(run.evaluation for run in group.runs)]
  if not evaluated:
    raise ConfigError(
      "--figure=log_likelihoods needs runs that bin/eval.py has evaluated, as "
      "run_experiment.py --evaluate does; --runs has none."
    )
  columns = []
  for problem, members in by_problem(evaluated).items():
    lines = []
    for group, label in zip(members, labels(members), strict=True):
      values = [run.evaluation["log_likelihood"] for run in group.runs if run.evaluation]
      step = np.array([group.settings.max_steps])
      trials = [(step, np.array([value])) for value in values]
      is_dreg = group.settings.bound.endswith("_dreg")
      color = _C["blue"] if is_dreg else _C["black"]
      lines.append(Line((group,), label, color, output.SOLID, trials, mean_curve(trials)))
    columns.append([Panel(_name(problem, groups), "log p(x) (nats)", lines, "last")])
  return columns


def _prior(groups: Sequence[Group], trajectory: None) -> list[list[Panel]]:
  """Returns the variance of a learned prior's gradient above the objective, for each problem."""
  following = [group for group in groups if group.trials(_PRIOR_VARIANCE)]
  if not following:
    raise ConfigError(
      "--figure=prior needs runs with a learned prior that were trained with "
      "--gradient_statistics; --runs has none."
    )
  columns = []
  for problem, members in by_problem(following).items():
    lines = _lines(members, _PRIOR_VARIANCE)
    title = _name(problem, groups)
    variance = Panel(title, "Variance of the prior's gradient", lines, "log", shared="variance")
    columns.append([variance, _objective_panel("", members)])
  return columns


def _where(groups: Sequence[Group], trajectory: None) -> list[list[Panel]]:
  """Returns the variance ratio and the lead of each DReG over its original, over K."""
  return where.panels(groups)


FIGURES: dict[str, Callable[[Sequence[Group], str | None], list[list[Panel]]]] = {
  "pairs": _pairs,
  "variance": _variance,
  "bounds": _bounds,
  "alpha": _alpha,
  "adapted_alpha": _adapted_alpha,
  "log_likelihoods": _log_likelihoods,
  "prior": _prior,
  "where": _where,
}
_WITH_TWO_ROWS = ("pairs", "prior", "where")


def _objective_panel(title: str, groups: Sequence[Group]) -> Panel:
  split, column = _objective(groups)
  kinds = {_kind(group.settings.bound) for group in groups}
  what = f"{split} {kinds.pop() if len(kinds) == 1 else 'objective'}"
  return Panel(title, f"{what} (nats)", _lines(groups, column))


def _kind(bound: str) -> str:
  return "JVI objective" if bound.startswith("jvi") else "ELBO" if "elbo" in bound else "bound"


def _objective(groups: Sequence[Group]) -> tuple[str, str]:
  """Returns (name, column) of the test bound, or of the validation set's where a run lacks it."""
  for split, column in (("Test", "test_bound"), ("Validation", "valid_bound")):
    lacking = [run for group in groups for run in group.runs if column not in run.metrics]
    if not lacking:
      return split, column
  raise ConfigError(
    f"--runs: metrics.csv in {lacking[0].settings.directory} has no column {column}."
  )


def _lines(groups: Sequence[Group], column: str) -> list[Line]:
  alphas = [_alpha_of(group) for group in groups if group.settings.bound == "dreg_alpha"]
  alpha_styles = _alpha_styles(alphas) if len(set(alphas)) > 1 else {}
  lines = []
  for group, label in zip(groups, labels(groups), strict=True):
    settings = group.settings
    color, dashes = STYLES[settings.bound]
    if settings.bound == "dreg_alpha":
      color, dashes = alpha_styles.get(_alpha_of(group), (color, dashes))
    lines.append(Line((group,), label, color, dashes, group.trials(column), group.mean(column)))
  return _distinct(lines)


def _distinct(lines: list[Line]) -> list[Line]:
  """Gives configurations of the same bound different styles."""
  seen, distinct = set(), []
  free = [s for s in output.STYLES if s not in {(line.color, line.dashes) for line in lines}]
  for line in lines:
    if (line.color, line.dashes) in seen and free:
      color, dashes = free.pop(0)
      line = dataclasses.replace(line, color=color, dashes=dashes)
    seen.add((line.color, line.dashes))
    distinct.append(line)
  return distinct


def _alpha_of(group: Group) -> tuple[bool, float] | None:
  """Returns (whether it is adapted, alpha or its start) of a group, None if it has no alpha."""
  settings = group.settings
  if settings.bound == "dreg_alpha":
    return settings.adapt_alpha, settings.bound_options["alpha"]
  return {"iwae_dreg": (False, 0.0), "rws_dreg": (False, 1.0)}.get(settings.bound)


def _alpha_styles(alphas: Collection[tuple[bool, float]]) -> dict[tuple[bool, float], tuple]:
  """Returns (color, dashes) by (whether adapted, alpha): purple to green, dashed if adapted."""
  from matplotlib import colormaps

  values = [alpha for _, alpha in alphas]
  span = max(values) - min(values) or 1
  return {
    (adapted, alpha): (
      colormaps["viridis"](0.9 * (alpha - min(values)) / span),
      output.DASHED if adapted else output.SOLID,
    )
    for adapted, alpha in alphas
  }


def _name(problem: tuple[str, str, int], groups: Sequence[Group]) -> str:
  """Returns a panel's title: the settings that the figure's title does not name."""
  dataset, task, num_samples = problem
  problems = by_problem(groups)
  if len(problems) == 1:
    return ""
  parts = [f"K = {num_samples}"]
  if len({key[:2] for key in problems}) > 1:
    parts.insert(0, problem_name(dataset, task))
  return ", ".join(parts)


# --- the binaries --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PlotConfig:
  """Holds the flags of `bin/plot.py`."""

  runs: Sequence[str] = runs_flag()
  figure: Sequence[str] = flag(
    ("bounds",),
    list,
    "pairs: gradient variance above test bound, as in Figs. 2, 5 and 7; variance: the upper row; "
    "bounds: the test bound, a panel for each K; alpha: the test bound less that of IWAE-DReG; "
    "bounds,alpha: both, as in Figs. 3, 4 and 6; adapted_alpha: alpha during training; "
    "log_likelihoods: log p(x) at the end; prior: gradient variance of the prior above test bound; "
    "where: ratio of gradient variances, original to DReG, above the lead of DReG, against K.",
  )
  trajectory: str | None = flag(
    None,
    str,
    "For pairs and variance: show the variances that runs of this bound have followed with "
    "--track_variance, instead of those of each run's own gradient.",
  )
  cut: float = flag(
    CUT, float, "The axis of the test bound shows the curves after this part of their steps."
  )
  output: str | None = flag(None, str, "The PNG file to write.")

  def __post_init__(self):
    for name in self.figure or [""]:
      if name not in FIGURES:
        raise ConfigError(f"--figure must be of {', '.join(FIGURES)}, got {name!r}.")
    for name in _WITH_TWO_ROWS:
      if name in self.figure and len(self.figure) > 1:
        raise ConfigError(f"--figure={name} has two rows: draw it alone.")
    if self.trajectory is not None:
      checks.check_bound("trajectory", self.trajectory)
      if not {"pairs", "variance"} & set(self.figure):
        raise ConfigError("--trajectory is only valid with --figure=pairs or variance.")
    if not 0 <= self.cut < 1:
      raise ConfigError(f"--cut must be in [0, 1), got {self.cut}.")
    if not (self.output and self.output.endswith(".png")):
      raise ConfigError(f"--output must be the name of a .png file, got {self.output!r}.")


def plot(settings: PlotConfig, groups: Sequence[Group]) -> None:
  """Draws the figure of `bin/plot.py`.

  Raises:
    ConfigError: if the runs lack what it shows, or the file cannot be written; names the flag.
  """
  columns = []
  for name in settings.figure:
    members = groups
    if name == "bounds" and "alpha" in settings.figure:
      members = [g for g in groups if g.settings.bound != "dreg_alpha"]
    columns += panels(members, name, settings.trajectory)
  path = pathlib.Path(settings.output)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path, columns, settings.cut)
  except OSError as error:
    raise ConfigError(f"--output={path} cannot be written: {error.strerror}.") from error
