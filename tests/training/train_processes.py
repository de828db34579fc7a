"""bin/train.py in processes of its own, where logical devices and clusters have to be set up."""

import csv
import json
import socket

import numpy as np
import pytest

from dregs_tf import models
from dregs_tf.training import runners
from dregs_tf.training.run_directory import Run
from tests import binaries
from tests.processes import Forked

_FLAGS = {
  "latent_dim": 3,
  "num_samples": 5,
  "batch_size": 12,
  "max_steps": 6,
  "summarize_every": 4,
  "checkpoint_every": 3,
  "jit_compile": False,
  "gradient_statistics": True,
}


def train(*arguments) -> int:
  """Runs bin/train.py with fewer batches to measure gradients with."""
  runners.NUM_MEASURED = 10
  return binaries.run("train.py", *arguments)


class TrainProcess(Forked):
  """bin/train.py in a process."""

  def __init__(self, directory, tf_config=None, **flags):
    arguments = [f"--{name}={value}" for name, value in {**_FLAGS, **flags}.items()]
    environment = {"TF_CONFIG": json.dumps(tf_config)} if tf_config else {}
    super().__init__(train, f"--logdir={directory}", *arguments, **environment)


def workers(directory, num_workers=2, flags_of_last=None, **flags) -> list[TrainProcess]:
  """The processes of a cluster on this machine, the chief's first."""
  with_ports = [socket.create_server(("localhost", 0)) for _ in range(num_workers)]
  addresses = [f"localhost:{server.getsockname()[1]}" for server in with_ports]
  for server in with_ports:
    server.close()
  runs = []
  for index in range(num_workers):
    tf_config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    own = flags | (flags_of_last or {} if index == num_workers - 1 else {})
    runs.append(TrainProcess(directory, tf_config, distribute="multi_worker", **own))
  return runs


def finish_well(*runs, timeout=120) -> list[str]:
  """The standard outputs of runs that end well."""
  results = [run.finish(timeout) for run in runs]
  assert all(status == 0 for status, _, _ in results), results
  return [out for _, out, _ in results]


def rows(directory) -> np.ndarray:
  with open(directory / "metrics.csv", newline="") as file:
    return np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])


def parameters(directory) -> list[np.ndarray]:
  _, model = Run(directory).load_newest()
  assert isinstance(model, models.VAE)
  return [variable.numpy() for variable in model.trainable_variables]


def assert_same_numbers(ours, theirs):
  """Up to the order of float32 sums."""
  np.testing.assert_allclose(rows(ours), rows(theirs), rtol=2e-5)
  for a, b in zip(parameters(ours), parameters(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  results = [json.loads((path / "result.json").read_text()) for path in (ours, theirs)]
  assert results[0]["step"] == results[1]["step"]
  assert results[0]["test_bound"] == pytest.approx(results[1]["test_bound"], rel=1e-5)
