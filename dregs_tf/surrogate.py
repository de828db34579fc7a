"""Evaluates the model once: log-densities with gates and stops, and the surrogate made of them.

Eqs. 11-17 write log p(x, z) twice, once stopped in z and once in the parameters. Here it is
evaluated once, at samples whose gradient a gate scales by b / a: weighed by a, the model's
parameters receive a and the path receives b, shared parameters included.

With a prior, the samples have a second branch, z' as functions of the prior's parameters. Log p(z)
is evaluated with these stopped; in place of a times its score they receive

  F_ii dlog p(x, z)/dz' + (u - F_ii) dlog q(z)/dz' - u dlog p_l(z_l | parents)/dz',  u = F_i.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, gradients, proposals
from dregs_tf.coefficients import Gradient
from dregs_tf.importance_weights import as_scalar
from dregs_tf.proposals import Requirement

tfd = tfp.distributions


class Densities(NamedTuple):
  """Holds log-densities, [num_samples, batch_size], with the gradients that a surrogate needs.

  log_p: differentiable in the model's parameters and, behind a gate, in the samples.
  log_q: q itself for a total derivative, q^ where there is a path, otherwise q~.
  scores: log q~, one for each coefficient c.
  set_ratios: sets the gate's ratios; None where there is no gate.
  at_prior: log q^ and the conditionals' own log p^ at z'; empty without a prior.
  """

  log_p: tf.Tensor
  log_q: tf.Tensor
  scores: Sequence[tf.Tensor]
  set_ratios: Callable[..., None] | None
  at_prior: Sequence[tf.Tensor]


def evaluate(
  gradient: Gradient,
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  drawn: evaluation.Draw,
  stopped_proposal: tfd.Distribution | None,
  prior: tfd.Distribution | None,
  weight: float | tf.Tensor,
  samples: Any,
  num_samples: int,
) -> Densities:
  """Evaluates the model once."""
  proposal = drawn.proposal
  numbers = tf.nest.map_structure(tf.stop_gradient, samples)
  is_total = gradient.is_total and not drawn.is_mixed
  has_path = is_total or Requirement.PATH in gradient.requirement
  branches = [drawn.with_discrete_stopped(samples) if has_path else numbers]
  scores, at_prior = [], []
  if is_total:
    log_q = proposal.log_prob(samples)
  elif has_path:
    log_q = _log_q_hat(proposal, stopped_proposal, branches[0])
    if drawn.is_mixed:
      scores = drawn.log_probs_by_kind(numbers)
    elif gradient.has_score:
      scores = [proposal.log_prob(numbers)]
  else:
    log_q = proposal.log_prob(numbers)
    scores = [log_q]
  if prior is not None:
    moved, log_own = proposals.at_prior(prior, numbers)
    branches.append(moved)
    at_prior = [_log_q_hat(proposal, stopped_proposal, moved), log_own]
    target_log_prob_fn = evaluation.log_joint(target_log_prob_fn, gradients.PathOnly(prior), weight)
  # Of its own, so that gradients are added up in the same order with a gate as without.
  z, set_ratios = tf.nest.map_structure(tf.identity, branches[0]), None
  if at_prior or (has_path and not is_total):
    z, set_ratios = gradients.gate(*branches)
  log_p, log_q = evaluation.same_shape(target_log_prob_fn(z), log_q, num_samples)
  scores, at_prior = ([tf.cast(x, log_p.dtype) for x in each] for each in (scores, at_prior))
  return Densities(log_p, log_q, scores, set_ratios, at_prior)


def terms(
  densities: Densities, coefficients: Sequence[tf.Tensor], weight: float | tf.Tensor
) -> tf.Tensor:
  """Returns a log p - weight b log q^ + c log q~, and the prior's: [num_samples, batch_size]."""
  a, b, *c = coefficients
  log_p, log_q, scores, set_ratios, at_prior = densities
  weight = as_scalar(weight, b.dtype)
  added, paths = list(zip(scores, c, strict=False)), [b]
  if at_prior:
    curvature = weight * c[-1]
    paths.append(curvature)
    added += zip(at_prior, (weight * (a - curvature), -weight * a), strict=True)
  if set_ratios:
    a, *ratios = finite_ratios(a, *paths)
    set_ratios(*ratios)
  # 0 * -inf is 0 here: a sample of weight 0 adds nothing. log_q has a total derivative's score.
  no_nan = tf.math.multiply_no_nan
  total = no_nan(log_p, a) + no_nan(log_q, -b * weight)
  for log_density, factor in added:
    total += no_nan(log_density, factor)
  return total


def _log_q_hat(proposal: tfd.Distribution, stopped: tfd.Distribution | None, samples) -> tf.Tensor:
  """Returns log q with its parameters stopped: by the caller, rebuilt, or wrapped."""
  try:
    stopped = stopped or gradients.stop_parameters(proposal)
  except ValueError:  # functions and networks, out of reach from outside
    stopped = gradients.PathOnly(proposal)
  # New tensors: a bijector's cache would answer for the old ones, past the stopped parameters.
  return stopped.log_prob(tf.nest.map_structure(tf.identity, samples))


def finite_ratios(a: tf.Tensor, *paths: tf.Tensor) -> list[tf.Tensor]:
  """Returns a and each path / a, finite where a vanishes, as JVI's: a becomes negligibly small."""
  tiny = tf.constant(1e-20 if a.dtype == tf.float32 else 1e-100, a.dtype)
  largest = tf.reduce_max(tf.abs(tf.stack(paths)), axis=0)
  a = tf.where(tf.logical_and(tf.abs(a) < tiny, largest > tf.abs(a)), tiny, a)
  return [a, *(tf.math.divide_no_nan(path, a) for path in paths)]
