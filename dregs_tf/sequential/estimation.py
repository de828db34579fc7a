"""Estimates bounds on the log-likelihood of sequences, and their gradients, by particle filters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from dregs_tf import catalogue, evaluation, importance_weights, seeds
from dregs_tf.sequential import filtering, resample, steps, surrogates


class Estimate(NamedTuple):
  """Holds the results of `estimate`; T is the number of steps.

  objective: [batch_size]; its value is the bound in nats, its gradient the estimator's. Maximize
    it, using first derivatives only.
  log_weights: [T, num_particles, batch_size], in nats, stopped: the block's log-weights up to each
    step. Normalized over the particles, they weigh `samples` as draws from p(z_t | x_1, ..., x_t).
    After the end of a sequence, log-weights and samples do not change.
  samples: [T, num_particles, batch_size, ...], or a structure of such Tensors.
  ancestors: [T, num_particles, batch_size], int32: the index of each particle's ancestor in the
    step before; the particle's own index if it was not resampled.
  effective_sample_size: [T, batch_size], of `log_weights`.
  state: the model's state after the last step, [num_particles, batch_size, ...]; None without one.
  lengths: the number of steps of each sequence, int32 [batch_size]; None if all have T.
  """

  objective: tf.Tensor
  log_weights: tf.Tensor
  samples: Any
  ancestors: tf.Tensor
  effective_sample_size: tf.Tensor
  state: Any
  lengths: tf.Tensor | None


def estimate(
  bound: str,
  model: Any,
  observations: Any,
  num_particles: int,
  resampling: str = catalogue.RESAMPLING[0],
  resample_when: str | int | float | Sequence[int] = "always",
  seed: seeds.Seed = None,
  lengths: Any = None,
  resampling_gradient: bool = False,
) -> Estimate:
  """Estimates a bound on log p(x_1, ..., x_T) and its gradient for each sequence.

  FIVO (Maddison et al. 2017, https://arxiv.org/abs/1705.09279) is the log of a particle filter's
  estimate of the likelihood: the sum over blocks, the steps from one resampling to the next, of the
  log-mean of the block's weights. Without resampling it is the K-sample bound of the joint latent.

  `fivo_dreg` reparameterizes each block twice, as one joint latent given its past: the path from
  the proposal's parameters through the block's own latents has the squared weight, the path through
  the latents before the block the plain weight, and there are no scores. Its expectation is that of
  fivo's gradient if the steps of resampling are fixed. If the effective sample size decides, a
  block ends sooner or later as its own latents move; both leave out what this jump contributes, and
  their expectations differ. The model is evaluated once a step; if there are several blocks of
  several steps, `proposal` and `next_state` are evaluated twice.

  As is usual, both leave out the contribution of the choice of ancestors to the gradient of the
  bound's expectation, which has a high variance. `resampling_gradient` adds it.

  The model is any object with these methods, for x = observations[:, t] of shape [batch_size, ...]
  and latents z of shape [num_particles, batch_size, ...]:

  - `initial_state(batch_size)`: the state that the model carries from step to step besides z, a
    structure of Tensors [batch_size, ...], or None.
  - `prior(z_previous, state)`: p(z_t | past), a tfp distribution of batch shape [num_particles,
    batch_size]. In the first step z_previous is None and the batch shape is [batch_size] or [].
  - `proposal(x, z_previous, state)`: q(z_t | x_t, past), reparameterized, of the same batch shape;
    [batch_size] if it is the same for all particles, as in the first step.
  - `likelihood(z, state)`: p(x_t | z_t, past), of batch shape [num_particles, batch_size].
  - `next_state(state, z, x)`: the state after the step.

  A state has the shape [num_particles, batch_size, ...], except that `prior` and `proposal` receive
  the initial state unchanged. The methods may be called several times a step, so they must not draw
  noise or have side effects.

  Args:
    bound: "iwae", "iwae_dreg" (without resampling), "fivo" or "fivo_dreg".
    model: see above.
    observations: a Tensor of shape [batch_size, T, ...], or a structure of them.
    num_particles: K, a positive int.
    resampling: "systematic", "stratified" or "multinomial".
    resample_when: "always" (before every step but the first); "never"; an int n, every n steps; a
      sequence of ints, the steps before which to resample, counted from 0; or a number in
      (0, 1), before each step at which the effective sample size of the block's weights is below
      this fraction of K. iwae and iwae_dreg never resample: omit this argument and `resampling`.
    seed: an int or a stateless seed of shape [2]; None draws new samples at every call. Step t uses
      a seed derived from it and t.
    lengths: the number of steps of each sequence, ints [batch_size] from 0 to T; None for T.
      Observations beyond it are ignored.
    resampling_gradient: whether to add the contribution of the choice of ancestors, as a score with
      a baseline: (R - B) dlog P(ancestors), where R is the sum of the later blocks' values and B
      the mean of the earlier steps' values times the number of steps left. This makes the gradient
      unbiased. It needs multinomial resampling at fixed steps.

  Returns:
    An `Estimate`. A sequence whose particles all have weight 0 has the bound -inf and gradient 0.

  Raises:
    TypeError: if num_particles is not an int, or the proposal is not a distribution.
    ValueError: if an argument is not as described, arguments cannot be combined, or a distribution
      has a wrong shape or is not reparameterized.
  """
  row = catalogue.sequence_row(bound)
  num_particles = evaluation.check_int("num_particles", num_particles, at_least=1)
  schedule = schedule_for(bound, resampling, resample_when, resampling_gradient)
  observations = tf.nest.map_structure(tf.convert_to_tensor, observations)
  batch_size, num_steps = _sizes(observations)
  lengths = None if lengths is None else check_lengths(lengths, observations)
  needs = steps.Needs(
    bound_name=bound,
    gates=row.gradient == "dreg",
    past=schedule.is_due is not None,
    blocks=schedule.has_long_blocks,
    score=resampling_gradient,
  )
  seed = seeds.stateless(seed)
  particle_filter = filtering.ParticleFilter(
    model, observations, lengths, num_particles, seed, resampling, schedule, needs
  )
  outputs, state = particle_filter.run(batch_size, num_steps)
  value = outputs.closed[-1] + importance_weights.log_mean(outputs.log_weights[-1])
  total = surrogates.total(outputs, value, num_steps if lengths is None else lengths, needs)
  return Estimate(
    # x - stop_gradient(x) is exactly 0, so the value keeps its digits.
    value + (total - tf.stop_gradient(total)),
    outputs.log_weights,
    outputs.samples,
    outputs.ancestors,
    importance_weights.effective_sample_size(tf.transpose(outputs.log_weights, [1, 0, 2])),
    state,
    lengths,
  )


def take_two_steps(model: Any, observations: Any) -> list[tf.Tensor]:
  """Takes the first two steps with one particle, so that a model can create its variables.

  Args:
    model: as `estimate` takes it.
    observations: [batch_size, T, ...]; only those of the first step are used.

  Returns:
    The log-weights of both steps, each [1, batch_size].
  """
  x = tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf)[:, 0], observations)
  needs = steps.Needs("fivo", gates=False, past=True, blocks=False, score=False)
  stepper = steps.Stepper(model, x, 1, tf.zeros([2], tf.int32), needs)
  state = model.initial_state(tf.shape(tf.nest.flatten(x)[0])[0])
  first = stepper.take(steps.before_first(state, needs))
  return [first.log_weights, stepper.take(first.lineage).log_weights]


def schedule_for(
  bound: str, resampling: str, resample_when: Any, resampling_gradient: bool = False
) -> resample.Schedule:
  """Makes the schedule of a bound; the arguments are those of `estimate`.

  Raises:
    ValueError: if an argument is not valid, or they cannot be combined.
  """
  row, scheme = catalogue.sequence_row(bound), resampling
  if scheme not in catalogue.RESAMPLING:
    allowed = ", ".join(catalogue.RESAMPLING)
    raise ValueError(f"resampling must be one of {allowed}, got {scheme!r}.")
  schedule = resample.schedule(resample_when)
  if not row.resamples:
    if scheme != catalogue.RESAMPLING[0] or resample_when not in ("always", "never"):
      raise ValueError(
        f"{bound} never resamples: leave out resampling and resample_when, got {scheme!r} and "
        f"{resample_when!r}."
      )
    schedule = resample.schedule("never")
  if resampling_gradient and not (
    scheme == "multinomial" and schedule.is_fixed and schedule.is_due is not None
  ):
    raise ValueError(
      "resampling_gradient needs fivo or fivo_dreg with resampling='multinomial' at fixed steps, "
      f"got {bound} with resampling={scheme!r}, resample_when={resample_when!r}."
    )
  return schedule


def _sizes(observations: Any) -> tuple[tf.Tensor, int | tf.Tensor]:
  """Returns the batch size and the number of steps, the latter as an int if it is static."""
  leaves = tf.nest.flatten(observations)
  sizes = tf.TensorShape([None, None])
  for leaf in leaves:
    if leaf.shape.rank is None or leaf.shape.rank < 2 or leaf.shape[1] == 0:
      raise ValueError(
        f"observations must have the shape [batch_size, num_steps, ...], got {leaf.shape}."
      )
    if not sizes.is_compatible_with(leaf.shape[:2]):
      raise ValueError(
        "observations must all have the same [batch_size, num_steps, ...], got "
        f"{', '.join(str(each.shape) for each in leaves)}."
      )
    sizes = sizes.merge_with(leaf.shape[:2])
  shape = tf.shape(leaves[0])
  return shape[0], shape[1] if sizes[1] is None else sizes[1]


def check_lengths(lengths: Any, observations: Any) -> tf.Tensor:
  """Returns lengths as int32 [batch_size].

  Args:
    lengths: the number of steps of each sequence, ints [batch_size].
    observations: Tensors [batch_size, T, ...].

  Raises:
    ValueError: if they are not of this form, or not from 0 to T; in a graph, where their values are
      not known, its execution raises an InvalidArgumentError, except under XLA.
  """
  leaf = tf.nest.flatten(observations)[0]
  lengths = tf.convert_to_tensor(lengths)
  if not (lengths.dtype.is_integer and lengths.shape.is_compatible_with(leaf.shape[:1])):
    raise ValueError(
      f"lengths must be ints of shape [batch_size] = {leaf.shape[:1]}, got {lengths.dtype.name}, "
      f"shape {lengths.shape}."
    )
  num_steps = tf.cast(tf.shape(leaf)[1], lengths.dtype)
  is_right = (lengths >= 0) & (lengths <= num_steps)
  values, known = tf.get_static_value(lengths), tf.get_static_value(is_right)
  if known is not None and not known.all():
    raise ValueError(
      f"lengths must be from 0 to num_steps = {leaf.shape[1]}, got {values[~known][0]}."
    )
  # XLA has no strings, so the name is the message.
  name = "lengths_must_be_from_0_to_num_steps"
  with tf.control_dependencies(
    [tf.debugging.Assert(tf.reduce_all(is_right), [lengths], name=name)]
  ):
    return tf.cast(lengths, tf.int32)
