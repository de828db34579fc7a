"""Tests of what a batch may be: parts, structures of Tensors, dtypes."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models
from dregs_tf.models import batches
from tests.models import helpers

tfd = tfp.distributions

C = np.arange(8, dtype="float32").reshape(2, 4)
X = np.arange(6, dtype="float32").reshape(2, 3)
W = np.array([1, 2])


@pytest.mark.parametrize(
  ("data", "expected"),
  [
    (X, (None, X, None)),
    ((X,), (None, X, None)),
    ([C, X], (C, X, None)),
    ((C, X), (C, X, None)),
    ((C, X, W), (C, X, W)),
    # As Keras makes them of fit(x, sample_weight=w), fit((c, x)) and fit((c, x), sample_weight=w).
    ((X, None, W), (None, X, W)),
    (((C, X),), (C, X, None)),
    (((C, X), None, W), (C, X, W)),
    (((C, X, W),), (C, X, W)),
    ((None, X, W), (None, X, W)),
    ((C, X, None), (C, X, None)),
    ({"a": X, "b": C}, (None, {"a": X, "b": C}, None)),
    (({"a": C}, {"b": X}), ({"a": C}, {"b": X}, None)),
    ((C, (X, C)), (C, (X, C), None)),
    (([C, X], {"b": X}), ([C, X], {"b": X}, None)),
    ([[0.5, 1.5], [2.5, 3.5]], (None, np.array([[0.5, 1.5], [2.5, 3.5]], "float32"), None)),
  ],
)
def test_parts_of_a_batch(data, expected):
  batch = batches.split(data)
  tf.nest.assert_same_structure(tuple(batch), expected)
  for actual, part in zip(tf.nest.flatten(batch), tf.nest.flatten(expected), strict=True):
    if part is None:
      assert actual is None
    else:
      np.testing.assert_array_equal(actual, part)
      assert actual.dtype == tf.float32


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ((X, X, W, W), "got 4 parts"),
    ((), "got 0 parts"),
    (((C, X, W), None, W), "sample_weight"),
    ((None, None), "observations, got None"),
  ],
)
def test_other_batches_are_refused(data, message):
  with pytest.raises(ValueError, match=message):
    batches.split(data)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_cast_and_integers_stay(dtype):
  ids = np.array([2**24 + 1, 2**53 + 1])
  context = {"id": ids, "flag": ids > 2**30, "half": W.astype("float16"), "gray": W / 3}
  actual = batches.split((context, X, W), dtype)
  assert actual.context["id"].dtype == tf.int64
  np.testing.assert_array_equal(actual.context["id"], ids)
  np.testing.assert_array_equal(actual.context["flag"], [False, True])
  for part in (actual.context["half"], actual.context["gray"], actual.x, actual.sample_weight):
    assert part.dtype == dtype
  np.testing.assert_array_equal(actual.context["gray"], (W / 3).astype(dtype))


class Embedded(models.LatentVariableModel):
  """x given an index: the index must arrive as it is."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.embedding = keras.layers.Embedding(5, 2, dtype=self.dtype_policy)
    self.encoder = models.ConditionalNormal(2, (3,), dtype=self.dtype_policy)
    self.seen = []

  def prior(self, context):
    self.seen.append((context["id"].dtype, tf.get_static_value(tf.reduce_max(context["id"]))))
    return tfd.MultivariateNormalDiag(self.embedding(context["id"] % 5))

  def proposal(self, x, context):
    return self.encoder.distribution([x, self.embedding(context["id"] % 5)])

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Normal(z, tf.ones([], z.dtype)), 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_index_as_context_is_exact_from_fit_to_loading(dtype):
  ids = np.array([2**24 + 1, 3, 2**24 + 3])
  x = np.random.RandomState(0).normal(size=(3, 2))  # float64, into either model
  model = helpers.compiled(Embedded(dtype=dtype), run_eagerly=True)
  model.fit({"id": ids}, x, batch_size=3, verbose=0)
  assert set(model.seen) >= {(tf.int64, 2**24 + 3)}
  assert {variable.dtype for variable in model.trainable_variables} == {dtype}
  assert model.log_likelihood(x, 3, context={"id": ids}).dtype == dtype
  config = model.get_build_config()
  loaded = Embedded(dtype=dtype)
  loaded.build_from_config(config)
  assert [v.shape for v in loaded.variables] == [v.shape for v in model.trainable_variables]
  assert loaded.seen == [(tf.int64, 0)]


@functools.cache
def numbers_of(dtype, data_dtype):
  """What a model of `dtype` computes on data of `data_dtype`."""
  x, context = helpers.binary(6, 6), helpers.binary(6, 4, seed=1)
  model = helpers.compiled(helpers.structured(dtype=dtype), run_eagerly=True)
  pair = context.astype(data_dtype), x.astype(data_dtype)
  model.fit(*pair, batch_size=6, verbose=0)
  z = model.proposal(pair[1], pair[0]).sample(2, seed=[0, 1])
  target = model.target_log_prob(pair[1], z.numpy(), pair[0])
  estimate = model.estimate(pair[1], pair[0], bound="iwae_dreg", num_samples=3, seed=1)
  assert z.dtype == target.dtype == estimate.objective.dtype == model.float_dtype
  return [
    model.evaluate(*pair, verbose=0),
    target.numpy().tolist(),
    estimate.objective.numpy().tolist(),
    model.sample(2, pair[0], seed=1, mean=True).numpy().tolist(),
    model.reconstruct(pair[1], pair[0], seed=1).numpy().tolist(),
  ]


# Each type of data and each of models, floats among the data with every one.
@pytest.mark.parametrize(
  ("dtype", "data_dtype"),
  [
    ("float32", "float64"),
    ("float32", "uint8"),
    ("float64", "bool"),
    ("float64", "float64"),
    ("mixed_bfloat16", "float64"),
    ("mixed_bfloat16", "uint8"),
  ],
)
def test_numpy_data_of_any_dtype_go_into_models_of_any_dtype(dtype, data_dtype):
  assert numbers_of(dtype, data_dtype) == numbers_of(dtype, "float32")
