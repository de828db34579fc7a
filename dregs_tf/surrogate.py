"""Evaluates the model once: log-densities with gates and stops, and the surrogate made of them.

Eqs. 11-17 write log p(x, z) twice, once stopped in z and once in the parameters. Here it is
evaluated once, at samples whose gradient a gate scales by b / a: weighed by a, the model's
parameters receive a and the path receives b, shared parameters included.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, gradients
from dregs_tf.coefficients import Gradient
from dregs_tf.importance_weights import as_scalar
from dregs_tf.proposals import Requirement

tfd = tfp.distributions


class Densities(NamedTuple):
  """Holds log-densities, [num_samples, batch_size], with the gradients that a surrogate needs.

  log_p: differentiable in the model's parameters and, behind a gate, in the samples.
  log_q: q itself for a total derivative, q^ where there is a path, otherwise q~.
  scores: log q~, one for each coefficient c.
  set_ratio: sets the gate's ratio; None where there is no gate.
  """

  log_p: tf.Tensor
  log_q: tf.Tensor
  scores: Sequence[tf.Tensor]
  set_ratio: Callable[[tf.Tensor], None] | None


def evaluate(
  gradient: Gradient,
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  drawn: evaluation.Draw,
  stopped_proposal: tfd.Distribution | None,
  samples: Any,
  num_samples: int,
) -> Densities:
  """Evaluates the model once."""
  proposal = drawn.proposal
  numbers = tf.nest.map_structure(tf.stop_gradient, samples)
  if gradient.is_total and not drawn.is_mixed:
    return _alike(target_log_prob_fn(samples), proposal.log_prob(samples), [], num_samples)
  if Requirement.PATH not in gradient.requirement:
    log_q = proposal.log_prob(numbers)
    return _alike(target_log_prob_fn(numbers), log_q, [log_q], num_samples)
  samples = drawn.with_discrete_stopped(samples)
  # New tensors: a bijector's cache would answer for the old ones, past the stopped parameters.
  stopped = _stopped(proposal) if stopped_proposal is None else stopped_proposal
  log_q = stopped.log_prob(tf.nest.map_structure(tf.identity, samples))
  gated, set_ratio = gradients.gate(samples)
  if drawn.is_mixed:
    scores = drawn.log_probs_by_kind(numbers)
  else:
    scores = [proposal.log_prob(numbers)] if gradient.has_score else []
  return _alike(target_log_prob_fn(gated), log_q, scores, num_samples, set_ratio)


def _alike(log_p, log_q, scores, num_samples, set_ratio=None) -> Densities:
  """Returns the densities in one dtype and of one shape."""
  log_p, log_q = evaluation.same_shape(log_p, log_q, num_samples)
  return Densities(log_p, log_q, [tf.cast(score, log_p.dtype) for score in scores], set_ratio)


def terms(
  densities: Densities, coefficients: Sequence[tf.Tensor], weight: float | tf.Tensor
) -> tf.Tensor:
  """Returns a log p - weight b log q^ + c log q~, [num_samples, batch_size]."""
  a, b, *c = coefficients
  log_p, log_q, scores, set_ratio = densities
  if set_ratio:
    a, ratio = finite_ratio(a, b)
    set_ratio(ratio)
  # 0 * -inf is 0 here: a sample of weight 0 adds nothing. log_q has a total derivative's score.
  no_nan = tf.math.multiply_no_nan
  total = no_nan(log_p, a) + no_nan(log_q, -b * as_scalar(weight, b.dtype))
  for log_density, factor in zip(scores, c, strict=False):
    total += no_nan(log_density, factor)
  return total


def _stopped(proposal: tfd.Distribution):
  """Returns the proposal with its parameters stopped: rebuilt, or wrapped."""
  try:
    return gradients.stop_parameters(proposal)
  except ValueError:  # functions and networks, out of reach from outside
    return gradients.PathOnly(proposal)


def finite_ratio(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns a and b / a, finite where a vanishes, as JVI's can: a becomes negligibly small."""
  tiny = tf.constant(1e-20 if a.dtype == tf.float32 else 1e-100, a.dtype)
  a = tf.where(tf.logical_and(tf.abs(a) < tiny, tf.not_equal(b, 0)), tiny, a)
  return a, tf.math.divide_no_nan(b, a)
