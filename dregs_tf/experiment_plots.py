"""The paper's figures, drawn from the runs of an experiment.

A figure is a grid of panels, and a panel is its curves: what is in them is decided without
matplotlib, which draws them at the end.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from dregs_tf import config
from dregs_tf.errors import ConfigError
from dregs_tf.experiment_results import (
  LABELS,
  Curve,
  Group,
  by_problem,
  labels,
  mean_curve,
  problem_name,
)

# (original, doubly reparameterised): the columns of Figs. 2, 5 and 7.
PAIRS = (("iwae", "iwae_dreg"), ("rws", "rws_dreg"), ("jvi", "jvi_dreg"))

_VARIANCE = "train_proposal_gradient_variance"

# A bound is far lower in its first summaries than later: a linear axis shows what each curve goes
# through after this part of its steps, and its label says what that leaves out.
_CUT = 0.25

# Okabe and Ito's colours, which the colour-blind tell apart. An original and its doubly
# reparameterised form share one: the original is dashed.
_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_PURPLE, _ORANGE, _BLACK, _GREY = "#CC79A7", "#E69F00", "#000000", "#777777"
_DASHED, _SOLID, _DASH_DOTTED = (0, (5, 2)), "-", "-."
_STYLES = {
  "elbo": (_BLACK, _DASHED),
  "elbo_stl": (_BLACK, _SOLID),
  "iwae": (_BLUE, _DASHED),
  "iwae_dreg": (_BLUE, _SOLID),
  "iwae_dreg_norm": (_BLUE, _DASH_DOTTED),
  "rws": (_VERMILION, _DASHED),
  "rws_dreg": (_VERMILION, _SOLID),
  "rws_dreg_norm": (_VERMILION, _DASH_DOTTED),
  "jvi": (_GREEN, _DASHED),
  "jvi_dreg": (_GREEN, _SOLID),
  "stl": (_PURPLE, _SOLID),
  "dreg_alpha": (_ORANGE, _SOLID),
}


@dataclasses.dataclass(frozen=True)
class Line:
  """A group in a panel: each trial faint, and their mean bold."""

  group: Group
  label: str
  colour: object
  dashes: object
  trials: list[Curve]
  mean: Curve


@dataclasses.dataclass(frozen=True)
class Panel:
  """Curves over the steps.

  ylabel: what they are, and the unit.
  scale: `log`; `cut`: linear, without the first part of the curves; `unit`: from 0 to 1.
  shared: panels in a row with the same word here have the same axis.
  """

  title: str
  ylabel: str
  lines: list[Line]
  scale: str = "cut"
  shared: str | None = None


# --- what is in the panels -----------------------------------------------------------------------


def panels(
  groups: Sequence[Group], figure: str, trajectory: str | None = None
) -> list[list[Panel]]:
  """The panels of one kind of figure: columns from left to right, each from top to bottom.

  Args:
    groups: the trials to draw.
    figure: one of `FIGURES`.
    trajectory: for pairs and variance: the bound of the runs that have followed the variances of
      all; None for the variance of each run's own gradient.

  Raises:
    ConfigError: if the runs have nothing of that kind; names --figure.
  """
  return FIGURES[figure](groups, trajectory)


def _pairs(groups: Sequence[Group], trajectory: str | None) -> list[list[Panel]]:
  """Figs. 2, 5 and 7: the gradient's variance above the objective, a column for each estimator."""
  columns = []
  for pair in PAIRS:
    members = [group for group in groups if group.settings.bound in pair]
    if members:
      objective = dataclasses.replace(_objective_panel("", members), shared="objective")
      columns.append([_variance_panel(groups, pair, trajectory), objective])
  return _with_variances(groups, columns, "pairs", trajectory)


def _variance(groups: Sequence[Group], trajectory: str | None) -> list[list[Panel]]:
  """The upper row of Figs. 2, 5 and 7."""
  columns = [[_variance_panel(groups, pair, trajectory)] for pair in PAIRS]
  return _with_variances(groups, [c for c in columns if c[0].lines], "variance", trajectory)


def _with_variances(groups: Sequence[Group], columns, figure: str, trajectory: str | None):
  """The columns, if that is what there is in the groups."""
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
    # Several configurations of that bound are told apart by what they differ in.
    suffixes = [label.partition(", ")[2] for label in labels(members)]
    lines = _told_apart(
      [
        Line(group, label, *_STYLES[bound], group.trials(column), group.mean(column))
        for group, suffix in zip(members, suffixes, strict=True)
        for bound, column in columns.items()
        if (label := ", ".join(filter(None, [LABELS[bound], suffix]))) and group.trials(column)
      ]
    )
  return Panel("", ylabel, lines, "log", shared="variance")


def _bounds(groups: Sequence[Group], trajectory: None) -> list[list[Panel]]:
  """Figs. 3, 4 and 6, left and middle: the objective of each bound, a panel for each K."""
  return [
    [_objective_panel(_name(problem, groups), members)]
    for problem, members in by_problem(groups).items()
  ]


def _alpha(groups: Sequence[Group], trajectory: None) -> list[list[Panel]]:
  """Figs. 3, 4 and 6, right: the test bound of each alpha, less that of IWAE-DReG at that step."""
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
        lines.append(Line(group, label, _BLACK, _SOLID, [], (steps, np.zeros(len(steps)))))
        continue
      differences = _differences(group, base, column)
      label += "" if differences else " (no seed in common)"
      lines.append(Line(group, label, *styles[alpha], differences, mean_curve(differences)))
    ylabel = f"{split} bound less that of IWAE-DReG (nats)"
    columns.append([Panel(_name(problem, groups), ylabel, lines)])
  if not columns:
    raise ConfigError(
      "--figure=alpha needs runs of iwae_dreg, or dreg_alpha with --alpha=0, to compare with, and "
      "of other values of alpha; --runs has not both."
    )
  return columns


def _by_alpha(groups: Sequence[Group]) -> dict[tuple[bool, float], Group]:
  """The groups by (whether alpha is adapted, alpha), in that order, IWAE-DReG's and RWS-DReG's too.

  Raises:
    ConfigError: if two are of one alpha; those of dreg_alpha come before those two.
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
  """A group's trials less the base's trials of the same seeds, at the steps that both have."""
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
  """How alpha moves in the runs that adapt it."""
  adapting = [g for g in groups if g.settings.adapt_alpha and g.trials("train_alpha")]
  if not adapting:
    raise ConfigError("--figure=adapted_alpha needs runs with --alpha=auto; --runs has none.")
  columns = []
  for problem, members in by_problem(adapting).items():
    lines = _lines(members, "train_alpha")
    columns.append([Panel(_name(problem, groups), "alpha", lines, "unit")])
  return columns


FIGURES: dict[str, Callable[[Sequence[Group], str | None], list[list[Panel]]]] = {
  "pairs": _pairs,
  "variance": _variance,
  "bounds": _bounds,
  "alpha": _alpha,
  "adapted_alpha": _adapted_alpha,
}


def _objective_panel(title: str, groups: Sequence[Group]) -> Panel:
  split, column = _objective(groups)
  kinds = {_kind(group.settings.bound) for group in groups}
  what = f"{split} {kinds.pop() if len(kinds) == 1 else 'objective'}"
  return Panel(title, f"{what} (nats)", _lines(groups, column))


def _kind(bound: str) -> str:
  return "JVI objective" if bound.startswith("jvi") else "ELBO" if "elbo" in bound else "bound"


def _objective(groups: Sequence[Group]) -> tuple[str, str]:
  """(name, column) of the test bound; of the validation set's where not all have followed it."""
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
    colour, dashes = _STYLES[settings.bound]
    if settings.bound == "dreg_alpha":
      colour, dashes = alpha_styles.get(_alpha_of(group), (colour, dashes))
    lines.append(Line(group, label, colour, dashes, group.trials(column), group.mean(column)))
  return _told_apart(lines)


def _told_apart(lines: list[Line]) -> list[Line]:
  """Configurations of the same bound, which have its style, in colours of their own."""
  seen, spare = set(), [_ORANGE, _PURPLE, _GREY, _GREEN, _VERMILION, _BLACK, _BLUE]
  taken = {line.colour for line in lines}
  free = [colour for colour in spare if colour not in taken]
  told = []
  for line in lines:
    if (line.colour, str(line.dashes)) in seen and free:
      line = dataclasses.replace(line, colour=free.pop(0))
    seen.add((line.colour, str(line.dashes)))
    told.append(line)
  return told


def _alpha_of(group: Group) -> tuple[bool, float] | None:
  """(whether it is adapted, alpha or where it starts) of a group, None if it has no alpha."""
  settings = group.settings
  if settings.bound == "dreg_alpha":
    return settings.adapt_alpha, settings.bound_options["alpha"]
  return {"iwae_dreg": (False, 0.0), "rws_dreg": (False, 1.0)}.get(settings.bound)


def _alpha_styles(alphas: Collection[tuple[bool, float]]) -> dict[tuple[bool, float], tuple]:
  """(colour, dashes) of (whether adapted, alpha): purple to green; adapted ones are dashed."""
  from matplotlib import colormaps

  values = [alpha for _, alpha in alphas]
  span = max(values) - min(values) or 1
  return {
    (adapted, alpha): (
      colormaps["viridis"](0.9 * (alpha - min(values)) / span),
      _DASHED if adapted else _SOLID,
    )
    for adapted, alpha in alphas
  }


def _name(problem: tuple[str, str, int], groups: Sequence[Group]) -> str:
  """A panel's title: what the figure's title does not say for all."""
  dataset, task, num_samples = problem
  problems = by_problem(groups)
  if len(problems) == 1:
    return ""
  parts = [f"K = {num_samples}"]
  if len({key[:2] for key in problems}) > 1:
    parts.insert(0, problem_name(dataset, task))
  return ", ".join(parts)


# --- drawing -------------------------------------------------------------------------------------


def draw(path: pathlib.Path, columns: Sequence[Sequence[Panel]], cut: float = _CUT) -> None:
  """Writes a PNG with the panels; its title says what runs they are of.

  Args:
    path: where to write it.
    columns: the panels.
    cut: the part of its steps after which a curve is within a linear axis.
  """
  from matplotlib.figure import Figure

  height, width = max(map(len, columns)), len(columns)
  figure = Figure(figsize=(4.4 * width + 0.6, 3.2 * height + 0.5), layout="constrained")
  all_axes = figure.subplots(height, width, squeeze=False)
  shared = {}
  for j, column in enumerate(columns):
    for i, panel in enumerate(column):
      axes, row = all_axes[i][j], [other[i] for other in columns]
      alike = [each for each in row if each.shared == panel.shared] if panel.shared else [panel]
      if panel.shared:
        axes.sharey(shared.setdefault((i, panel.shared), axes))
      _draw_panel(axes, panel)
      if panel.scale == "cut":
        _cut_axis(axes, [curve for each in alike for curve in _curves(each)], cut)
      beside = columns[j + 1][i] if j + 1 < width else None
      if beside is None or _legend(beside) != _legend(panel):
        _add_legend(axes, panel)
  drawn = [line.group for column in columns for panel in column for line in panel.lines]
  figure.suptitle(_title(drawn, "\n" if width == 1 else "; "))
  figure.savefig(path, dpi=150)


def _draw_panel(axes, panel: Panel) -> None:
  last = max((steps[-1] for steps, _ in _curves(panel)), default=0)
  unit = 1000 if last >= 10_000 else 1
  for line in panel.lines:
    style = {"color": line.colour, "linestyle": line.dashes}
    if len(line.trials) > 1:
      for steps, values in line.trials:
        axes.plot(steps / unit, values, alpha=0.3, linewidth=0.9, **style)
    steps, values = line.mean
    marker = "o" if len(steps) == 1 else None
    axes.plot(steps / unit, values, linewidth=1.9, marker=marker, **style)
  axes.set_xlabel("Steps (thousands)" if unit == 1000 else "Steps")
  axes.set_xlim(left=0)
  axes.set_title(panel.title)
  axes.grid(alpha=0.3)
  axes.set_ylabel(panel.ylabel)
  if panel.scale == "log":
    axes.set_yscale("log")
  elif panel.scale == "unit":
    axes.set_ylim(-0.03, 1.03)


def _cut_axis(axes, curves: Sequence[Curve], cut: float) -> None:
  """Sets an axis' limits, and has its label say what is beyond them."""
  low, high, least, greatest = limits(curves, cut)
  axes.set_ylim(low, high)
  beyond = [f"{value:.4g}" for value in (least, greatest) if not low <= value <= high]
  if beyond:
    axes.set_ylabel(f"{axes.get_ylabel()}\naxis cut: early steps reach {' and '.join(beyond)}")


def limits(curves: Sequence[Curve], cut: float) -> tuple[float, float, float, float]:
  """Of an axis that shows the curves but for their first part, as the paper's are cut.

  Args:
    curves: what to show.
    cut: that part.

  Returns:
    (lower limit, upper limit, least value, greatest value); the values are those of whole curves.
  """
  later = [values[steps >= cut * steps[-1]] for steps, values in curves]
  shown = np.concatenate([np.zeros(0), *later])
  whole = np.concatenate([np.zeros(0), *(values for _, values in curves)])
  shown, whole = shown[np.isfinite(shown)], whole[np.isfinite(whole)]
  if not len(shown):
    return 0.0, 1.0, 0.0, 1.0
  margin = 0.05 * (shown.max() - shown.min()) or 0.01 * abs(shown.max()) or 1.0
  low, high = shown.min() - margin, shown.max() + margin
  return tuple(float(value) for value in (low, high, whole.min(), whole.max()))


def _curves(panel: Panel) -> list[Curve]:
  every = [curve for line in panel.lines for curve in (*line.trials, line.mean)]
  return [curve for curve in every if len(curve[0])]


def _legend(panel: Panel) -> list[tuple]:
  return [(line.label, line.colour, str(line.dashes)) for line in panel.lines]


def _add_legend(axes, panel: Panel) -> None:
  """Beside or above the axes, so that it covers no curve."""
  from matplotlib.lines import Line2D

  handles = [
    Line2D([], [], color=line.colour, linestyle=line.dashes, linewidth=1.9, label=line.label)
    for line in panel.lines
  ]
  options = {"handles": handles, "frameon": False, "borderaxespad": 0.3, "fontsize": "small"}
  if 0 < len(handles) <= 2 and not panel.title:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, **options)
  elif handles:
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), handlelength=3, **options)


def _title(groups: Sequence[Group], between: str) -> str:
  groups = list({id(group): group for group in groups}.values())
  problems = list(by_problem(groups))
  names = {problem_name(dataset, task) for dataset, task, _ in problems}
  parts = [names.pop()] if len(names) == 1 else []
  if parts and len({num_samples for *_, num_samples in problems}) == 1:
    parts[0] += f", K = {problems[0][2]}"
  numbers = sorted({len(group.runs) for group in groups})
  if numbers[-1] > 1:
    count = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    parts.append(f"bold: mean of {count} seeds")
  if any(run.metrics["step"][-1] < run.settings.max_steps for g in groups for run in g.runs):
    parts.append("not all runs are finished")
  return between.join(parts)


# --- the binaries --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PlotConfig:
  """What `bin/plot.py` takes, flag by flag."""

  runs: Sequence[str] = ()
  figure: Sequence[str] = ("bounds",)
  trajectory: str | None = None
  cut: float = _CUT
  output: str | None = None

  def __post_init__(self):
    for name in self.figure or [""]:
      if name not in FIGURES:
        raise ConfigError(f"--figure must be of {', '.join(FIGURES)}, got {name!r}.")
    if "pairs" in self.figure and len(self.figure) > 1:
      raise ConfigError("--figure=pairs has two rows: draw it alone.")
    if self.trajectory is not None:
      if self.trajectory not in config.BOUNDS:
        raise ConfigError(
          f"--trajectory must be one of {', '.join(config.BOUNDS)}, got {self.trajectory!r}."
        )
      if not {"pairs", "variance"} & set(self.figure):
        raise ConfigError("--trajectory goes with --figure=pairs or variance.")
    if not 0 <= self.cut < 1:
      raise ConfigError(f"--cut must be in [0, 1), got {self.cut}.")
    if not (self.output and self.output.endswith(".png")):
      raise ConfigError(f"--output must be the name of a .png file, got {self.output!r}.")


def plot(settings: PlotConfig, groups: Sequence[Group]) -> None:
  """Draws what `bin/plot.py` is asked to.

  Raises:
    ConfigError: if the runs do not have it, or the file cannot be written; names the flag.
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
