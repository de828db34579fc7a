"""HierarchicalVAE: its densities by hand, its files, divergences and variables of its layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import models, seeds
from dregs_tf.models import steps
from dregs_tf.models.conditional import draws_for_whole_batch
from tests.models import helpers
from tests.seeding import seed_layers

tfd = tfp.distributions

X = helpers.binary(7, 6)


def make(latent_dims=(4, 3, 2), **options):
  seed_layers(0)
  options = {"latent_dims": latent_dims, "hidden_units": (5,)} | options
  model = models.HierarchicalVAE(helpers.DATA_MEAN, **options)
  for layer in model.layers:
    helpers.perturb(layer)
  return model


def normal(net, inputs, z):
  """log N(z; loc, softplus(raw + 1/4)), by hand."""
  loc, raw = np.split(np.asarray(net(inputs)), 2, axis=-1)
  scale = np.log1p(np.exp(raw + 0.25))
  return np.sum(-0.5 * ((z - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi), axis=-1)


def test_densities():
  model = make()
  z = model.proposal(X).sample(3, seed=[1, 2])
  assert {name: part.shape for name, part in z.items()} == {
    "z1": (3, 7, 4),
    "z2": (3, 7, 3),
    "z3": (3, 7, 2),
  }
  z = {name: part.numpy() for name, part in z.items()}
  below, middle, top = model.encoders
  log_q = normal(below, X - model.data_mean, z["z1"])
  log_q = log_q + normal(middle, z["z1"], z["z2"]) + normal(top, z["z2"], z["z3"])
  np.testing.assert_allclose(model.proposal(X).log_prob(z), log_q, rtol=1e-5)
  log_prior = np.sum(-0.5 * z["z3"] ** 2 - 0.5 * np.log(2 * np.pi), axis=-1)
  log_prior += normal(model.conditional_priors[1], z["z3"], z["z2"])
  log_prior += normal(model.conditional_priors[0], z["z2"], z["z1"])
  np.testing.assert_allclose(model.prior().log_prob(z), log_prior, rtol=1e-5)
  logits = model.decoder(z["z1"]) + np.log(helpers.DATA_MEAN / (1 - helpers.DATA_MEAN))
  log_likelihood = np.sum(X * logits - np.log1p(np.exp(logits)), axis=-1)
  np.testing.assert_allclose(model.target_log_prob(X, z), log_prior + log_likelihood, rtol=1e-4)


def test_sizes_of_burda_et_al():
  model = models.HierarchicalVAE(np.full(784, 0.2))
  assert model.hidden_units == ((200, 200), (100, 100)) and model.latent_dims == (100, 50)
  expected = 784 * 200 + 200 + 200 * 200 + 200 + 200 * 200 + 200  # x to z1's parameters
  assert model.encoders[0].count_params() == expected
  expected = 100 * 100 + 100 + 100 * 100 + 100 + 100 * 100 + 100  # z1 to z2's
  assert model.encoders[1].count_params() == expected
  assert model.conditional_priors[0].count_params() == 50 * 100 + 100 + 10100 + 20200


@pytest.mark.parametrize("bound,dims", [("iwae", (4, 3)), ("iwae_dreg", (4, 3, 2))])
def test_a_prior_gradient_leaves_the_other_nets_their_bits(bound, dims):
  changes = []
  for kind in ("direct", "dreg"):
    options = {"bound": bound, "prior_gradient": kind, "optimizer": keras.optimizers.SGD(1.0)}
    model = helpers.compiled(make(dims), **options)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    model.train_step(tf.constant(X))
    changes.append({v.path: v.numpy() - before[v.path] for v in model.trainable_variables})
  for (path, old), new in zip(changes[0].items(), changes[1].values(), strict=True):
    if any(f"prior_z{layer}/" in path for layer in (1, 2)):
      assert np.abs(old - new).max() > 1e-4, path
    else:
      np.testing.assert_array_equal(old, new, err_msg=path)


def test_what_a_trained_model_is_used_for():
  model = make()
  z = model.encode(X)
  first = model.encoders[0].distribution(X - model.data_mean).mean()
  second = model.encoders[1].distribution(first).mean()
  np.testing.assert_allclose(z["z1"], first, rtol=1e-6)
  np.testing.assert_allclose(z["z2"], second, rtol=1e-6)
  np.testing.assert_allclose(z["z3"], model.encoders[2].distribution(second).mean(), rtol=1e-6)
  assert model.active_units(X).keys() == {"z1", "z2", "z3"}
  assert model.reconstruct(X, seed=1).shape == (7, 6) and model.sample(5, seed=1).shape == (5, 6)
  assert np.isfinite(model.log_likelihood(X, num_samples=30)).all()


def test_divergences_of_layers():
  model = make()
  divergences = model.kl_divergence(X, num_samples=9, seed=3)
  proposal = model.proposal(X)
  z = proposal.sample(9, seed=seeds.stateless(3))
  expected = tf.reduce_mean(proposal.log_prob(z) - model.prior().log_prob(z), axis=0)
  np.testing.assert_allclose(sum(divergences.values()), expected, rtol=1e-5)
  net = model.encoders[0].distribution(X - model.data_mean)
  first = net.log_prob(z["z1"]) - model.conditional_priors[0].distribution(z["z2"]).log_prob(
    z["z1"]
  )
  np.testing.assert_allclose(divergences["z1"], tf.reduce_mean(first, axis=0), rtol=1e-5)


def test_the_divergence_of_one_layer():
  """Within 6 standard errors of the exact one."""
  model = helpers.vae()
  estimate = model.kl_divergence(X, num_samples=2000)
  q = model.proposal(tf.constant(X)).distribution
  exact = tf.reduce_sum(tfd.kl_divergence(tfd.Normal(q.loc, q.scale), tfd.Normal(0.0, 1.0)), axis=1)
  np.testing.assert_allclose(estimate, exact, atol=6 * 2 / np.sqrt(2000))


def test_groups_of_variables():
  model = helpers.compiled(make())
  groups = steps.variable_groups(model, tf.constant(X), None)
  variables = model.trainable_variables

  def owned(*layers):
    ids = {id(variable) for layer in layers for variable in layer.trainable_variables}
    return [i for i, variable in enumerate(variables) if id(variable) in ids]

  expected = {
    "proposal": owned(*model.encoders),
    "model": owned(*model.model_layers),
    "prior": owned(*model.conditional_priors),
    **{f"prior_z{i}": owned(model.conditional_priors[i - 1]) for i in (1, 2)},
    **{f"proposal_z{i}": owned(model.encoders[i - 1]) for i in (1, 2, 3)},
  }
  assert groups == expected


def test_replicas_draw_the_noise_of_the_whole_batch():
  model = make()
  assert draws_for_whole_batch(model.proposal(X))
  whole = model.proposal(X).sample(5, seed=[1, 2])
  for start, stop in ((0, 3), (3, 7)):
    part = seeds.Part(replica=0, start=start, total=7, seen=0)
    with seeds.noise_of(part, [1, 2], shared=True):
      drawn = model.proposal(X[start:stop]).sample(5, seed=[1, 2])
    for name, expected in whole.items():
      np.testing.assert_allclose(drawn[name], expected[:, start:stop], rtol=1e-5, err_msg=name)


def test_files_keep_it(tmp_path):
  model = helpers.compiled(make((3, 2), hidden_units=((5, 4), (3,))), prior_gradient="dreg")
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  assert loaded.hidden_units == ((5, 4), (3,)) and loaded.prior_gradient == "dreg"
  for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  "options,message",
  [
    ({"latent_dims": ()}, "latent_dims must hold at least one int"),
    ({"latent_dims": (3, 0)}, "latent_dims must be at least 1, got 0"),
    ({"latent_dims": 3}, "latent_dims must be a sequence of positive ints.*got 3"),
    (
      {"hidden_units": ((4,),)},
      "hidden_units must have a sequence for each of the 3.*got 1",
    ),
    ({"hidden_units": (4, 0)}, "hidden_units must be at least 1, got 0"),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_nets_may_be_linear():
  model = make(hidden_units=())
  assert model.hidden_units == ((), (), ())
  assert np.all(np.isfinite(model.log_likelihood(X, num_samples=2)))


def test_contexts_are_refused():
  with pytest.raises(ValueError, match="HierarchicalVAE takes batches of observations alone"):
    helpers.compiled(make()).train_on_batch(helpers.binary(7, 4), X)
