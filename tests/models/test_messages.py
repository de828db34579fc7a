"""Tests of what a model says of methods that take or return the wrong thing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from tests.models import helpers
from tests.seeding import seed_layers

tfd = tfp.distributions

X = helpers.binary(6, 6)


class Own(models.LatentVariableModel):
  """A user's model; its last layers compute in float32, the others in what the policy says."""

  last_dtype = "float32"

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.trunk = keras.layers.Dense(3, "tanh", dtype=self.dtype_policy)
    self.to_normal = keras.layers.Dense(2 * 2, dtype=self.last_dtype)
    self.decoder = keras.layers.Dense(6, dtype=self.last_dtype)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2))

  def proposal(self, x, context):
    loc, raw = tf.split(self.to_normal(self.trunk(x)), 2, axis=-1)
    return tfd.MultivariateNormalDiag(loc, tf.nn.softplus(raw))

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(self.decoder(z)), 1)


def _with(**methods):
  """A subclass of Own with other methods, named as functions in a class body would be."""
  for name, method in methods.items():
    method.__name__ = name
  return type("Mine", (Own,), methods)


def _expect(kind, error, message):
  """Fits in a graph, evaluates and samples a model of the class: each must raise the error."""
  for call, run_eagerly in (
    (lambda model: model.fit(X, verbose=0), False),
    (lambda model: model.evaluate(X, verbose=0), True),
    (lambda model: model.estimate(X, bound="iwae", num_samples=2), True),
  ):
    with pytest.raises(error, match=message):
      call(helpers.compiled(kind(), run_eagerly=run_eagerly))


@pytest.mark.parametrize(
  ("methods", "message"),
  [
    (
      {"proposal": lambda self, x, context: Own.proposal(self, x, context).sample()},
      r"Mine\.proposal must return a distribution.*Tensor of shape \(.*not a sample of it",
    ),
    (
      {"likelihood": lambda self, z, context: self.decoder(z)},
      r"Mine\.likelihood must return a distribution.*Tensor of shape .*Bernoulli\(logits\)",
    ),
    (
      {"proposal": lambda self, x, context: (tf.zeros(2), tf.ones(2))},
      r"Mine\.proposal must return a distribution.*got a tuple",
    ),
    (
      {"prior": lambda self, context: None},
      r"Mine\.prior must return a distribution.*got a NoneType",
    ),
  ],
)
def test_something_else_than_a_distribution(methods, message):
  _expect(_with(**methods), TypeError, message)


@pytest.mark.parametrize(
  ("methods", "message"),
  [
    (
      {"prior": lambda self: Own.prior(self, None)},
      r"Mine\.prior must be defined as prior\(self, context\).*got prior\(self\)",
    ),
    (
      {"proposal": lambda self, x: Own.proposal(self, x, None)},
      r"Mine\.proposal must be defined as proposal\(self, x, context\).*got proposal\(self, x\)",
    ),
    (
      {"likelihood": lambda self, z, context, scale: Own.likelihood(self, z, context)},
      r"Mine\.likelihood must be defined as likelihood\(self, z, context\).*z, context, scale\)",
    ),
  ],
)
def test_wrong_signatures(methods, message):
  _expect(_with(**methods), TypeError, message)
  if "prior" in methods:
    with pytest.raises(TypeError, match=message):
      _with(**methods)().sample(2)


def test_type_errors_inside_a_method_are_its_own():
  def prior(self, context):
    return len(3)

  with pytest.raises(TypeError, match="object of type 'int' has no len"):
    helpers.compiled(_with(prior=prior)()).fit(X, verbose=0)


# --- dtypes --------------------------------------------------------------------------------------


class Narrow(Own):
  """The same with all layers in what the policy says."""

  @property
  def last_dtype(self):
    return self.dtype_policy


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_proposal_narrower_than_float32_is_refused(policy):
  dtype = policy.removeprefix("mixed_")
  model = helpers.compiled(Narrow(dtype=policy), run_eagerly=True)
  message = rf"Narrow\.proposal: its samples are {dtype}.*dtype=.float32"
  with pytest.raises(ValueError, match=message):
    model.fit(X, verbose=0)


def test_likelihood_narrower_than_float32_is_refused():
  def likelihood(self, z, context):
    return tfd.Independent(tfd.Bernoulli(tf.cast(self.decoder(z), tf.bfloat16)), 1)

  with pytest.raises(ValueError, match=r"Mine\.likelihood: log p\(x \| z, context\) is bfloat16"):
    helpers.compiled(_with(likelihood=likelihood)(), run_eagerly=True).fit(X, verbose=0)


def test_prior_of_another_dtype_than_the_proposal_is_refused():
  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2, tf.float64))

  message = r"Mine\.prior is a distribution of float64, but z.*float32.*self\.float_dtype"
  with pytest.raises(ValueError, match=message):
    helpers.compiled(_with(prior=prior)(), run_eagerly=True).fit(X, verbose=0)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_float32_last_layers_train_under_every_policy(policy):
  seed_layers(0)
  optimizer = keras.optimizers.Adam(0.1)
  model = helpers.compiled(Own(dtype=policy), optimizer=optimizer, run_eagerly=True)
  before = model.test_on_batch(X, return_dict=True)["bound"]
  for _ in range(10):
    model.train_on_batch(X)
  model.reset_metrics()
  assert model.test_on_batch(X, return_dict=True)["bound"] > before + 0.3
  assert model.log_likelihood(X, num_samples=3).dtype == tf.float32


def test_likelihood_in_float64_with_a_prior_in_float32():
  class Mixed(Own):
    def likelihood(self, z, context):
      return tfd.Independent(tfd.Normal(tf.cast(self.decoder(z), tf.float64), 1.0), 1)

  model = Mixed()
  z = model.proposal(X, None).sample(3, seed=[0, 1])
  expected = tf.cast(model.prior(None).log_prob(z), tf.float64)
  expected += model.likelihood(z, None).log_prob(X.astype("float64"))
  np.testing.assert_allclose(model.target_log_prob(X, z), expected, rtol=1e-14)
