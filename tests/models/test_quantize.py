"""Tests that a model's results stay close when Keras quantizes its weights, and are of these."""

import numpy as np
import pytest

from dregs_tf import models
from tests.models import helpers

X, CONTEXT = helpers.binary(4, 6), helpers.binary(4, 4, seed=1)


def test_a_model_of_sequences_forgets_its_graph():
  x = helpers.binary(6, 2).reshape(2, 3, 2)
  model = models.VRNN(np.array([0.3, 0.6]), latent_dim=2, hidden_units=(4,), rnn_units=3)
  before = model.log_likelihood(x, 4)
  model.quantize("int8")
  after = model.log_likelihood(x, 4)
  np.testing.assert_allclose(after, before, atol=0.5)
  assert np.all(after != before)


@pytest.mark.parametrize("context", [None, CONTEXT], ids=["alone", "context"])
def test_it_rounds_and_no_more(context):
  model = helpers.vae() if context is None else helpers.structured()
  for layer in (model.encoder, model.decoder):
    helpers.perturb(layer)

  def results():
    return model.encode(X, context), model.log_likelihood(X, num_samples=4, context=context)

  before = results()
  model.quantize("int8")
  for actual, expected in zip(results(), before, strict=True):
    np.testing.assert_allclose(actual, expected, atol=0.1)
    assert np.all(actual != expected)
