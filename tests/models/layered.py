"""A model of whatever layers a test gives it, with a Normal proposal and Bernoulli observations."""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.models import helpers

tfd = tfp.distributions

X = helpers.binary(5, 6)


@keras.saving.register_keras_serializable("tests")
class Layered(models.LatentVariableModel):
  """z [num_samples, batch_size, 3]; the layers stand before the encoder's and decoder's last."""

  def __init__(self, encoder=(), decoder=(), **kwargs):
    super().__init__(**kwargs)
    self.front = {"encoder": list(encoder), "decoder": list(decoder)}
    options = {"dtype": self.dtype_policy}
    self.encoder = keras.Sequential([*encoder, keras.layers.Dense(6, **options)])
    self.decoder = keras.Sequential([*decoder, keras.layers.Dense(6, **options)])
    self.encoder.build((None, 6))
    self.decoder.build((None, None, 3))
    self.built = True

  def prior(self, context):
    return tfd.Independent(tfd.Normal(tf.zeros([3], self.float_dtype), 1.0), 1)

  def proposal(self, x, context):
    loc, raw = tf.split(tf.cast(self.encoder(x), self.float_dtype), 2, axis=-1)
    return tfd.Independent(tfd.Normal(loc, tf.nn.softplus(raw)), 1)

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(tf.cast(self.decoder(z), self.float_dtype)), 1)

  def get_config(self):
    layers = {
      name: [keras.saving.serialize_keras_object(layer) for layer in part]
      for name, part in self.front.items()
    }
    return super().get_config() | layers

  @classmethod
  def from_config(cls, config):
    for name in ("encoder", "decoder"):
      config[name] = [keras.saving.deserialize_keras_object(layer) for layer in config[name]]
    return cls(**config)


def layered(encoder=(), decoder=(), seed=0, **options):
  """A `Layered` whose trainable variables have the same values for the same shapes."""
  model = Layered(encoder, decoder, **options)
  random = np.random.RandomState(seed)
  for variable in model.trainable_variables:
    variable.assign(0.5 * random.normal(size=variable.shape))
  return model


ENGINES = {
  "one bound": {},
  "track_variance": {"track_variance": ["rws"]},
  "sparse": {"num_backward_samples": 3},
}


def step_of(model, x=X, **options):
  """What one step of SGD(1.0) adds to the parameters, and its logs."""
  defaults = {"optimizer": keras.optimizers.SGD(1.0), "run_eagerly": True}
  helpers.compiled(model, **(defaults | options))
  before = helpers.values(model)
  logs = model.train_on_batch(x, return_dict=True)
  return [new - old for new, old in zip(helpers.values(model), before, strict=True)], logs
