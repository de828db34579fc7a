"""Pictures of a model's reconstructions and samples, and the figure of a run."""

import os
from typing import Any

import keras
import numpy as np

from dregs_tf import output

_NUM_RECONSTRUCTIONS = 8
_NUM_SAMPLES = 16
_NUM_PARTICLES = 100
_SEED = 0


def pictures(
  model: keras.Model, example: Any, image_shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """Returns gray pictures [height, width] of reconstructions and samples of a model.

  Args:
    model: a `models.LatentVariableModel` of flattened images, or a `models.StateSpaceModel` of
      rows.
    example: a batch of its observations [batch_size, D], or of (context, observation) pairs, or of
      sequences of rows [batch_size, H, W].
    image_shape: the height and width of a whole image, its context included.

  Returns:
    `reconstructions`: images above their reconstructions; `samples`: from the prior, the
    likelihood's mean, given the contexts where there are any. Of rows `forecasts` in place of
    reconstructions: the lower half given the upper one.
  """
  if not isinstance(example, tuple) and np.ndim(example) == 3:
    return _of_rows(model, np.asarray(example)[:_NUM_RECONSTRUCTIONS], image_shape)
  context, x = example if isinstance(example, tuple) else (None, example)
  x = np.asarray(x)[:_NUM_RECONSTRUCTIONS]
  if context is not None:
    context = np.asarray(context)[:_NUM_RECONSTRUCTIONS]

  def whole(observations):
    return whole_images(observations, context)

  reconstructed = model.reconstruct(x, context, seed=_SEED)
  columns = len(x)
  if context is None:
    sampled, columns_sampled = model.sample(_NUM_SAMPLES, seed=_SEED, mean=True), columns
  else:
    sampled, columns_sampled = model.sample(2, context, seed=_SEED, mean=True), columns
  return {
    "reconstructions": tile(np.concatenate([whole(x), whole(reconstructed)]), image_shape, columns),
    "samples": tile(
      np.reshape(whole(sampled), (-1, image_shape[0] * image_shape[1])),
      image_shape,
      columns_sampled,
    ),
  }


def _of_rows(model, x: np.ndarray, image_shape: tuple[int, int]) -> dict[str, np.ndarray]:
  """Returns pictures of a model of rows, for x [batch_size, H, W]."""
  height, _ = image_shape
  given = x[:, : height // 2]
  rest = model.forecast(
    given, height - height // 2, n=1, num_samples=_NUM_PARTICLES, seed=_SEED, mean=True
  )
  forecasts = np.concatenate([given, np.asarray(rest)[:, 0]], axis=1)
  sampled = np.asarray(model.sample(_NUM_SAMPLES, height, seed=_SEED, mean=True))
  return {
    "forecasts": tile(np.concatenate([x, forecasts]), image_shape, columns=len(x)),
    "samples": tile(sampled, image_shape, columns=len(x)),
  }


def whole_images(x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
  """Returns flattened images [..., H * W] of observations [..., D] and their contexts, if any."""
  x = np.asarray(x)
  if context is None:
    return x
  copies = np.broadcast_to(context, (*x.shape[:-1], np.shape(context)[-1]))
  return np.concatenate([copies, x], axis=-1)


def visible(images: np.ndarray) -> np.ndarray:
  """Returns images with missing pixels, NaN, in gray."""
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
    title: a line above it.
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
