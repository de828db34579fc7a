"""Draws the figures of the multi-modal experiment: values against K, and generated halves."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from dregs_tf import catalogue, output

_PANELS = {
  "log_p": "test log p(x), nats",
  "log_p_bottom_given_top": "log p(bottom | top), nats",
  "log_p_top_given_bottom": "log p(top | bottom), nats",
  "share_of_hook": "share of the gradient that the hook delivers",
}


def numbers(path: str | os.PathLike, rows: Sequence[Mapping]) -> None:
  """Writes a PNG of panels against K: means over the seeds as lines, runs as points.

  Args:
    path: where to write it.
    rows: those of results.csv.
  """
  from matplotlib.figure import Figure

  fig = Figure(figsize=(15, 3.8), layout="constrained")
  kinds = list(dict.fromkeys((row["bound"], row["gradient"]) for row in rows))
  ks = sorted({row["num_samples"] for row in rows})
  for axes, (column, label) in zip(fig.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
    for kind, (color, dashes) in zip(kinds, output.STYLES, strict=False):
      values = {
        k: [
          row[column]
          for row in rows
          if (row["bound"], row["gradient"], row["num_samples"]) == (*kind, k)
          and row[column] is not None
        ]
        for k in ks
      }
      present = [k for k in ks if values[k]]
      if not present:
        continue
      style = {"color": color, "linestyle": dashes}
      means = [np.mean(values[k]) for k in present]
      axes.plot(present, means, marker="o", label=_label(*kind), **style)
      for k in present:
        axes.plot([k] * len(values[k]), values[k], ".", color=color, alpha=0.5)
    if column == "share_of_hook":
      axes.axhline(1, color=output.COLORS["gray"], linewidth=0.8)
      axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_xscale("log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("K, samples of each expert")
    axes.set_title(label, fontsize=10)
  handles, labels = fig.axes[0].get_legend_handles_labels()
  fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
  fig.savefig(path, dpi=110)


def cross_generation(
  path: str | os.PathLike,
  shown: Mapping[str, np.ndarray],
  drawn: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
  image_shape: tuple[int, int],
) -> None:
  """Writes a PNG of digits of which one half is generated from the other.

  Args:
    path: where to write it.
    shown: the halves of the digits, [n, pixels] by name.
    drawn: the generated halves, of the same shapes, by bound and gradient.
    image_shape: the pair (height, width).
  """
  from matplotlib.figure import Figure

  height, width = image_shape
  lines = {"the digits": (shown["top"], shown["bottom"])}
  for kind, halves in drawn.items():
    lines[f"{_label(*kind)}: bottom from top"] = (shown["top"], halves["bottom"])
    lines[f"{_label(*kind)}: top from bottom"] = (halves["top"], shown["bottom"])
  number = len(shown["top"])
  fig = Figure(figsize=(0.75 * number + 3.6, 0.85 * len(lines)), layout="constrained")
  all_axes = fig.subplots(len(lines), 1, squeeze=False)[:, 0]
  for axes, (title, parts) in zip(all_axes, lines.items(), strict=True):
    digits = np.concatenate(parts, axis=1).reshape(number, height, width)
    digits = np.pad(digits, [(0, 0), (0, 0), (1, 1)], constant_values=np.nan)
    axes.imshow(np.concatenate(digits, axis=1), cmap="gray_r", vmin=0, vmax=1)
    axes.axhline(height // 2 - 0.5, color=output.COLORS["vermilion"], linewidth=0.8)
    axes.set_axis_off()
    axes.text(-1, height / 2, title, ha="right", va="center", fontsize=9)
  fig.savefig(path, dpi=110, bbox_inches="tight")


def _label(bound: str, gradient: str) -> str:
  label = catalogue.BOUNDS[bound].label
  return f"{label}, the hook" if gradient == "hook" else label
