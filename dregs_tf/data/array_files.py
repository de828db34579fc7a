"""Reads images from .npz files and from .mat files laid out like Omniglot's chardata.mat."""

import math
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from dregs_tf.data.images import DataError, Images, first_line

SPLITS = ("train", "valid", "test")
_NPZ_SPLIT_SEED = 20181004

_MAT_NAMES = ("data", "testdata")

# The split of the code that introduced chardata.mat (Burda et al., yburda/iwae).
_MAT_SPLIT_SEED = 123
_MAT_NUM_VALID = 1345


def read_npz(path: pathlib.Path) -> Images:
  """Reads the arrays `train`, `valid` and `test` of an .npz file; other arrays are ignored.

  Each array has shape [N, H, W], [N, H, W, 1] or [N, D], and is uint8 (0 to 255), bool, or floating
  point in [0, 1]. For [N, D] the images are taken to be square unless the file has an array
  `image_shape` that holds (H, W). Other integer types are refused, since they may hold 0..255 or
  0..1. A uint8 array whose largest value is 1 is refused for the same reason.

  `valid` and `test` may be missing. Each missing one is cut from `train` after a fixed random
  permutation: a tenth of the images, but at least one. If both are missing, 80 % remain.

  Args:
    path: The file.

  Returns:
    The `Images`.

  Raises:
    DataError: if the file cannot be read or does not hold such arrays.
  """
  arrays = read_npz_arrays(path, (*SPLITS, "image_shape"))
  if "train" not in arrays:
    raise DataError(f"{path} has no array 'train'; allowed are train, valid, test, image_shape")
  image_shape = _declared_image_shape(arrays.pop("image_shape", None), path)
  splits = {}
  for split in SPLITS:
    if split in arrays:
      splits[split], image_shape = _flat_gray(
        arrays.pop(split), image_shape, f"array {split!r} of {path}"
      )
  missing = [split for split in ("valid", "test") if split not in splits]
  how_split = "split as in the file"
  if missing:
    how_split = f"fixed random {' and '.join(missing)} split"
    splits = cut_missing(splits, missing, path)
  return Images(
    name=path.stem,
    description=f"images of {path.name}, {how_split}",
    image_shape=image_shape,
    **splits,
  )


def read_mat(path: pathlib.Path) -> Images:
  """Reads a MATLAB file that holds the matrices `data` and `testdata`, one image per column.

  That is Omniglot's `chardata.mat`: `data` is [784, 24345], `testdata` is [784, 8070], gray values
  in [0, 1]. Images are square and stored column by column, so each is transposed. As in the code
  that comes with the file, `data` is permuted with seed 123 and its last 1,345 images are held out
  for validation. A file with fewer than 13,450 columns has its last tenth held out.

  A damaged file may crash scipy's reader, so only read .mat files from sources you trust.

  Args:
    path: The file, of MATLAB's version 4 to 7.2.

  Returns:
    The `Images`.

  Raises:
    DataError: if the file cannot be read or does not hold such matrices.
  """
  matrices = _read_matrices(path)
  gray, image_shapes = {}, {}
  for key in _MAT_NAMES:
    gray[key], image_shapes[key] = _columns_to_images(matrices[key], f"matrix {key!r} of {path}")
  if image_shapes["data"] != image_shapes["testdata"]:
    raise DataError(
      f"{path}: images of 'data' are {_times(image_shapes['data'])}, "
      f"those of 'testdata' {_times(image_shapes['testdata'])}; they must have one size"
    )
  num_images = len(gray["data"])
  if num_images < 2:
    raise DataError(f"{path}: 'data' holds 1 image; a train and a valid split need at least 2")
  num_valid = min(_MAT_NUM_VALID, max(1, num_images // 10))
  train = gray["data"][np.random.RandomState(_MAT_SPLIT_SEED).permutation(num_images)]
  return Images(
    name=path.stem,
    description=f"images of {path.name}, the last {num_valid} of 'data' (permuted) for validation",
    train=train[:-num_valid],
    valid=train[-num_valid:],
    test=gray["testdata"],
    image_shape=image_shapes["data"],
  )


def read_npz_arrays(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
  """Reads the named arrays that exist in the file, without unpickling anything.

  Raises:
    DataError: if the file cannot be read.
  """
  try:
    if not zipfile.is_zipfile(path):  # np.load would read a bare .npy array of any size.
      raise DataError(f"{path} is not a whole .npz file: it is no zip archive, or is truncated")
    with np.load(path, allow_pickle=False) as archive:
      members = archive.zip.namelist()
      return {name: archive[name] for name in names if f"{name}.npy" in members}
  except DataError:
    raise
  except Exception as error:  # Damaged bytes make zipfile, zlib and numpy raise nearly anything.
    raise DataError(f"{path} cannot be read as an .npz file: {first_line(error)}") from error


def _read_matrices(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads `data` and `testdata` of a .mat file, each an array of numbers or characters."""
  import scipy.io
  import scipy.sparse

  try:
    # mat_dtype: MATLAB stores whole numbers of a double matrix as small integers.
    matrices = scipy.io.loadmat(path, mat_dtype=True, variable_names=_MAT_NAMES)
  except Exception as error:  # Damaged bytes make scipy and zlib raise nearly anything.
    raise DataError(f"{path} cannot be read as a .mat file: {first_line(error)}") from error
  for name in _MAT_NAMES:
    if name not in matrices:
      raise DataError(f"{path} has no matrix {name!r}; needed are data and testdata")
    if scipy.sparse.issparse(matrices[name]):
      raise DataError(f"matrix {name!r} of {path} is sparse; store it as a full matrix")
    if matrices[name].dtype.hasobject:
      raise DataError(f"matrix {name!r} of {path} is no matrix of numbers")
  return {name: matrices[name] for name in _MAT_NAMES}


def _declared_image_shape(array: np.ndarray | None, path: pathlib.Path) -> tuple[int, int] | None:
  if array is None:
    return None
  if array.shape != (2,) or array.dtype.kind not in "iu" or array.min() < 1:
    raise DataError(
      f"array 'image_shape' of {path} must hold 2 positive integers, height and width"
    )
  return int(array[0]), int(array[1])


def _flat_gray(
  array: np.ndarray, image_shape: tuple[int, int] | None, where: str
) -> tuple[np.ndarray, tuple[int, int]]:
  """Checks an array of images and flattens it.

  Args:
    array: Images of shape [N, H, W], [N, H, W, 1] or [N, D].
    image_shape: The (H, W) that the images must have, None if not known yet.
    where: The array's name in messages.

  Returns:
    A float32 array of shape [N, H * W] in [0, 1], and (H, W).

  Raises:
    DataError: if it is not such an array.
  """
  if array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[3] != 1):
    raise DataError(f"{where} has shape {array.shape}; allowed are [N, H, W], [N, H, W, 1], [N, D]")
  if array.size == 0:
    raise DataError(f"{where} has shape {array.shape}: it holds no image")
  if array.ndim > 2:
    found = (array.shape[1], array.shape[2])
  else:
    found = image_shape or _square(array.shape[1])
    if found is None:
      raise DataError(
        f"{where} has images of {array.shape[1]} pixels, which is no square; "
        "say their height and width in an array 'image_shape'"
      )
  num_pixels = math.prod(array.shape[1:])
  if math.prod(found) != num_pixels or (image_shape is not None and found != image_shape):
    got = _times(found) if array.ndim > 2 else f"{num_pixels} pixels"
    raise DataError(f"{where} has images of {got} where {_times(image_shape)} were expected")
  return to_gray(array, where).reshape(-1, num_pixels), found


def to_gray(array: np.ndarray, where: str) -> np.ndarray:
  """Returns the array as float32; raises a DataError unless it holds gray values in [0, 1]."""
  if array.dtype == np.uint8:
    if array.max() == 1:
      raise DataError(
        f"{where} is uint8, which is read as 0..255, but holds only 0 and 1; store it as bool"
      )
    return array.astype(np.float32) / np.float32(255)
  if array.dtype == np.bool_:
    return array.astype(np.float32)
  if array.dtype.kind != "f":
    raise DataError(
      f"{where} is {array.dtype}; allowed are uint8 (0 to 255), bool, and floating point in [0, 1]"
    )
  if not np.isfinite(array).all():
    raise DataError(f"{where} holds NaN or infinite values")
  low, high = array.min(), array.max()
  if low < 0 or high > 1:
    raise DataError(
      f"{where} holds values from {low:g} to {high:g}; floating-point images must be in [0, 1]"
    )
  return array.astype(np.float32)


def _columns_to_images(matrix: np.ndarray, where: str) -> tuple[np.ndarray, tuple[int, int]]:
  """Turns a matrix [D, N] of column-major images into row-major images [N, D]."""
  if matrix.ndim != 2 or matrix.size == 0:
    raise DataError(f"{where} has shape {matrix.shape}; it must be [pixels, images], not empty")
  image_shape = _square(matrix.shape[0])
  if image_shape is None:
    raise DataError(f"{where} has {matrix.shape[0]} rows; a square image per column is expected")
  columns_first = to_gray(matrix, where).T.reshape(-1, *image_shape)
  return columns_first.transpose(0, 2, 1).reshape(-1, matrix.shape[0]), image_shape


def cut_missing(
  splits: dict[str, np.ndarray], missing: list[str], path: pathlib.Path
) -> dict[str, np.ndarray]:
  """Cuts the missing splits from the end of the permuted train split, each an array [N, D].

  Raises:
    DataError: if the train split is too small.
  """
  num_images = len(splits["train"])
  if num_images < len(missing) + 1:
    raise DataError(
      f"{path}: 'train' holds {num_images} image(s), too few to cut {' and '.join(missing)} from"
    )
  order = np.random.RandomState(_NPZ_SPLIT_SEED).permutation(num_images)
  num_cut = max(1, num_images // 10)
  result = dict(splits)
  for split in missing:
    order, cut = order[:-num_cut], order[-num_cut:]
    result[split] = splits["train"][cut]
  result["train"] = splits["train"][order]
  return result


def _square(num_pixels: int) -> tuple[int, int] | None:
  side = math.isqrt(num_pixels)
  return (side, side) if side * side == num_pixels else None


def _times(image_shape: tuple[int, int]) -> str:
  return f"{image_shape[0]}x{image_shape[1]}"
