"""Tests of the mode that layers are called in, of their noise, and of the statistics they keep."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, diagnostics
from tests.models import helpers
from tests.models.layered import ENGINES, Layered, X, layered, step_of
from tests.seeding import seed_layers

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tests")
class Spy(keras.layers.Layer):
  """Remembers the modes that it was called in, and what it was last trained on."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.modes = []
    self.inputs = None

  def call(self, inputs, training=None):
    self.modes.append(training)
    if training:
      self.inputs = inputs
    return inputs


class TrainsUnlessTold(Spy):
  """Its `training` is True by default."""

  def call(self, inputs, training=True):
    return super().call(inputs, training)


def modes_of(model, call):
  spies = [layer for layer in model._flatten_layers() if isinstance(layer, Spy)]
  for spy in spies:
    spy.modes = []
  call()
  modes = [set(spy.modes) for spy in spies]
  assert all(modes)
  return set().union(*modes)


def spied(kind=Spy, **options):
  model = layered([kind()], [kind()])
  return helpers.compiled(model, **{"run_eagerly": True} | options)


@pytest.mark.parametrize("kind", [Spy, TrainsUnlessTold])
def test_the_mode_of_every_method(kind):
  model = spied(kind)
  x = tf.constant(X)
  assert modes_of(model, lambda: model.test_on_batch(X)) == {False}
  assert modes_of(model, lambda: model.log_likelihood(X, num_samples=3)) == {False}
  assert modes_of(model, lambda: model.reconstruct(X)) == {False}
  assert modes_of(model, lambda: model(X)) == {False}
  assert modes_of(model, lambda: model(X, training=True)) == {True}
  assert modes_of(model, lambda: model.build((None, 6))) == {False}
  estimate = {"bound": "iwae", "num_samples": 3, "seed": 0}
  assert modes_of(model, lambda: model.estimate(x, **estimate)) == {False}
  assert modes_of(model, lambda: model.estimate(x, training=True, **estimate)) == {True}
  model.encoder.layers[0].modes = [False]  # `sample` does not call it.
  spy = model.decoder.layers[0]
  spy.modes = []
  model.sample(2)
  assert spy.modes == [False]


@pytest.mark.parametrize("options", [*ENGINES.values(), {"gradient_statistics": True}])
def test_a_step_trains_once(options):
  """Each layer is called once in training mode, as its statistics and its noise demand."""
  model = spied(**options)
  model.train_on_batch(X)  # Checks the calls, once.
  for run_eagerly in (True, False):
    model.run_eagerly = run_eagerly
    model.make_train_function(force=True)
    for net in (model.encoder, model.decoder):
      net.layers[0].modes = []
    model.train_on_batch(X)
    if run_eagerly and "num_backward_samples" not in options:
      assert all(net.layers[0].modes.count(True) == 1 for net in (model.encoder, model.decoder))
    assert model.encoder.layers[0].modes.count(True) == 1


def test_compare_measures_in_inference_mode():
  model = spied(TrainsUnlessTold)
  names = ["iwae", "iwae_dreg"]
  measure = {"num_samples": 4, "num_measurements": 30, "jit_compile": False}
  assert modes_of(model, lambda: diagnostics.compare(model, X, names, **measure)) == {False}


class Asks(Layered):
  """Its methods take `training`."""

  def prior(self, context, training=None):
    self.asked.append(training)
    return super().prior(context)

  def proposal(self, x, context, training):
    self.asked.append(training)
    return super().proposal(x, context)

  def likelihood(self, z, context, *, training=False):
    self.asked.append(training)
    return super().likelihood(z, context)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_methods_that_take_training_are_told(engine):
  model = helpers.compiled(Asks(), run_eagerly=True, **ENGINES[engine])
  model.asked = []
  model.train_on_batch(X)
  assert model.asked[:3] == [True] * 3
  for call in (
    lambda: model.test_on_batch(X),
    lambda: model.log_likelihood(X, num_samples=3),
    lambda: model.reconstruct(X),
    lambda: model.sample(2),
  ):
    model.asked.clear()
    call()
    assert set(model.asked) == {False}


class Frozen(Layered):
  """Calls its encoder in inference mode, as one does with a net that was trained before."""

  def proposal(self, x, context):
    self.encoder(x, training=False)
    return super().proposal(x, context)


def test_the_mode_that_a_method_asks_for_is_its_own():
  seed_layers(0)
  model = helpers.compiled(Frozen([Spy()], [Spy()]), run_eagerly=True)
  model.train_on_batch(X)
  assert model.encoder.layers[0].modes[-2] is False
  assert model.decoder.layers[0].modes[-1] is True


# --- statistics ---------------------------------------------------------------------------------


def normalized(**options):
  """A model with BatchNormalization, momentum 0.75, first in the encoder and the decoder."""
  return layered(
    *([keras.layers.BatchNormalization(momentum=0.75, **options)] for _ in range(2)), **options
  )


@pytest.mark.parametrize(
  ("engine", "how"),
  [
    ("one bound", "eager"),
    ("one bound", "graph"),
    ("one bound", "xla"),
    ("track_variance", "eager"),
    ("track_variance", "graph"),
  ],
)
def test_batch_normalization_keeps_the_statistics_of_a_step(engine, how):
  model = normalized()
  options = {"run_eagerly": how == "eager", "jit_compile": how == "xla"}
  step_of(model, **ENGINES[engine] | options)
  encoder, decoder = (net.layers[0] for net in (model.encoder, model.decoder))
  np.testing.assert_allclose(encoder.moving_mean, 0.25 * X.mean(axis=0), rtol=1e-5)
  variance = 0.75 + 0.25 * X.var(axis=0)
  np.testing.assert_allclose(encoder.moving_variance, variance, rtol=1e-5)
  assert np.all(decoder.moving_mean.numpy() != 0)
  before = [v.numpy() for v in model.non_trainable_weights]
  if engine == "one bound" and how != "xla":  # Evaluation knows no engine.
    model.test_on_batch(X)
  if how == "eager":  # It is traced whatever `compile` was told.
    model.log_likelihood(X, num_samples=3)
  for actual, expected in zip(model.non_trainable_weights, before, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_statistics_of_a_likelihood_are_those_of_all_samples():
  model = normalized()
  seeds = helpers.record_seeds(model)
  step_of(model, num_samples=4)
  fresh = normalized()
  loc, raw = np.split(fresh.encoder(X, training=True).numpy(), 2, axis=-1)
  q = tfd.Independent(tfd.Normal(loc, tf.nn.softplus(raw)), 1)
  z = q.sample(4, seed=seeds[0]).numpy()
  moving_mean = model.decoder.layers[0].moving_mean
  np.testing.assert_allclose(moving_mean, 0.25 * z.mean(axis=(0, 1)), rtol=1e-4)


def test_both_engines_keep_the_same_statistics():
  models = [normalized() for _ in range(2)]
  for model, tracked in zip(models, ([], ["rws"]), strict=True):
    helpers.compiled(model, run_eagerly=True, track_variance=tracked)
    for _ in range(2):
      model.train_on_batch(X)
  for one, other in zip(*(model.non_trainable_weights for model in models), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_evaluation_takes_the_statistics():
  model = normalized()
  helpers.compiled(model, run_eagerly=True)
  before = model.test_on_batch(X, return_dict=True)
  model.encoder.layers[0].moving_mean.assign(np.linspace(-1, 1, 6))
  assert model.test_on_batch(X, return_dict=True) != before


# --- noise --------------------------------------------------------------------------------------


def dropped(seed=None, rate=0.5):
  spies = [Spy(), Spy()]
  layers = [[keras.layers.Dropout(rate, seed=seed), spy] for spy in spies]
  return layered(*layers)


def masks_of(model, steps=1, **options):
  """Which inputs dropout left in the encoder at each step, of data without zeros."""
  options = {"optimizer": keras.optimizers.SGD(0.0), "run_eagerly": True} | options
  helpers.compiled(model, **options)
  masks = []
  for _ in range(steps):
    model.train_on_batch(np.ones_like(X))
    masks.append(model.encoder.layers[1].inputs.numpy() != 0)
  return masks


def test_dropout_in_fit_and_not_in_evaluate():
  plain, model = (layered(), dropped(rate=0.9))
  for each in (plain, model):
    helpers.compiled(each, run_eagerly=True)
  assert model.test_on_batch(X) == plain.test_on_batch(X)
  assert model.train_on_batch(X) != plain.train_on_batch(X)


def test_dropout_is_a_function_of_the_seeds_and_of_the_step():
  first = masks_of(dropped(), steps=3)
  again = masks_of(dropped(), steps=3)
  np.testing.assert_array_equal(first, again)
  for i in range(3):
    assert 0.1 < np.mean(first[i]) < 0.9
    assert np.any(first[i] != first[i - 1])
  assert np.any(masks_of(dropped(), seed=2)[0] != first[0])
  assert np.any(masks_of(dropped(seed=7))[0] != first[0])
  np.testing.assert_array_equal(masks_of(dropped(seed=7)), masks_of(dropped(seed=7)))
  tracked = masks_of(dropped(), steps=3, track_variance=["iwae"])
  np.testing.assert_array_equal(tracked, first)


def test_layers_draw_different_noise():
  model = layered([keras.layers.Dropout(0.5), Spy(), keras.layers.Dropout(0.5), Spy()])
  masks_of(model)
  masks = [model.encoder.layers[i].inputs.numpy() != 0 for i in (1, 3)]
  assert np.any(masks[1] != masks[0])


class Unseeded(Layered):
  """Draws from Keras' own generator, without a seed."""

  def proposal(self, x, context, training):
    if training:
      x += keras.random.normal(tf.shape(x)) + keras.random.uniform(tf.shape(x))
    return super().proposal(x, context)


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_noise_without_a_seed_is_a_function_of_the_step_too(run_eagerly):
  logs = []
  for _ in range(2):
    seed_layers(0)
    model = Unseeded()
    keras.utils.set_random_seed(len(logs))
    helpers.compiled(
      model, optimizer=keras.optimizers.SGD(0.0), run_eagerly=run_eagerly, num_samples=3
    )
    logs.append([model.train_on_batch(X) for _ in range(2)])
  assert logs[0] == logs[1]
  assert logs[0][0] != logs[0][1]


@pytest.mark.parametrize(
  "options", [{"run_eagerly": True, "track_variance": ["iwae"]}, {"optimizer": "sgd"}]
)
def test_training_goes_on_as_if_not_interrupted(tmp_path, options):
  seed_layers(0)
  layers = [
    [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.4, seed=s)]
    for s in (None, 3)
  ]
  straight = helpers.compiled_with_adam(Layered(*layers), **options)
  data = {"x": X, "batch_size": 3, "shuffle": False, "verbose": 0}
  checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
  straight.fit(epochs=2, callbacks=[checkpoint], **data)
  keras.utils.set_random_seed(9)
  resumed = keras.models.load_model(tmp_path / "1.keras")
  if resumed.run_eagerly:
    resumed.evaluate(X, verbose=0)
  resumed.fit(initial_epoch=1, epochs=2, **data)
  for actual, expected in zip(resumed.weights, straight.weights, strict=True):
    np.testing.assert_array_equal(actual, expected)


# --- what cannot be had -------------------------------------------------------------------------


@pytest.mark.parametrize(
  "layer",
  [keras.layers.Dropout(0.5), keras.layers.BatchNormalization(), keras.layers.GaussianNoise(0.1)],
)
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_a_likelihood_that_is_evaluated_twice_must_not_change(layer, run_eagerly):
  model = layered(decoder=[layer])
  message = "num_backward_samples=3.*Dropout, BatchNormalization"
  with pytest.raises(ValueError, match=message):
    step_of(model, num_backward_samples=3, run_eagerly=run_eagerly)
  step_of(model, num_backward_samples=5, run_eagerly=True)  # All samples: evaluated once.


def test_layers_of_the_proposal_go_with_num_backward_samples():
  model = layered([keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)])
  step_of(model, num_backward_samples=3)
  assert np.all(model.encoder.layers[0].moving_mean.numpy() != 0)


class Joint(Layered):
  """q(z) as a joint distribution that calls a layer itself."""

  def __init__(self):
    super().__init__()
    self.dropout = keras.layers.Dropout(0.5)

  def proposal(self, x, context):
    first = super().proposal(x, context)
    return tfd.JointDistributionSequential(
      [first, lambda z: tfd.Independent(tfd.Normal(self.dropout(z), 1.0), 1)]
    )

  def prior(self, context):
    return tfd.JointDistributionSequential([super().prior(context)] * 2)

  def likelihood(self, z, context):
    return super().likelihood(z[0] + z[1], context)


@pytest.mark.parametrize("track", [[], ["rws"]])
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_a_distribution_that_calls_noisy_layers_is_refused(track, run_eagerly):
  model = Joint()
  helpers.compiled(model, bound="iwae", track_variance=track, run_eagerly=run_eagerly)
  with pytest.raises(ValueError, match="Joint.proposal.*JointDistributionSequential.*Dropout"):
    model.train_on_batch(X)
  if run_eagerly:
    model.test_on_batch(X)


# --- precision ----------------------------------------------------------------------------------


class Reads(Layered):
  """Reads a variable of its own."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.location = self.add_weight(name="location", shape=(3,), initializer="zeros")

  def prior(self, context):
    location = tf.convert_to_tensor(self.location)
    self.dtypes.append(location.dtype)
    return tfd.Independent(tfd.Normal(location, 1.0), 1)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_variables_of_the_model_are_read_as_they_are(engine):
  model = helpers.compiled(Reads(dtype="mixed_bfloat16"), run_eagerly=True, **ENGINES[engine])
  model.dtypes = []
  model.train_on_batch(X)
  model.test_on_batch(X)
  assert set(model.dtypes) == {tf.float32}


def test_a_loop_of_ones_own_trains_the_layers():
  model = layered([keras.layers.Dropout(0.5)], [keras.layers.BatchNormalization()])
  x, options = tf.constant(X), {"bound": bounds.get("iwae_dreg"), "num_samples": 3}
  inference = model.estimate(x, seed=1, **options).objective
  assert np.all(model.decoder.layers[0].moving_mean.numpy() == 0)
  training = model.estimate(x, seed=1, training=True, **options).objective
  assert np.any(np.abs(training - inference) > 1e-3)
  assert np.all(model.decoder.layers[0].moving_mean.numpy() != 0)
