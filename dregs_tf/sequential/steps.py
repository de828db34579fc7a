"""Takes one step of a particle filter: samples, log-weights, and their gradients.

The double reparameterization treats a block, the steps from one resampling to the next, as one
joint latent. With u the normalized weights of the block, its gradient is the sum over particles of

  u^2  dlog w^/dz . dT(eps; past held fixed)/dphi            the block's own latents
  u    (dlog w^/dz . dT/dpast + dlog w^/dpast) . dpast/dphi  what was drawn before the block
  u    dlog p/dtheta                                         the model

so a step carries the same particles several times, with different gradients: see `Lineage`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import proposals
from dregs_tf.evaluation import at_least_float32
from dregs_tf.sequential import gates

tfd = tfp.distributions


class Particles(NamedTuple):
  """Holds the past that a step depends on.

  z: the latents of the step before, [num_particles, batch_size, ...]; None before the first step.
  state: the model's deterministic state, a structure of Tensors [num_particles, batch_size, ...],
    [batch_size, ...] before the first step; None without one.
  """

  z: Any
  state: Any


class Lineage(NamedTuple):
  """Holds the same particles with different gradients; None if the estimator does not need them.

  whole: with every gradient; the past of later blocks.
  gated: the particles on which the block's log-weights depend. Gradients flow to the past of the
    block and, behind gates, to the parameters of the proposals of the block's own latents.
  own: the state, with gradients to the block's own parameters; all latents are held fixed.
  """

  whole: Particles | None
  gated: Particles | None = None
  own: Any = None


class Step(NamedTuple):
  """Holds the results of a step.

  log_weights: [num_particles, batch_size], in nats, with gradients.
  lineage: the particles after the step.
  ticket: zeros [num_particles, batch_size], by which gates get their ratios; None without gates.
  score: log q of the stopped latents, [num_particles, batch_size]; None unless it is needed.
  """

  log_weights: tf.Tensor
  lineage: Lineage
  ticket: tf.Tensor | None = None
  score: tf.Tensor | None = None


class Needs(NamedTuple):
  """Describes what an estimator needs from a step.

  bound_name: the bound's name, for messages.
  gates: whether blocks are doubly reparameterized.
  past: whether there are several blocks, which need `whole`.
  blocks: whether a block can have several steps, which need `gated` and `own`.
  score: whether the gradient has scores.
  """

  bound_name: str
  gates: bool
  past: bool
  blocks: bool
  score: bool


def map_tensors(function: Callable, *structures: Any) -> Any:
  """Maps a function over the Tensors of structures of the same form; None stays."""
  return tf.nest.map_structure(lambda *t: None if t[0] is None else function(*t), *structures)


def stop(structure: Any) -> Any:
  """Returns the structure without gradients."""
  return map_tensors(tf.stop_gradient, structure)


def _with_gradient(value: Any, branch: Any) -> Any:
  """Returns `value` with the gradient of `branch`, of the same value, added to its own."""

  def of_tensor(value, branch):
    # x - stop_gradient(x) is exactly 0, so the value keeps its digits.
    return value + (branch - tf.stop_gradient(branch)) if value.dtype.is_floating else value

  return map_tensors(of_tensor, value, branch)


def before_first(state: Any, needs: Needs) -> Lineage:
  """Returns the particles before the first step; the initial state belongs to the first block."""
  particles = Particles(None, state)
  if not needs.gates:
    return Lineage(particles)
  return Lineage(particles if needs.past else None, stop(particles), state)


def begin_block(lineage: Lineage, resampled: Particles, is_due: tf.Tensor, needs: Needs) -> Lineage:
  """Returns the resampled particles; starts a new block where is_due, bools [batch_size]."""
  if not needs.gates:
    return Lineage(resampled)
  new = Lineage(resampled, resampled, stop(resampled.state))
  return choose(is_due, new, lineage) if needs.blocks else new


def unless_ended(going: tf.Tensor, after: Lineage, before: Lineage) -> Lineage:
  """Returns the particles after a step; where `going`, bools [batch_size], is False, before it."""
  pairs = zip(after, before, strict=True)
  return Lineage(*(None if new is None else choose(going, new, old) for new, old in pairs))


def choose(condition: tf.Tensor, one: Any, other: Any) -> Any:
  """Chooses examples, Tensors [num_particles, batch_size, ...], by bools [batch_size]."""

  def of_tensor(one, other):
    shape = [1, -1, *[1] * (one.shape.rank - 2)]
    return tf.where(tf.reshape(condition, shape), one, other)

  return map_tensors(of_tensor, one, other)


def state_of_each(past: Particles, num_particles: int) -> Any:
  """Returns the state of each particle; before the first step all have the same."""
  if past.z is not None:
    return past.state

  def of_each(tensor):
    shape = tf.concat([[num_particles], tf.shape(tensor)], axis=0)
    return tf.ensure_shape(tf.broadcast_to(tensor, shape), [num_particles, *tensor.shape])

  return map_tensors(of_each, past.state)


class Stepper(NamedTuple):
  """Draws and weighs latents of a model at one step.

  model: an object with the methods that `estimate` describes.
  x: observations [batch_size, ...].
  num_particles: K.
  seed: a stateless seed, for all noise of the step.
  needs: what the estimator needs.
  """

  model: Any
  x: Any
  num_particles: int
  seed: tf.Tensor
  needs: Needs

  def take(self, lineage: Lineage) -> Step:
    """Takes the step."""
    return self._take_doubly(lineage) if self.needs.gates else self._take_plainly(lineage)

  def _take_plainly(self, lineage: Lineage) -> Step:
    past = lineage.whole
    q, z = self._draw(past)
    log_weights = self._log_weights(z, past, self._log_prob("proposal", q, z))
    after = Particles(z, self._next_state(past, z))
    return Step(log_weights, Lineage(after), score=self._score(q, z))

  def _take_doubly(self, lineage: Lineage) -> Step:
    whole, past, own_state = lineage

    def draw(mark, z_previous, state):
      q, z = self._draw(Particles(z_previous, state))
      weighed = mark(z)  # where the gradient of log q alone arrives
      return q, z, weighed, self._log_prob("proposal", q, weighed)

    drawn = gates.Recorded(draw, stop(past.z), own_state)
    q, z_own, weighed, log_q = drawn.result
    parts = [q]
    if isinstance(q, tfd.JointDistribution):
      parts = proposals.leaves(q, q.sample_distributions(value=z_own)[0], z_own)
    proposals.check_fixed_support(parts, self.needs.bound_name)
    score = self._score(q, z_own)
    z_gated, ticket = gates.late_gate(z_own)
    z_past, log_q = drawn.through((z_own, log_q), past, weighed, z_gated)
    z = _with_gradient(z_past, z_gated)
    # The parameters of the state are also the model's, with weight u like its other parameters.
    seen = Particles(past.z, _with_gradient(past.state, own_state))
    log_weights = self._log_weights(z, seen, log_q)

    gated_after = own_after = None
    if self.needs.blocks:
      moved = gates.Recorded(
        lambda _, z, *past: self._next_state(Particles(*past), z), stop(z), stop(past.z), own_state
      )
      own_after = moved.result
      gated_after = Particles(z, moved.through(own_after, (z, *past)))
    if self.needs.past:
      # In a block of one step, `past` and `own` together have every gradient.
      z_whole = self._draw(whole)[1] if self.needs.blocks else _with_gradient(z_past, z_own)
      whole = Particles(z_whole, self._next_state(whole, z_whole))
    return Step(log_weights, Lineage(whole, gated_after, own_after), ticket, score)

  def _draw(self, past: Particles) -> tuple[tfd.Distribution, Any]:
    """Returns q(z_t | x_t, past) and samples of it, the same at every call."""
    q = proposals.unwrap(self.model.proposal(self.x, past.z, past.state))
    kinds = tf.nest.flatten(q.reparameterization_type)
    if not all(kind is tfd.FULLY_REPARAMETERIZED for kind in kinds):
      raise ValueError(
        f"proposal must be fully reparameterized for {self.needs.bound_name}, {type(q).__name__} "
        "is not: use a distribution whose samples are differentiable in its parameters."
      )
    proposals.warn_of_wrong_gradients([q])
    (batch_shape, *_) = tf.nest.flatten(q.batch_shape)
    if batch_shape.rank == 2:
      return q, q.sample(seed=self.seed)
    return q, q.sample(self.num_particles, seed=self.seed)

  def _log_weights(self, z: Any, past: Particles, log_q: tf.Tensor) -> tf.Tensor:
    """Returns log p(z_t | past) + log p(x_t | z_t, past) - log q, [num_particles, batch_size]."""
    log_prior = self._log_prob("prior", self.model.prior(past.z, past.state), z)
    likelihood = self.model.likelihood(z, state_of_each(past, self.num_particles))
    terms = [log_prior, self._log_prob("likelihood", likelihood, self.x), log_q]
    if len({term.dtype for term in terms}) > 1:
      terms = [tf.cast(term, tf.float64) for term in terms]
    return terms[0] + terms[1] - terms[2]

  def _score(self, q: tfd.Distribution, z: Any) -> tf.Tensor | None:
    return self._log_prob("proposal", q, stop(z)) if self.needs.score else None

  def _next_state(self, past: Particles, z: Any) -> Any:
    """Returns the state after the step."""
    return self.model.next_state(state_of_each(past, self.num_particles), z, self.x)

  def _log_prob(self, name: str, distribution: tfd.Distribution, value: Any) -> tf.Tensor:
    """Returns a log-density in float32 or better; raises unless it has one value per particle."""
    log_prob = at_least_float32(tf.convert_to_tensor(distribution.log_prob(value)))
    expected = [self.num_particles, tf.nest.flatten(self.x)[0].shape[0]]
    if not (log_prob.shape.rank == 2 and log_prob.shape.is_compatible_with(expected)):
      raise ValueError(
        f"{name}: log_prob must have the shape [num_particles, batch_size] = {expected}, got "
        f"{log_prob.shape}. If event axes remain, wrap the distribution in tfd.Independent."
      )
    return log_prob
