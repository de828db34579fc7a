"""Tests of training in several processes that are killed, stopped, or told different things."""

import signal
import time

import numpy as np
import pytest

from dregs_tf.training.run_directory import Run
from tests.training.train_processes import TrainProcess, finish_well, rows, workers

# Whose steps are traced sooner.
PLAIN = {"gradient_statistics": False}


def wait_for_step(directory, step, timeout=90):
  """Returns when there is a checkpoint of the step, or a later one."""
  end = time.monotonic() + timeout
  while not any(at >= step for at, _ in Run(directory).checkpoints()):
    assert time.monotonic() < end, f"no checkpoint of step {step}"
    time.sleep(0.02)


@pytest.mark.slow
def test_when_a_worker_is_killed_the_other_stops_and_both_go_on(tmp_path):
  flags = PLAIN | {"max_steps": 120, "summarize_every": 60, "checkpoint_every": 10}
  directory, last = tmp_path / "killed", 0
  for victim in (1, 0):
    runs = workers(directory, **flags)
    wait_for_step(directory, last + 10)
    runs[victim].send_signal(signal.SIGKILL)
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
  runs = workers(tmp_path, **PLAIN, max_steps=100_000, summarize_every=100_000)
  wait_for_step(tmp_path, 3)
  runs[asked].send_signal(signal.SIGTERM)
  results = [run.finish(timeout=60) for run in runs]
  assert [status for status, _, _ in results] == [130, 130], results
  assert "SIGTERM" in results[asked][2]
  assert "another worker" in results[1 - asked][2]
  last, _ = Run(tmp_path).checkpoints()[-1]
  assert all(f"at step {last}, saved" in err for _, _, err in results)


@pytest.mark.slow
def test_workers_with_different_flags_are_refused(tmp_path):
  runs = workers(tmp_path, **PLAIN, flags_of_last={"learning_rate": 0.1})
  results = [run.finish(60) for run in runs]
  assert [status for status, _, _ in results] == [1, 1], results
  assert all("different flags" in err for _, _, err in results)
  assert not (tmp_path / "config.json").exists()
