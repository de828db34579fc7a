"""Computes a step of training or evaluation on one replica, before anything is updated."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import gradients, seeds, side_by_side
from dregs_tf import importance_weights as iw
from dregs_tf.models import batches, calls, products
from dregs_tf.models import kl_weight as kl
from dregs_tf.models.conditional import draws_for_whole_batch

tfd = tfp.distributions

# The purposes of seeds; different purposes never share noise.
TRAIN, EVALUATE, LOG_LIKELIHOOD, MEASURE, POSTERIOR = range(5)


class Values(NamedTuple):
  """Holds the values that a step reports.

  objective: the bound of each example in nats, [batch_size].
  sample_size: the effective sample size of each example, [batch_size].
  losses: the sum of the losses that layers added, a scalar; None if they added none.
  log_weights: [num_samples, batch_size], in a training step of one bound; None otherwise.
  """

  objective: tf.Tensor
  sample_size: tf.Tensor
  losses: tf.Tensor | None
  log_weights: tf.Tensor | None = None


class Gradients(NamedTuple):
  """Holds gradients of a training step's scaled loss, of each variable or None.

  bound: gradients of the negative weighted sum of the examples' bounds, divided by the number of
    examples in the global batch; replicas sum them.
  others: the same for other bounds, by name.
  losses: gradients of the losses that layers added; None if they added none.
  values: what the step reports.
  """

  bound: list
  others: dict[str, list]
  losses: list | None
  values: Values

  def total(self) -> list:
    """Returns the gradient that the optimizer applies."""
    return self.bound if self.losses is None else side_by_side.add(self.bound, self.losses)


def number(model: keras.Model) -> tf.Tensor:
  """Returns how many steps a compiled model has taken, an int32 scalar."""
  # With gradient accumulation only `_iterations` counts every step, and `iterations` every update.
  # If an optimizer scales the loss, only the counter of the one inside advances.
  optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
  return tf.cast(getattr(optimizer, "_iterations", optimizer.iterations), tf.int32)


def gradients_of(
  model: keras.Model, batch: batches.Batch, noise: Sequence, part: seeds.Part | None
) -> Gradients:
  """Computes the gradients of a training step of a compiled model.

  Args:
    model: the model.
    batch: the batch, or the replica's part of it.
    noise: the purpose of the noise: TRAIN and the step's number, or MEASURE and numbers.
    part: the replica's part of the batch, or None.
  """
  # The seed is derived here, since even `fold_in` draws other numbers with XLA than without.
  seed = _seed_for(model, *noise)
  total = batches.size(batch.x) if part is None else part.total
  if model.followers is None:
    return _gradients_of_sequences(model, batch, seed, part, total)
  if model.followers.side_by_side_argument:
    return _gradients_side_by_side(model, batch, seed, part, total)
  variables = model.trainable_variables
  with (
    calls.step(model, training=True, seed=seed, part=part) as current,
    tf.GradientTape(persistent=True) as tape,
  ):
    current.tape = tape
    estimate = _estimate(model, batch, seed, part, training=True)
    objective = estimate.objective
    loss = -_weighted_sum(objective, batch.sample_weight) / tf.cast(total, objective.dtype)
    scaled_loss = model.optimizer.scale_loss(loss)
    losses = calls.sum_of_losses(model)
    scaled_losses = _scaled(model, losses)
  return Gradients(
    tape.gradient(scaled_loss, variables),
    {},
    gradients.of_loss(tape, scaled_losses, variables, current.seen, estimate.samples),
    Values(objective, model.sample_size(estimate), losses, estimate.log_weights),
  )


def _gradients_of_sequences(model, batch, seed, part, total) -> Gradients:
  """Computes `gradients_of` for a `StateSpaceModel`, whose layers only regularize.

  The tape is not persistent: with a persistent tape, TensorFlow takes several times longer to trace
  a loop.
  """
  with calls.step(model, training=True, seed=seed, part=part), tf.GradientTape() as tape:
    estimate = _estimate(model, batch, seed, part, training=True)
    objective = estimate.objective
    loss = -_weighted_sum(objective, batch.sample_weight) / tf.cast(total, objective.dtype)
    loss = model.optimizer.scale_loss(loss)
    losses = calls.sum_of_losses(model)
    if losses is not None:
      loss += tf.cast(_scaled(model, losses), loss.dtype)
  values = Values(objective, model.sample_size(estimate), losses)
  return Gradients(tape.gradient(loss, model.trainable_variables), {}, None, values)


def _gradients_side_by_side(model, batch, seed, part, total) -> Gradients:
  """Computes `gradients_of` with further bounds on the same samples."""
  context, x, sample_weight = batch
  scale = -model.optimizer.scale_loss(tf.ones([], model.float_dtype))
  scale /= tf.cast(total, scale.dtype)
  weight = kl_weight(model)
  target, make_prior = functools.partial(model.target_log_prob, **kl.arguments(weight)), None
  if model.prior_gradient == "dreg":
    target, make_prior = model.conditional_log_prob, lambda: calls.call(model.prior, context)
  shared = False
  if part is not None:
    with calls.looking(model):
      shared = draws_for_whole_batch(calls.propose(model, x, context))
  with (
    calls.step(model, training=True, seed=seed, part=part),
    seeds.noise_of(part, seed, shared=shared) as seed,
  ):
    result = side_by_side.differentiate(
      model.followers.estimators(),
      lambda z: target(x, z, context),
      lambda: calls.propose(model, x, context),
      model.trainable_variables,
      model.num_samples,
      seed,
      scale=scale if sample_weight is None else scale * sample_weight,
      proposal_weight=weight,
      make_prior=make_prior,
      added_loss=lambda: _scaled(model, calls.sum_of_losses(model)),
    )
    losses = calls.sum_of_losses(model)
  return Gradients(
    result.total(),
    model.followers.by_name(result),
    result.added,
    Values(result.values[0], iw.effective_sample_size(result.log_weights), losses),
  )


def kl_weight(model: keras.Model) -> float | tf.Tensor:
  """Returns the weight of the KL divergence in the next update: a number, or a scalar Tensor."""
  optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
  return model.kl_weight.at(tf.convert_to_tensor(optimizer.iterations))


def check_prior_gradient(model: keras.Model, prior_gradient: Any) -> None:
  """Raises a ValueError unless it is "direct", or "dreg" with a separate log p(x | z)."""
  if prior_gradient not in ("direct", "dreg"):
    raise ValueError(f"prior_gradient must be direct or dreg, got {prior_gradient!r}.")
  joint_owner, conditional_owner = (
    next(i for i, kind in enumerate(type(model).__mro__) if name in vars(kind))
    for name in ("target_log_prob", "conditional_log_prob")
  )
  if prior_gradient == "dreg" and joint_owner < conditional_owner:
    raise ValueError(
      f"prior_gradient must be direct for {type(model).__name__}, which overrides target_log_prob, "
      "got dreg: override conditional_log_prob, log p(x | z), instead."
    )


def evaluate(
  model: keras.Model, batch: batches.Batch, seen: tf.Tensor, part: seeds.Part | None
) -> Values:
  """Computes what an evaluation step reports.

  Args:
    model: the model.
    batch: the batch, or the replica's part of it.
    seen: how many examples the evaluation has seen before, an int32 scalar.
    part: the replica's part of the batch, or None.
  """
  seed = _seed_for(model, EVALUATE, seen)
  step = calls.step(model, training=False, seed=seed, part=part)
  # A tape tells what is learned, as in training: see `proposals.check_fixed_support`.
  with step, products.in_float32(), tf.GradientTape():
    estimate = _estimate(model, batch, seed, part, training=False)
    losses = calls.sum_of_losses(model)
  return Values(estimate.objective, model.sample_size(estimate), losses)


def variable_groups(model: keras.Model, x: Any, context: Any) -> dict[str, list[int]]:
  """Returns the places of the trainable variables on which q, p(x, z) and p(z) depend, by group.

  A joint proposal or prior also has a group for each of its parts, such as `prior_z1`. A variable
  is in a group if a gradient exists; in a compiled step, none of these gradients is executed.
  """
  variables = model.trainable_variables
  with calls.looking(model), tf.GradientTape(persistent=True) as tape:
    proposal = calls.propose(model, x, context)
    z = proposal.sample(1, seed=[0, 0])
    numbers = tf.nest.map_structure(tf.stop_gradient, z)
    log_q = proposal.log_prob(numbers)
    log_p = model.target_log_prob(x, numbers, context)
    prior = calls.call(model.prior, context)
    targets = {"model": log_p, "prior": prior.log_prob(numbers)}
    for name, distribution in (("proposal", proposal), ("prior", prior)):
      for part, log_prob in log_prob_parts(distribution, numbers).items():
        targets[f"{name}_{part}"] = log_prob
  paths = [leaf for leaf in tf.nest.flatten(z) if leaf.dtype.is_floating]
  targets = {"proposal": [*paths, log_q]} | targets
  groups = {
    name: [i for i, g in enumerate(tape.gradient(target, variables)) if g is not None]
    for name, target in targets.items()
  }
  return {name: places for name, places in groups.items() if places}


def log_prob_parts(distribution: tfd.Distribution, z: Any) -> dict[str, tf.Tensor]:
  """Returns the log-density of each part of a joint distribution by name; {} for any other."""
  if not isinstance(distribution, tfd.JointDistribution):
    return {}
  parts = distribution._model_flatten(distribution.log_prob_parts(z))
  return dict(zip(distribution._flat_resolve_names(), parts, strict=True))


def _weighted_sum(values: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
  """Returns the weighted sum of values; a weight of 0 leaves out even an infinite value."""
  if weights is None:
    return tf.reduce_sum(values)
  return tf.reduce_sum(tf.math.multiply_no_nan(values, tf.cast(weights, values.dtype)))


def _estimate(model, batch: batches.Batch, seed, part, training: bool):
  options = model.step_options(training)
  if part is not None:
    options["part"] = part
  options |= {"bound": model.bound, "num_samples": model.num_samples, "seed": seed}
  return model.estimate(batch.x, batch.context, **options)


def _seed_for(model, purpose: int, *numbers: tf.Tensor) -> tf.Tensor:
  """Returns a seed for the noise of a step."""
  return seeds.fold_in(seeds.stateless(model.seed), purpose, *numbers)


def _scaled(model, losses: tf.Tensor | None) -> tf.Tensor | None:
  """Returns a replica's share of the losses, scaled as the optimizer scales losses."""
  if losses is None:
    return None
  num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
  return model.optimizer.scale_loss(losses / num_replicas)
