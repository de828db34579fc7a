"""Settings of all tests: a quiet TensorFlow, GPUs that are shared, the same cases in every run."""

import functools
import os
import random
import sys
import typing

import hypothesis
import numpy as np
import pytest

from tests import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

for name, value in settings.ENVIRONMENT.items():
  os.environ.setdefault(name, value)

# TensorFlow compares types with protocols, whose attributes Python looks up each time before 3.12.
if sys.version_info < (3, 12):
  typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)

# The first call of a TensorFlow function takes seconds: no deadline.
hypothesis.settings.register_profile("dregs_tf", deadline=None, derandomize=True)
hypothesis.settings.load_profile("dregs_tf")


def pytest_configure(config):
  # pytest-xdist would begin with the files of most tests, which are quick.
  config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
  """Puts the files that have slow tests first, and the short ones of tests/data last.

  A long file at the end leaves a process idle.
  """
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  places = {path: -i for i, path in enumerate(dict.fromkeys(item.path for item in items))}
  items.sort(key=lambda item: (item.path not in slow, places[item.path]))


@pytest.fixture(autouse=True, scope="session")
def quick():
  """Leaves out what takes long, once all is loaded."""
  settings.leave_out_what_takes_long()


@pytest.fixture(autouse=True, scope="session")
def pipelines_are_not_tuned():
  """The end of a pipeline's iterator can wait for seconds for the end of its tuning."""
  import tensorflow as tf  # not in the process that hands out the tests

  iterate = tf.data.Dataset.__iter__
  options = tf.data.Options()
  options.autotune.enabled = False
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tf.data.Dataset, "__iter__", lambda data: iterate(data.with_options(options)))
    yield


@pytest.fixture(autouse=True, scope="module")
def same_random_state_in_every_file():
  """TensorFlow's draws without a seed do not depend on the files before.

  Its seed is not set for every test: that drops all its kernels, which take long to make again.
  """
  if "keras" in sys.modules:
    sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def same_random_state():
  """Other draws without a seed do not depend on the tests before."""
  random.seed(0)
  np.random.seed(0)
