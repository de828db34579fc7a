"""Tests of what `fit` and `evaluate` see to before Keras makes batches of their data."""

import inspect
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from dregs_tf.models import inputs
from tests.models import helpers, test_multimodal

tfd = tfp.distributions

X = helpers.binary(6, 6)
CONTEXT = helpers.binary(6, 4, seed=1)
GRAY = np.linspace(0, 1, 36, dtype="float32").reshape(6, 6)


class Own(models.LatentVariableModel):
  """A user's model whose layers `fit` builds; its likelihood is given as a function of logits."""

  likelihood_of = staticmethod(lambda logits: tfd.Independent(tfd.Bernoulli(logits), 1))

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.encoder = models.ConditionalNormal(2, (3,))
    self.decoder = keras.layers.Dense(6)

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.zeros(2))

  def proposal(self, x, context):
    return self.encoder.distribution(x)

  def likelihood(self, z, context):
    return self.likelihood_of(self.decoder(z))


class Pixels(Own):
  """The same with a likelihood of real numbers."""

  likelihood_of = staticmethod(lambda logits: tfd.Independent(tfd.Normal(logits, 1.0), 1))


class Decided(Own):
  """The same with the check turned off."""

  binary_observations = False


class Batches(keras.utils.PyDataset):
  """Keras' own kind of data set."""

  def __init__(self, *arrays):
    super().__init__()
    self.arrays = arrays

  def __len__(self):
    return 2

  def __getitem__(self, index):
    return tuple(array[3 * index : 3 * index + 3] for array in self.arrays)


def _generator(*arrays):
  while True:
    yield tuple(array[:3] for array in arrays)


FORMS = {
  "arrays": lambda *arrays: arrays,
  "dataset": lambda *arrays: (tf.data.Dataset.from_tensor_slices(arrays).batch(3),),
  "py_dataset": lambda *arrays: (Batches(*arrays),),
  "generator": lambda *arrays: (_generator(*arrays),),
}
BAD = {"0": (255 * GRAY).astype("uint8"), "-1": 2 * GRAY - 1}


def _fit(model, data, **options):
  return model.fit(*data, verbose=0, steps_per_epoch=2, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("low", BAD)
def test_observations_outside_the_unit_interval_are_refused_before_training(form, low):
  # The pipeline's own assertion reaches `fit` through a traced step, and without one.
  model = helpers.compiled(helpers.vae(), run_eagerly=low == "-1" or form != "dataset")
  before = helpers.values(model)
  message = rf"VAE: observations must be in \[0, 1\].*from {low} to "
  with pytest.raises(ValueError, match=message):
    _fit(model, FORMS[form](BAD[low]))
  with pytest.raises(ValueError, match=message):
    model.evaluate(*FORMS[form](BAD[low]), steps=2, verbose=0)
  for value, old in zip(helpers.values(model), before, strict=True):
    np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("form", FORMS)
def test_context_may_have_any_range(form):
  model = helpers.compiled(helpers.structured(), run_eagerly=True)
  assert np.isfinite(_fit(model, FORMS[form](255 * CONTEXT - 7, GRAY)).history["bound"][0])
  with pytest.raises(ValueError, match="StructuredVAE: observations must be in"):
    _fit(model, FORMS[form](CONTEXT, 1.5 * X))


def test_gray_values_integers_and_booleans_are_taken():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  for data in (GRAY, X.astype("uint8"), X.astype(bool)):
    expected = model.evaluate(data.astype("float32"), batch_size=3, verbose=0)
    for form in ("arrays", "dataset", "py_dataset"):
      options = {"batch_size": 3} if form == "arrays" else {}
      assert model.evaluate(*FORMS[form](data), verbose=0, **options) == expected, data.dtype
    assert np.isfinite(model.evaluate(_generator(data), steps=1, verbose=0)).all(), data.dtype
  # `test_vae` has other dtypes.
  assert np.all(np.isfinite(model.log_likelihood(GRAY, num_samples=3)))


@pytest.mark.parametrize("kind", [Own, Pixels, Decided])
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_own_model_is_checked_as_its_likelihood_asks_for(kind, run_eagerly):
  model = helpers.compiled(kind(), run_eagerly=run_eagerly)
  if kind is Own:
    for form in FORMS if run_eagerly else ("dataset",):
      with pytest.raises(ValueError, match=r"Own: observations must be in \[0, 1\].*from 0 to 2"):
        _fit(model, FORMS[form](255 * X))
  elif run_eagerly:
    for form in FORMS:
      assert np.isfinite(_fit(model, FORMS[form](BAD["-1"])).history["bound"][0])
  else:
    spec = tf.TensorSpec([None, 6], tf.float32)
    inputs._build_and_decide(model, spec)
    assert model.built
    assert not model.binary_observations


@pytest.mark.parametrize("kind", [helpers.vae, Own])
def test_every_way_in_is_checked(kind):
  model, x = helpers.compiled(kind()), BAD["-1"]
  for call in (
    lambda: model.train_on_batch(x),
    lambda: model.test_on_batch(x),
    lambda: model.log_likelihood(x, num_samples=3),
    lambda: model.log_likelihood(tf.data.Dataset.from_tensor_slices(x).batch(3), num_samples=3),
    lambda: model.estimate(x, bound="iwae", num_samples=3),
    lambda: model.fit(X, validation_data=(x,), verbose=0),
  ):
    with pytest.raises(ValueError, match=r"observations must be in \[0, 1\].*from -1 to "):
      call()


class Joint(Own):
  """Two parts, of which the second is Bernoulli, that is asked for at a draw of the first."""

  def proposal(self, x, context):
    return super().proposal(tf.concat([x["a"], x["b"]], axis=-1), context)

  def likelihood(self, z, context):
    logits = self.decoder(z)

    def binary(a):
      return tfd.Independent(tfd.Bernoulli(logits + 0 * a), 1)

    parts = {"a": tfd.Independent(tfd.Normal(logits, 1.0), 1), "b": binary}
    return tfd.JointDistributionNamed(parts)


PARTS = {
  "modalities": (test_multimodal.make, "image", test_multimodal.X),
  "joint": (Joint, "b", {"a": BAD["-1"], "b": X}),
}


@pytest.mark.parametrize("form", ["arrays", "dataset", "graph"])
@pytest.mark.parametrize("case", PARTS)
def test_the_bernoulli_part_of_a_likelihood_is_checked(case, form):
  make, binary, x = PARTS[case]
  model = helpers.compiled(make(), run_eagerly=form != "graph")
  bad = x | {binary: 255 * x[binary]}
  data = tf.data.Dataset.from_tensors(bad) if form == "dataset" else bad
  with pytest.raises(ValueError, match=r"observations must be in \[0, 1\].*from 0 to 255"):
    model.fit(data, verbose=0)
  if form != "graph":
    assert np.isfinite(model.evaluate(x, verbose=0)).all()


def test_missing_values_are_refused():
  with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="from nan to nan"):
    helpers.compiled(helpers.vae()).fit(X / X, verbose=0)


def test_first_batch_of_a_pipeline_is_drawn_once():
  drawn = []

  def batches():
    for i in range(4):
      drawn.append(i)
      yield X[i : i + 2]

  spec = tf.TensorSpec([None, 6], tf.float32)
  dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
  helpers.compiled(helpers.vae(), run_eagerly=True).fit(dataset, verbose=0)
  assert drawn == [0, 1, 2, 3]


# --- pairs, weights, habits ----------------------------------------------------------------------


def test_pair_as_the_only_argument_is_context_and_observation():
  results = []
  for data in ((CONTEXT, X), ((CONTEXT, X),), ([CONTEXT, X],)):
    model = helpers.compiled(helpers.structured(), run_eagerly=True)
    model.fit(*data, batch_size=6, shuffle=False, validation_data=(CONTEXT, X), verbose=0)
    results.append([model.evaluate(*data, verbose=0), *(v.tolist() for v in helpers.values(model))])
  assert results[0] == results[1] == results[2]


class Seen(models.LatentVariableModel):
  """Records the batches of its steps."""

  def __init__(self):
    super().__init__()
    self.binary_observations = False
    self.batches = []

  def train_step(self, data):
    self.batches.append(models.batches.split(data))
    return {"bound": tf.zeros([])}

  test_step = train_step


@pytest.mark.parametrize("conditional", [False, True])
def test_sample_weight_reaches_the_step(conditional):
  weights = np.arange(6.0)
  data = (CONTEXT, X) if conditional else (X,)
  model = helpers.compiled(Seen(), run_eagerly=True)
  pairs = [data] if not conditional else [data, (data,)]
  for arguments in pairs:
    options = {"sample_weight": weights, "batch_size": 6, "verbose": 0}
    validation = {"validation_data": (*(*arguments, None)[:2], weights)}
    model.fit(*arguments, shuffle=False, **options, **validation)
    model.evaluate(*arguments, **options)
    model.train_on_batch(*arguments, sample_weight=weights)
    model.test_on_batch(*arguments, sample_weight=weights)
  assert len(model.batches) == 5 * len(pairs)
  for context, x, sample_weight in model.batches:
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(sample_weight, weights)
    if conditional:
      np.testing.assert_array_equal(context, CONTEXT)
    else:
      assert context is None
  with pytest.raises(ValueError, match="sample_weight is given twice"):
    model.fit((CONTEXT, X, weights), sample_weight=weights, verbose=0)


def test_sample_weight_in_a_pipeline_without_contexts():
  weights = np.arange(6.0)
  expected = helpers.compiled(helpers.vae(), run_eagerly=True)
  expected = expected.evaluate(X, sample_weight=weights, batch_size=3, verbose=0)
  for first in (None, ()):
    dataset = tf.data.Dataset.from_tensor_slices((X, weights)).batch(3)
    dataset = dataset.map(lambda x, weight, first=first: (first, x, weight))
    model = helpers.compiled(helpers.vae(), run_eagerly=True)
    assert model.evaluate(dataset, verbose=0) == expected
    model.fit(dataset, verbose=0)


def test_autoencoders_habit_is_warned_of_once():
  model = helpers.compiled(Seen(), run_eagerly=True)
  with pytest.warns(UserWarning, match=r"fit\(x, x\).*autoencoder takes fit\(x\)") as record:
    model.fit(X, X, validation_data=(CONTEXT, X), epochs=2, verbose=0)
  assert len(record) == 1
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    model.fit(X, X.copy(), verbose=0)


def test_signatures_are_keras():
  for name in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
    ours, keras_own = getattr(models.VAE, name), getattr(keras.Model, name)
    assert inspect.signature(ours) == inspect.signature(keras_own)


# --- images and their labels ---------------------------------------------------------------------

LABELS = np.arange(6) % 3


class Labeled(Own):
  """A user's conditional model: images given labels."""

  def prior(self, context):
    return tfd.MultivariateNormalDiag(tf.one_hot(context, 2))

  def proposal(self, x, context):
    return self.encoder.distribution(tf.concat([x, tf.one_hot(context, 3)], axis=-1))


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_in_the_wrong_order_are_explained(form, run_eagerly):
  model = helpers.compiled(Labeled(), run_eagerly=run_eagerly)
  if form != "generator":
    with pytest.raises(Exception, match=".") as caught:
      _fit(model, FORMS[form](X, LABELS))
    (note,) = caught.value.__notes__
    assert "pairs (context, observation)" in note
    assert "the shape (None, 6)" in note
    assert "lambda image, label: (label, image)" in note
  if run_eagerly:
    assert np.isfinite(_fit(model, FORMS[form](LABELS, X)).history["bound"][0])


@pytest.mark.parametrize("form", FORMS)
def test_models_say_which_parts_they_take(form):
  vae, structured = (helpers.compiled(m) for m in (helpers.vae(), helpers.structured()))
  with pytest.raises(ValueError, match=r"VAE takes batches of observations alone.*image, label:"):
    _fit(vae, FORMS[form](X, LABELS))
  with pytest.raises(ValueError, match=r"StructuredVAE takes batches of \(context, observation\)"):
    _fit(structured, FORMS[form](X))
  with pytest.raises(ValueError, match=r"x must have shape \[batch_size, 6\], got \(") as caught:
    _fit(structured, FORMS[form](CONTEXT, LABELS % 2))
  assert form == "generator" or "(label, image)" in caught.value.__notes__[0]


# --- sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", [-1, np.nan])
def test_values_beyond_a_sequences_end_may_be_anything(form, padding):
  model = models.VRNN(np.array([0.3, 0.6]), latent_dim=2, hidden_units=(4,), rnn_units=3)
  model = helpers.compiled(model, run_eagerly=True)
  lengths, x = np.array([3, 1, 2, 3, 1, 2]), helpers.binary(18, 2).reshape(6, 3, 2)
  x[np.arange(3) >= lengths[:, None]] = padding
  assert np.isfinite(_fit(model, FORMS[form](lengths, x)).history["bound"][0])
  assert np.all(np.isfinite(model.log_likelihood(x, 3, lengths=lengths)))
  with pytest.raises(ValueError, match=r"observations must be in \[0, 1\]"):
    _fit(model, FORMS[form](lengths + (lengths < 3), x))
