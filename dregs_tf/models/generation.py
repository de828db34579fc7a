"""What a trained model is used for: observations drawn from it, latents of observations."""

from typing import Any

import keras
import tensorflow as tf

from dregs_tf import evaluation, seeds
from dregs_tf.models import batches, calls


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
    with calls.mode(self, training=False):
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
    """Computes the mean of the proposal q(z | x, context), layers in inference mode.

    Args:
      x: observations [batch_size, ...].
      context: contexts [batch_size, ...], for a conditional model.

    Returns:
      [batch_size, ...], or a structure of such Tensors for a joint proposal.

    Raises:
      NotImplementedError: if the proposal's distribution has no mean, as a flow has none.
    """
    x, context = self._as_tensors(x), self._as_tensors(context)
    with calls.mode(self, training=False):
      return calls.propose(self, x, context).mean()

  def reconstruct(self, x: Any, context: Any = None, seed: seeds.Seed = None):
    """Returns the likelihood's mean at one sample of the proposal, for x [batch_size, ...]."""
    x, context = self._as_tensors(x), self._as_tensors(context)
    with calls.mode(self, training=None):
      z = calls.propose(self, x, context).sample(1, seed=seeds.stateless(seed))
      mean = calls.call(self.likelihood, z, context).mean()
    return tf.nest.map_structure(lambda part: part[0], mean)
