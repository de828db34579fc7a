"""Tests of users' own models: shared and learned parts, other proposals, flows, hierarchies."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import dregs_tf
from dregs_tf import bounds, models
from tests.models import helpers
from tests.seeding import seed_layers

tfb = tfp.bijectors
tfd = tfp.distributions


class Images(models.LatentVariableModel):
  """Images of event shape [4, 4, 1]: a convolutional encoder, a LogNormal proposal.

  The prior is learned, and the proposal starts from the prior's location: p and q share it.
  """

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    options = {"dtype": self.dtype_policy}
    self.encoder = keras.Sequential(
      [
        keras.layers.Conv2D(2, 3, strides=2, activation="tanh", **options),
        keras.layers.Flatten(**options),
        keras.layers.Dense(6, **options),
      ]
    )
    self.decoder = keras.layers.Dense(16, **options)
    self.location = self.add_weight(name="location", shape=(3,), initializer="zeros")
    self.raw_scale = self.add_weight(name="raw_scale", shape=(3,), initializer="ones")
    self.encoder.build((None, 4, 4, 1))
    self.decoder.build((None, 3))
    self.built = True

  def prior(self, context):
    location, scale = tf.convert_to_tensor(self.location), tf.nn.softplus(self.raw_scale)
    return tfd.Independent(tfd.LogNormal(location, scale), 1)

  def proposal(self, x, context):
    loc, raw = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.Independent(tfd.LogNormal(loc + self.location, tf.nn.softplus(raw)), 1)

  def likelihood(self, z, context):
    logits = self.decoder(z)
    logits = tf.reshape(logits, tf.concat([tf.shape(logits)[:-1], [4, 4, 1]], axis=0))
    return tfd.Independent(tfd.Bernoulli(logits), 3)


class Regression(models.LatentVariableModel):
  """x given a context, a mixture as proposal; prior, proposal and likelihood share a trunk."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    options = {"dtype": self.dtype_policy}
    self.trunk = keras.layers.Dense(3, "tanh", **options)
    self.mixture = keras.layers.Dense(2 + 2 * 2 * 2, **options)
    self.prior_location = keras.layers.Dense(2, **options)
    self.decoder = keras.layers.Dense(5, **options)
    self.trunk.build((None, 4))
    self.mixture.build((None, 8))
    self.prior_location.build((None, 3))
    self.decoder.build((None, 5))
    self.built = True

  def prior(self, context):
    return tfd.Independent(tfd.Logistic(self.prior_location(self.trunk(context)), 1.0), 1)

  def proposal(self, x, context):
    outputs = self.mixture(tf.concat([x, self.trunk(context)], axis=-1))
    logits, loc, raw = tf.split(outputs, [2, 4, 4], axis=-1)
    loc, raw = (tf.reshape(part, [-1, 2, 2]) for part in (loc, raw))
    return tfd.MixtureSameFamily(
      tfd.Categorical(logits),
      tfd.Independent(tfd.Normal(loc, tf.nn.softplus(raw)), 1),
      reparameterize=True,
    )

  def likelihood(self, z, context):
    trunk = self.trunk(context)
    trunk = tf.broadcast_to(trunk, tf.concat([tf.shape(z)[:-1], [3]], axis=0))
    return tfd.Independent(tfd.Normal(self.decoder(tf.concat([z, trunk], axis=-1)), 0.5), 1)


class Hierarchy(models.LatentVariableModel):
  """Two layers of latents: q(z1 | x) q(z2 | z1), p(z1) p(z2 | z1), and x that depends on both."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    options = {"hidden_units": (4,), "dtype": self.dtype_policy}
    self.first = models.ConditionalNormal(3, **options)
    self.second = models.ConditionalNormal(2, **options)
    self.second_prior = models.ConditionalNormal(2, **options)
    self.decoder = models.ConditionalBernoulli(event_size=6, **options)
    self.first.build((None, 6))
    self.second.build((None, 3))
    self.second_prior.build((None, 3))
    self.decoder.build([(None, 3), (None, 2)])
    self.built = True

  def prior(self, context):
    zeros = tf.zeros([3], self.compute_dtype)
    standard = tfd.Independent(tfd.Normal(zeros, tf.ones_like(zeros)), 1)
    return tfd.JointDistributionSequential(
      [standard, lambda first: self.second_prior.distribution(first)]
    )

  def proposal(self, x, context):
    return tfd.JointDistributionSequential(
      [self.first.distribution(x), lambda first: self.second.distribution(first)]
    )

  def stopped_proposal(self, proposal):
    return dregs_tf.PathOnly(proposal)

  def likelihood(self, z, context):
    return self.decoder.distribution(list(z))


class Flow(models.LatentVariableModel):
  """A proposal whose bijector holds a network: nothing can stop its parameters from outside."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.encoder = models.ConditionalNormal(2, (4,), dtype=self.dtype_policy)
    self.coupling = keras.layers.Dense(2, dtype=self.dtype_policy)
    self.decoder = models.ConditionalBernoulli(
      event_size=6, hidden_units=(4,), dtype=self.dtype_policy
    )
    self.encoder.build((None, 6))
    self.coupling.build((None, 1))
    self.decoder.build((None, 2))
    self.built = True

  def prior(self, context):
    zeros = tf.zeros([2], self.compute_dtype)
    return tfd.Independent(tfd.Normal(zeros, tf.ones_like(zeros)), 1)

  def proposal(self, x, context):
    def shift_and_log_scale(z, output_units, **kwargs):
      shift, log_scale = tf.split(self.coupling(z), 2, axis=-1)
      return shift, tf.tanh(log_scale)

    flow = tfb.RealNVP(num_masked=1, shift_and_log_scale_fn=shift_and_log_scale)
    return tfd.TransformedDistribution(self.encoder.distribution(x), flow)

  def likelihood(self, z, context):
    return self.decoder.distribution(z)


class PathOnlyFlow(Flow):
  """The same, with the stopped proposal given."""

  def stopped_proposal(self, proposal):
    return dregs_tf.PathOnly(proposal)


def _images(batch_size=8):
  return helpers.binary(batch_size, 16).reshape(batch_size, 4, 4, 1)


def _pairs(batch_size=8):
  random = np.random.RandomState(0)
  context = random.normal(size=(batch_size, 4)).astype("float32")
  x = random.normal(size=(batch_size, 5)).astype("float32")
  return context, x


CASES = {
  "images": (Images, lambda: (None, _images())),
  "regression": (Regression, _pairs),
  "hierarchy": (Hierarchy, lambda: (None, helpers.binary(8, 6))),
  "flow": (Flow, lambda: (None, helpers.binary(8, 6))),
  "flow with PathOnly": (PathOnlyFlow, lambda: (None, helpers.binary(8, 6))),
}


def _parts(pair):
  return [part for part in pair if part is not None]


@pytest.mark.parametrize(
  ("case", "bound"),
  [
    *((case, "iwae_dreg") for case in sorted(CASES)),
    *((case, "jvi_dreg") for case in ("hierarchy", "flow")),
    *((case, "rws") for case in ("images", "regression", "flow with PathOnly")),
  ],
)
def test_gradient_of_a_step_is_the_papers(case, bound):
  kind, make_data = CASES[case]
  seed_layers(0)
  model = kind(dtype="float64")
  helpers.perturb(model)
  helpers.compiled(model, optimizer=keras.optimizers.SGD(1.0), bound=bound, num_samples=4)
  context, x = (None if p is None else tf.constant(p, tf.float64) for p in make_data())
  before = helpers.values(model)
  step, seed = helpers.gradient_of_step(model, x if context is None else (context, x))
  for variable, value in zip(model.trainable_variables, before, strict=True):
    variable.assign(value)
  expected = helpers.gradient_by_hand(model, x, context, seed, 4, helpers.BY_HAND[bound])
  for variable, actual, by_hand in zip(model.trainable_variables, step, expected, strict=True):
    np.testing.assert_allclose(actual, by_hand, rtol=1e-9, atol=1e-11, err_msg=variable.path)
  assert all(np.any(gradient != 0) for gradient in step)


@pytest.mark.parametrize("case", ["hierarchy", "images"])
def test_fit_learns(case):
  kind, make_data = CASES[case]
  seed_layers(0)
  parts = _parts(make_data())
  model = helpers.compiled(kind(), optimizer=keras.optimizers.SGD(0.5), bound="iwae_dreg")
  data = tf.data.Dataset.from_tensor_slices(tuple(parts)).batch(4).repeat()
  history = model.fit(data, steps_per_epoch=10, epochs=5, verbose=0).history
  assert np.all(np.isfinite(history["bound"]))
  assert history["bound"][-1] > history["bound"][0] + 0.3


@pytest.mark.parametrize("case", ["images", "flow"])
def test_fit_with_the_jackknife(case):
  kind, make_data = CASES[case]
  seed_layers(0)
  parts = _parts(make_data())
  model = helpers.compiled(kind(), bound="jvi_dreg", gradient_statistics=True, run_eagerly=True)
  before = helpers.values(model)
  history = model.fit(*parts, batch_size=8, epochs=2, verbose=0).history
  assert all(np.all(np.isfinite(values)) for values in history.values())
  assert all((new != old).any() for new, old in zip(helpers.values(model), before, strict=True))


# Only training asks for the stopped proposal of "flow with PathOnly".
@pytest.mark.parametrize("case", sorted(CASES.keys() - {"flow with PathOnly"}))
def test_every_model_samples_and_reconstructs(case):
  kind, make_data = CASES[case]
  seed_layers(0)
  model = kind()
  context, x = make_data()
  batch = () if context is None else (8,)
  assert model.sample(3, context, seed=0).shape == (3, *batch, *x.shape[1:])
  assert model.sample(3, context, seed=0, mean=True).shape == (3, *batch, *x.shape[1:])
  assert model.reconstruct(x, context, seed=0).shape == x.shape
  log_likelihood = model.log_likelihood(x, num_samples=7, context=context)
  assert log_likelihood.shape == [8]
  assert np.all(np.isfinite(log_likelihood))


class Plain(keras.Model):
  """A user's plain Keras model with its own `train_step`: only `bounds.estimate` is ours."""

  def __init__(self, parts):
    super().__init__()
    self.parts = parts
    self.built = True

  def objective(self, x, seed):
    proposal = self.parts.proposal(x, None)
    estimate = bounds.estimate(
      "iwae_dreg",
      lambda z: self.parts.likelihood(z, None).log_prob(x) + self.parts.prior(None).log_prob(z),
      proposal,
      num_samples=5,
      seed=seed,
    )
    return tf.reduce_mean(estimate.objective)

  def train_step(self, data):
    with tf.GradientTape() as tape:
      loss = -self.objective(data, seed=[3, 4])
    gradients = tape.gradient(loss, self.trainable_variables)
    self.optimizer.apply(gradients, self.trainable_variables)
    return {"loss": loss}


def test_bare_estimate_in_a_plain_keras_model():
  x = _images()
  seed_layers(0)
  plain = Plain(Images())
  plain.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
  plain.fit(x, batch_size=8, shuffle=False, verbose=0)
  seed_layers(0)
  model = Images()
  with tf.GradientTape() as tape:
    estimate = model.estimate(tf.constant(x), bound="iwae_dreg", num_samples=5, seed=[3, 4])
    loss = -tf.reduce_mean(estimate.objective)
  keras.optimizers.SGD(0.1).apply(
    tape.gradient(loss, model.trainable_variables), model.trainable_variables
  )
  for actual, expected in zip(helpers.values(plain), helpers.values(model), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@keras.saving.register_keras_serializable("tests")
class Unbuilt(models.LatentVariableModel):
  """Layers that do not know their inputs' sizes before they see data."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.encoder = models.ConditionalNormal(3, (4,))
    self.decoder = models.ConditionalBernoulli(event_size=6, hidden_units=(4,))

  def prior(self, context):
    return tfd.Independent(tfd.Normal(tf.zeros([3]), 1.0), 1)

  def proposal(self, x, context):
    return self.encoder.distribution(x)

  def likelihood(self, z, context):
    return self.decoder.distribution(z)


@keras.saving.register_keras_serializable("tests")
class UnbuiltConditional(Unbuilt):
  """The same, given contexts."""

  def proposal(self, x, context):
    return self.encoder.distribution([x, context])

  def likelihood(self, z, context):
    return self.decoder.distribution([z, context])


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_fit_builds_the_layers(run_eagerly):
  optimizer = keras.optimizers.SGD(momentum=0.9)
  model = helpers.compiled(Unbuilt(), optimizer=optimizer, run_eagerly=run_eagerly)
  assert not model.trainable_variables
  model.fit(helpers.binary(8, 6), batch_size=4, verbose=0)
  assert len(model.trainable_variables) == 8
  assert len(model.optimizer.variables) == 2 + 8


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_fit_builds_the_layers_of_a_conditional_model(form):
  pair = (helpers.binary(8, 4), helpers.binary(8, 6, seed=1))
  optimizer = keras.optimizers.SGD(momentum=0.9)
  model = UnbuiltConditional()
  helpers.compiled(model, optimizer=optimizer, run_eagerly=form == "arrays")
  if form == "arrays":
    model.fit(*pair, batch_size=4, verbose=0)
  else:
    model.fit(tf.data.Dataset.from_tensor_slices(pair).batch(4), verbose=0)
  assert len(model.trainable_variables) == 8
  assert len(model.optimizer.variables) == 2 + 8


@pytest.mark.parametrize("kind", [Unbuilt, UnbuiltConditional])
def test_layers_that_fit_built_are_saved(kind, tmp_path):
  data = (helpers.binary(8, 6),)
  if kind is UnbuiltConditional:
    data = (helpers.binary(8, 4, seed=1), *data)
  model = helpers.compiled_with_adam(kind(), run_eagerly=True)
  # Building by a call on a batch, as Keras advises.
  model(data if len(data) == 2 else data[0])
  model.fit(*data, verbose=0)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert loaded.evaluate(*data, verbose=0) == model.evaluate(*data, verbose=0)
  assert loaded.train_on_batch(*data) == model.train_on_batch(*data)
  for actual, expected in zip(loaded.variables, model.variables, strict=True):
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("gradient_statistics", [False, True])
def test_model_that_fit_built_is_compiled_again(gradient_statistics):
  x = helpers.binary(8, 6)
  model = helpers.compiled_with_adam(Unbuilt(), run_eagerly=True)
  model.fit(x, verbose=0)
  helpers.compiled(model, bound="stl", gradient_statistics=gradient_statistics, run_eagerly=True)
  assert np.isfinite(model.fit(x, verbose=0).history["bound"][0])


@pytest.mark.parametrize("method", ["prior", "proposal", "likelihood"])
def test_missing_method_is_named(method):
  def without(self, *args):
    return getattr(models.LatentVariableModel, method)(self, *args)

  kind = type("Partial", (Images,), {method: without})
  model = helpers.compiled(kind(), run_eagerly=True)
  with pytest.raises(TypeError, match=rf"Partial must define {method}\("):
    model.fit(_images(), verbose=0)


def test_empty_subclass_says_what_it_lacks():
  model = helpers.compiled(type("Empty", (models.LatentVariableModel,), {})())
  with pytest.raises(TypeError, match=r"Empty must define proposal\("):
    model.fit(helpers.binary(8, 6), verbose=0)


def test_likelihood_of_the_wrong_event_shape_is_refused():
  class Wrong(Images):
    def likelihood(self, z, context):
      return super().likelihood(z, context).distribution

  model = helpers.compiled(Wrong(), run_eagerly=True)
  with pytest.raises(ValueError, match="tfd.Independent"):
    model.fit(_images(), verbose=0)
