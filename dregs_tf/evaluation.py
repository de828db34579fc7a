"""Begins every estimate: draws samples, refuses wrong arguments, computes log-weights.

`bounds.estimate`, `side_by_side.differentiate` and `log_likelihood` take different gradients. They
share their arguments, the definition of a log-weight and the loop over many samples, all of which
are defined here.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import catalogue, importance_weights, proposals, seeds
from dregs_tf.mixtures import StratifiedMixture

tfd = tfp.distributions

# The number of samples that are evaluated at a time without recording a gradient: it limits memory.
_SAMPLES_AT_A_TIME = 256

# The number of these samples in a piece of the graph.
_SAMPLES_IN_A_PIECE = 16

# `log_likelihood` evaluates this many rows (samples times examples) at a time, in pieces. The first
# rows, often the only ones, are one piece, which is traced sooner.
_ROWS_AT_A_TIME = 5000
_PIECES = 4

# The assumed number of examples in a batch of unknown size.
_ASSUMED_BATCH_SIZE = 100


class Draw(NamedTuple):
  """Holds a proposal and samples drawn from it.

  proposal: without TFP's wrappers.
  samples: [num_samples, batch_size, ...], or a structure of such Tensors; [M num_samples, ...]
    from the M components of a `StratifiedMixture`. In a structure of which some parts are
    reparameterized, the others have no gradient.
  is_discrete: for each part of a joint distribution, whether it is not reparameterized; empty
    unless some parts are reparameterized and others are not.
  """

  proposal: tfd.Distribution
  samples: Any
  is_discrete: Sequence[bool] = ()

  @property
  def is_mixed(self) -> bool:
    """Returns whether some parts are reparameterized and others are not."""
    return bool(self.is_discrete)

  @property
  def num_strata(self) -> int:
    """Returns the number of components that are sampled separately: 1, or M of a mixture."""
    return _num_strata(self.proposal)

  @property
  def is_stratified(self) -> bool:
    """Returns whether each component of a `StratifiedMixture` is sampled separately."""
    return isinstance(self.proposal, StratifiedMixture)

  def with_shares(self, log_p: tf.Tensor, num_samples: int) -> tf.Tensor:
    """Returns log p(x, z) plus, for samples drawn in strata, log (M pi_m); [n, batch_size]."""
    if not self.is_stratified:
      return log_p
    return log_p + tf.cast(self.proposal.log_shares(num_samples), log_p.dtype)

  def log_probs_by_kind(self, samples: Any) -> list[tf.Tensor]:
    """Returns log q of the reparameterized parts and of the others, each [num_samples, batch_size].

    Each part is conditioned on its parents.
    """
    parts = self._parts(self.proposal.log_prob_parts(samples))
    return [
      tf.add_n(
        [part for part, is_one in zip(parts, self.is_discrete, strict=True) if is_one == kind]
      )
      for kind in (False, True)
    ]

  def _parts(self, structure) -> list:
    return self.proposal._model_flatten(structure)  # Private; checked in TFP 0.25.


def draw(
  proposal: tfd.Distribution,
  num_samples: int,
  seed: tf.Tensor,
  *,
  path_for: str | None = None,
  fixed_support_for: str | None = None,
) -> Draw:
  """Draws samples from a proposal, and refuses one that estimators cannot use.

  Args:
    proposal: q(z | x), of batch shape [batch_size] or [].
    num_samples: K; K samples of each component of a `StratifiedMixture`.
    seed: a stateless seed, of shape [2].
    path_for: the name of a bound that needs samples that are differentiable in the parameters.
    fixed_support_for: the name of a bound that needs a support that does not depend on parameters.

  Returns:
    A `Draw`, whose samples have axis 0 of size num_samples.

  Raises:
    TypeError: if it is not a distribution.
    ValueError: if a bound cannot use it; the message names both.
  """
  proposal = _unwrap(proposal)
  is_stratified = isinstance(proposal, StratifiedMixture)
  is_discrete: Sequence[bool] = ()
  for part in proposal.components if is_stratified else [proposal]:
    is_discrete = proposals.discrete_parts(part, path_for) if path_for else ()
  if is_stratified:
    distributions, samples = proposal.components, proposal.sample_strata(num_samples, seed)
  elif isinstance(proposal, tfd.JointDistribution):
    # It draws the same samples as `sample`, and also returns the parts' distributions.
    parts, samples = proposal.sample_distributions(num_samples, seed=seed)
    if is_discrete:
      # Of these only the score may have a gradient, although TFP differentiates some, such as
      # MixtureSameFamily; so what depends on them is drawn again, given them.
      fixed = [
        tf.nest.map_structure(tf.stop_gradient, part) if is_one else None
        for part, is_one in zip(proposal._model_flatten(samples), is_discrete, strict=True)
      ]
      given = proposal._model_unflatten(fixed)
      parts, samples = proposal.sample_distributions(num_samples, seed=seed, value=given)
    distributions = proposals.leaves(proposal, parts, samples)
  else:
    distributions, samples = [proposal], proposal.sample(num_samples, seed=seed)
  if path_for:
    proposals.warn_of_wrong_gradients(distributions)
  if fixed_support_for:
    proposals.check_fixed_support(distributions, fixed_support_for)
  return Draw(proposal, samples, is_discrete)


def _unwrap(proposal: Any) -> tfd.Distribution:
  """Returns the distribution inside TFP's wrappers, or in a mixture of one component."""
  proposal = proposals.unwrap(proposal)
  if isinstance(proposal, StratifiedMixture) and len(proposal.components) == 1:
    return proposal.components[0]
  return proposal


def _num_strata(proposal: tfd.Distribution) -> int:
  return len(proposal.components) if isinstance(proposal, StratifiedMixture) else 1


def needs(bounds: Sequence) -> dict[str, str | None]:
  """Returns the arguments of `draw` for several bounds: names of bounds with requirements."""

  def first(requirement):
    return next((b.name for b in bounds if requirement in b.gradient.requirement), None)

  return {
    "path_for": first(proposals.Requirement.PATH),
    "fixed_support_for": first(proposals.Requirement.FIXED_SUPPORT),
  }


def log_joint(
  log_likelihood_fn: Callable[[Any], tf.Tensor], prior: Any, weight: float | tf.Tensor = 1
) -> Callable[[Any], tf.Tensor]:
  """Returns log p(x | z) + weight log p(z) as a function of z; `prior` only needs a log_prob."""
  return lambda z: add_log_prior(log_likelihood_fn(z), prior.log_prob(z), weight)


def add_log_prior(
  log_likelihood: tf.Tensor, log_prior: tf.Tensor, weight: float | tf.Tensor = 1
) -> tf.Tensor:
  """Returns log p(x | z) + weight log p(z), [num_samples, batch_size]; float64 if dtypes differ.

  Raises:
    ValueError: if the two differ in rank, which broadcasting would hide.
  """
  if log_likelihood.shape.rank != log_prior.shape.rank:
    raise ValueError(
      "log p(x | z) and log p(z) must have the shape [num_samples, batch_size], got "
      f"{log_likelihood.shape} and {log_prior.shape}. If event axes remain, wrap the distribution "
      "in tfd.Independent."
    )
  log_prior *= importance_weights.as_scalar(weight, log_prior.dtype)
  if log_likelihood.dtype != log_prior.dtype:
    return tf.cast(log_likelihood, tf.float64) + tf.cast(log_prior, tf.float64)
  return log_likelihood + log_prior


def same_shape(log_p: tf.Tensor, log_q: tf.Tensor, num_samples: int) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns log p(x, z) and log q(z | x) in one dtype, float32 or better, and of one shape.

  Raises:
    ValueError: if a batch shape is not [batch_size] or [], or if the two differ, which broadcasting
      would hide.
  """
  log_p = at_least_float32(tf.convert_to_tensor(log_p))
  log_q = at_least_float32(tf.convert_to_tensor(log_q))
  if log_q.shape.rank is not None and log_q.shape.rank > 2:
    raise ValueError(
      f"proposal must have batch shape [batch_size], got {log_q.shape[1:]}: if event axes remain, "
      "wrap it in tfd.Independent."
    )
  expected = tf.TensorShape([num_samples]) + log_q.shape[1:]
  if log_p.shape.rank != expected.rank or not log_p.shape.is_compatible_with(expected):
    raise ValueError(
      "target_log_prob_fn must return log p(x, z) of shape [num_samples, batch_size] = "
      f"{expected}, the shape of the proposal's log_prob, got {log_p.shape}. If event axes remain, "
      "wrap the distribution (target or proposal) in tfd.Independent."
    )
  if not (log_p.shape.is_fully_defined() and log_q.shape.is_fully_defined()):
    tf.debugging.assert_equal(
      tf.shape(log_p), tf.shape(log_q), "target_log_prob_fn must return [num_samples, batch_size]."
    )
    log_p = tf.reshape(log_p, tf.shape(log_q))  # XLA drops the assertion, but not this.
  if log_p.dtype != log_q.dtype:
    log_p, log_q = tf.cast(log_p, tf.float64), tf.cast(log_q, tf.float64)
  return log_p, log_q


def stopped_log_weights(
  log_p: tf.Tensor, log_q: tf.Tensor, num_samples: int, weight: float | tf.Tensor = 1
) -> tf.Tensor:
  """Returns log p - weight log q, [num_samples, batch_size], stopped, with axis 0 of known size.

  JVI needs a static K, which a proposal of unknown batch shape may lose.
  """
  log_weights = log_p - importance_weights.as_scalar(weight, log_q.dtype) * log_q
  log_weights = tf.stop_gradient(log_weights)
  return tf.ensure_shape(log_weights, [num_samples, *log_weights.shape[1:]])


def at_least_float32(log_prob: tf.Tensor) -> tf.Tensor:
  """Returns the same Tensor, in float32 if its dtype is narrower."""
  return tf.cast(log_prob, tf.float32) if log_prob.dtype.size < 4 else log_prob


# --- without a gradient -------------------------------------------------------------------------


def log_weights_without_recording(
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  proposal: tfd.Distribution,
  samples: Any,
  num_samples: int,
  weight: float | tf.Tensor = 1,
) -> tf.Tensor:
  """Computes only the log-weights, [num_samples, batch_size], at most 256 samples at a time."""
  samples = tf.nest.map_structure(tf.stop_gradient, samples)
  with _not_recorded():
    log_q = at_least_float32(proposal.log_prob(samples))

    def log_prob(samples, count):
      return _log_prob_in_pieces(target_log_prob_fn, samples, count, _SAMPLES_IN_A_PIECE)

    rest = num_samples % _SAMPLES_AT_A_TIME or _SAMPLES_AT_A_TIME
    log_p = log_prob(tf.nest.map_structure(lambda z: z[:rest], samples), rest)
    if num_samples > rest:
      others = tf.nest.map_structure(
        lambda z: tf.reshape(
          z[rest:], tf.concat([[-1, _SAMPLES_AT_A_TIME], tf.shape(z)[1:]], axis=0)
        ),
        samples,
      )
      in_chunks = tf.map_fn(
        lambda z: log_prob(z, _SAMPLES_AT_A_TIME),
        others,
        fn_output_signature=tf.TensorSpec([_SAMPLES_AT_A_TIME, *log_p.shape[1:]], log_p.dtype),
      )
      shape = tf.concat([[num_samples - rest], tf.shape(log_p)[1:]], axis=0)
      log_p = tf.concat([log_p, tf.reshape(in_chunks, shape)], axis=0)
    return stopped_log_weights(*same_shape(log_p, log_q, num_samples), num_samples, weight)


def log_likelihood(
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  proposal: tfd.Distribution,
  num_samples: int,
  seed: seeds.Seed = None,
  return_diagnostics: bool = False,
) -> Any:
  """Estimates log p(x) in nats by the bound L_K with K = num_samples, streamed over samples.

  Samples are drawn and evaluated a few at a time, so that memory does not grow with num_samples
  (Burda, Grosse and Salakhutdinov 2016, Sec. 5; https://arxiv.org/abs/1509.00519).

  Args:
    target_log_prob_fn: log p(x, z) as a function of samples [n, batch_size, ...], of shape
      [n, batch_size], for any n.
    proposal: q(z | x), a distribution of batch shape [batch_size], reparameterized or not.
    num_samples: K, a positive int; K samples of each component of a `StratifiedMixture`.
    seed: an int or a stateless seed of shape [2]; None draws new samples at every call.
    return_diagnostics: whether to return diagnostics of how far to trust the estimate. They are
      also streamed: only the 3 sqrt(K) largest weights are kept.

  Returns:
    A lower bound on log p(x) in expectation, [batch_size], or `importance_weights.Diagnostics`,
    whose `value` is that bound. No gradient flows through it.

  Raises:
    TypeError: if `proposal` is not a distribution or `num_samples` not an int.
    ValueError: if num_samples is not positive or target_log_prob_fn returns a wrong shape.
  """
  num_samples = check_int("num_samples", num_samples, at_least=1)
  num_weights = num_samples * _num_strata(_unwrap(proposal))
  tail = importance_weights.tail_size(num_weights) if return_diagnostics else 0
  summary = stream(
    target_log_prob_fn,
    proposal,
    num_samples,
    seed,
    lambda log_weights, *_: importance_weights.summarize(log_weights, tail),
    importance_weights.merge,
  )
  if return_diagnostics:
    return importance_weights.Diagnostics(*map(tf.stop_gradient, summary.diagnostics()))
  return tf.stop_gradient(tf.cast(summary.log_mean, summary.largest.dtype))


def stream(
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  proposal: tfd.Distribution,
  num_samples: int,
  seed: seeds.Seed,
  summarize: Callable,
  merge: Callable,
) -> Any:
  """Draws and weighs K samples in chunks, and merges the chunks' summaries.

  Args:
    target_log_prob_fn: log p(x, z) as a function of samples.
    proposal: q(z | x).
    num_samples: K; K samples of each component of a `StratifiedMixture`.
    seed: an int, a stateless seed or None.
    summarize: a function of log-weights [n, batch_size], samples [n, batch_size, ...] and a seed
      that returns a summary, a structure of Tensors whose shapes do not depend on n.
    merge: a function of two summaries that returns the summary of all their samples.

  Returns:
    The summary of all samples.

  Raises:
    TypeError, ValueError: as `log_likelihood`.
  """
  num_samples = check_int("num_samples", num_samples, at_least=1)
  proposal = _unwrap(proposal)
  num_strata = _num_strata(proposal)
  seed = seeds.stateless(seed)

  def kept(count, chunk, pieces):
    chunk_seed = seeds.fold_in(seed, chunk)
    drawn = draw(proposal, count, chunk_seed)
    z, count = drawn.samples, count * num_strata
    log_p = _log_prob_in_pieces(target_log_prob_fn, z, count, -(-count // pieces))
    log_p, log_q = same_shape(log_p, proposal.log_prob(z), count)
    log_weights = stopped_log_weights(drawn.with_shares(log_p, count), log_q, count)
    return summarize(log_weights, z, chunk_seed)

  with _not_recorded():
    rows_of_a_sample = num_strata * _batch_size(proposal)
    at_a_time = max(1, min(num_samples, _ROWS_AT_A_TIME // rows_of_a_sample))
    rest = num_samples % at_a_time or at_a_time
    chunks = 1 + (num_samples - rest) // at_a_time
    result = kept(rest, 0, pieces=1)
    if chunks > 1:
      _, result = tf.while_loop(
        lambda chunk, _: chunk < chunks,
        lambda chunk, result: (chunk + 1, merge(result, kept(at_a_time, chunk, _PIECES))),
        [1, result],
      )
    return result


def _batch_size(proposal: tfd.Distribution) -> int:
  """Returns the size of the proposal's batch, or an assumed size if it is not known."""
  (shape, *_) = tf.nest.flatten(proposal.batch_shape) or [tf.TensorShape([])]
  return (shape.num_elements() if shape.rank is not None else None) or _ASSUMED_BATCH_SIZE


def _log_prob_in_pieces(target_log_prob_fn, samples, num_samples: int, piece: int) -> tf.Tensor:
  """Computes log p(x, z) of samples [num_samples, batch_size, ...], in float32 or better.

  On a CPU, the products of one piece of the graph overlap with the elementwise work of another,
  which saves a tenth of the time.
  """
  log_p = [
    target_log_prob_fn(tf.nest.map_structure(lambda z, s=start: z[s : s + piece], samples))
    for start in range(0, num_samples, piece)
  ]
  log_p = tf.concat(log_p, axis=0) if len(log_p) > 1 else tf.convert_to_tensor(log_p[0])
  return at_least_float32(log_p)


def _not_recorded():
  """Keeps the tapes of an eager caller from recording the computation inside."""
  return tf.init_scope() if tf.executing_eagerly() else contextlib.nullcontext()


def check_int(name: str, value: Any, at_least: int) -> int:
  """Returns `value` as an int; raises unless it is an int >= `at_least`; `name` is its name."""
  if not catalogue.is_int(value):
    raise TypeError(f"{name} must be an int, got {value!r}.")
  if value < at_least:
    raise ValueError(f"{name} must be at least {at_least}, got {value}.")
  return int(value)


def check_num_backward_samples(num_backward_samples: int | None, num_samples: int) -> None:
  """Raises unless it is None or an int from 1 to num_samples."""
  if num_backward_samples is None:
    return
  if not catalogue.is_int(num_backward_samples):
    raise TypeError(f"num_backward_samples must be an int or None, got {num_backward_samples!r}.")
  if not 1 <= num_backward_samples <= num_samples:
    raise ValueError(
      f"num_backward_samples must be from 1 to num_samples={num_samples}, "
      f"got {num_backward_samples}."
    )
