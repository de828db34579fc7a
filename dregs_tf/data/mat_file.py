"""Reads a .mat file in a process of its own: scipy's reader crashes on some that are damaged."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import numpy as np

from dregs_tf.data.images import DataError, first_line


def read(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
  """Reads those matrices of a MATLAB file that are in it, each an array of numbers or characters.

  Args:
    path: The file, of MATLAB's version 4 to 7.2.
    names: The names of the matrices.

  Returns:
    The matrices by name.

  Raises:
    DataError: if the file cannot be read, whatever that does to scipy.
  """
  with tempfile.TemporaryDirectory() as folder:
    # This file as a script, which finds modules where this process does.
    reader = subprocess.run(
      [sys.executable, "-P", __file__, path, folder, *names],
      env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.curdir for p in sys.path)},
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      errors="replace",
      check=False,
    )
    if reader.returncode:
      raise DataError(f"{path} cannot be read as a .mat file: {_reason(reader)}")
    files = {name: pathlib.Path(folder, f"{name}.npy") for name in names}
    return {name: np.load(file) for name, file in files.items() if file.exists()}


def _reason(reader: subprocess.CompletedProcess) -> str:
  """Why the reader failed, in one line."""
  if reader.returncode < 0:
    name = signal.Signals(-reader.returncode).name
    return f"scipy's reader was ended by {name}; the file is damaged, or too large for the memory"
  lines = reader.stdout.splitlines() or reader.stderr.splitlines() or ["no reason given"]
  return lines[-1]


def _main(path: str, folder: str, *names: str) -> str | None:
  """What the other process does: saves the matrices in the folder, or returns what is wrong."""
  import scipy.io
  import scipy.sparse

  try:
    # mat_dtype: MATLAB stores whole numbers of a double matrix as small integers.
    matrices = scipy.io.loadmat(path, mat_dtype=True, variable_names=names)
    for name in names:
      matrix = matrices.get(name)
      if scipy.sparse.issparse(matrix):
        return f"matrix {name!r} is sparse; store it as a full one"
      if matrix is not None and matrix.dtype.hasobject:
        return f"matrix {name!r} is no matrix of numbers"
  except Exception as error:  # Damaged bytes make scipy and zlib raise nearly anything.
    return first_line(error)
  try:
    for name in names:
      if name in matrices:
        np.save(os.path.join(folder, f"{name}.npy"), matrices[name])
  except OSError as error:
    return f"there is no room for a copy in {folder}: {first_line(error)}"
  return None


if __name__ == "__main__":
  message = _main(*sys.argv[1:])
  if message:
    print(message)
    sys.exit(1)
