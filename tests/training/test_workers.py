"""Tests of training in several processes, against one device."""

import signal
import socket
import time

import numpy as np
import pytest

from dregs_tf.training.run_directory import Run
from tests.training.train_processes import TrainProcess, assert_same_numbers, finish_well, rows


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


def wait_for_step(directory, step, timeout=90):
  """Returns when there is a checkpoint of the step, or a later one."""
  end = time.monotonic() + timeout
  while not any(at >= step for at, _ in Run(directory).checkpoints()):
    assert time.monotonic() < end, f"no checkpoint of step {step}"
    time.sleep(0.1)


@pytest.mark.slow
def test_two_workers_give_the_numbers_of_one_device(tmp_path):
  chief, other = finish_well(*workers(tmp_path / "two"))
  assert "2 workers with 1 x CPU" in chief
  assert "Test bound" in chief
  assert "this is worker 1" in other
  assert "Test bound" not in other
  finish_well(TrainProcess(tmp_path / "one"))
  assert_same_numbers(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_when_a_worker_is_killed_the_other_stops_and_both_go_on(tmp_path):
  flags = {"max_steps": 300, "summarize_every": 100, "checkpoint_every": 20}
  directory, last = tmp_path / "killed", 0
  for victim in (1, 0):
    runs = workers(directory, **flags)
    wait_for_step(directory, last + 20)
    runs[victim].process.send_signal(signal.SIGKILL)
    status, _, err = runs[1 - victim].finish(timeout=60)
    assert status == 1, err
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1, err
    assert "another worker stopped" in lines[0]
    assert "the newest checkpoint" in lines[0]
    runs[victim].finish()
    last, _ = Run(directory).checkpoints()[-1]
    assert last < flags["max_steps"]
  chief, other = finish_well(*workers(directory, **flags))
  assert f"Resuming at step {last}" in chief
  assert f"Resuming at step {last}" in other
  finish_well(TrainProcess(tmp_path / "one", **flags))
  np.testing.assert_allclose(rows(directory), rows(tmp_path / "one"), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_worker_that_is_asked_to_stop_stops_all_in_good_order(tmp_path, asked):
  runs = workers(tmp_path, max_steps=100_000, summarize_every=100_000)
  wait_for_step(tmp_path, 3)
  runs[asked].process.send_signal(signal.SIGTERM)
  results = [run.finish(timeout=60) for run in runs]
  assert [status for status, _, _ in results] == [130, 130], results
  assert "SIGTERM" in results[asked][2]
  assert "another worker" in results[1 - asked][2]
  last, _ = Run(tmp_path).checkpoints()[-1]
  assert all(f"at step {last}, saved" in err for _, _, err in results)


@pytest.mark.slow
def test_workers_with_different_flags_are_refused(tmp_path):
  results = [run.finish(60) for run in workers(tmp_path, flags_of_last={"learning_rate": 0.1})]
  assert [status for status, _, _ in results] == [1, 1], results
  assert all("different flags" in err for _, _, err in results)
  assert not (tmp_path / "config.json").exists()
