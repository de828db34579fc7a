"""Makes the fixtures in this folder: tiny data sets in the formats that `--dataset=PATH` reads.

    python testdata/make_testdata.py

stripes.npz: 120 gray images of 6 x 5 pixels, 80 to train, 20 to validate, 20 to test; a bright
horizontal or vertical stripe each. chardata.mat: 60 + 20 images of 28 x 28 pixels in the layout of
Burda et al.'s file, stored column by column; a bright rectangle each.
"""

import pathlib

import numpy as np
import scipy.io

FOLDER = pathlib.Path(__file__).resolve().parent


def stripes(random: np.random.Generator, count: int) -> np.ndarray:
  """Images [count, 6, 5], bytes, dim noise with a bright row or column."""
  images = random.integers(0, 40, (count, 6, 5))
  for image in images:
    if random.random() < 0.5:
      image[random.integers(6)] += 200
    else:
      image[:, random.integers(5)] += 200
  return images.astype(np.uint8)


def rectangles(random: np.random.Generator, count: int) -> np.ndarray:
  """Images [count, 28, 28], gray values in [0, 1], a bright rectangle on black."""
  images = np.zeros((count, 28, 28))
  for image in images:
    top, left, height, width = random.integers(3, 12, 4)
    image[top : top + height, left : left + width] = 0.9
  return images


def main() -> None:
  """Writes the files; always the same ones."""
  random = np.random.default_rng(0)
  images = stripes(random, 120)
  np.savez_compressed(
    FOLDER / "stripes.npz", train=images[:80], valid=images[80:100], test=images[100:]
  )
  columns = rectangles(random, 80).transpose(2, 1, 0).reshape(784, 80)  # column by column
  scipy.io.savemat(
    FOLDER / "chardata.mat",
    {"data": columns[:, :60], "testdata": columns[:, 60:]},
    do_compression=True,
  )


if __name__ == "__main__":
  main()
