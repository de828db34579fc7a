"""Tests of training on several devices and in several processes, against one device.

Logical devices and clusters have to be set up before TensorFlow does anything, so the runs are
processes of their own.
"""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dregs_tf import checkpoints, config, distribution, models
from dregs_tf.errors import ConfigError

_ROOT = pathlib.Path(__file__).parents[1]
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


class Run:
  """bin/train.py in a process."""

  def __init__(self, directory, tf_config=None, **flags):
    arguments = [f"--{name}={value}" for name, value in {**_FLAGS, **flags}.items()]
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    if tf_config:
      environment["TF_CONFIG"] = json.dumps(tf_config)
    self.directory = directory
    self.process = subprocess.Popen(
      [sys.executable, str(_ROOT / "bin" / "train.py"), f"--logdir={directory}", *arguments],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def finish(self, timeout=120) -> tuple[int, str, str]:
    """(exit status, standard output, standard error)."""
    try:
      out, err = self.process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      self.process.kill()
      out, err = self.process.communicate()
      pytest.fail(f"still running after {timeout} s:\n{out[-2000:]}\n{err[-2000:]}")
    return self.process.returncode, out, err


def finish_well(*runs) -> list[str]:
  """The standard outputs of runs that end well."""
  results = [run.finish() for run in runs]
  assert all(status == 0 for status, _, _ in results), results
  return [out for _, out, _ in results]


def workers(directory, num_workers=2, flags_of_last=None, **flags) -> list[Run]:
  """The processes of a cluster on this machine, the chief's first."""
  with_ports = [socket.create_server(("localhost", 0)) for _ in range(num_workers)]
  addresses = [f"localhost:{server.getsockname()[1]}" for server in with_ports]
  for server in with_ports:
    server.close()
  runs = []
  for index in range(num_workers):
    tf_config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    own = flags | (flags_of_last or {} if index == num_workers - 1 else {})
    runs.append(Run(directory, tf_config, distribute="multi_worker", **own))
  return runs


def wait_for_step(directory, step, timeout=90):
  """Returns when there is a checkpoint of the step, or a later one."""
  end = time.monotonic() + timeout
  while not any(at >= step for at, _ in checkpoints.find(directory)):
    assert time.monotonic() < end, f"no checkpoint of step {step}"
    time.sleep(0.1)


def rows(directory) -> np.ndarray:
  with open(directory / "metrics.csv", newline="") as file:
    return np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])


def parameters(directory) -> list[np.ndarray]:
  _, model = checkpoints.load_newest(directory)
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


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  directory = tmp_path_factory.mktemp("runs") / "one"
  (out,) = finish_well(Run(directory))
  assert "Device: CPU." in out
  return directory


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one(one_device, tmp_path):
  (out,) = finish_well(Run(tmp_path, distribute="mirrored", num_devices=2))
  assert "Devices: 2 x CPU, strategy mirrored." in out
  assert_same_numbers(tmp_path, one_device)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(one_device, tmp_path):
  finish_well(Run(tmp_path, max_steps=4))
  (out,) = finish_well(Run(tmp_path, distribute="mirrored", num_devices=3))
  assert "Resuming at step 4" in out
  assert_same_numbers(tmp_path, one_device)


@pytest.mark.slow
def test_two_workers_give_the_numbers_of_one_device(one_device, tmp_path):
  chief, other = finish_well(*workers(tmp_path))
  assert "2 workers with 1 x CPU" in chief
  assert "Test bound" in chief
  assert "this is worker 1" in other
  assert "Test bound" not in other
  assert_same_numbers(tmp_path, one_device)


@pytest.fixture(scope="module")
def one_long_run(tmp_path_factory):
  directory = tmp_path_factory.mktemp("runs") / "long"
  finish_well(Run(directory, **_LONG))
  return directory


_LONG = {"max_steps": 400, "summarize_every": 200, "checkpoint_every": 20}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_worker_is_killed_the_other_stops_and_both_go_on(one_long_run, tmp_path, victim):
  runs = workers(tmp_path, **_LONG)
  wait_for_step(tmp_path, 20)
  runs[victim].process.send_signal(signal.SIGKILL)
  status, _, err = runs[1 - victim].finish(timeout=60)
  assert status == 1, err
  lines = [line for line in err.splitlines() if "error:" in line]
  assert len(lines) == 1, err
  assert "another worker stopped" in lines[0]
  assert "the newest checkpoint" in lines[0]
  runs[victim].finish()
  last, _ = checkpoints.find(tmp_path)[-1]
  assert last < _LONG["max_steps"]
  chief, other = finish_well(*workers(tmp_path, **_LONG))
  assert f"Resuming at step {last}" in chief
  assert f"Resuming at step {last}" in other
  np.testing.assert_allclose(rows(tmp_path), rows(one_long_run), rtol=1e-2)


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
  last, _ = checkpoints.find(tmp_path)[-1]
  assert all(f"at step {last}, saved" in err for _, _, err in results)


@pytest.mark.slow
def test_workers_with_different_flags_are_refused(tmp_path):
  results = [run.finish(60) for run in workers(tmp_path, flags_of_last={"learning_rate": 0.1})]
  assert [status for status, _, _ in results] == [1, 1], results
  assert all("different flags" in err for _, _, err in results)
  assert not (tmp_path / "config.json").exists()


_SCRIPT = """
import contextlib
import sys

import keras
import numpy as np
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)

from dregs_tf import models

num_replicas, path = int(sys.argv[1]), sys.argv[2]
if num_replicas > 1:
  strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(num_replicas)])
else:
  strategy = tf.distribute.get_strategy()
x = np.random.RandomState(0).binomial(1, 0.4, (25, 6)).astype("float32")
numbers = {}
for name, options in {
  "plain": {"gradient_statistics": True},
  "eager": {"run_eagerly": True},
  "jit": {"jit_compile": True, "num_backward_samples": 2, "gradient_statistics": True},
}.items():
  with strategy.scope():
    keras.utils.set_random_seed(3)
    model = models.VAE(np.full(6, 0.4), latent_dim=3, hidden_units=(5, 4))
    options = {"jit_compile": False} | options
    model.compile(keras.optimizers.Adam(1e-2), num_samples=5, seed=1, **options)
  # Of the last batch, one example, two replicas get nothing.
  batches = tf.data.Dataset.from_tensor_slices(x).batch(12)
  history = model.fit(batches, validation_data=batches, verbose=0, epochs=2).history
  numbers |= {f"{name}/{key}": np.array(values) for key, values in history.items()}
  numbers |= {f"{name}/{i}": value for i, value in enumerate(model.get_weights())}
np.savez(path, **numbers)
"""


@pytest.mark.slow
def test_fit_under_a_strategy_of_ones_own_gives_the_numbers_of_one_device(tmp_path):
  paths = [tmp_path / f"{number}.npz" for number in (1, 3)]
  for number, path in zip((1, 3), paths, strict=True):
    run_script(_SCRIPT, str(number), str(path))
  one, three = (dict(np.load(path)) for path in paths)
  assert one.keys() == three.keys()
  for name, values in one.items():
    np.testing.assert_allclose(three[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def run_script(script, *arguments):
  environment = os.environ | {"PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
  result = subprocess.run(
    [sys.executable, "-c", script, *arguments],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return result.stdout


_OWN_MODEL = """
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from dregs_tf import models

tfd = tfp.distributions


class Own(models.LatentVariableModel):
  def __init__(self):
    super().__init__()
    self.encoder, self.decoder = keras.layers.Dense(2), keras.layers.Dense(6)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2))

  def proposal(self, x, context):
    return tfd.MultivariateNormalDiag(self.encoder(x), tf.ones_like(self.encoder(x)))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.decoder(z)), 1)

  def estimate(self, *args, **kwargs):
    estimate = super().estimate(*args, **kwargs)
    noise = estimate.samples - self.encoder(args[0])
    tf.print(tf.reduce_sum(noise), tf.reduce_sum(noise[:, 0]), output_stream="file://NOISE")
    return estimate


with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
  model = Own()
  model.compile(num_samples=3, seed=1, jit_compile=False, gradient_statistics=True)
x = np.random.RandomState(0).binomial(1, 0.4, (16, 6)).astype("float32")
history = model.fit(x, batch_size=8, verbose=0).history
assert np.isfinite(history["proposal_gradient_variance"][0]), history
"""


@pytest.mark.slow
def test_a_model_of_ones_own_is_built_and_its_replicas_draw_different_noise(tmp_path):
  path = tmp_path / "noise.txt"
  run_script(_OWN_MODEL.replace("NOISE", str(path)))
  noise = [line.split() for line in path.read_text().splitlines()]
  assert len(noise) == 4  # two steps on two replicas
  assert len({total for total, _ in noise}) == 4


CLUSTER = {"worker": ["a:1", "b:2"]}
WORKER = {"type": "worker", "index": 1}


@pytest.mark.parametrize(
  "text, word",
  [
    (None, "needs the environment variable TF_CONFIG"),
    ("", "needs the environment variable TF_CONFIG"),
    ("{", "TF_CONFIG is wrong"),
    ("[]", "TF_CONFIG is wrong"),
    ("{}", "TF_CONFIG lacks 'cluster'"),
    (json.dumps({"cluster": CLUSTER}), "TF_CONFIG lacks 'task'"),
    (json.dumps({"cluster": CLUSTER, "task": {"type": "ps", "index": 0}}), "worker and chief"),
    (json.dumps({"cluster": CLUSTER | {"ps": ["c:3"]}, "task": WORKER}), "worker and chief"),
    (json.dumps({"cluster": CLUSTER, "task": WORKER | {"index": 2}}), "no worker number 2"),
    (json.dumps({"cluster": {"worker": ["a", "b"]}, "task": WORKER}), "not HOST:PORT"),
  ],
)
def test_a_cluster_that_is_not_described_is_refused_in_one_line(monkeypatch, text, word):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  if text is not None:
    monkeypatch.setenv("TF_CONFIG", text)
  with pytest.raises(ConfigError, match=word) as error:
    distribution.start(config.TrainConfig(distribute="multi_worker"))
  assert "\n" not in str(error.value)


def test_batches_that_cannot_be_shared_out_are_refused(monkeypatch):
  class Three:
    num_replicas_in_sync = 3

  monkeypatch.setattr(distribution, "_local_devices", lambda number, gpus: ["CPU:0"])
  monkeypatch.setattr(distribution.tf.distribute, "MirroredStrategy", lambda devices: Three())
  settings = config.TrainConfig(distribute="mirrored", num_devices=3)
  with pytest.raises(ConfigError, match="--batch_size .* multiple of their number, 3, got 32"):
    distribution.start(settings)


def test_devices_that_are_not_there_are_refused():
  with pytest.raises(ConfigError, match="no GPU: give --num_devices"):
    distribution._local_devices(None, [])
  with pytest.raises(ConfigError, match="at most 1, the GPUs here, got 2"):
    distribution._local_devices(2, ["GPU:0"])


@pytest.mark.parametrize("distribute", ["none", "multi_worker"])
def test_a_number_of_devices_without_a_use_is_refused(distribute):
  with pytest.raises(ConfigError, match="--num_devices goes with --distribute=mirrored"):
    config.TrainConfig(distribute=distribute, num_devices=2)
