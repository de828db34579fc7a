"""Binaries run in the tests' process, with TensorFlow loaded already."""

import pathlib
import runpy
import sys

import pytest
from absl import flags

from dregs_tf import cli

_BIN = pathlib.Path(__file__).parents[1] / "bin"


def run(program: str, *arguments: str) -> int:
  """Runs bin/PROGRAM with these arguments; the exit code, 0 for success."""
  assert cli  # its flag outlives the binary's
  before = set(flags.FLAGS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", [str(_BIN / program), *arguments])
    try:
      runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
      return stop.code or 0
    finally:
      for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
      for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
      flags.FLAGS.unparse_flags()
  return 0
