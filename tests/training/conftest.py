"""Fixtures of the tests of training."""

import dataclasses

import pytest

from dregs_tf import data
from tests.training import bad_files


@pytest.fixture(autouse=True, scope="package")
def few_images():
  """Runs in the tests' own process evaluate on 50 digits, not on 250."""
  load = data.load

  def load_few(*args):
    images = load(*args)
    return dataclasses.replace(images, valid=images.valid[:50], test=images.test[:50])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, "load", load_few)
    yield


@pytest.fixture(scope="session")
def place(tmp_path_factory):
  """A folder with a finished run in it, and files and runs that are bad in every way."""
  return bad_files.make(tmp_path_factory.mktemp("place"))
