"""Binaries run in the tests' process, with TensorFlow loaded already."""

import pathlib
import runpy
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(program: str, *arguments: str) -> int:
  """Runs bin/PROGRAM with these arguments; returns the exit status, 0 for success."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", [str(ROOT / "bin" / program), *arguments])
    patch.setattr(sys, "path", list(sys.path))
    try:
      runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
      return stop.code or 0
  return 0
