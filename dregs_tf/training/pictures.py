"""Draws pictures of a model's reconstructions and samples, and the figure of a run."""

import os
from typing import Any

import keras
import numpy as np

from dregs_tf import models, output

_NUM_RECONSTRUCTIONS = 8
_NUM_SAMPLES = 16
_NUM_PARTICLES = 100

# In pictures of series: the panels, the lines in each, and the paths behind a forecast's range.
_NUM_SERIES, _NUM_LINES, _NUM_PATHS = 4, 3, 200

_SEED = 0


def pictures(
  model: keras.Model, example: Any, image_shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """Draws pictures of reconstructions and samples, [height, width] in gray or [height, width, 3].

  Args:
    model: a `models.LatentVariableModel` of flattened images, or a `models.StateSpaceModel`.
    example: a batch of its observations [batch_size, D], or of (context, observation) pairs, or of
      sequences [batch_size, T, D], or of (lengths, sequences) pairs.
    image_shape: the height and width of a whole image, including its context.

  Returns:
    A dict of pictures. `reconstructions`: images above their reconstructions. `samples`: the
    likelihood's mean at samples of the prior, given the contexts if there are any. Sequences have
    `forecasts` instead of reconstructions: the second half given the first half, below the observed
    sequence. Series of numbers other than probabilities are drawn as lines, with a 90 % range
    around forecasts, and their samples include the likelihood's noise.
  """
  if isinstance(model, models.StateSpaceModel):
    return _of_sequences(model, example)
  context, x = example if isinstance(example, tuple) else (None, example)
  x = np.asarray(x)[:_NUM_RECONSTRUCTIONS]
  if context is not None:
    context = np.asarray(context)[:_NUM_RECONSTRUCTIONS]

  def whole(observations):
    return whole_images(observations, context)

  reconstructed = model.reconstruct(x, context, seed=_SEED)
  columns = len(x)
  num_samples = _NUM_SAMPLES if context is None else 2
  sampled = whole(model.sample(num_samples, context, seed=_SEED, mean=True))
  sampled = np.reshape(sampled, (-1, image_shape[0] * image_shape[1]))
  return {
    "reconstructions": tile(np.concatenate([whole(x), whole(reconstructed)]), image_shape, columns),
    "samples": tile(sampled, image_shape, columns),
  }


def _of_sequences(model: models.StateSpaceModel, example: Any) -> dict[str, np.ndarray]:
  """Draws pictures of a model of sequences, as images if their numbers are probabilities."""
  lengths, x = example if isinstance(example, tuple) else (None, example)
  x = np.asarray(x)[:_NUM_RECONSTRUCTIONS]
  num_steps = x.shape[1]
  ends = np.full(len(x), num_steps) if lengths is None else np.asarray(lengths)[: len(x)]
  begins = np.maximum(ends // 2, 1)
  is_gray = bool(model.binary_observations)
  paths = model.forecast(
    x[:, : begins.max()],
    max(1, (ends - begins).max()),
    n=1 if is_gray else _NUM_PATHS,
    num_samples=_NUM_PARTICLES,
    lengths=None if lengths is None else begins,
    seed=_SEED,
    mean=is_gray,
  )
  paths = np.asarray(paths)
  sampled = np.asarray(model.sample(_NUM_SAMPLES, num_steps, seed=_SEED, mean=is_gray))
  if not is_gray:
    return {"forecasts": _lines(x, begins, ends, paths), "samples": _lines(sampled)}
  observed = np.where((np.arange(num_steps) < ends[:, np.newaxis])[..., np.newaxis], x, np.nan)
  forecasts = observed.copy()
  for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
    forecasts[i, begin:end] = paths[i, 0, : end - begin]
  shape = num_steps, x.shape[2]
  return {
    "forecasts": tile(np.concatenate([observed, forecasts]), shape, columns=len(x)),
    "samples": tile(sampled, shape, columns=len(x)),
  }


def _lines(
  x: np.ndarray,
  begins: np.ndarray | None = None,
  ends: np.ndarray | None = None,
  paths: np.ndarray | None = None,
) -> np.ndarray:
  """Draws series, and forecasts of their ends, in color.

  Args:
    x: series [N, T, D]; the first few series, and the first few of the D numbers, are drawn.
    begins: the steps at which forecasts begin, [N]; None without forecasts.
    ends: the numbers of steps, [N].
    paths: forecasts [N, n, steps, D]; their median and 90 % range are drawn.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 1.8), layout="constrained")
  canvas = FigureCanvasAgg(figure)
  panels = figure.subplots(1, _NUM_SERIES, sharey=True)
  colors = list(output.COLORS.values())[:_NUM_LINES]
  for i, axes in enumerate(panels[: len(x)]):
    end = x.shape[1] if ends is None else ends[i]
    for d, color in enumerate(colors[: x.shape[2]]):
      axes.plot(np.arange(end), x[i, :end, d], color=color, linewidth=1)
      if paths is not None:
        steps = np.arange(begins[i], end)
        low, middle, high = np.quantile(paths[i, :, : len(steps), d], [0.05, 0.5, 0.95], axis=0)
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(steps, middle, color=color, linestyle=output.DASHED, linewidth=1)
    axes.tick_params(labelsize="x-small")
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3] / np.float32(255)


def whole_images(x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
  """Joins observations [..., D] and their contexts, if any, to flattened images [..., H * W]."""
  x = np.asarray(x)
  if context is None:
    return x
  copies = np.broadcast_to(context, (*x.shape[:-1], np.shape(context)[-1]))
  return np.concatenate([copies, x], axis=-1)


def visible(images: np.ndarray) -> np.ndarray:
  """Returns images whose missing pixels, NaN, are shown in gray."""
  return np.where(np.isnan(images), 0.5, images)


def tile(images: np.ndarray, image_shape: tuple[int, int], columns: int) -> np.ndarray:
  """Arranges flattened images [N, H * W] in rows of `columns`, with white lines between them."""
  height, width = image_shape
  rows = -(-len(images) // columns)
  canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1), np.float32)
  for i, image in enumerate(images):
    top, left = i // columns * (height + 1), i % columns * (width + 1)
    canvas[top : top + height, left : left + width] = np.reshape(visible(image), image_shape)
  return canvas


def run_figure(
  path: str | os.PathLike, title: str, metrics: dict[str, np.ndarray], run_pictures: dict
) -> None:
  """Writes a PNG: the bound along training, and the run's pictures.

  Args:
    path: the file.
    title: the line above the figure.
    metrics: the columns of metrics.csv, each [num_rows].
    run_pictures: the result of `pictures`.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 3.6), layout="constrained")
  grid = figure.add_gridspec(len(run_pictures), 2, width_ratios=[1.1, 1])
  curve = figure.add_subplot(grid[:, 0])
  marker = "o" if len(metrics["step"]) < 2 else None
  for split, color in (("train", "blue"), ("valid", "vermilion")):
    values = metrics[f"{split}_bound"]
    curve.plot(metrics["step"], values, label=split, marker=marker, color=output.COLORS[color])
  curve.set_xlabel("step")
  curve.set_ylabel("bound (nats)")
  curve.legend(loc="lower right")
  curve.grid(alpha=0.3)
  for i, (name, picture) in enumerate(run_pictures.items()):
    axes = figure.add_subplot(grid[i, 1])
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_title(name, fontsize="medium")
    axes.set_axis_off()
  figure.suptitle(title)
  figure.savefig(path, dpi=120)
