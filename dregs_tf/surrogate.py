"""Evaluates the model once: log-densities with gates and stops, and the surrogate made of them.

Eqs. 11-17 write log p(x, z) twice, once stopped in z and once in the parameters. Here it is
evaluated once and weighed by a, at samples whose gradient a gate scales by b / a. So the model's
parameters receive a and the path receives b, including shared parameters.

With a prior, the samples have a second branch, z' as functions of the prior's parameters. Log p(z)
is evaluated with these parameters stopped; instead of a times its score they receive

  F_ii dlog p(x, z)/dz' + (u - F_ii) dlog q(z)/dz' - u dlog p_l(z_l | parents)/dz',  u = F_i.

With samples of each component of a mixture, the second branch is z' as functions of all components.
Instead of -u times the mixture's score, the components receive the same expression with -F_ii for
F_ii and, for p_l, the component q_m of z; z itself receives u. See `dregs_tf/mixtures.py`.
"""

import numbers
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
  at_second: log q^ and log p_l^ or log q_m^ at the second branch z'; empty without one.
  is_of_mixture: whether the second branch is a mixture's rather than a prior's.
  """

  log_p: tf.Tensor
  log_q: tf.Tensor
  scores: Sequence[tf.Tensor]
  set_ratios: Callable[..., None] | None
  at_second: Sequence[tf.Tensor]
  is_of_mixture: bool


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
  """Evaluates the model once, at samples behind a gate if the gradient needs one.

  Args:
    gradient: the kind of gradient, which decides on gates and stops.
    target_log_prob_fn: log p(x, z), [num_samples, batch_size], or log p(x | z) with a prior.
    drawn: the proposal and its samples.
    stopped_proposal: the proposal with its parameters stopped, or None.
    prior: p(z) to be reparameterized twice, or None.
    weight: beta of log-weights log p - beta log q.
    samples: [num_samples, batch_size, ...], all or some of those drawn.
    num_samples: the number of these samples.
  """
  proposal = drawn.proposal
  numbers = tf.nest.map_structure(tf.stop_gradient, samples)
  is_total = gradient.is_total and not drawn.is_mixed
  has_path = is_total or Requirement.PATH in gradient.requirement
  branches = [samples if has_path else numbers]
  scores, at_second = [], []
  if is_total:
    log_q = proposal.log_prob(samples)
  elif has_path and drawn.is_stratified:
    log_q, moved, at_second = _at_mixture(proposal, samples)
    branches.append(moved)
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
    at_second = [_log_q_hat(proposal, stopped_proposal, moved), log_own]
    target_log_prob_fn = evaluation.log_joint(target_log_prob_fn, gradients.PathOnly(prior), weight)
  # With the identity, gradients are summed in the same order as behind a gate.
  z, set_ratios = tf.nest.map_structure(tf.identity, branches[0]), None
  if at_second or (has_path and not is_total):
    z, set_ratios = gradients.gate(*branches)
  log_p, log_q = evaluation.same_shape(target_log_prob_fn(z), log_q, num_samples)
  scores, at_second = ([tf.cast(x, log_p.dtype) for x in each] for each in (scores, at_second))
  log_p = drawn.with_shares(log_p, num_samples)
  return Densities(log_p, log_q, scores, set_ratios, at_second, drawn.is_stratified)


def terms(
  densities: Densities, coefficients: Sequence[tf.Tensor], weight: float | tf.Tensor
) -> tf.Tensor:
  """Returns the sum of the surrogate's terms for each sample, [num_samples, batch_size].

  The terms are a log p - weight b log q^ + c log q~, and those of a prior's or mixture's second
  branch (see the top of this file).
  """
  a, b, *c = coefficients
  log_p, log_q, scores, set_ratios, at_second, is_of_mixture = densities
  added, paths = list(zip(scores, c, strict=False)), [b]
  if not isinstance(weight, numbers.Real):
    # The value depends on it through all log-weights, with the derivative -sum_i a_i log q_i.
    live, weight = as_scalar(weight, b.dtype), tf.stop_gradient(as_scalar(weight, b.dtype))
    added.append((tf.stop_gradient(log_q), -a * (live - weight)))
  if at_second:
    curvature = weight * (-c[-1] if is_of_mixture else c[-1])
    b = a if is_of_mixture else b
    paths = [b, curvature]
    added += zip(at_second, (weight * (a - curvature), -weight * a), strict=True)
  if set_ratios:
    a, *ratios = finite_ratios(a, *paths)
    set_ratios(*ratios)
  # Here 0 * -inf is 0: a sample of weight 0 adds nothing. log_q has a total derivative's score.
  no_nan = tf.math.multiply_no_nan
  total = no_nan(log_p, a) + no_nan(log_q, -b * weight)
  for log_density, factor in added:
    total += no_nan(log_density, factor)
  return total


def _at_mixture(mixture, samples) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
  """Returns log q^ (whose probabilities keep their score), the second branch, and `at_second`."""
  stopped, log_probs = [_stopped(part) for part in mixture.components], mixture.log_probs()
  moved = mixture.reparameterize(samples)
  log_q, _ = mixture.log_prob_with(stopped, log_probs, samples)
  return log_q, moved, mixture.log_prob_with(stopped, tf.stop_gradient(log_probs), moved)


def _stopped(proposal: tfd.Distribution):
  """Returns the proposal with its parameters stopped: rebuilt, or wrapped."""
  try:
    return gradients.stop_parameters(proposal)
  except ValueError:  # The parameters of functions and networks are out of reach.
    return gradients.PathOnly(proposal)


def _log_q_hat(proposal: tfd.Distribution, stopped: tfd.Distribution | None, samples) -> tf.Tensor:
  """Returns log q with its parameters stopped, by the caller or here."""
  stopped = stopped or _stopped(proposal)
  # Fresh tensors: for the old ones a bijector would use its cache, without stopped parameters.
  return stopped.log_prob(tf.nest.map_structure(tf.identity, samples))


def finite_ratios(a: tf.Tensor, *paths: tf.Tensor) -> list[tf.Tensor]:
  """Returns a and each path / a, all [num_samples, batch_size].

  Where a vanishes, as in JVI, a negligibly small number replaces it.
  """
  tiny = tf.constant(1e-20 if a.dtype == tf.float32 else 1e-100, a.dtype)
  largest = tf.reduce_max(tf.abs(tf.stack(paths)), axis=0)
  a = tf.where(tf.logical_and(tf.abs(a) < tiny, largest > tf.abs(a)), tiny, a)
  return [a, *(tf.math.divide_no_nan(path, a) for path in paths)]
