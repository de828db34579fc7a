"""Uses a trained model: draws observations, encodes and reconstructs them."""

import contextlib
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, seeds
from dregs_tf.models import batches, calls, keras_privates, products, steps

tfd = tfp.distributions


class GenerativeModel(keras.Model):
  """A model that samples, encodes and reconstructs, given prior, proposal and likelihood."""

  def sample(self, n: int, context: Any = None, seed: seeds.Seed = None, mean: bool = False):
    """Draws n observations from the model: [n, ...], or [n, batch_size, ...] given contexts.

    Args:
      n: a positive int.
      context: contexts [batch_size, ...], for a conditional model.
      seed: as `bounds.estimate` takes it.
      mean: whether to return the likelihood's mean at each sampled z rather than a draw from it.
    """
    n = evaluation.check_int("n", n, at_least=1)
    context = self._as_tensors(context)
    seed = seeds.stateless(seed)
    with calls.mode(self, training=False), products.in_float32():
      prior = calls.call(self.prior, context)
      shape = [n]
      if all(part.rank == 0 for part in tf.nest.flatten(prior.batch_shape)):
        # The likelihood takes z of shape [num_samples, batch_size, ...].
        shape = [n, 1 if context is None else batches.size(context)]
      z = prior.sample(shape, seed=seeds.fold_in(seed, 0))
      likelihood = calls.call(self.likelihood, z, context)
      x = likelihood.mean() if mean else likelihood.sample(seed=seeds.fold_in(seed, 1))
    return x if context is not None else tf.nest.map_structure(lambda part: part[:, 0], x)

  def encode(self, x: Any, context: Any = None):
    """Computes the mean of the proposal q(z | x, context), with layers in inference mode.

    For a joint proposal, it is each part's mean given the means of its parents. For a proposal
    without a mean, such as a flow, TFP raises an error.

    Args:
      x: observations [batch_size, ...].
      context: contexts [batch_size, ...], for a conditional model.

    Returns:
      [batch_size, ...], or a structure of such Tensors for a joint proposal.
    """
    x, context = self._as_tensors(x), self._as_tensors(context)
    with calls.mode(self, training=False), products.in_float32():
      return _mean(calls.propose(self, x, context))

  def reconstruct(self, x: Any, context: Any = None, seed: seeds.Seed = None):
    """Returns the likelihood's mean at one sample of the proposal, for x [batch_size, ...]."""
    x, context = self._as_tensors(x), self._as_tensors(context)
    rounding = contextlib.nullcontext if keras_privates.training() else products.in_float32
    with calls.mode(self, training=None), rounding():
      z = calls.propose(self, x, context).sample(1, seed=seeds.stateless(seed))
      mean = calls.call(self.likelihood, z, context).mean()
    return tf.nest.map_structure(lambda part: part[0], mean)

  def kl_divergence(
    self, x: Any, context: Any = None, num_samples: int = 64, seed: seeds.Seed = 0
  ) -> Any:
    """Estimates KL(q(z | x, context) || p(z | context)) of each example in nats, by samples of q.

    Args:
      x: observations [batch_size, ...].
      context: contexts [batch_size, ...], for a conditional model.
      num_samples: a positive int.
      seed: as `bounds.estimate` takes it.

    Returns:
      A Tensor [batch_size]. If proposal and prior are joint distributions with the same part names,
      a dict of such Tensors: the mean of log q - log p of each part given its parents. Their sum is
      the divergence.
    """
    num_samples = evaluation.check_int("num_samples", num_samples, at_least=1)
    x, context = self._as_tensors(x), self._as_tensors(context)
    with calls.mode(self, training=False), products.in_float32():
      proposal, prior = calls.propose(self, x, context), calls.call(self.prior, context)
      z = proposal.sample(num_samples, seed=seeds.stateless(seed))
      log_q, log_p = (steps.log_prob_parts(each, z) for each in (proposal, prior))
      if not log_q or log_q.keys() != log_p.keys():
        return tf.reduce_mean(proposal.log_prob(z) - prior.log_prob(z), axis=0)
    return {name: tf.reduce_mean(log_q[name] - log_p[name], axis=0) for name in sorted(log_q)}


def _mean(distribution: tfd.Distribution):
  """Returns a distribution's mean; for a joint one, each part's given the means of its parents."""
  is_joint = isinstance(distribution, tfd.JointDistribution)
  if not is_joint or getattr(distribution, "use_vectorized_map", False):
    return distribution.mean()
  flatten, unflatten = distribution._model_flatten, distribution._model_unflatten
  num_parts = len(flatten(distribution.dtype))
  means = []
  while len(means) < num_parts:
    value = unflatten([*means, *[None] * (num_parts - len(means))])
    parts, _ = distribution.sample_distributions(value=value, seed=[0, 0])
    means.append(_mean(flatten(parts)[len(means)]))
  return unflatten(means)
