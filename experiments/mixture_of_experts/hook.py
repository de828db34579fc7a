"""Implements the biased gradient of public multi-modal code, for comparison."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, evaluation, gradients, seeds
from dregs_tf.mixtures import StratifiedMixture

tfd = tfp.distributions


def estimate_with_hook(
  bound: bounds.Bound | str,
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  mixture: StratifiedMixture,
  num_samples: int,
  seed: seeds.Seed = None,
) -> bounds.Estimate:
  """Estimates a bound with its path weighed by F_i - F_ii at each sample, as if q_mix drew it.

  The code of MMVAE (Shi et al. 2019, https://arxiv.org/abs/1911.03393) and its descendants do so:
  they stop the parameters of log q_mix, and a hook on the samples multiplies their gradient once
  more by the normalized weight. But a sample of q_m is weighed against q_mix, so the score to be
  replaced is another one (see `dregs_tf/mixtures.py`).

  Arguments and result are those of `bounds.estimate`.
  """
  bound = bounds.as_bound(bound)
  needs = evaluation.needs([bound])
  drawn = evaluation.draw(mixture, num_samples, seeds.stateless(seed), **needs)
  hooked, set_ratio = gradients.gate(drawn.samples)
  stopped = [gradients.stop_parameters(component) for component in mixture.components]
  log_probs = tf.stop_gradient(mixture.log_probs())
  log_q, _ = mixture.log_prob_with(stopped, log_probs, hooked)
  log_p = drawn.with_shares(target_log_prob_fn(hooked), num_samples * drawn.num_strata)
  log_w = log_p - log_q
  log_weights = tf.stop_gradient(log_w)
  value, (a, b, *_) = bound.value_and_factors(drawn, log_weights)
  set_ratio(tf.math.divide_no_nan(b, a))
  total = tf.reduce_sum(tf.math.multiply_no_nan(log_w, a), axis=0)
  return bounds.Estimate(value + (total - tf.stop_gradient(total)), log_weights, drawn.samples)
