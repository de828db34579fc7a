"""Tests of training on several devices, against one.

Logical devices have to be set up before TensorFlow does anything, so the runs are processes of
their own.
"""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import models
from dregs_tf.training import config, devices
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run
from tests import settings
from tests.processes import Forked
from tests.training.train_processes import (
  TrainProcess,
  assert_same_numbers,
  finish_well,
  workers,
)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  directory = tmp_path_factory.mktemp("runs") / "one"
  (out,) = finish_well(TrainProcess(directory))
  assert "Device: CPU." in out
  return directory


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one(one_device, tmp_path):
  (out,) = finish_well(TrainProcess(tmp_path, distribute="mirrored", num_devices=2))
  assert "Devices: 2 x CPU, strategy mirrored." in out
  assert_same_numbers(tmp_path, one_device)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(one_device, tmp_path):
  shutil.copytree(one_device / "checkpoints", tmp_path / "checkpoints")
  for name in ("config.json", "metrics.csv"):
    shutil.copy(one_device / name, tmp_path)
  Run(tmp_path).checkpoint(6).unlink()
  (out,) = finish_well(TrainProcess(tmp_path, distribute="mirrored", num_devices=3))
  assert "Resuming at step 3" in out
  assert_same_numbers(tmp_path, one_device)


@pytest.mark.slow
def test_two_workers_give_the_numbers_of_one_device(one_device, tmp_path):
  chief, other = finish_well(*workers(tmp_path))
  assert "2 workers with 1 x CPU" in chief
  assert "Test bound" in chief
  assert "this is worker 1" in other
  assert "Test bound" not in other
  assert_same_numbers(tmp_path, one_device)


def fit_under_both(path_of_one, path_of_two):
  """Saves the numbers that `fit` leaves on one device, and on two of a strategy of one's own."""
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  np.savez(path_of_one, **numbers(tf.distribute.get_strategy()))
  mirrored = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(2)])
  np.savez(path_of_two, **numbers(mirrored))


def numbers(strategy):
  x = np.random.RandomState(0).binomial(1, 0.4, (25, 6)).astype("float32")
  # The iterators of several replicas wait up to a minute for the end of the tuning.
  untuned = tf.data.Options()
  untuned.autotune.enabled = False
  numbers = {}
  for name, options in {
    "plain": {"num_backward_samples": 2, "gradient_statistics": True},
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True, "track_variance": ["rws"], "gradient_statistics": True},
  }.items():
    with strategy.scope():
      keras.utils.set_random_seed(3)
      model = models.VAE(np.full(6, 0.4), latent_dim=3, hidden_units=(5,))
      options = {"jit_compile": False} | options
      model.compile(keras.optimizers.Adam(1e-2), num_samples=5, seed=1, **options)
    # Of the last batch, one example, a replica gets nothing. XLA compiles for each size.
    size = 2 if name == "jit" else 12
    data = tf.data.Dataset.from_tensor_slices(x[: 2 * size + 1]).batch(size).with_options(untuned)
    validation = data.take(1) if name == "jit" else data
    epochs = 2 if name == "plain" else 1
    history = model.fit(data, validation_data=validation, epochs=epochs, verbose=0).history
    numbers |= {f"{name}/{key}": np.array(values) for key, values in history.items()}
    numbers |= {f"{name}/{i}": value for i, value in enumerate(model.get_weights())}
  return numbers


@pytest.mark.slow
def test_fit_under_a_strategy_of_ones_own_gives_the_numbers_of_one_device(tmp_path):
  paths = [tmp_path / f"{number}.npz" for number in (1, 2)]
  finish_well(Forked(fit_under_both, *paths, XLA_FLAGS=settings.XLA_FLAGS), timeout=600)
  one, two = (dict(np.load(path)) for path in paths)
  assert one.keys() == two.keys()
  for name, values in one.items():
    np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


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
    (json.dumps({"cluster": CLUSTER, "task": {"type": "ps", "index": 0}}), "worker or chief"),
    (json.dumps({"cluster": CLUSTER | {"ps": ["c:3"]}, "task": WORKER}), "worker or chief"),
    (json.dumps({"cluster": CLUSTER, "task": WORKER | {"index": 2}}), "no worker number 2"),
    (json.dumps({"cluster": {"worker": ["a", "b"]}, "task": WORKER}), "not HOST:PORT"),
  ],
)
def test_a_cluster_that_is_not_described_is_refused_in_one_line(monkeypatch, text, word):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  if text is not None:
    monkeypatch.setenv("TF_CONFIG", text)
  with pytest.raises(ConfigError, match=word) as error:
    devices.start(config.TrainConfig(distribute="multi_worker"))
  assert "\n" not in str(error.value)


def test_batches_that_cannot_be_shared_out_are_refused(monkeypatch):
  class Three:
    num_replicas_in_sync = 3

  monkeypatch.setattr(devices, "_local_devices", lambda number, gpus: ["CPU:0"])
  monkeypatch.setattr(devices.tf.distribute, "MirroredStrategy", lambda devices: Three())
  settings = config.TrainConfig(distribute="mirrored", num_devices=3)
  with pytest.raises(ConfigError, match="--batch_size .* multiple of their number, 3, got 32"):
    devices.start(settings)


def test_a_choice_of_samples_on_several_devices_is_refused(monkeypatch):
  class Two:
    num_replicas_in_sync = 2

  monkeypatch.setattr(devices, "_local_devices", lambda number, gpus: ["CPU:0"])
  monkeypatch.setattr(devices.tf.distribute, "MirroredStrategy", lambda devices: Two())
  settings = config.TrainConfig(
    num_backward_samples="auto", distribute="mirrored", num_devices=2, batch_size=4
  )
  words = "--num_backward_samples=auto needs one device, got --distribute=mirrored on 2"
  with pytest.raises(ConfigError, match=words):
    devices.start(settings)


def test_devices_that_are_not_there_are_refused():
  with pytest.raises(ConfigError, match="no GPU: give --num_devices"):
    devices._local_devices(None, [])
  with pytest.raises(ConfigError, match="at most 1, the GPUs here, got 2"):
    devices._local_devices(2, ["GPU:0"])


@pytest.mark.parametrize("distribute", ["none", "multi_worker"])
def test_a_number_of_devices_without_a_use_is_refused(distribute):
  with pytest.raises(ConfigError, match="--num_devices is only valid with --distribute=mirrored"):
    config.TrainConfig(distribute=distribute, num_devices=2)
