"""Reports and draws how far the log-likelihoods of an evaluation can be trusted."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from dregs_tf import output
from dregs_tf.importance_weights import Diagnostics
from dregs_tf.training import pictures

# If k-hat is above this, neither the estimate nor its error can be trusted.
LARGEST_K = 0.7

_ROWS, _COLUMNS = 3, 4
_NUM_BINS = 30


def joined(parts: Sequence[Diagnostics]) -> Diagnostics:
  """Concatenates the diagnostics of batches to those of all images, float64 arrays [N]."""
  return Diagnostics(
    *(np.concatenate(figure).astype(np.float64) for figure in zip(*parts, strict=True))
  )


def summary(figures: Diagnostics) -> dict[str, float]:
  """Summarizes the diagnostics of N images, each [N], for a result file.

  log_likelihood: the mean over images in nats; standard_error: its error over images;
  sampling_error: its error over the noise of the samples; upper: the mean of upper estimates;
  effective_sample_size: the median; untrusted: the share of images with a k-hat above 0.7.
  """
  num_images = len(figures.value)
  return {
    "num_images": num_images,
    "log_likelihood": float(figures.value.mean()),
    "standard_error": float(figures.value.std(ddof=1) / math.sqrt(num_images)),
    "sampling_error": float(math.sqrt(np.sum(figures.standard_error**2)) / num_images),
    "upper": float(figures.upper.mean()),
    "effective_sample_size": float(np.median(figures.effective_sample_size)),
    "untrusted": float(np.mean(_is_untrusted(figures.pareto_k))),
  }


def rows(figures: Diagnostics) -> list[dict]:
  """Returns a row of diagnostics for each image, for a CSV file."""
  names = {"value": "log_likelihood"}
  columns = {names.get(name, name): getattr(figures, name) for name in figures._fields}
  return [
    {"image": i} | {name: float(column[i]) for name, column in columns.items()}
    for i in range(len(figures.value))
  ]


def report(result: Mapping) -> str:
  """Formats the result of an evaluation as lines."""
  lines = [
    f"log p(x) of the {result['split']} set ({result['num_images']} images, step "
    f"{result['step']}, lower bound with {result['num_samples']} samples): "
    f"{result['log_likelihood']:.3f} +- {result['standard_error']:.3f} nats (standard error over "
    f"images; {result['sampling_error']:.3f} from sampling).",
    f"Upper estimate from the same samples: {result['upper']:.3f} nats.",
    f"Effective sample size: {result['effective_sample_size']:.1f} of {result['num_samples']} "
    f"(median). k-hat above {LARGEST_K}: {result['untrusted']:.1%} of the images"
    + (", whose log p(x) may be far off." if result["untrusted"] else "."),
  ]
  if "imputation_error" in result:
    lines.append(
      f"Missing pixels, imputed: root mean squared error {result['imputation_error']:.3f} "
      f"({result['mean_imputation_error']:.3f} with the mean image)."
    )
  return "\n".join(lines)


def figure(
  path: str | os.PathLike,
  title: str,
  figures: Diagnostics,
  images: np.ndarray,
  image_shape: tuple[int, int],
) -> None:
  """Writes a PNG: a histogram of k-hat, and the images with the largest k-hat.

  Args:
    path: the file.
    title: the line above the figure.
    figures: the diagnostics of N images.
    images: the images [N, H * W], NaN where a pixel is missing.
    image_shape: (H, W).
  """
  from matplotlib.figure import Figure

  k_hat = figures.pareto_k
  canvas = Figure(figsize=(10, 3.8), layout="constrained")
  grid = canvas.add_gridspec(_ROWS, _COLUMNS + 4)
  axes = canvas.add_subplot(grid[:, :4])
  finite = k_hat[np.isfinite(k_hat)]
  axes.hist(finite, bins=_NUM_BINS, color=output.COLORS["blue"])
  axes.axvline(LARGEST_K, color=output.COLORS["vermilion"], linestyle=output.DASHED)
  share = np.mean(_is_untrusted(k_hat))
  axes.set_title(f"{share:.1%} of the images above {LARGEST_K}", fontsize="medium")
  if len(finite) < len(k_hat):
    axes.annotate(
      f"{len(k_hat) - len(finite)} without a tail to fit",
      (0.97, 0.95),
      ha="right",
      va="top",
      xycoords="axes fraction",
    )
  axes.set_xlabel("k-hat")
  axes.set_ylabel("images")
  order = np.argsort(-np.where(np.isnan(k_hat), math.inf, k_hat), kind="stable")
  for place, i in enumerate(order[: _ROWS * _COLUMNS]):
    axes = canvas.add_subplot(grid[place // _COLUMNS, 4 + place % _COLUMNS])
    picture = pictures.visible(images[i]).reshape(image_shape)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_title(f"{i}: k = {k_hat[i]:.2f}", fontsize="x-small")
    axes.set_axis_off()
  canvas.suptitle(f"{title}, the images with the largest k-hat")
  canvas.savefig(path, dpi=120)


def _is_untrusted(k_hat: np.ndarray) -> np.ndarray:
  return np.logical_not(k_hat <= LARGEST_K)  # NaN is not trusted either.
