"""Pictures of what a model does, and the figure of a run."""

import numpy as np

_NUM_RECONSTRUCTIONS = 8
_NUM_SAMPLES = 16
_SEED = 0


def pictures(model, example, image_shape: tuple[int, int]) -> dict[str, np.ndarray]:
  """Grey pictures [height, width] of what a model makes of some images.

  Args:
    model: a `models.LatentVariableModel` of flattened images.
    example: a batch of its observations [batch_size, D], or of (context, observation) pairs.
    image_shape: the height and width of a whole image, its context included.

  Returns:
    `reconstructions`: images above their reconstructions; `samples`: from the prior, the
    likelihood's mean, given the contexts where there are any.
  """
  context, x = example if isinstance(example, tuple) else (None, example)
  x = np.asarray(x)[:_NUM_RECONSTRUCTIONS]
  if context is not None:
    context = np.asarray(context)[:_NUM_RECONSTRUCTIONS]

  def whole(observations):
    if context is None:
      return np.asarray(observations)
    copies = np.broadcast_to(context, (*observations.shape[:-1], context.shape[-1]))
    return np.concatenate([copies, observations], axis=-1)

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


def tile(images: np.ndarray, image_shape: tuple[int, int], columns: int) -> np.ndarray:
  """Flattened images [N, H * W] side by side in rows of `columns`, a white line between them."""
  height, width = image_shape
  rows = -(-len(images) // columns)
  canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1), np.float32)
  for i, image in enumerate(images):
    top, left = i // columns * (height + 1), i % columns * (width + 1)
    canvas[top : top + height, left : left + width] = np.reshape(image, image_shape)
  return canvas


def run_figure(path, title: str, rows: list[dict], run_pictures: dict[str, np.ndarray]) -> None:
  """Writes a PNG: the bound along training beside the run's pictures.

  Args:
    path: where to write it.
    title: a line above it.
    rows: the rows of metrics.csv, numbers by column.
    run_pictures: what `pictures` returns.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 3.6), layout="constrained")
  grid = figure.add_gridspec(len(run_pictures), 2, width_ratios=[1.1, 1])
  curve = figure.add_subplot(grid[:, 0])
  steps = [row["step"] for row in rows]
  for split in ("train", "valid"):
    marker = "o" if len(rows) < 2 else None
    curve.plot(steps, [row[f"{split}_bound"] for row in rows], label=split, marker=marker)
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
