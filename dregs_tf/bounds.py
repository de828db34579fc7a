"""The paper on one page: every estimator is a value and three coefficients per sample.

Tucker, Lawson, Gu and Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo
Objectives" (ICLR 2019, https://arxiv.org/abs/1810.04152). Every estimator there is the gradient of
a surrogate that is linear in its samples,

    sum_i  a_i log p~(x, z_i)  +  b_i log w^_i  +  c_i log q~(z_i | x),

where a, b, c are numbers (functions of the log-weights, stopped), a tilde stops the gradient
through z, and a hat stops the gradient to the parameters but not through z. So `a` weighs the
model's gradient, `b` the path through the samples and `c` the score of the proposal.

A `Bound` is a value F of the log-weights (`dregs_tf/objectives.py`) with a gradient: a, b, c as
functions of u = F_i and v = F_i - F_ii. `_GRADIENTS` below has all of them, `dregs_tf/catalogue.py`
lists the bounds by name, and `estimate` turns one into a gradient in one pass of the model.
"""

import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import catalogue, evaluation, gradients, objectives, seeds, selection
from dregs_tf.evaluation import at_least_float32, log_likelihood
from dregs_tf.objectives import Terms
from dregs_tf.proposals import Requirement

__all__ = [
  "Bound",
  "Coefficients",
  "Estimate",
  "Mix",
  "as_bound",
  "estimate",
  "get",
  "log_likelihood",
  "names",
]

tfd = tfp.distributions


class Coefficients(NamedTuple):
  """a, b, c of the surrogate, Tensors of shape [num_samples, batch_size], stopped."""

  model: tf.Tensor
  path: tf.Tensor
  score: tf.Tensor


class Mix(NamedTuple):
  """A gradient whose coefficients mix u, v and u - v: a = u, b = v v + d (u - v), c = s u.

  v, difference, score: the factors v, d, s; numbers, or scalar Tensors. So the proposal's gradient
    is v dreg + d wake_dreg + s wake of the same value, sample by sample.
  is_normalized: whether b is divided by its sum over the samples.
  """

  v: Any
  difference: Any
  score: float
  is_normalized: bool = False

  @property
  def _numbers(self) -> tuple[float | None, ...]:
    """Returns the factors, without those that are Tensors: their values may not be known."""
    return tuple(factor if isinstance(factor, numbers.Real) else None for factor in self[:3])

  @property
  def requirement(self) -> Requirement:
    """What it asks of a proposal; a total derivative stops nothing."""
    if self._numbers[:2] == (0, 0):
      return Requirement.LOG_PROB
    return Requirement.REPARAMETERIZED if self.is_total else Requirement.FIXED_SUPPORT

  @property
  def is_total(self) -> bool:
    """Whether a = b = -c: the surrogate is sum_i a_i log w_i, the value's total derivative."""
    return self._numbers == (1, 1, -1)

  def is_unbiased(self, is_linear: bool) -> bool:
    """Returns whether it is for any proposal, of a value that is linear in the log-weights or not.

    It is where the value is differentiated as it stands, and where the second reparameterization
    has made the score a path (Eq. 7). Where u = v is a constant, the score has the mean 0.
    """
    if is_linear:
      return self._numbers[0] == 1
    return self.is_total or (self._numbers == (1, 0, 0) and not self.is_normalized)

  def coefficients(self, terms: Terms) -> Coefficients:
    """Returns a, b, c, each [num_samples, batch_size]."""
    if self._numbers[:2] == (1, 1):
      b = terms.u
    else:
      v, difference = (_as_scalar(factor, terms.u.dtype) for factor in self[:2])
      b = v * terms.v + difference * terms.difference
    if self.is_normalized:
      b = tf.math.divide_no_nan(b, tf.reduce_sum(b, axis=0))  # 0 where every term is 0
    return Coefficients(terms.u, b, self.score * terms.u)


# fmt: off
_GRADIENTS = {
  # b is           v  u-v   c: times u
  "total":     Mix(1, 1,    -1),  # Eq. 11: the plain reparameterization
  "dreg":      Mix(1, 0,     0),  # Eqs. 7, 12: the second reparameterization
  "stl":       Mix(1, 1,     0),  # Eq. 15
  "wake":      Mix(0, 0,     1),  # Eqs. 8, 13: the wake update
  "wake_dreg": Mix(0, 1,     0),  # Eqs. 9, 14
  "alpha":     lambda alpha: Mix(1 - alpha, alpha, 0),  # Eqs. 10, 16
  "dreg_norm":      Mix(1, 0, 0, is_normalized=True),  # the authors' released code
  "wake_dreg_norm": Mix(0, 1, 0, is_normalized=True),
}
# fmt: on


def _as_scalar(value, dtype: tf.DType):
  """Returns a number as it is, a Tensor or Variable cast to `dtype`."""
  return value if isinstance(value, numbers.Real) else tf.cast(value, dtype)


@dataclasses.dataclass(frozen=True)
class Bound:
  """A bound on log p(x) with an estimator of its gradient. `get` has the published ones.

  Two bounds are equal if their names and options are.

  name: what tables and logs call it.
  objective: the value's `Terms` from log-weights [num_samples, batch_size].
  make_gradient: returns the gradient; called at each use, so that options may be Variables.
  options: pairs of names and values.
  min_samples: the smallest num_samples that it is defined for.
  linear_up_to: up to how many samples the value is linear in the log-weights.
  label, source: what figures call it, and where it was published.
  total: the bound of the same value whose gradient is the total derivative, unbiased; by default
    this one.
  """

  name: str
  objective: Callable[[tf.Tensor], Terms] = dataclasses.field(compare=False, repr=False)
  make_gradient: Callable[[], Mix] = dataclasses.field(compare=False, repr=False)
  options: tuple[tuple[str, Any], ...] = ()
  min_samples: int = dataclasses.field(default=1, compare=False, repr=False)
  linear_up_to: float = dataclasses.field(default=0, compare=False, repr=False)
  label: str = dataclasses.field(default="", compare=False, repr=False)
  source: str = dataclasses.field(default="", compare=False, repr=False)
  total: "Bound" = dataclasses.field(default=None, compare=False, repr=False)

  def __post_init__(self):
    if self.total is None:
      object.__setattr__(self, "total", self)

  @property
  def gradient(self) -> Mix:
    """How the gradient is estimated, with the options as they are now."""
    return self.make_gradient()

  def is_unbiased(self, num_samples: int) -> bool:
    """Returns whether the expectation of the gradient is the gradient of the expected value.

    So for any proposal with samples that are differentiable in its parameters, and log p(x, z) that
    is continuous in z; the second reparameterization also needs a support that no parameter moves,
    which `estimate` checks.
    """
    return self.gradient.is_unbiased(is_linear=num_samples <= self.linear_up_to)

  def value(self, log_weights: tf.Tensor) -> tf.Tensor:
    """Returns the bound in nats, [batch_size], from log_weights [num_samples, batch_size]."""
    return self.value_and_coefficients(log_weights)[0]

  def coefficients(self, log_weights: tf.Tensor) -> Coefficients:
    """Returns a, b, c, each [num_samples, batch_size], from log_weights of that shape."""
    return self.value_and_coefficients(log_weights)[1]

  @tf.autograph.experimental.do_not_convert
  def value_and_coefficients(self, log_weights: tf.Tensor) -> tuple[tf.Tensor, Coefficients]:
    """Returns `value` and `coefficients` at the cost of one; both are stopped."""
    log_weights = at_least_float32(tf.stop_gradient(tf.convert_to_tensor(log_weights)))
    if log_weights.shape[0] is not None:
      check_num_samples(log_weights.shape[0], self, "axis 0 of log_weights")
    value, *weights = self.objective(log_weights)
    # A sample of weight 0 has no say, also where the weights are 1/K.
    no_weight = log_weights == -math.inf
    weights = (tf.where(no_weight, tf.zeros_like(weight), weight) for weight in weights)
    coefficients = self.gradient.coefficients(Terms(value, *weights))
    return tf.stop_gradient(value), Coefficients(*map(tf.stop_gradient, coefficients))


def names() -> tuple[str, ...]:
  """Returns the names that `get` takes."""
  return tuple(catalogue.BOUNDS)


def get(name: str, **options) -> Bound:
  """Returns the published bound called `name`.

  Args:
    name: one of `names()`.
    **options: `alpha` in [0, 1] for dreg_alpha: the weight of RWS-DReG against IWAE-DReG, 0.9 by
      default; may be a scalar Tensor or Variable. `order` of 0 or more for jvi and jvi_dreg, 1 by
      default.

  Raises:
    ValueError: if there is no such bound, if it does not take the option, or the option's value
      is out of range.
  """
  options = catalogue.options_of(name, options)
  row = catalogue.BOUNDS[name]
  gradient = _GRADIENTS[row.gradient]
  objective = _with_options(getattr(objectives, row.objective), options)
  total = catalogue.total_of(name)
  return Bound(
    name,
    objective=objective,
    make_gradient=_with_options(gradient, options) if callable(gradient) else lambda: gradient,
    options=tuple(sorted(options.items())),
    min_samples=row.min_samples(**options),
    linear_up_to=catalogue.linear_up_to(name),
    label=row.label,
    source=row.source,
    total=None if name == total else get(total, **objective.keywords),
  )


def _with_options(function: Callable, options: dict[str, Any]) -> functools.partial:
  """Returns the function with those of the options that it takes."""
  taken = inspect.signature(function).parameters
  return functools.partial(function, **{k: v for k, v in options.items() if k in taken})


def as_bound(bound: Bound | str) -> Bound:
  """Returns a Bound, given one or its name.

  Raises:
    TypeError: if it is neither; ValueError if there is no bound of that name.
  """
  bound = get(bound) if isinstance(bound, str) else bound
  if not isinstance(bound, Bound):
    raise TypeError(f"bound must be a Bound or one of {', '.join(names())}, got {bound!r}.")
  return bound


class Estimate(NamedTuple):
  """What `estimate` returns.

  objective: [batch_size]; its value is the bound in nats, its gradient the estimator's. Maximize
    it, by first derivatives: the coefficients are stopped, so its second ones are not the bound's.
  log_weights: [num_samples, batch_size], in nats, stopped.
  samples: [num_samples, batch_size, ...], or a structure of such Tensors.
  """

  objective: tf.Tensor
  log_weights: tf.Tensor
  samples: Any


def estimate(
  bound: Bound | str,
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  proposal: tfd.Distribution,
  num_samples: int,
  seed=None,
  stopped_proposal=None,
  num_backward_samples: int | None = None,
) -> Estimate:
  """Estimates a bound and its gradient for each example with one evaluation of the model.

  Eqs. 11-17 write log p(x, z) twice, once stopped in z and once in the parameters. Here it is
  evaluated once, at samples whose gradient a gate scales by b / a: weighed by a, the model's
  parameters receive a and the path receives b, shared parameters included.

  Args:
    bound: a `Bound`, or a name that `get` takes.
    target_log_prob_fn: log p(x, z) as a function of samples [num_samples, batch_size, ...], of
      shape [num_samples, batch_size]. `num_backward_samples` has it called with fewer, too.
    proposal: q(z | x), of batch shape [batch_size]. A bound with a path takes a reparameterized
      distribution, one whose path is reparameterized twice also a support that no parameter moves;
      `rws` takes any, discrete ones too.
    num_samples: K, a positive int; for JVI more than its order.
    seed: an int or a stateless seed of shape [2]: the same seed draws the same samples. None draws
      new ones at every call.
    stopped_proposal: the proposal with its parameters stopped, of which only `log_prob` is used.
      Without it, `dregs_tf.stop_parameters` makes one, or `dregs_tf.PathOnly` where that cannot.
    num_backward_samples: M of at most K; None for all. The value takes all K samples, the gradient
      a random M of them, heavy ones for certain: cheaper, and unbiased for the gradient of all K
      (see `dregs_tf/selection.py`).

  Returns:
    An `Estimate`. Log-weights, values and coefficients are float32 or better. The objective is to
    be differentiated once: its second derivatives are not the bound's, and forward-mode autodiff
    is refused where a gate is needed.

  Raises:
    TypeError: if `proposal` is not a distribution or `num_samples` not an int.
    ValueError: if num_samples is too small for the bound, the proposal is none that the bound
      takes, or target_log_prob_fn returns a wrong shape.
  """
  bound = as_bound(bound)
  check_num_samples(num_samples, bound)
  check_num_backward_samples(num_backward_samples, num_samples)
  seed = seeds.stateless(seed)
  given = proposal
  requirement = bound.gradient.requirement
  proposal, samples = evaluation.draw(proposal, num_samples, seed, requirement, bound.name)
  if stopped_proposal is not None and stopped_proposal in (given, proposal):
    raise ValueError(
      "stopped_proposal is the proposal itself, with nothing stopped: build it from parameters "
      "under tf.stop_gradient, or leave it out."
    )
  stopped = functools.partial(_stopped, proposal, stopped_proposal)
  if num_backward_samples in (None, num_samples):
    log_p, log_q, set_ratio = _evaluate(requirement, target_log_prob_fn, proposal, stopped, samples)
    log_p, log_q = evaluation.same_shape(log_p, log_q, num_samples)
    log_weights = evaluation.stopped_log_weights(log_p, log_q, num_samples)
    value, (a, b, c) = bound.value_and_coefficients(log_weights)
  else:
    log_weights = evaluation.log_weights_without_recording(
      target_log_prob_fn, proposal, samples, num_samples
    )
    value, coefficients = bound.value_and_coefficients(log_weights)
    chosen, (a, b, c) = selection.select(coefficients, num_backward_samples, seeds.fold_in(seed, 1))
    recorded = tf.nest.map_structure(lambda z: selection.take(z, chosen), samples)
    log_p, log_q, set_ratio = _evaluate(
      requirement, target_log_prob_fn, proposal, stopped, recorded
    )
    log_p, log_q = evaluation.same_shape(log_p, log_q, num_backward_samples)

  if set_ratio:
    a, ratio = _finite_ratio(a, b)
    set_ratio(ratio)
  # 0 * -inf is 0 here: a sample of weight 0 adds nothing.
  surrogate = tf.math.multiply_no_nan(log_p, a) + tf.math.multiply_no_nan(
    log_q, -b if requirement > Requirement.LOG_PROB else c
  )
  surrogate = tf.reduce_sum(surrogate, axis=0)
  return Estimate(value + (surrogate - tf.stop_gradient(surrogate)), log_weights, samples)


def _evaluate(requirement: Requirement, target_log_prob_fn, proposal, stopped, samples):
  """Evaluates log p and log q with the gradients that the bound's surrogate needs, and the gate.

  log p is differentiable in the model's parameters, and in the samples behind a gate whose ratio
  the third result sets; it is None where there is nothing to set. log q is q itself for a total
  derivative, q~ where only the score counts, and q^ otherwise.
  """
  set_ratio = None
  if requirement == Requirement.REPARAMETERIZED:
    log_q, gated = proposal.log_prob(samples), samples
  elif requirement == Requirement.LOG_PROB:
    gated = tf.nest.map_structure(tf.stop_gradient, samples)
    log_q = proposal.log_prob(gated)
  else:
    # New tensors: a bijector's cache would answer for the old ones, past the stopped parameters.
    log_q = stopped().log_prob(tf.nest.map_structure(tf.identity, samples))
    gated, set_ratio = gradients.gate(samples)
  return target_log_prob_fn(gated), log_q, set_ratio


def _stopped(proposal: tfd.Distribution, stopped_proposal):
  """Returns the proposal with its parameters stopped: the one given, rebuilt, or wrapped."""
  if stopped_proposal is not None:
    return stopped_proposal
  try:
    return gradients.stop_parameters(proposal)
  except ValueError:  # functions and networks, out of reach from outside
    return gradients.PathOnly(proposal)


def _finite_ratio(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """a and b / a, finite where a vanishes, as JVI's can: there a becomes too small to matter."""
  tiny = tf.constant(1e-20 if a.dtype == tf.float32 else 1e-100, a.dtype)
  a = tf.where(tf.logical_and(tf.abs(a) < tiny, tf.not_equal(b, 0)), tiny, a)
  return a, tf.math.divide_no_nan(b, a)


def check_num_samples(num_samples: int, bound: Bound, argument: str = "num_samples") -> None:
  """Raises unless `num_samples` is an int that `bound` is defined for; `argument` names it."""
  if isinstance(num_samples, bool) or not hasattr(num_samples, "__index__"):
    raise TypeError(f"{argument} must be an int, got {num_samples!r}.")
  if num_samples < bound.min_samples:
    raise ValueError(
      f"{argument} must be at least {bound.min_samples} for {bound.name}, got {num_samples}."
    )


def check_num_backward_samples(num_backward_samples: int | None, num_samples: int) -> None:
  """Raises unless it is None or an int from 1 to num_samples."""
  if num_backward_samples is None:
    return
  if isinstance(num_backward_samples, bool) or not hasattr(num_backward_samples, "__index__"):
    raise TypeError(f"num_backward_samples must be an int or None, got {num_backward_samples!r}.")
  if not 1 <= num_backward_samples <= num_samples:
    raise ValueError(
      f"num_backward_samples must be from 1 to num_samples={num_samples}, "
      f"got {num_backward_samples}."
    )
