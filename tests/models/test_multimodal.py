"""The multi-modal model: missing modalities, cross-generation, saving, replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, models, seeds
from tests.seeding import seed_layers

tfd = tfp.distributions

B = 4
X = {
  "image": np.random.default_rng(0).binomial(1, 0.4, [B, 6]).astype("float32"),
  "sound": np.random.default_rng(1).normal(size=[B, 3]).astype("float32"),
}
PRESENT = {"image": np.array([True, True, False, False]), "sound": np.array([1, 0, 1, 0])}


def make(dtype="float32"):
  seed_layers(0)
  options = {"hidden_units": (5,), "dtype": dtype}
  return models.MixtureOfExpertsVAE(
    {name: models.ConditionalNormal(2, **options) for name in X},
    {
      "image": models.ConditionalBernoulli(event_size=6, **options),
      "sound": models.ConditionalNormal(3, **options),
    },
    learn_probs=True,
    dtype=dtype,
  )


def built(**options):
  model = make(**options)
  model(X)
  model.logits.assign([0.4, -0.7])
  return model


def gradients_of(model, x, context, bound="miselbo_dreg"):
  with tf.GradientTape() as tape:
    estimate = model.estimate(x, context, bound=bound, num_samples=3, seed=1)
    total = tf.reduce_sum(estimate.objective)
  found = tape.gradient(total, model.trainable_variables, unconnected_gradients="zero")
  return estimate, found


def test_it_is_the_model_written_out():
  model = built(dtype="float64")
  x = {name: tf.cast(part, tf.float64) for name, part in X.items()}
  estimate, _ = gradients_of(model, x, None, "iwae")
  z = estimate.samples
  assert z.shape == [6, B, 2]
  experts = [model.encoders[name].distribution(x[name]) for name in ("image", "sound")]
  pi = tf.nn.softmax(model.logits.value).numpy()
  log_q = tf.math.log(sum(p * expert.prob(z) for p, expert in zip(pi, experts, strict=True)))
  log_p = tfd.MultivariateNormalDiag(tf.zeros(2, tf.float64), tf.ones(2, tf.float64)).log_prob(z)
  log_p += sum(model.decoders[name].distribution(z).log_prob(x[name]) for name in X)
  shares = np.log(2 * np.repeat(pi, 3))[:, None]
  np.testing.assert_allclose(estimate.log_weights, shares + log_p - log_q, rtol=1e-10)


@pytest.mark.parametrize("bound", ["iwae_dreg", "miselbo_dreg"])
def test_what_stands_for_a_missing_modality_does_not_matter(bound):
  """Not even where it is no number; and examples are as those of a model without it."""
  model = built()
  model.binary_observations = False  # lets NaN pass to the model
  x = {name: part.copy() for name, part in X.items()}
  x["image"][2:], x["sound"][[1, 3]] = np.nan, np.nan
  estimate, found = gradients_of(model, x, PRESENT, bound)
  other, expected = gradients_of(model, X, PRESENT, bound)
  assert np.isfinite(estimate.objective).all()
  for actual, other_gradient in zip(found, expected, strict=True):
    np.testing.assert_array_equal(actual, other_gradient)
    assert np.isfinite(actual).all()
  np.testing.assert_array_equal(estimate.log_weights, other.log_weights)
  # The second example has no sound: a model of images alone draws the same samples.
  alone = models.MixtureOfExpertsVAE(
    {"image": model.encoders["image"]}, {"image": model.decoders["image"]}
  )
  z = tf.gather(estimate.samples, [1], axis=1)[:3]
  log_w = alone.target_log_prob({"image": X["image"][1:2]}, z)
  log_w -= model.encoders["image"].distribution(X["image"][1:2]).log_prob(z)
  expected_value = tf.reduce_logsumexp(log_w, 0) - np.log(3)
  np.testing.assert_allclose(estimate.objective[1:2], expected_value, rtol=1e-5)


def test_log_likelihoods_of_what_is_there():
  """One modality alone, and none, of which log p(x) is 0: within 5 standard errors or more."""
  model = built()
  for encoder in model.encoders.values():  # N(0, 1.5^2), which covers the prior
    encoder.set_weights(
      [np.zeros(w.shape) for w in encoder.get_weights()[:-1]] + [np.array([0, 0, 1, 1])]
    )
  value = model.log_likelihood(X, num_samples=4000, context=PRESENT)
  np.testing.assert_allclose(value[3], 0, atol=0.05)
  for place, name in [(1, "image"), (2, "sound")]:
    z = model.prior().sample([40000, 1], seed=3)
    part = model.decoders[name].distribution(z).log_prob(X[name][place : place + 1])
    expected = tf.reduce_logsumexp(part, 0) - np.log(40000)
    np.testing.assert_allclose(value[place], expected[0], atol=0.05)
  diagnostics = model.log_likelihood(X, num_samples=50, return_diagnostics=True)
  assert diagnostics.effective_sample_size.shape == [B]


def test_modalities_from_each_other():
  model = built()
  generated = model.cross_generate({"sound": X["sound"]}, seed=2)
  again = model.reconstruct(X, {"image": np.zeros(B)}, seed=2)
  assert {name: part.shape for name, part in generated.items()} == {
    "image": [B, 6],
    "sound": [B, 3],
  }
  for name, part in generated.items():
    np.testing.assert_array_equal(part, again[name])
  moved = model.cross_generate({"sound": X["sound"] + 1}, seed=2)
  assert not np.allclose(moved["image"], generated["image"])
  assert model.encode(X).shape == [B, 2]
  drawn = model.sample(5, seed=1)
  assert drawn["image"].shape == [5, 6] and set(np.unique(drawn["image"])) <= {0, 1}


def test_fit_save_and_load(tmp_path):
  model = make()
  options = {"num_samples": 2, "seed": 1, "jit_compile": False, "kl_weight": 0.5}
  model.compile("sgd", bound="miselbo_dreg", **options)
  model.fit(PRESENT, X, batch_size=3, epochs=1, verbose=0)
  model.compile("adam", bound="miselbo_dreg", run_eagerly=True, **options)
  model.fit(X, batch_size=2, epochs=1, verbose=0)
  assert model.logits.numpy().any()
  path = tmp_path / "model.keras"
  model.save(path)
  loaded = keras.models.load_model(path)
  for actual, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
    np.testing.assert_array_equal(actual, expected)
  values = [each.log_likelihood(X, num_samples=20, context=PRESENT) for each in (model, loaded)]
  np.testing.assert_array_equal(*values)
  assert (loaded.bound, loaded.num_samples) == (model.bound, 2)


def test_replicas_draw_the_noise_of_the_whole_batch():
  model = built()
  options = {"bound": "iwae", "num_samples": 3, "seed": 1}
  whole = model.estimate(X, **options).objective
  part = seeds.Part(replica=tf.constant(1), start=tf.constant(2), total=B)
  half = model.estimate({name: x[2:] for name, x in X.items()}, part=part, **options).objective
  np.testing.assert_allclose(half, whole[2:], rtol=1e-5)


def test_wrong_parts_are_refused():
  model = built()
  model.compile("adam", num_samples=2, jit_compile=False)
  with pytest.raises(ValueError, match="dict of image, sound, got image"):
    model.fit({"image": X["image"]}, verbose=0)
  with pytest.raises(ValueError, match="context must be a dict of masks.*got picture"):
    model.fit({"picture": PRESENT["image"]}, X, verbose=0)
  with pytest.raises(ValueError, match=r"mask of image.*\[batch_size\], got \(4, 1\)"):
    model.estimate(X, {"image": np.ones([B, 1])}, bound="iwae", num_samples=2)
  with pytest.raises(ValueError, match="x must be a dict of some of image, sound, got an empty"):
    model.cross_generate({})
  with pytest.raises(ValueError, match="bound must be one of .*got stl"):
    model.estimate(X, bound=bounds.get("stl"), num_samples=2)
  encoder, decoder = models.ConditionalNormal(2), models.ConditionalNormal(3)
  for encoders, decoders, match in [
    ({}, {"a": decoder}, "encoders.*got {}"),
    ({"a": encoder}, {"b": decoder}, "same names, got a and b"),
    ({"a": keras.layers.Dense(2)}, {"a": decoder}, "encoders.*distribution, a is"),
  ]:
    with pytest.raises(ValueError, match=match):
      models.MixtureOfExpertsVAE(encoders, decoders)
