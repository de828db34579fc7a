"""Fixtures of the tests of training."""

import pytest

from tests.training import bad_files


@pytest.fixture(scope="session")
def place(tmp_path_factory):
  """A folder with a finished run in it, and files and runs that are bad in every way."""
  return bad_files.make(tmp_path_factory.mktemp("place"))
