"""Trains models on two replicas, and prints results as JSON.

It runs in a process of its own: logical devices have to be set up before TensorFlow does anything.
"""

import json

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf.models import conditional
from tests.models import helpers
from tests.models.layered import Layered
from tests.models.test_own_model import Unbuilt
from tests.models.test_side_effects import Counts
from tests.models.test_variables_held import OwnPrior

tfd = tfp.distributions

X = np.random.RandomState(0).binomial(1, 0.4, (9, 6)).astype("float32")
WEIGHTS = np.linspace(0, 2, 9).astype("float32")

_DRAWN, _AUTOGRAPH = [], []


class Shared(Layered):
  """Its noise is that of the whole batch."""

  def proposal(self, x, context):
    loc, raw = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.Independent(conditional.Normal(loc, tf.nn.softplus(raw)), 1)


class Spied(Layered):
  """Appends whether AutoGraph converts its step to a list."""

  def proposal(self, x, context):
    _AUTOGRAPH.append(tf.__internal__.autograph.control_status_ctx().status.name)
    return super().proposal(x, context)


class Penalty(keras.layers.Layer):
  """Adds the mean square of its inputs, which a batch's parts share out in every Keras."""

  def call(self, inputs):
    self.add_loss(0.05 * tf.reduce_mean(tf.square(inputs)))
    return inputs


class Noisy(Unbuilt):
  """Appends the size of its part of the batch, and the sum of its noise, to a list."""

  def estimate(self, *args, **kwargs):
    estimate = super().estimate(*args, **kwargs)
    noise = estimate.samples - self.encoder.distribution(args[0]).mean()
    parts = tf.shape(args[0])[0], tf.reduce_sum(noise)
    tf.py_function(lambda *parts: _DRAWN.append([float(part) for part in parts]), parts, [])
    return estimate


def compiled(make, strategy, **options):
  """A model with the same variables in every strategy."""
  with strategy.scope():
    model = make()
    random = np.random.RandomState(0)
    for variable in model.trainable_variables:
      variable.assign(0.5 * random.normal(size=variable.shape))
    defaults = {"optimizer": keras.optimizers.SGD(0.1), "num_samples": 4}
    return helpers.compiled(model, **(defaults | options))


def batches(arrays) -> tf.data.Dataset:
  """Batches of 4, untuned: iterators of several replicas may wait a minute for the tuning's end."""
  options = tf.data.Options()
  options.autotune.enabled = False
  return tf.data.Dataset.from_tensor_slices(arrays).batch(4).with_options(options)


def losses_and_weights(two) -> dict:
  """Weighted batches with every kind of loss, on two replicas and on one device."""

  def make():
    kernel_regularizer = keras.regularizers.L2(0.1)
    return Shared([keras.layers.Dense(4, "tanh", kernel_regularizer=kernel_regularizer), Penalty()])

  data = batches((X[:8], WEIGHTS[:8])).map(lambda x, w: ((), x, w))
  results = {}
  for name, options, fit in (
    ("plain", {}, {"validation_data": data}),
    ("tracked", {"track_variance": ["rws"]}, {}),
  ):
    for number, strategy in ((1, tf.distribute.get_strategy()), (2, two)):
      model = compiled(make, strategy, run_eagerly=number == 1, **options)
      history = model.fit(data, verbose=0, **fit).history
      variables = [v.numpy().ravel() for v in model.trainable_variables]
      results[f"{name}/{number}"] = [*history.values(), np.concatenate(variables).tolist()]
  return results


def statistics_and_noise(two) -> dict:
  """BatchNormalization and Dropout: statistics of all replicas, noise of each."""

  def make():
    return Spied(
      [keras.layers.BatchNormalization(momentum=0.75), keras.layers.Dropout(0.5)],
      [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)],
    )

  def copies(variable):
    return [part.numpy().tolist() for part in variable.value.values]

  def trained(model, x):
    history = model.fit(batches(x), verbose=0).history
    normalization, dropout = model.encoder.layers[:2]
    return {
      "bound": history["bound"],
      "mean": copies(normalization.moving_mean),
      "decoder": copies(model.decoder.layers[0].moving_variance),
      "seeds": copies(dropout.seed_generator.state),
    }

  model = compiled(make, two)
  before = model.get_weights()
  # The last batch has one example: the second replica has none.
  results = {"graph": trained(model, X)}
  # Also where the layers' own seeds are others: those of the last step.
  model.set_weights(before)
  model.optimizer.iterations.assign(0)
  results["again"] = trained(model, X)
  results["jit"] = trained(compiled(make, two, jit_compile=True), X[:8])
  return results | {"autograph": sorted(set(_AUTOGRAPH))}


def calls(two) -> dict:
  """How often each method is called in two steps."""
  with two.scope():
    model = helpers.compiled(Counts(), track_variance=["iwae"], run_eagerly=True)
  return model.fit(X[:5], batch_size=4, verbose=0).history


def variables_held(two) -> str:
  """What is said of variables that Keras does not track."""
  with two.scope():
    model = helpers.compiled(OwnPrior())
  try:
    model.fit(X, verbose=0)
  except ValueError as error:
    return str(error)
  return "trained"


def noise(two) -> dict:
  """A model that `fit` builds: what each replica draws in two steps."""
  with two.scope():
    model = helpers.compiled(Noisy(), gradient_statistics=True, run_eagerly=True)
  x = np.concatenate([X, X])[:16]
  history = model.fit(x, batch_size=8, verbose=0).history
  return {"drawn": _DRAWN, "variance": history["proposal_gradient_variance"]}


def main() -> None:
  """Prints the results of every function by its name."""
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  # One for all models: TensorFlow mixes up the sums of two in a process.
  two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  parts = (losses_and_weights, statistics_and_noise, calls, variables_held, noise)
  print(json.dumps({part.__name__: part(two) for part in parts}))
