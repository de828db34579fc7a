"""Draws the figure of the toy experiment: SNR, squared bias and variance against K (Fig. 1)."""

import math
from collections.abc import Sequence

from dregs_tf import output

_PANELS = {"snr": "SNR", "bias_squared": "squared bias", "variance": "variance"}
_COLUMNS_OF_LEGEND = 5

# A coordinate of a single trial can be close to 0 by chance, so axes end this factor below the
# lowest mean.
_BELOW = 30


def figure(
  path,
  title: str,
  results: Sequence[dict],
  trials: Sequence[dict],
  num_measurements: int,
  prefix: str = "",
) -> None:
  """Writes a PNG of three panels against K, log-log: means bold, trials faint.

  In the panel of the bias, a dotted line shows what an unbiased estimator would have: its variance
  divided by the number of measurements. Crosses are exact values. Only positive values are drawn.

  Args:
    path: where to write it.
    title: a line above it.
    results: rows with bound, num_samples and the panels' columns.
    trials: the same for each trial, with the column trial.
    num_measurements: of each trial.
    prefix: of the columns to show.
  """
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  names = list(dict.fromkeys(row["bound"] for row in results))
  styles = {name: output.STYLES[i % len(output.STYLES)] for i, name in enumerate(names)}
  fig = Figure(figsize=(12, 4.2), layout="constrained")
  all_axes = fig.subplots(1, len(_PANELS))
  for axes, (column, label) in zip(all_axes, _PANELS.items(), strict=True):
    for name, (color, dashes) in styles.items():
      style = {"color": color, "linestyle": dashes}
      of_bound = [row for row in trials if row["bound"] == name]
      for trial in dict.fromkeys(row["trial"] for row in of_bound):
        rows = [row for row in of_bound if row["trial"] == trial]
        axes.plot(*_points(rows, prefix + column), alpha=0.25, linewidth=0.8, **style)
      rows = [row for row in results if row["bound"] == name]
      axes.plot(*_points(rows, prefix + column), marker="o", markersize=4, linewidth=2.2, **style)
      if rows and f"exact_{column}" in rows[0] and not prefix:
        axes.plot(*_points(rows, f"exact_{column}"), "k+", markersize=9, zorder=4)
      if column == "bias_squared":
        k, floor = _points(rows, f"{prefix}variance", 1 / num_measurements)
        axes.plot(k, floor, linestyle=":", linewidth=1.5, zorder=3, color=color)
    axes.set_xscale("log")
    means = [row[prefix + column] for row in results if row[prefix + column] > 0]
    if means:  # A logarithmic axis with nothing on it is an error.
      axes.set_yscale("log")
      axes.set_ylim(bottom=max(axes.get_ylim()[0], min(means) / _BELOW))
    axes.set_xlabel("K")
    axes.set_title(label)
    axes.grid(alpha=0.3)
  handles = [
    Line2D(
      [],
      [],
      color=style[0],
      linestyle=style[1],
      marker="o",
      markersize=4,
      linewidth=2.2,
      label=name,
    )
    for name, style in styles.items()
  ]
  handles.append(Line2D([], [], color="gray", linestyle=":", label="expected without bias"))
  if not prefix and any(row.get("exact_variance", 0) > 0 for row in results):
    handles.append(Line2D([], [], color="black", linestyle="", marker="+", label="exact"))
  fig.legend(handles=handles, loc="outside lower center", ncols=_COLUMNS_OF_LEGEND)
  fig.suptitle(title, fontsize="medium")
  fig.savefig(path, dpi=120)


def _points(rows, column, factor: float = 1.0) -> tuple[list[int], list[float]]:
  """Returns the K's, and the values times the factor; NaN, a gap, where there is no logarithm."""
  values = [factor * row[column] for row in rows]
  return [row["num_samples"] for row in rows], [v if v > 0 else math.nan for v in values]
