"""A run's files: checkpoints written atomically, rows of metrics, and a lock on the directory."""

import contextlib
import csv
import fcntl
import os
import pathlib
import re
import tempfile
import warnings

import keras

from dregs_tf import models  # noqa: F401 - the classes that Keras loads
from dregs_tf.errors import ConfigError

_FOLDER = "checkpoints"
_PATTERN = re.compile(r"step-(\d+)\.keras")
_NUM_KEPT = 3


def save(model: keras.Model, directory: pathlib.Path, step: int) -> pathlib.Path:
  """Writes the whole model, optimizer and moving averages included, all of it or nothing."""
  path = path_of(directory, step)
  folder = path.parent
  folder.mkdir(exist_ok=True)
  unfinished = folder / "unfinished.keras"
  try:
    model.save(unfinished)
    _sync(unfinished)
    os.replace(unfinished, path)
  except OSError as error:
    unfinished.unlink(missing_ok=True)
    raise OSError(
      f"{path} cannot be written: {error.strerror or error}. The checkpoints before it are whole; "
      "the same command goes on from them."
    ) from error
  _sync(folder)
  for _, old in find(directory)[:-_NUM_KEPT]:
    old.unlink()
  return path


def take_part_in_saving(model: keras.Model) -> None:
  """What the other workers do while the chief saves: metrics are summed over all of them."""
  with tempfile.TemporaryDirectory() as folder:
    model.save(pathlib.Path(folder) / "unused.keras")


def find(directory: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
  """The checkpoints in a run's directory as (step, path), the newest last."""
  folder = directory / _FOLDER
  names = sorted(os.listdir(folder)) if folder.is_dir() else []
  matches = [(_PATTERN.fullmatch(name), name) for name in names]
  return sorted((int(match[1]), folder / name) for match, name in matches if match)


def path_of(directory: pathlib.Path, step: int) -> pathlib.Path:
  """Where the checkpoint of a step is."""
  return directory / _FOLDER / f"step-{step:09d}.keras"


def load(path: pathlib.Path) -> keras.Model:
  """The model of one checkpoint."""
  return keras.saving.load_model(path)


def load_newest(directory: pathlib.Path, flag: str = "logdir") -> tuple[int, keras.Model] | None:
  """(step, model) of the newest checkpoint that can be read, None if there is none.

  A damaged one is passed over with a warning.

  Args:
    directory: a run's.
    flag: the one that names it, for messages.

  Raises:
    ConfigError: if there are checkpoints, but none that can be read: to begin anew would lose them.
  """
  saved = find(directory)
  reason = ""
  for step, path in reversed(saved):
    try:
      return step, load(path)
    except Exception as error:  # whatever a truncated archive brings about
      reason = " ".join(str(error).split())[:200] or type(error).__name__
      warnings.warn(f"Checkpoint {path} is damaged ({reason}); using the one before.", stacklevel=2)
  if saved:
    raise ConfigError(f"--{flag}={directory}: none of its checkpoints can be read ({reason}).")
  return None


class MetricsFile:
  """`metrics.csv`: a row per summary, first column `step`."""

  def __init__(self, path: pathlib.Path, start_step: int):
    """Keeps the rows up to `start_step`; those after it are measured again."""
    self._path = path
    self._columns = None
    if not path.exists():
      return
    try:
      with open(path, newline="") as file:
        rows = list(csv.reader(file))
      kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) <= start_step]
    except (OSError, ValueError, csv.Error) as error:
      raise ConfigError(
        f"{path} is not the metrics.csv of a run, one row of numbers per step: {error}. Repair it "
        "or move it away."
      ) from error
    if not rows or not kept:
      path.unlink()
      return
    self._columns = rows[0]
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "w", newline="") as file:
      csv.writer(file, lineterminator="\n").writerows([self._columns, *kept])
    _sync(unfinished)
    os.replace(unfinished, path)

  def append(self, row: dict[str, float]) -> None:
    """Adds a row, on disk when this returns."""
    with open(self._path, "a", newline="") as file:
      writer = csv.writer(file, lineterminator="\n")
      if self._columns is None:
        self._columns = list(row)
        writer.writerow(self._columns)
      writer.writerow([row[column] for column in self._columns])
      file.flush()
      os.fsync(file.fileno())


@contextlib.contextmanager
def locked(directory: pathlib.Path):
  """Holds the directory; a second process is refused. The lock goes with the process."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    file = open(directory / "lock", "w")  # noqa: SIM115
  except OSError as error:
    raise ConfigError(
      f"--logdir={directory} must be a directory that can be written to: {error.strerror}."
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ConfigError(
        f"--logdir={directory} is in use by another process: wait for it, or give another --logdir."
      ) from error
    yield


def _sync(path: pathlib.Path) -> None:
  """Has the file or directory on disk before going on."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
