"""Calls in processes of their own, where devices and clusters can be set up once more."""

import multiprocessing
import os
import subprocess
import sys
import tempfile

import pytest

from tests import settings

# Processes are forked from one that has loaded TensorFlow, which takes half of a short run, and
# that has not used it: so each sets up devices of its own.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
  ["dregs_tf.training.runners", "matplotlib.figure", "sklearn.datasets", __name__]
)


class Forked:
  """A call of a function in a process that has not used TensorFlow yet; like subprocess.Popen."""

  def __init__(self, function, *arguments, **environment):
    self._texts = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
    environment = {"CUDA_VISIBLE_DEVICES": "-1"} | environment
    names = [file.name for file in self._texts]
    target = (function, arguments, environment, names)
    self._process = _SERVER.Process(target=_call, args=target, daemon=True)
    self._process.start()

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def send_signal(self, number) -> None:
    os.kill(self._process.pid, number)

  def kill(self) -> None:
    self._process.kill()

  def communicate(self, timeout=None) -> list[str]:
    self._process.join(timeout)
    if self.returncode is None:
      raise subprocess.TimeoutExpired(self._process.name, timeout)
    return [file.read() for file in self._texts]

  def finish(self, timeout=120) -> tuple[int, str, str]:
    """(exit status, standard output, standard error)."""
    try:
      out, err = self.communicate(timeout)
    except subprocess.TimeoutExpired:
      self.kill()
      out, err = self.communicate()
      pytest.fail(f"still running after {timeout} s:\n{out[-2000:]}\n{err[-2000:]}")
    return self.returncode, out, err


def _call(function, arguments, environment, names):
  """Calls the function; what is written to descriptors 1 and 2 goes to files."""
  for descriptor, name in enumerate(names, start=1):
    with open(name, "wb") as file:
      os.dup2(file.fileno(), descriptor)
  for name in settings.ENVIRONMENT:  # TensorFlow and XLA work as for users.
    os.environ.pop(name, None)
  os.environ.update(environment)
  settings.leave_out_what_takes_long()
  sys.exit(function(*arguments))
