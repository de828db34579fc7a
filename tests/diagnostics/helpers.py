"""Models, comparisons and made-up measurements that the tests of `diagnostics` share."""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import diagnostics, models
from dregs_tf.diagnostics import statistics
from tests.models import helpers

tfd = tfp.distributions


def compare(model, batch, *args, **options):
  return diagnostics.compare(
    model, batch, *args, **({"measure_cost": False, "jit_compile": False} | options)
  )


def row_of(gradients, of_reference):
  """Returns the Row of an estimator and a reference with these gradients, [num_measurements, P]."""
  both = np.stack([of_reference, gradients], axis=1).astype(np.float64)
  first, second = both[: len(both) // 2], both[len(both) // 2 :]
  center = first.mean(axis=0)
  shifted = both - center
  measured = statistics.Measurements(
    center=center,
    total=shifted.sum(axis=0),
    squares=((shifted[:, 1:] - shifted[:, :1]) ** 2).sum(axis=0),
    grams=shifted @ shifted.transpose(0, 2, 1),
    projections=np.concatenate([first @ second.mean(axis=0).T, second @ center.T]),
  )
  values = statistics.summarize(measured, [(0, 2)])[1]
  names = {"bound": "stl", "num_samples": 5, "reference": "iwae", "unbiased": False}
  return diagnostics.Row(**names, milliseconds=0.0, **values)


class LogNormal(models.LatentVariableModel):
  """A LogNormal prior and proposal, which share a location; layers that a batch builds."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.encoder = keras.layers.Dense(6, dtype=self.dtype_policy)
    self.decoder = models.ConditionalBernoulli(
      event_size=5, hidden_units=(), dtype=self.dtype_policy
    )
    self.location = self.add_weight(name="location", shape=(3,), initializer="zeros")

  def prior(self, context):
    return tfd.Independent(tfd.LogNormal(tf.convert_to_tensor(self.location), 1.0), 1)

  def proposal(self, x, context):
    loc, raw = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.Independent(tfd.LogNormal(loc + self.location, tf.nn.softplus(raw)), 1)

  def likelihood(self, z, context):
    return self.decoder.distribution(z)


class Uniform(LogNormal):
  """A Uniform proposal, whose support moves with its parameters."""

  def prior(self, context):
    return tfd.Independent(tfd.Normal(tf.zeros([3]), 1.0), 1)

  def proposal(self, x, context):
    loc, raw = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.Independent(tfd.Uniform(loc, loc + tf.nn.softplus(raw)), 1)


class Shared(models.LatentVariableModel):
  """Contexts, latents in two layers, and a trunk that prior, proposal and likelihood share."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    options = {"hidden_units": (), "dtype": self.dtype_policy}
    self.trunk = keras.layers.Dense(3, "tanh", dtype=self.dtype_policy)
    self.first = models.ConditionalNormal(3, **options)
    self.second = models.ConditionalNormal(2, **options)
    self.decoder = models.ConditionalBernoulli(event_size=5, **options)
    self.trunk.build((None, 4))
    self.first.build([(None, 5), (None, 3)])
    self.second.build((None, 3))
    self.decoder.build([(None, 3), (None, 2), (None, 3)])
    self.built = True

  def prior(self, context):
    return tfd.JointDistributionSequential(
      [
        tfd.Independent(tfd.Normal(self.trunk(context), 1.0), 1),
        tfd.Independent(tfd.Normal(tf.zeros([2], tf.float64), 1.0), 1),
      ]
    )

  def proposal(self, x, context):
    return tfd.JointDistributionSequential(
      [
        self.first.distribution([x, self.trunk(context)]),
        lambda first: self.second.distribution(first),
      ]
    )

  def likelihood(self, z, context):
    return self.decoder.distribution([*z, self.trunk(context)])


def log_normal():
  x = helpers.binary(7, 5, dtype="float64")
  model = LogNormal(dtype="float64")
  model._build_for(x, None)
  return model, None, x


def shared():
  context = np.random.default_rng(0).normal(size=[7, 4])
  return Shared(dtype="float64"), context, helpers.binary(7, 5)
