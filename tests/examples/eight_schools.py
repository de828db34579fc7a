"""Eight schools (Gelman et al., Bayesian Data Analysis): a hierarchical model of one data set.

Its proposal is one of TFP's surrogate posteriors: trained by `bounds.estimate` in a loop of one's
own, or in a LatentVariableModel whose weights are the surrogate's parameters.
"""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import models

tfd = tfp.distributions

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], "float32")
STANDARD_ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], "float32")

# Names and event shapes of the latents.
_LATENTS = {"mean": [], "log_spread": [], "effects": [8]}


def joint() -> tfd.JointDistribution:
  """Returns p(mean, log_spread, effects, observed): batch shape []."""
  return tfd.JointDistributionNamedAutoBatched(
    {
      "mean": tfd.Normal(0.0, 10.0),
      "log_spread": tfd.Normal(5.0, 1.0),
      "effects": lambda mean, log_spread: tfd.Sample(tfd.Normal(mean, tf.exp(log_spread)), [8]),
      "observed": lambda effects: tfd.Independent(tfd.Normal(effects, STANDARD_ERRORS), 1),
    }
  )


def log_joint(z) -> tf.Tensor:
  """Returns log p(z, observed effects) for latents z by name, each [num_samples, ...]."""
  return joint().log_prob(z | {"observed": EFFECTS})


def factored_surrogate() -> tfd.Distribution:
  """Returns a Normal for each latent, of variables that TFP makes."""
  return tfp.experimental.vi.build_factored_surrogate_posterior(event_shape=_LATENTS)


def affine_surrogate() -> tfd.Distribution:
  """Returns one Normal of all latents with a covariance, of variables that TFP makes."""
  return tfp.experimental.vi.build_affine_surrogate_posterior(
    event_shape=_LATENTS, operators="tril"
  )


def transformed_variables() -> tfd.Distribution:
  """Returns a Normal of each latent, its scales kept positive by TransformedVariables."""

  def normal(shape):
    scale = tfp.util.TransformedVariable(tf.ones(shape), tfp.bijectors.Softplus())
    return tfd.Independent(tfd.Normal(tf.Variable(tf.zeros(shape)), scale), len(shape))

  return tfd.JointDistributionNamed({name: normal(shape) for name, shape in _LATENTS.items()})


@keras.saving.register_keras_serializable("examples")
class EightSchools(models.LatentVariableModel):
  """Batches of one example: context, the standard errors [1, 8], and the observed effects [1, 8].

  Keras does not know TFP's variables: the weights are its own, and TFP's stateless builder makes
  the surrogate posterior from them.
  """

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    parameters_of, self._surrogate = tfp.experimental.vi.build_affine_surrogate_posterior_stateless(
      event_shape=_LATENTS, operators="tril", batch_shape=[1]
    )
    self.surrogate_weights = [
      self.add_weight(
        name=f"surrogate_{i}",
        shape=start.shape,
        initializer=keras.initializers.Constant(start.numpy()),
        dtype="float32",
      )
      for i, start in enumerate(parameters_of(seed=(0, 0)))
    ]

  def prior(self, context):
    return tfd.JointDistributionNamed(
      {
        "mean": tfd.Normal([0.0], 10.0),
        "log_spread": tfd.Normal([5.0], 1.0),
        "effects": lambda mean, log_spread: tfd.Sample(tfd.Normal(mean, tf.exp(log_spread)), [8]),
      }
    )

  def proposal(self, x, context):
    return self._surrogate([tf.convert_to_tensor(weight) for weight in self.surrogate_weights])

  def stopped_proposal(self, proposal):
    return dregs_tf.PathOnly(proposal)

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Normal(z["effects"], context), 1)


def make(dtype: str, **options) -> EightSchools:
  """Returns a new model, compiled with these options besides."""
  model = EightSchools(dtype=dtype)
  model.compile(keras.optimizers.Adam(1e-2), num_samples=4, seed=3, jit_compile=False, **options)
  return model


def data() -> tuple[tuple, tuple]:
  """Returns what to train and to validate on, each the positional arguments of `fit`."""
  one = (STANDARD_ERRORS[np.newaxis], EFFECTS[np.newaxis])
  return one, one
