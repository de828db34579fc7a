"""Checks proposals and priors: unwraps them, refuses those for which an estimator would be wrong.

An estimator with a gradient along the samples needs a reparameterized proposal. The second
reparameterization also needs the mean of the score, E_q[dlog q / dphi], to be 0. It is 0 if the
support is fixed: differentiate int q dz = 1 under the integral. If an end of the support moves with
a parameter, as for a Uniform, the end adds a term that no sample captures.
"""

import enum
import numbers
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

# Says whether a tape records computations with a Tensor. Private; checked in TensorFlow 2.21.
from tensorflow.python.eager import record

from dregs_tf import gradients

tfb = tfp.bijectors
tfd = tfp.distributions


class Requirement(enum.Flag):
  """Names what an estimator requires of a proposal, besides a log_prob."""

  NOTHING = 0
  PATH = enum.auto()  # samples that are differentiable in the parameters
  FIXED_SUPPORT = enum.auto()  # a support that does not depend on parameters: E_q[score] = 0


# The parameters that are ends of a distribution's support.
_ENDS = {
  tfd.GeneralizedPareto: ("loc",),
  tfd.HalfCauchy: ("loc",),
  tfd.HalfStudentT: ("loc",),
  tfd.Pareto: ("scale",),
  tfd.Triangular: ("low", "high"),
  tfd.TruncatedNormal: ("low", "high"),
  tfd.Uniform: ("low", "high"),
  tfb.Sigmoid: ("low", "high"),
  tfb.SoftClip: ("low", "high"),
  tfb.Softplus: ("low",),
}

# Bijectors whose image has a finite end, which is 0 or another number.
_ONTO_POSITIVE = (tfb.Exp, tfb.Softplus, tfb.Square)
_OFF_ZERO = (tfb.Expm1, tfb.NormalCDF, tfb.Sigmoid, tfb.SoftClip, tfb.SoftmaxCentered, tfb.Tanh)

# Distributions that TFP marks as reparameterized, but whose samples have wrong derivatives.
_WRONG_SAMPLE_GRADIENTS = (
  tfd.InverseGaussian,
  tfd.NormalInverseGaussian,
  tfd.TruncatedNormal,
)


def unwrap(proposal: Any) -> tfd.Distribution:
  """Returns the distribution inside TFP's wrappers that create it lazily, or the proposal itself.

  `tfp.experimental.vi.build_*_surrogate_posterior`, `make_trainable` and layers of `tfp.layers`
  return such wrappers.

  Raises:
    TypeError: if it is not a distribution.
  """
  if isinstance(proposal, tfp.experimental.util.DeferredModule):
    return unwrap(proposal._build_module())  # Private; checked in TFP 0.25.
  if not isinstance(proposal, tfd.Distribution):
    raise TypeError(f"proposal must be a tfp Distribution, got {type(proposal).__name__}.")
  return vars(proposal).get("tensor_distribution", proposal)


def has_path(proposal: tfd.Distribution) -> bool:
  """Returns whether the samples, or some parts of them, are differentiable in the parameters."""
  kinds = tf.nest.flatten(proposal.reparameterization_type)
  return any(kind is tfd.FULLY_REPARAMETERIZED for kind in kinds)


def discrete_parts(proposal: tfd.Distribution, bound_name: str) -> tuple[bool, ...]:
  """Returns which parts of a joint proposal are not reparameterized, if some are not.

  Returns:
    A bool for each part, in the order of the model; () if the whole proposal is reparameterized.

  Raises:
    ValueError: if no part is reparameterized, if the proposal has no parts, or if a part that is
      not reparameterized depends on one that is: its score would have a path.
  """
  kinds = tf.nest.flatten(proposal.reparameterization_type)
  is_path = [kind is tfd.FULLY_REPARAMETERIZED for kind in kinds]
  if all(is_path):
    return ()
  if not any(is_path) or not hasattr(proposal, "resolve_graph"):
    raise ValueError(
      f"proposal must be fully reparameterized for {bound_name}, {type(proposal).__name__} is not: "
      "use a distribution whose samples are differentiable in its parameters. A MixtureSameFamily "
      "needs reparameterize=True, and components such as tfd.Independent(tfd.Normal(...)). "
      "vimco_star, vimco, ovis, rws and elbo_loo take any proposal."
    )
  graph = proposal.resolve_graph()
  parts = proposal._model_flatten(proposal.reparameterization_type)  # Private; checked in TFP 0.25.
  is_discrete = []
  for (name, parents), part in zip(graph, parts, strict=True):
    own = {kind is tfd.FULLY_REPARAMETERIZED for kind in tf.nest.flatten(part)}
    if len(own) > 1:
      raise ValueError(f"proposal: {name} has parts of its own, some reparameterized and some not.")
    is_discrete.append(own == {False})
    paths = [n for (n, _), discrete in zip(graph, is_discrete, strict=False) if not discrete]
    moved = [parent for parent in parents if parent in paths]
    if own == {False} and moved:
      raise ValueError(
        f"proposal: {name} is not reparameterized and depends on {moved[0]}, which is: its "
        f"score would have a path, which {bound_name} leaves out. Draw {name} first."
      )
  return tuple(is_discrete)


def leaves(joint: tfd.JointDistribution, parts: Any, samples: Any) -> list[tfd.Distribution]:
  """Returns the conditionals of a joint distribution, also those of joint ones inside it.

  Args:
    joint: the joint distribution.
    parts: its conditionals given the samples, as `sample_distributions` returns them.
    samples: its samples.
  """
  found = []
  for part, sample in zip(*map(joint._model_flatten, (parts, samples)), strict=True):
    if isinstance(part, tfd.JointDistribution):
      found += leaves(part, part.sample_distributions(value=sample)[0], sample)
    else:
      found.append(part)
  return found


def check_fixed_support(distributions: list[tfd.Distribution], bound_name: str) -> None:
  """Raises a ValueError if a learned parameter moves the support of a distribution.

  A parameter counts as learned if a tape records it. Without a tape, trainable variables do, the
  arguments of a function, and Tensors computed from them; in eager mode, every Tensor does, since
  its origin is unknown.
  """
  for distribution in distributions:
    for name in _moving_ends(distribution):
      raise ValueError(
        f"proposal: {name} moves the support of {type(distribution).__name__}, so E_q[score] is "
        f"not 0, which {bound_name} relies on: it would be biased. A total derivative (iwae, jvi, "
        "elbo) takes this proposal. If the end is not learned, pass it as a number or, under a "
        "tape or in a tf.function, through tf.stop_gradient."
      )


def at_prior(prior: tfd.Distribution, samples: Any) -> tuple[Any, tf.Tensor]:
  """Returns samples as functions of a prior's parameters, and log p of its parts at them.

  The samples come from `gradients.reparameterize`. Log p, [num_samples, batch_size], is the sum of
  the prior's conditionals: its gradient flows into the samples, never into parents or parameters.

  Raises:
    TypeError: if the prior is not a distribution.
    ValueError: if it cannot be reparameterized, or a learned parameter moves its support.
  """
  if not isinstance(prior, tfd.Distribution):
    raise TypeError(f"prior must be a tfp Distribution, got {type(prior).__name__}.")
  try:
    moved, parts = gradients.reparameterize_parts(prior, samples)
  except ValueError as error:
    raise ValueError(f"prior: {error} Or use the direct gradient.") from error
  for part, _ in parts:
    for name in _moving_ends(part):
      raise ValueError(
        f"prior: {name} moves the support of {type(part).__name__}, so samples of the proposal "
        "cannot be functions of it. Use the direct gradient."
      )
  return moved, tf.add_n([gradients.PathOnly(part).log_prob(z) for part, z in parts])


def warn_of_wrong_gradients(distributions: list[tfd.Distribution]) -> None:
  """Warns of distributions whose samples have wrong derivatives in this version of TFP."""
  for distribution in distributions:
    for part in _parts(distribution):
      if isinstance(part, _WRONG_SAMPLE_GRADIENTS):
        warnings.warn(
          f"proposal: TensorFlow Probability {tfp.__version__} marks {type(part).__name__} as "
          "reparameterized, but the derivatives of its samples are wrong, and so is every gradient "
          "through them (checked in 0.25.0).",
          stacklevel=4,
        )


def _parts(distribution: tfd.Distribution) -> Iterator[tfd.Distribution]:
  """Yields the distribution and its component distributions."""
  yield distribution
  parameters = distribution.parameters
  for name in ("distribution", "distributions", "components_distribution", "components"):
    for part in tf.nest.flatten(parameters.get(name)):
      if isinstance(part, tfd.Distribution):
        yield from _parts(part)


def _moving_ends(distribution: tfd.Distribution) -> Iterator[str]:
  """Yields the learned parameters that move an end of a support, as `Kind.parameter`."""
  for part in _parts(distribution):
    yield from _learned_ends(part)
    if isinstance(part, gradients.TRANSFORMED):
      yield from _ends_moved_by(list(_in_order(part.bijector)), part.distribution)


def _ends_moved_by(steps: list[tfb.Bijector], base: tfd.Distribution) -> Iterator[str]:
  """Yields the learned parameters of bijectors that move an end of the image of `base`."""
  before = []
  if any(isinstance(step, (tfb.Shift, tfb.Scale)) for step in steps):
    before = list(_in_order(base.experimental_default_event_space_bijector()))
  for step in steps:
    yield from _learned_ends(step)
    ends = [i for i, s in enumerate(before) if isinstance(s, _ONTO_POSITIVE + _OFF_ZERO)]
    since = before[ends[0] :] if ends else []
    is_off_zero = any(isinstance(s, (tfb.Shift, *_OFF_ZERO)) for s in since)
    if ends and isinstance(step, tfb.Shift) and _is_learned(step.parameters["shift"]):
      yield "Shift.shift"
    if is_off_zero and isinstance(step, tfb.Scale) and _is_learned(step.parameters["scale"]):
      yield "Scale.scale"
    before.append(step)


def _in_order(bijector: tfb.Bijector) -> Iterator[tfb.Bijector]:
  """Yields the steps of a bijector in the order in which they are applied."""
  if isinstance(bijector, gradients.CHAIN):
    for step in reversed(bijector.bijectors):
      yield from _in_order(step)
  else:
    yield bijector


def _learned_ends(part) -> Iterator[str]:
  """Yields the learned ends of a distribution's or a bijector's own support."""
  for kind, names in _ENDS.items():
    if isinstance(part, kind):
      for name in names:
        if _is_learned(part.parameters.get(name)):
          yield f"{kind.__name__}.{name}"


def _is_learned(parameter) -> bool:
  """Returns whether a gradient may be taken in the parameter, see `check_fixed_support`."""
  if parameter is None or isinstance(parameter, (numbers.Number, np.ndarray, np.generic, list)):
    return False
  if isinstance(parameter, tf.Variable) and not parameter.trainable:
    return False
  tensor = tf.convert_to_tensor(parameter)
  if record.could_possibly_record():
    return record.should_record_backprop([tensor])
  return tf.executing_eagerly() or _reads_variable(tensor)


def _reads_variable(tensor: tf.Tensor) -> bool:
  """Returns whether a symbolic Tensor is computed, differentiably, from a variable or argument."""
  if tensor.dtype == tf.resource:
    return True
  if not tensor.dtype.is_floating or tensor.op.type == "StopGradient":
    return False
  return tensor.op.type == "Placeholder" or any(map(_reads_variable, tensor.op.inputs))
