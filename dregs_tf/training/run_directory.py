"""Reads, writes and locks the directory of a run. Needs no TensorFlow."""

import contextlib
import csv
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dregs_tf import output
from dregs_tf.training import config
from dregs_tf.training.errors import ConfigError

if TYPE_CHECKING:
  import keras

_CHECKPOINT = re.compile(r"step-(\d+)\.keras")
_NUM_KEPT = 3


class Run:
  """Gives access to the directory of a run, which holds these files.

  - config.json: its configuration, and the versions of the libraries that trained it last.
  - metrics.csv: a row of numbers per summary; the first column is `step`.
  - checkpoints/: whole models, each written completely or not at all.
  - result.json: the step, and the bound on the test set in nats.
  - evaluation_SPLIT_K.json, .csv and .png: the log-likelihood of a split, by image in the CSV.
  - run.png and tensorboard/.
  """

  def __init__(self, directory: str | os.PathLike, flag: str = "logdir"):
    """Refers to a directory, which need not exist.

    Args:
      directory: its path.
      flag: the flag that gave the path, for messages.
    """
    self.directory = pathlib.Path(directory)
    self._flag = flag

  @property
  def figure(self) -> pathlib.Path:
    """Returns the path of run.png."""
    return self.directory / "run.png"

  @property
  def tensorboard(self) -> pathlib.Path:
    """Returns the folder of TensorBoard's events."""
    return self.directory / "tensorboard"

  @property
  def _config(self) -> pathlib.Path:
    return self.directory / "config.json"

  @property
  def _metrics(self) -> pathlib.Path:
    return self.directory / "metrics.csv"

  @property
  def _checkpoints(self) -> pathlib.Path:
    return self.directory / "checkpoints"

  @contextlib.contextmanager
  def locked(self):
    """Creates and locks the directory; other processes are refused. The lock ends with the process.

    Raises:
      ConfigError: if another process holds the directory, or it cannot be written.
    """
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      file = open(self.directory / "lock", "w")  # noqa: SIM115
    except OSError as error:
      raise ConfigError(
        f"--{self._flag}={self.directory} must be a directory that can be written to: "
        f"{error.strerror}."
      ) from error
    with file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise ConfigError(
          f"--{self._flag}={self.directory} is in use by another process: wait for it, or give "
          f"another --{self._flag}."
        ) from error
      yield

  # --- config.json, result.json, evaluation_*.json -----------------------------------------------

  def is_there(self) -> bool:
    """Returns whether a run has begun in the directory."""
    return self._config.exists()

  def write_config(self, settings: config.TrainConfig, versions: Mapping[str, str] = {}) -> None:
    """Writes config.json: the configuration, whose inputs get absolute paths, and versions."""
    fields = dataclasses.asdict(settings) | settings.absolute_paths
    fields |= {"versions": dict(versions)} if versions else {}
    _write_json(self._config, fields, indent=2)

  def read_config(self) -> config.TrainConfig | None:
    """Returns the configuration, with this directory as its logdir; None if there is none.

    Raises:
      ConfigError: if there is one that cannot be read.
    """
    if not self.is_there():
      return None
    try:
      fields = json.loads(self._config.read_text())
      fields.pop("versions", None)
      settings = config.TrainConfig(**fields)
    except (AttributeError, OSError, TypeError, ValueError) as error:
      raise ConfigError(
        f"{self._config} is not a configuration of this version: {error}"
      ) from error
    return dataclasses.replace(settings, logdir=str(self.directory))

  def write_result(self, result: Mapping) -> None:
    """Writes result.json."""
    _write_json(self.directory / "result.json", result)

  def read_result(self) -> dict | None:
    """Returns the content of result.json, None if there is none."""
    return _read_json(self.directory / "result.json")

  def write_evaluation(self, result: Mapping, rows: Sequence[Mapping]) -> None:
    """Writes the evaluation's JSON and its CSV, a row for each image.

    Args:
      result: the content of the JSON; `split` and `num_samples` in it name the files.
      rows: the diagnostics of each image.
    """
    name = result["split"], result["num_samples"]
    _write_json(self._evaluation(*name), result)
    output.write_csv(self.evaluation_rows(*name), rows, digits=9)

  def read_evaluation(self, split: str = "test", num_samples: int = 5000) -> dict | None:
    """Returns the evaluation of a split with `num_samples` samples, None if there is none."""
    return _read_json(self._evaluation(split, num_samples))

  def evaluation_rows(self, split: str, num_samples: int) -> pathlib.Path:
    """Returns the path of the CSV of an evaluation."""
    return self._evaluation(split, num_samples, "csv")

  def evaluation_figure(self, split: str, num_samples: int) -> pathlib.Path:
    """Returns the path of the figure of an evaluation."""
    return self._evaluation(split, num_samples, "png")

  def _evaluation(self, split: str, num_samples: int, suffix: str = "json") -> pathlib.Path:
    return self.directory / f"evaluation_{split}_{num_samples}.{suffix}"

  # --- metrics.csv -------------------------------------------------------------------------------

  def keep_metrics(self, step: int) -> None:
    """Drops the rows of metrics.csv after a step, since a resumed run measures them again.

    Raises:
      ConfigError: if the file does not hold such rows.
    """
    if not self._metrics.exists():
      return
    try:
      header, *rows = self._rows() or [[]]
      kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= step]
    except (OSError, ValueError, csv.Error) as error:
      raise ConfigError(
        f"{self._metrics} is not the metrics.csv of a run, one row of numbers per step: {error}. "
        "Repair it or move it away."
      ) from error
    if not kept:
      self._metrics.unlink()
      return
    with _replacing(self._metrics, self._metrics.with_suffix(".unfinished")) as unfinished:
      output.write_csv(unfinished, [dict(zip(header, row, strict=True)) for row in kept])

  def add_metrics(self, row: Mapping[str, float]) -> None:
    """Adds a row to metrics.csv; it is on disk when this returns."""
    rows = self._rows() if self._metrics.exists() else []
    output.write_csv(self._metrics, [row], rows[0] if rows else None, append=True)

  def has_metrics(self, step: int) -> bool:
    """Returns whether metrics.csv has the row of a step."""
    return self._metrics.exists() and step in self.read_metrics()["step"]

  def read_metrics(self) -> dict[str, np.ndarray]:
    """Returns the columns of metrics.csv by name, each [num_rows] in float64.

    Raises:
      OSError, ValueError, csv.Error: if there is no such file, or it does not hold numbers.
    """
    header, *rows = self._rows() or [["step"]]
    if header[0] != "step":
      raise ValueError("the first column of metrics.csv is not the step")
    if rows and len(rows[-1]) != len(header):
      rows.pop()  # A running run is still writing the last row.
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
    return dict(zip(header, values.T, strict=True))

  def _rows(self) -> list[list[str]]:
    with open(self._metrics, newline="") as file:
      return list(csv.reader(file))

  # --- checkpoints -------------------------------------------------------------------------------

  def checkpoints(self) -> list[tuple[int, pathlib.Path]]:
    """Returns the checkpoints as (step, path), the newest last."""
    names = sorted(os.listdir(self._checkpoints)) if self._checkpoints.is_dir() else []
    matches = [(_CHECKPOINT.fullmatch(name), name) for name in names]
    return sorted((int(match[1]), self._checkpoints / name) for match, name in matches if match)

  def checkpoint(self, step: int) -> pathlib.Path:
    """Returns the path of the checkpoint of a step."""
    return self._checkpoints / f"step-{step:09d}.keras"

  def save(self, model: "keras.Model", step: int) -> None:
    """Writes the whole model, its optimizer and moving averages, completely or not at all.

    Raises:
      OSError: if the file cannot be written; earlier checkpoints are kept.
    """
    path = self.checkpoint(step)
    self._checkpoints.mkdir(exist_ok=True)
    try:
      with _replacing(path, self._checkpoints / "unfinished.keras") as unfinished:
        model.save(unfinished)
    except OSError as error:
      raise OSError(
        f"{path} cannot be written: {error.strerror or error}. The checkpoints before it are "
        "whole; run the same command again to resume from them."
      ) from error
    for _, old in self.checkpoints()[:-_NUM_KEPT]:
      old.unlink()

  def load(self, step: int) -> "keras.Model":
    """Returns the model of one checkpoint."""
    return _load(self.checkpoint(step))

  def load_newest(self) -> "tuple[int, keras.Model] | None":
    """Returns (step, model) of the newest checkpoint that can be read, None if there is none.

    Damaged checkpoints are skipped with a warning.

    Raises:
      ConfigError: if there are checkpoints, but none can be read: a new run would overwrite them.
    """
    saved = self.checkpoints()
    reason = ""
    for step, path in reversed(saved):
      try:
        return step, _load(path)
      except Exception as error:  # A truncated archive can raise anything.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        warnings.warn(
          f"Checkpoint {path} is damaged ({reason}); using the one before.", stacklevel=2
        )
    if saved:
      raise ConfigError(
        f"--{self._flag}={self.directory}: none of its checkpoints can be read ({reason})."
      )
    return None


def take_part_in_saving(model: "keras.Model") -> None:
  """Takes part in the chief's saving on another worker: metrics are summed over all workers."""
  with tempfile.TemporaryDirectory() as folder:
    model.save(pathlib.Path(folder) / "unused.keras")


def _load(path: pathlib.Path) -> "keras.Model":
  import keras

  from dregs_tf import models  # noqa: F401 - the classes that Keras loads

  return keras.saving.load_model(path)


def _read_json(path: pathlib.Path) -> dict | None:
  return json.loads(path.read_text()) if path.exists() else None


def _write_json(path: pathlib.Path, content: Mapping, indent: int | None = None) -> None:
  """Writes a JSON file, completely or not at all."""
  with _replacing(path, path.with_suffix(".unfinished")) as unfinished:
    unfinished.write_text(json.dumps(content, indent=indent) + "\n")


@contextlib.contextmanager
def _replacing(path: pathlib.Path, unfinished: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields where to write, in the same folder; if that succeeds, it is on disk as `path`."""
  try:
    yield unfinished
    _sync(unfinished)
    os.replace(unfinished, path)
    _sync(path.parent)
  finally:
    unfinished.unlink(missing_ok=True)


def _sync(path: pathlib.Path) -> None:
  """Waits until the file or directory is on disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
