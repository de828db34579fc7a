"""Draws panels of curves with matplotlib."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.results import Curve, Group, by_problem, problem_name

# A bound is far lower in its first summaries than later. So a linear axis fits each curve after
# this part of its steps, and the axis label gives the values beyond.
CUT = 0.25


@dataclasses.dataclass(frozen=True)
class Line:
  """Holds a curve of a panel: faint curves of the trials, and their bold mean.

  groups: the runs that it shows.
  errors: the lengths of intervals below and above the mean, [2, num_points]; None if not drawn.
  """

  groups: tuple[Group, ...]
  label: str
  color: object
  dashes: object
  trials: list[Curve]
  mean: Curve
  errors: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
  """Holds curves over the steps, or over the number of samples.

  ylabel: their quantity and unit.
  scale: `log`; `cut`: linear, without the first part of the curves; `unit`: from 0 to 1; `last`:
    the last values alone, a row for each curve; `samples`: means with their errors over K, and a
    line at 0; `samples_log`: the same on a logarithmic axis, with a line at 1.
  shared: panels in a row with the same word here have the same axis.
  """

  title: str
  ylabel: str
  lines: list[Line]
  scale: str = "cut"
  shared: str | None = None


def draw(path: pathlib.Path, columns: Sequence[Sequence[Panel]], cut: float = CUT) -> None:
  """Writes a PNG with the panels; its title names the runs.

  Args:
    path: the file.
    columns: the panels.
    cut: the part of its steps after which a linear axis shows all of a curve.
  """
  from matplotlib.figure import Figure

  height, width = max(map(len, columns)), len(columns)
  figure = Figure(figsize=(4.4 * width + 0.6, 3.2 * height + 0.5), layout="constrained")
  all_axes = figure.subplots(height, width, squeeze=False)
  shared = {}
  for j, column in enumerate(columns):
    for i, panel in enumerate(column):
      axes, row = all_axes[i][j], [other[i] for other in columns]
      sharing = [each for each in row if each.shared == panel.shared] if panel.shared else [panel]
      if panel.shared:
        axes.sharey(shared.setdefault((i, panel.shared), axes))
      if panel.scale == "last":
        _draw_last_values(axes, panel)
        continue
      if panel.scale.startswith("samples"):
        _draw_over_samples(axes, panel)
      else:
        _draw_panel(axes, panel)
      if panel.scale == "cut":
        _cut_axis(axes, [curve for each in sharing for curve in _curves(each)], cut)
      neighbor = columns[j + 1][i] if j + 1 < width else None
      if neighbor is None or _legend(neighbor) != _legend(panel):
        _add_legend(axes, panel)
  lines = [line for column in columns for panel in column for line in panel.lines]
  drawn = [group for line in lines for group in line.groups]
  shown = "bars: 95 % intervals" if any(line.errors is not None for line in lines) else "bold: mean"
  figure.suptitle(_title(drawn, "\n" if width == 1 else "; ", shown))
  figure.savefig(path, dpi=150)


def _draw_panel(axes, panel: Panel) -> None:
  last = max((steps[-1] for steps, _ in _curves(panel)), default=0)
  unit = 1000 if last >= 10_000 else 1
  for line in panel.lines:
    style = {"color": line.color, "linestyle": line.dashes}
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


def _draw_over_samples(axes, panel: Panel) -> None:
  """Draws means with their errors against K, and a line for no difference."""
  is_log = panel.scale == "samples_log"
  axes.axhline(1 if is_log else 0, color="black", linewidth=0.9)
  shifts = 1.09 ** (np.arange(len(panel.lines)) - (len(panel.lines) - 1) / 2)
  for line, shift in zip(panel.lines, shifts, strict=True):
    samples, values = line.mean
    # A single seed has no interval.
    errors = np.where(np.isfinite(line.errors).all(axis=0), line.errors, np.nan)
    style = {"color": line.color, "linestyle": line.dashes, "marker": "o", "markersize": 4}
    axes.errorbar(samples * shift, values, errors, capsize=3, linewidth=1.4, **style)
  axes.set_xscale("log")
  every = sorted({int(k) for line in panel.lines for k in line.mean[0]})
  axes.set_xticks(every, map(str, every))
  axes.minorticks_off()
  if is_log:
    axes.set_yscale("log")
  axes.set_xlabel("K, number of samples")
  axes.set_ylabel(panel.ylabel)
  axes.set_title(panel.title)
  axes.grid(alpha=0.3)


def _draw_last_values(axes, panel: Panel) -> None:
  """Draws the last value of each trial, faint, and their mean."""
  for i, line in enumerate(panel.lines):
    last = [values[-1] for _, values in line.trials]
    axes.plot(last, [i] * len(last), "o", color=line.color, alpha=0.4, markersize=5)
    axes.plot(np.mean(last), i, "D", color=line.color, markersize=6)
  axes.set_yticks(range(len(panel.lines)), [line.label for line in panel.lines], fontsize="small")
  axes.invert_yaxis()
  axes.locator_params(axis="x", nbins=5)
  axes.set_xlabel(panel.ylabel)
  axes.set_title(panel.title)
  axes.grid(alpha=0.3)


def _cut_axis(axes, curves: Sequence[Curve], cut: float) -> None:
  """Sets an axis' limits, and adds the values beyond them to its label."""
  low, high, least, greatest = limits(curves, cut)
  axes.set_ylim(low, high)
  beyond = [f"{value:.4g}" for value in (least, greatest) if not low <= value <= high]
  if beyond:
    axes.set_ylabel(f"{axes.get_ylabel()}\naxis cut: early steps reach {' and '.join(beyond)}")


def limits(curves: Sequence[Curve], cut: float) -> tuple[float, float, float, float]:
  """Returns limits of an axis that leaves out the first part of the curves, as the paper's do.

  Args:
    curves: the curves to show.
    cut: that part of their steps.

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
  return [(line.label, line.color, str(line.dashes)) for line in panel.lines]


def _add_legend(axes, panel: Panel) -> None:
  """Adds a legend outside the axes, where it covers no curve."""
  from matplotlib.lines import Line2D

  handles = [
    Line2D([], [], color=line.color, linestyle=line.dashes, linewidth=1.9, label=line.label)
    for line in panel.lines
  ]
  options = {"handles": handles, "frameon": False, "borderaxespad": 0.3, "fontsize": "small"}
  if 0 < len(handles) <= 2 and not panel.title:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, **options)
  elif handles:
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), handlelength=3, **options)


def _title(groups: Sequence[Group], between: str, shown: str = "bold: mean") -> str:
  groups = list({id(group): group for group in groups}.values())
  problems = list(by_problem(groups))
  names = {problem_name(dataset, task) for dataset, task, _ in problems}
  parts = [names.pop()] if len(names) == 1 else []
  if parts and len({num_samples for *_, num_samples in problems}) == 1:
    parts[0] += f", K = {problems[0][2]}"
  numbers = sorted({len(group.runs) for group in groups})
  if numbers[-1] > 1:
    count = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    parts.append(f"{shown} of {count} seeds")
  if any(run.metrics["step"][-1] < run.settings.max_steps for g in groups for run in g.runs):
    parts.append("not all runs are finished")
  return between.join(parts)
