"""Computes gradients of several estimators from one evaluation of the model.

Each estimator is three numbers a, b, c per sample (see `dregs_tf/bounds.py`). The model's gradient
is the backward pass of log p with a; the proposal's is that of the samples and of the score,

  sum_i  b_i (dlog w_i / dz_i) dz_i / dphi  +  c_i dlog q(z_i) / dphi.

So dlog w / dz is computed once, and every further estimator costs only a backward pass through the
proposal's network, which has 1/K of the model network's rows. If b and c mix the same weights, it
costs even less: three backward passes give all estimators of L_K (`basis`).

A prior's doubly reparameterized gradient (see `dregs_tf/surrogate.py`) needs the same slopes: with
z' functions of its parameters,

  sum_i  (F_ii dlog w_i / dz_i + u_i dlog q(z_i) / dz_i) dz'_i  -  u_i dlog p_l(z'_i | parents).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, proposals
from dregs_tf.bounds import Bound, Mix, check_weight
from dregs_tf.gradients import PathOnly, expand_to, of_loss, watch
from dregs_tf.importance_weights import as_scalar

tfd = tfp.distributions

# The smallest weight of a sample's row in the backward pass. Dividing by it gives dlog p / dz even
# where a vanishes; its contribution to the model's gradient is below rounding.
_LEAST_WEIGHT = 1e-12


class Gradients(NamedTuple):
  """Holds the results of `differentiate`; a gradient is None where there is none.

  values: [batch_size] for each bound, in nats.
  log_weights: [num_samples, batch_size], in nats, stopped.
  model: the first bound's gradient through log p(x, z) and a prior, of each variable.
  proposal: for each bound, its gradient through the proposal, of each variable.
  added: the gradient of `added_loss`, of each variable.
  """

  values: list[tf.Tensor]
  log_weights: tf.Tensor
  model: list[tf.Tensor | None] | None
  proposal: list[list[tf.Tensor | None]]
  added: list[tf.Tensor | None] | None

  def total(self) -> list[tf.Tensor | None]:
    """Returns the whole gradient of the first bound, the same as that of `bounds.estimate`."""
    return add(self.model, self.proposal[0])


def differentiate(
  bounds: Sequence[Bound],
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  make_proposal: Callable[[], tfd.Distribution],
  variables: Sequence,
  num_samples: int,
  seed: tf.Tensor,
  *,
  scale: float | tf.Tensor = 1.0,
  with_model: bool = True,
  added_loss: Callable[[], tf.Tensor | None] | None = None,
  proposal_weight: float | tf.Tensor = 1,
  make_prior: Callable[[], tfd.Distribution] | None = None,
) -> Gradients:
  """Computes gradients of sum_b scale * bound_b over the batch, for several bounds at once.

  Args:
    bounds: the bounds; the gradient in the model's parameters is taken for the first.
    target_log_prob_fn: log p(x, z) as `bounds.estimate` takes it.
    make_proposal: builds q(z | x), of batch shape [batch_size], from variables.
    variables: the variables to take gradients in.
    num_samples: K.
    seed: a stateless seed, of shape [2].
    scale: a factor of every gradient, such as one over the batch size: a scalar, or a Tensor of
      shape [batch_size] with a factor for each example.
    with_model: whether to also take the gradient of the model; otherwise `model` is None.
    added_loss: returns the scalar loss that evaluating the proposal and log p has added, or None.
    proposal_weight: as `bounds.estimate` takes it.
    make_prior: builds the `prior` of `bounds.estimate`; target_log_prob_fn is then log p(x | z).

  Raises:
    TypeError, ValueError: as `bounds.estimate` does for any of the bounds.
  """
  variables = list(variables)
  if not tf.is_tensor(scale):
    scale = tf.constant(scale, tf.float64)
  for each in bounds:
    check_weight(proposal_weight, each, num_samples)
  needs = evaluation.needs(bounds)
  with tf.GradientTape(persistent=True) as tape:
    drawn = _draw(make_proposal(), num_samples, seed, **needs)
    samples = tf.nest.flatten(drawn.samples)
    numbers = tf.nest.map_structure(tf.stop_gradient, drawn.samples)
    log_q = drawn.proposal.log_prob(numbers)
    scores = drawn.log_probs_by_kind(numbers) if drawn.is_mixed else [log_q]
    # Fresh tensors: for the old ones a bijector would use its cache, which bypasses the tape.
    moved = tf.nest.map_structure(tf.identity, numbers)
    leaves = tf.nest.flatten(moved)
    watch(tape, leaves)
    prior = make_prior() if make_prior else None
    if prior is not None:
      at_prior = proposals.at_prior(prior, numbers)
      target_log_prob_fn = evaluation.log_joint(
        target_log_prob_fn, PathOnly(prior), proposal_weight
      )
    log_p, log_q = evaluation.same_shape(target_log_prob_fn(moved), log_q, num_samples)
    scores = [tf.cast(score, log_p.dtype) for score in scores]
    loss = added_loss() if added_loss else None
  log_weights = evaluation.stopped_log_weights(log_p, log_q, num_samples, proposal_weight)
  arguments = (drawn, log_weights, proposal_weight, prior is not None)
  values, coefficients = zip(*(each.value_and_factors(*arguments) for each in bounds), strict=True)

  has_weight = log_weights > log_weights.dtype.min
  if with_model:
    weight = _away_from_zero(coefficients[0][0]) * tf.cast(scale, log_weights.dtype)
  else:
    weight = tf.ones_like(log_weights)
  weight = tf.where(has_weight, weight, tf.zeros_like(weight))
  needs_slopes = needs["path_for"] or prior is not None
  paths = [i for i, leaf in enumerate(leaves) if needs_slopes and leaf.dtype.is_floating]
  sources = [variables if with_model else [], [leaves[i] for i in paths]]
  model, slopes_p = tape.gradient(log_p, sources, output_gradients=weight)
  slopes_p = [s if s is None else _times(tf.math.reciprocal_no_nan(weight), s) for s in slopes_p]
  slopes_q = _slopes(drawn.proposal, numbers, paths)
  slopes = _slopes_of_log_weights(slopes_p, slopes_q, proposal_weight)
  targets = [*(samples[i] for i in paths), *scores]
  proposal_gradients = []
  for _, b, *c in coefficients:
    upstream = [_times(b * tf.cast(scale, b.dtype), slope) for slope in slopes]
    upstream += [factor * tf.cast(scale, factor.dtype) for factor in c[: len(scores)]]
    proposal_gradients.append(tape.gradient(targets, variables, output_gradients=upstream))
  if prior is not None and with_model:
    targets, upstream = _prior_terms(
      at_prior, slopes, slopes_q, coefficients[0], proposal_weight, scale
    )
    model = add(model, tape.gradient(targets, variables, output_gradients=upstream))
  added = of_loss(tape, loss, variables, leaves, samples)
  return Gradients(
    list(values), log_weights, model if with_model else None, proposal_gradients, added
  )


def differentiate_prior(
  bounds: Sequence[Bound],
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  make_proposal: Callable[[], tfd.Distribution],
  make_prior: Callable[[], tfd.Distribution],
  variables: Sequence,
  num_samples: int,
  seed: tf.Tensor,
  *,
  scale: float = 1.0,
) -> list[list[tf.Tensor | None]]:
  """Computes two gradients of each bound through the prior: direct, and twice reparameterized.

  Args:
    bounds: the bounds; two gradients of each are returned, of each variable.
    target_log_prob_fn: log p(x | z), [num_samples, batch_size].
    make_proposal: as `differentiate` takes it.
    make_prior: builds p(z).
    variables: the variables to take gradients in.
    num_samples: K.
    seed: a stateless seed, of shape [2].
    scale: a factor of every gradient.

  Raises:
    TypeError, ValueError: as `bounds.estimate` does.
  """
  with tf.GradientTape(persistent=True) as tape:
    drawn = _draw(make_proposal(), num_samples, seed)
    numbers = tf.nest.map_structure(tf.stop_gradient, drawn.samples)
    prior = make_prior()
    at_prior = proposals.at_prior(prior, numbers)
    log_prior = prior.log_prob(numbers)
    moved = tf.nest.map_structure(tf.identity, numbers)
    watch(tape, moved)
    log_p = evaluation.log_joint(target_log_prob_fn, PathOnly(prior))(moved)
  log_p, log_q = evaluation.same_shape(log_p, drawn.proposal.log_prob(numbers), num_samples)
  log_weights = evaluation.stopped_log_weights(log_p, log_q, num_samples)
  leaves = tf.nest.flatten(moved)
  slopes_q = _slopes(drawn.proposal, numbers, range(len(leaves)))
  slopes = _slopes_of_log_weights(tape.gradient(log_p, leaves), slopes_q, 1)
  gradients = []
  for each in bounds:
    _, factors = each.value_and_factors(drawn, log_weights, with_curvature=True)
    upstream = tf.cast(factors[0] * tf.cast(scale, factors[0].dtype), log_prior.dtype)
    gradients.append(tape.gradient(log_prior, variables, output_gradients=upstream))
    targets, upstream = _prior_terms(at_prior, slopes, slopes_q, factors, 1, scale)
    gradients.append(tape.gradient(targets, variables, output_gradients=upstream))
  return gradients


def _draw(proposal: tfd.Distribution, num_samples: int, seed: tf.Tensor, **needs: str | None):
  """Draws samples as `evaluation.draw` does; raises a ValueError for a `StratifiedMixture`."""
  drawn = evaluation.draw(proposal, num_samples, seed, **needs)
  if drawn.is_stratified:
    raise ValueError(
      "track_variance, adapt_alpha and compare take several gradients at once, which a "
      "StratifiedMixture as a proposal does not allow: estimate one bound at a time."
    )
  return drawn


def _prior_terms(at_prior, slopes, slopes_q, factors, proposal_weight, scale):
  """Returns Tensors that depend on a prior's parameters, and the weights of their gradients.

  Args:
    at_prior: the result of `proposals.at_prior`.
    slopes: dlog w / dz, of each leaf.
    slopes_q: dlog q / dz, of each leaf.
    factors: a, ..., F_ii of a bound.
    proposal_weight: the weight of the KL divergence.
    scale: a factor of every gradient.
  """
  moved, log_own = at_prior
  scale = as_scalar(proposal_weight, factors[0].dtype) * tf.cast(scale, factors[0].dtype)
  u, curvature = scale * factors[0], scale * factors[-1]
  upstream = [
    _times(curvature, slope) + _times(u, slope_q)
    for slope, slope_q in zip(slopes, slopes_q, strict=True)
  ]
  return [*tf.nest.flatten(moved), log_own], [*upstream, -tf.cast(u, log_own.dtype)]


def _slopes_of_log_weights(slopes_p, slopes_q, proposal_weight) -> list[tf.Tensor]:
  """Returns dlog w / dz given dlog p / dz, None for 0, and dlog q / dz."""
  slopes = []
  for slope_p, slope_q in zip(slopes_p, slopes_q, strict=True):
    slope = -as_scalar(proposal_weight, slope_q.dtype) * slope_q
    slopes.append(slope if slope_p is None else slope + slope_p)
  return slopes


def _slopes(proposal: tfd.Distribution, samples, paths: Sequence[int]) -> list[tf.Tensor]:
  """Computes dlog q / dz at samples, for the leaves in these places."""
  if not paths:
    return []
  with tf.GradientTape() as tape:
    moved = tf.nest.map_structure(tf.identity, samples)
    leaves = tf.nest.flatten(moved)
    leaves = [leaves[i] for i in paths]
    tape.watch(leaves)
    log_q = evaluation.at_least_float32(proposal.log_prob(moved))
  return tape.gradient(log_q, leaves, unconnected_gradients="zero")


# Every other `Mix` is a combination of these, in the proposal's parameters.
_PARTS = (Mix(1, 0, 0), Mix(0, 1, 0), Mix(0, 0, 1))


def basis(bounds: Sequence[Bound]) -> tuple[list[Bound], np.ndarray]:
  """Returns the bounds to differentiate for several gradients in the proposal's parameters.

  Returns:
    N bounds, and the matrix [len(bounds), N] that combines their gradients into those of `bounds`.
    They are `bounds` themselves unless fewer are enough: all mixes of a value are combinations of
    its dreg, wake_dreg and wake (iwae_dreg, rws_dreg and rws for L_K), and nothing cancels.
  """
  groups = {}
  for place, bound in enumerate(bounds):
    is_mix = isinstance(bound.gradient, Mix) and not bound.gradient.is_normalized
    groups.setdefault(bound.total if is_mix else place, []).append(place)
  measured, columns = [], []
  for value, places in groups.items():
    needed = np.ones(len(_PARTS), bool)
    if isinstance(value, Bound):
      factors = np.array([bounds[place].gradient.factors for place in places], np.float64)
      needed = np.any(factors != 0, axis=0)
    if needed.sum() >= len(places):
      measured += [bounds[place] for place in places]
      factors = np.eye(len(places))
    else:
      parts = [part for part, is_needed in zip(_PARTS, needed, strict=True) if is_needed]
      measured += [_with_gradient(value, part) for part in parts]
      factors = factors[:, needed]
    for column in factors.T:
      columns.append(np.zeros(len(bounds)))
      columns[-1][places] = column
  return measured, np.stack(columns, axis=1)


def _with_gradient(bound: Bound, gradient: Mix) -> Bound:
  return dataclasses.replace(bound, make_gradient=lambda: gradient)


def _away_from_zero(a: tf.Tensor) -> tf.Tensor:
  least = tf.constant(_LEAST_WEIGHT, a.dtype)
  return tf.where(tf.abs(a) < least, tf.where(a < 0, -least, least), a)


def _times(weight: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
  """Multiplies each sample's part of `tensor` by its weight; a weight of 0 always gives 0."""
  return tf.math.multiply_no_nan(tensor, tf.cast(expand_to(weight, tensor), tensor.dtype))


def add_where_both(first: Sequence, second: Sequence) -> list[tf.Tensor | None]:
  """Returns the sums of gradients; None for a variable that is not in `first`."""
  return [None if f is None else _add(f, s) for f, s in zip(first, second, strict=True)]


def add(first: Sequence, second: Sequence) -> list[tf.Tensor | None]:
  """Returns the sum of two gradients for each variable; None is 0."""
  return [_add(f, s) for f, s in zip(first, second, strict=True)]


def _add(first: tf.Tensor | None, second: tf.Tensor | None) -> tf.Tensor | None:
  if first is None or second is None:
    return second if first is None else first
  if all(isinstance(gradient, tf.IndexedSlices) for gradient in (first, second)):
    # A sparse gradient stays sparse, as on one tape: Adam updates only the rows that it has.
    values = tf.concat([first.values, second.values], axis=0)
    indices = tf.concat([tf.cast(g.indices, tf.int64) for g in (first, second)], axis=0)
    return tf.IndexedSlices(values, indices, first.dense_shape)
  return tf.convert_to_tensor(first) + tf.convert_to_tensor(second)
