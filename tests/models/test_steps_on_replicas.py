"""Tests of losses, statistics, noise and weights on two replicas, in processes of their own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]

_SETUP = """
import json
import sys

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from dregs_tf.models.conditional import Normal
from tests.models.layered import Layered, layered

tfd = tfp.distributions


class Shared(Layered):
  # Its noise is that of the whole batch.
  def proposal(self, x, context):
    loc, raw = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.Independent(Normal(loc, tf.nn.softplus(raw)), 1)


# One for all models: TensorFlow mixes up the sums of two in a process.
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
strategies = {1: tf.distribute.get_strategy(), 2: two}


def compiled(make, number, **options):
  with strategies[number].scope():
    model = make()
    random = np.random.RandomState(0)
    for variable in model.trainable_variables:
      variable.assign(0.5 * random.normal(size=variable.shape))
    options = {"optimizer": keras.optimizers.SGD(0.1), "jit_compile": False} | options
    model.compile(num_samples=4, seed=1, **options)
  return model


x = np.random.RandomState(0).binomial(1, 0.4, (9, 6)).astype("float32")
weights = np.linspace(0, 2, 9).astype("float32")
results = {}
"""

# Weighted batches with every kind of loss; the same on one device.
_SAME = """
def make():
  layers = [
    keras.layers.Dense(4, "tanh", kernel_regularizer=keras.regularizers.L2(0.1)),
    keras.layers.Dense(4, activity_regularizer=keras.regularizers.L2(0.05)),
  ]
  return Shared(layers)


data = tf.data.Dataset.from_tensor_slices((x[:8], weights[:8])).batch(4)
data = data.map(lambda x, w: ((), x, w))
for name, options, fit in (
  ("graph", {}, {"validation_data": data}),
  ("tracked", {"jit_compile": True, "track_variance": ["rws"]}, {}),
):
  for number in (1, 2):
    model = compiled(make, number, **options)
    history = model.fit(data, verbose=0, **fit).history
    variables = [v.numpy().ravel() for v in model.trainable_variables]
    results[f"{name}/{number}"] = [*history.values(), np.concatenate(variables).tolist()]
"""

# BatchNormalization and Dropout: statistics of all replicas, noise of each.
_OWN = """
def make():
  return Layered(
    [keras.layers.BatchNormalization(momentum=0.75), keras.layers.Dropout(0.5)],
    [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)],
  )


def copies(variable):
  return [part.numpy().tolist() for part in variable.value.values]


for name, options in {"graph": {}, "jit": {"jit_compile": True}, "again": {}}.items():
  model = compiled(make, 2, **options)
  # The last batch has one example: the second replica has none.
  history = model.fit(
    tf.data.Dataset.from_tensor_slices(x[:8] if name == "jit" else x).batch(4), verbose=0
  ).history
  normalization, dropout = model.encoder.layers[:2]
  results[name] = {
    "bound": history["bound"],
    "mean": copies(normalization.moving_mean),
    "decoder": copies(model.decoder.layers[0].moving_variance),
    "seeds": copies(dropout.seed_generator.state),
  }
"""


def run(script):
  environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
  script = _SETUP + script + "\nprint(json.dumps(results))\n"
  result = subprocess.run(
    [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_losses_and_weights_are_those_of_one_device():
  results = run(_SAME)
  for name in ("graph", "tracked"):
    for one, two in zip(*(results[f"{name}/{number}"] for number in (1, 2)), strict=True):
      np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_replicas_agree_on_statistics_and_draw_noise_of_their_own():
  results = run(_OWN)
  x = np.random.RandomState(0).binomial(1, 0.4, (9, 6))
  mean = np.zeros(6)
  for batch in (x[:4], x[4:8]):
    mean = 0.75 * mean + 0.25 * batch.mean(axis=0)
  np.testing.assert_allclose(results["jit"]["mean"], [mean] * 2, rtol=1e-5)
  mean = 0.75 * mean + 0.25 * x[8]
  np.testing.assert_allclose(results["graph"]["mean"], [mean] * 2, rtol=1e-5)
  for name in ("graph", "jit"):
    first, second = results[name]["decoder"]
    assert first == second
    assert np.all(np.isfinite(first))
    assert np.any(np.array(first) != 1)
    first, second = results[name]["seeds"]
    assert first != second
    assert np.isfinite(results[name]["bound"])
  assert results["graph"] == results["again"]
