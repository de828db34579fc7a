"""Defines a generative model of binary data with binary latents: a one-layer sigmoid belief net."""

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf.models.conditional import ConditionalBernoulli, IndependentBernoulli
from dregs_tf.models.vae import VAE, refuse_context

tfd = tfp.distributions


@keras.saving.register_keras_serializable("dregs_tf")
class DiscreteVAE(VAE):
  """Models binary data like `VAE`, but with Bernoulli latents.

  p(z) = Bernoulli(1/2), p(x | z) and q(z | x) Bernoulli; nets of tanh layers. Such latents are not
  reparameterized, so they need a bound without a path: vimco_star, vimco, ovis, rws or elbo_loo.
  The arguments are those of `VAE`.
  """

  @staticmethod
  def _make_encoder(event_size: int, **options) -> keras.layers.Layer:
    return ConditionalBernoulli(event_size=event_size, **options)

  def prior(self, context: Any = None) -> tfd.Distribution:
    """Returns p(z) = Bernoulli(1/2): batch shape [], event shape [latent_dim]."""
    refuse_context(self, context)
    return IndependentBernoulli(tf.zeros([self.latent_dim], self.float_dtype))
