"""Draws the figure of a comparison of estimators: SNR, variance and bias."""

import math
import os
from collections.abc import Sequence
from typing import Any

from dregs_tf import output

_COLUMNS_OF_LEGEND = 6
_PANELS = {
  "snr": "signal-to-noise ratio",
  "variance": "variance, mean over coordinates",
  "bias": "bias / norm of the gradient",
}


def figure(path: str | os.PathLike, title: str, rows: Sequence) -> None:
  """Writes a PNG of three panels on log scales: against K, or by bound if there is one K.

  An open triangle is the upper limit of a bias that was not found. Only positive values are drawn.

  Args:
    path: the file.
    title: the line above the figure.
    rows: `report.Row`s.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import NullFormatter, ScalarFormatter

  names = list(dict.fromkeys(row.bound for row in rows))
  all_num_samples = sorted({row.num_samples for row in rows})
  against_k = len(all_num_samples) > 1
  styles = {name: output.STYLES[i % len(output.STYLES)] for i, name in enumerate(names)}
  fig = Figure(figsize=(12, 4.4 if against_k else 1.9 + 0.28 * len(names)), layout="constrained")
  all_axes = fig.subplots(1, len(_PANELS), sharey=not against_k)
  for axes, (column, label) in zip(all_axes, _PANELS.items(), strict=True):
    for i, name in enumerate(names):
      # Markers shrink, so that overlapping ones remain visible.
      color, dashes = styles[name]
      style = {"color": color, "markersize": 8 - 3 * i / len(names)}
      points = [(row, *_value(row, column)) for row in rows if row.bound == name]
      values = [value for _, value, _ in points]
      if against_k:
        places = [row.num_samples for row, _, _ in points]
        axes.plot(places, values, linewidth=1.6, alpha=0.8, color=color, linestyle=dashes)
      for row, value, is_limit in points:
        place = (row.num_samples, value) if against_k else (value, i)
        marker = {"marker": "v", "markerfacecolor": "white"} if is_limit else {"marker": "o"}
        axes.plot(*place, **marker, **style)
        if column == "snr":
          bar = {"yerr" if against_k else "xerr": row.snr_error}
          axes.errorbar(*place, color=color, **bar)
    axes.set_title(label, fontsize="medium")
    axes.grid(alpha=0.3)
    _use_decades(axes.yaxis if against_k else axes.xaxis, [_value(row, column)[0] for row in rows])
    if against_k:
      axes.set_xscale("log")
      # The limits are set even if the panel is empty.
      axes.set_xlim(all_num_samples[0] / 1.2, 1.2 * all_num_samples[-1])
      axes.set_xlabel("K, samples of each example")
      axes.set_xticks(all_num_samples)
      axes.xaxis.set_major_formatter(ScalarFormatter())
      axes.xaxis.set_minor_formatter(NullFormatter())
  if not against_k:
    all_axes[0].set_yticks(range(len(names)), names)
    all_axes[0].invert_yaxis()
    title += f", K = {all_num_samples[0]}"
  _add_legend(fig, styles if against_k else {})
  fig.suptitle(title, fontsize="medium")
  fig.savefig(path, dpi=120)


def _value(row, column: str) -> tuple[float, bool]:
  """Returns a row's value to draw, NaN for none, and whether it is an upper limit."""
  is_limit = column == "bias" and not row.is_biased
  value = row.bias_limit if is_limit else getattr(row, column)
  return (value if value > 0 else math.nan), is_limit


def _use_decades(axis, values: Sequence[float]) -> None:
  """Sets a log scale between powers of ten, labeled only there: other labels would overlap."""
  from matplotlib.ticker import NullFormatter

  logs = [math.log10(value) for value in values if not math.isnan(value)] or [0.0]
  first, last = math.floor(min(logs)), math.ceil(max(logs))
  (axis.axes.set_yscale if axis.axis_name == "y" else axis.axes.set_xscale)("log")
  axis.axes.set(**{f"{axis.axis_name}lim": (10**first, 10 ** max(last, first + 1))})
  axis.set_minor_formatter(NullFormatter())


def _add_legend(fig, styles: dict) -> None:
  from matplotlib.lines import Line2D

  handles = [
    Line2D([], [], color=color, linestyle=dashes, marker="o", markersize=6, label=name)
    for name, (color, dashes) in styles.items()
  ]
  limit: dict[str, Any] = {
    "color": "gray",
    "linestyle": "none",
    "marker": "v",
    "markerfacecolor": "white",
  }
  handles.append(Line2D([], [], markersize=6, label="no bias found, 95 % limit", **limit))
  fig.legend(handles=handles, loc="outside lower center", ncols=_COLUMNS_OF_LEGEND)
