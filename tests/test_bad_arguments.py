"""What the library says to bad arguments: the argument's name and the value given."""

import numpy as np
import pytest

from dregs_tf import bounds, models
from dregs_tf.data import pipeline


def gray(*shape):
  return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def a_model():
  return models.VAE(np.full(4, 0.5), latent_dim=2, hidden_units=(3,))


def batches(**changes):
  arguments = {"images": gray(6, 4), "batch_size": 2, "seed": 0, "image_shape": (2, 2)} | changes
  return pipeline.train_batches(**arguments)


def test_each_of_these_calls_is_right_with_good_arguments():
  """What the table below changes one argument of."""
  batches()
  model = a_model()
  model.compile(num_samples=2)
  assert model.log_likelihood(gray(3, 4), num_samples=2).shape == (3,)
  assert model.sample(2).shape == (2, 4)
  assert model.reconstruct(gray(3, 4)).shape == (3, 4)


@pytest.mark.parametrize(
  "call,words",
  [
    (lambda: bounds.get("IWAE"), ["bound", "'IWAE'", "iwae_dreg"]),
    (lambda: bounds.get("jvi", order="1"), ["order", "'1'"]),
    (lambda: bounds.get("dreg_alpha", alpha=True), ["alpha", "True", "[0, 1]"]),
    (lambda: a_model().compile(num_samples="8"), ["num_samples", "'8'"]),
    (lambda: a_model().compile(num_backward_samples=65), ["num_backward_samples", "65", "64"]),
    (lambda: a_model().compile(num_backward_samples=0), ["num_backward_samples", "0"]),
    (lambda: models.VAE(np.full(4, 2.0)), ["data_mean", "[0, 1]", "2.0"]),
    (lambda: models.VAE(np.full(4, 0.5), latent_dim="2"), ["latent_dim", "'2'"]),
    (lambda: models.VAE(np.full(4, 0.5), hidden_units=200), ["hidden_units", "200"]),
    (lambda: models.StructuredVAE([0.5], [-1.0]), ["data_mean", "-1.0"]),
    (lambda: models.StructuredVAE([[0.5]], [0.5]), ["context_mean", "[1, 1]"]),
    (lambda: a_model().log_likelihood(gray(3, 4), num_samples=0), ["num_samples", "0"]),
    (lambda: a_model().log_likelihood(gray(3, 5), num_samples=2), ["x must have", "4", "5"]),
    (lambda: a_model().log_likelihood(gray(3, 4), num_samples=2, seed="a"), ["seed", "string"]),
    (lambda: a_model().log_likelihood(gray(3, 4), 2, context=gray(3, 1)), ["VAE", "context"]),
    (lambda: a_model().reconstruct(gray(3, 5)), ["x must have", "4", "5"]),
    (lambda: a_model().sample(2, seed=1.5), ["seed", "float32"]),
    (lambda: a_model().sample(2, context=gray(3, 1)), ["VAE", "context"]),
    (lambda: batches(batch_size=7), ["batch_size", "7", "6 images"]),
    (lambda: batches(batch_size=0), ["batch_size", "0", "at least 1"]),
    (lambda: batches(batch_size=2.0), ["batch_size", "2.0", "integer"]),
    (lambda: batches(seed=None), ["seed", "None"]),
    (lambda: batches(start_step=-1), ["start_step", "-1", "at least 0"]),
    (lambda: batches(task="both"), ["task", "'both'", "structured"]),
    (lambda: batches(images=gray(6, 5)), ["[N, 4]", "2x2", "[6, 5]"]),
    (lambda: batches(images=gray(0, 4)), ["[N, 4]", "[0, 4]"]),
  ],
)
def test_bad_arguments(call, words):
  with pytest.raises((TypeError, ValueError)) as error:
    call()
  for word in words:
    assert word in str(error.value)
