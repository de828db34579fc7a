"""Tests that `predict` splits batches as `fit` does."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import models
from tests.models import helpers, test_multimodal

X, CONTEXT = helpers.binary(4, 6), helpers.binary(4, 4, seed=1)
SEQUENCES, LENGTHS = helpers.binary(12, 2).reshape(4, 3, 2), np.array([3, 1, 2, 3])
WEIGHTS = np.ones(4, "float32")


def vrnn():
  return models.VRNN(np.array([0.3, 0.6]), latent_dim=2, hidden_units=(4,), rnn_units=3)


CASES = {
  "context": (helpers.structured, (CONTEXT, X), (CONTEXT, X)),
  "context and weights": (helpers.structured, (CONTEXT, X, WEIGHTS), (CONTEXT, X)),
  "weights": (helpers.vae, ((), X, WEIGHTS), X),
  "observations": (helpers.vae, X, X),
  "lengths": (vrnn, (LENGTHS, SEQUENCES), (LENGTHS, SEQUENCES)),
  "masks": (
    test_multimodal.make,
    (test_multimodal.PRESENT, test_multimodal.X),
    (test_multimodal.PRESENT, test_multimodal.X),
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dataset_is_split_into_contexts_observations_and_weights(case):
  make, batch, inputs = CASES[case]
  model = helpers.compiled(make(), run_eagerly=True)
  if hasattr(model, "reconstruct"):
    model.reconstruct = functools.partial(model.reconstruct, seed=1)
  found = model.predict(tf.data.Dataset.from_tensors(batch), verbose=0)
  tf.nest.map_structure(np.testing.assert_array_equal, found, model(inputs))


def test_a_call_that_takes_training_is_told_that_it_does_not_train():
  class Told(models.StructuredVAE):
    def call(self, inputs, training=None):
      assert training is False
      return inputs[0]

  model = helpers.compiled(Told(helpers.CONTEXT_MEAN, helpers.DATA_MEAN), run_eagerly=True)
  pairs = tf.data.Dataset.from_tensor_slices((CONTEXT, X)).batch(3)
  for data in (pairs, (CONTEXT, X), [CONTEXT, X]):
    np.testing.assert_array_equal(model.predict(data, batch_size=None, verbose=0), CONTEXT)
  np.testing.assert_array_equal(model.predict_on_batch((CONTEXT, X)), CONTEXT)
