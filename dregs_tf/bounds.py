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

from dregs_tf import (
  catalogue,
  evaluation,
  gradients,
  mixtures,
  objectives,
  seeds,
  selection,
  surrogate,
)
from dregs_tf.coefficients import (
  Coefficients,
  ControlVariates,
  ElboLeaveOneOut,
  Gradient,
  LeaveOneOut,
  Mix,
  Partial,
)
from dregs_tf.evaluation import at_least_float32, check_num_backward_samples, log_likelihood
from dregs_tf.objectives import Terms

__all__ = [
  "Bound",
  "Coefficients",
  "Estimate",
  "Mix",
  "as_bound",
  "estimate",
  "from_function",
  "get",
  "log_likelihood",
  "names",
]

tfd = tfp.distributions


# fmt: off
_GRADIENTS: dict[str, Any] = {
  # Mix(v, d, s): a = u,  b = v v + d (u - v),  c = s u
  "total":     Mix(1, 1,    -1),  # Eq. 11: the plain reparameterization
  "dreg":      Mix(1, 0,     0),  # Eqs. 7, 12: the second reparameterization
  "stl":       Mix(1, 1,     0),  # Eq. 15: the total without its score
  "wake":      Mix(0, 0,     1),  # Eqs. 8, 13: the wake update
  "wake_dreg": Mix(0, 1,     0),  # Eqs. 9, 14: the wake update, reparameterized twice
  "alpha":     lambda alpha: Mix(1 - alpha, alpha, 0),  # Eqs. 10, 16
  "dreg_norm": Mix(1, 0, 0, is_normalized=True),  # the authors' released code
  "wake_norm": Mix(0, 1, 0, is_normalized=True),
  "cv":        ControlVariates,
  # LeaveOneOut(f, g): a = u,  b = 0,  c = s + f u + g log(1 - 1/K)
  "vimco":      LeaveOneOut(-1, 1),
  "vimco_star": LeaveOneOut(-1, 0),
  "ovis":       lambda gamma: LeaveOneOut(gamma - 1, gamma),
  "elbo_loo":   ElboLeaveOneOut(),
  "piwae":      lambda groups: Partial(groups, Mix(1, 1, -1)),
  "piwae_dreg": lambda groups: Partial(groups, Mix(1, 0, 0)),
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Bound:
  """A bound on log p(x) with an estimator of its gradient. `get` has the published ones.

  Two bounds are equal if their names, options and functions are.

  name: its name in tables and logs.
  objective: a function from log-weights [num_samples, batch_size] to the value's `Terms`; if it
    takes `probs`, it receives the probabilities of a `StratifiedMixture`.
  make_gradient: returns the gradient; called at each use, so that options may be Variables.
  options: pairs of names and values.
  function: a user's value function with the name of its gradient, see `from_function`.
  min_samples, groups: the smallest num_samples allowed, and a number that must divide num_samples.
  linear_up_to: the largest num_samples for which the value is linear in the log-weights.
  label, source: its name in figures, and where it was published.
  total: the bound of the same value whose gradient is the total derivative, unbiased; by default
    this one.
  """

  name: str
  objective: Callable[..., Terms] = dataclasses.field(compare=False, repr=False)
  make_gradient: Callable[[], Gradient] = dataclasses.field(compare=False, repr=False)
  options: tuple[tuple[str, Any], ...] = ()
  function: tuple[Callable, str] | None = dataclasses.field(default=None, repr=False)
  min_samples: int = dataclasses.field(default=1, compare=False, repr=False)
  groups: int = dataclasses.field(default=1, compare=False, repr=False)
  linear_up_to: float = dataclasses.field(default=0, compare=False, repr=False)
  label: str = dataclasses.field(default="", compare=False, repr=False)
  source: str = dataclasses.field(default="", compare=False, repr=False)
  total: "Bound" = dataclasses.field(default=None, compare=False, repr=False)

  def __post_init__(self):
    if self.total is None:
      object.__setattr__(self, "total", self)

  @property
  def gradient(self) -> Gradient:
    """Returns the kind of gradient, with the current values of the options."""
    return self.make_gradient()

  def is_unbiased(self, num_samples: int) -> bool:
    """Returns whether the expectation of the gradient is the gradient of the expected value.

    The samples must be differentiable in the proposal's parameters, and log p(x, z) continuous in
    z; the second reparameterization also needs a support that does not depend on parameters, which
    `estimate` checks.
    """
    return self.gradient.is_unbiased(is_linear=num_samples <= self.linear_up_to)

  def takes_weight(self, num_samples: int) -> bool:
    """Returns whether `estimate` takes a `proposal_weight` other than 1."""
    return self.gradient.takes_weight(is_linear=num_samples <= self.linear_up_to)

  def value(self, log_weights: tf.Tensor) -> tf.Tensor:
    """Returns the bound in nats, [batch_size], from log_weights [num_samples, batch_size]."""
    return self.value_and_coefficients(log_weights)[0]

  def coefficients(self, log_weights: tf.Tensor) -> Coefficients:
    """Returns a, b, c, each [num_samples, batch_size], from log_weights of that shape."""
    return self.value_and_coefficients(log_weights)[1]

  def value_and_coefficients(
    self, log_weights: tf.Tensor, proposal_weight: float | tf.Tensor = 1
  ) -> tuple[tf.Tensor, Coefficients]:
    """Returns `value` and `coefficients` at the cost of one; both are stopped.

    Args:
      log_weights: [num_samples, batch_size], of log p - proposal_weight log q.
      proposal_weight: a number, or a scalar Tensor.
    """
    value, coefficients, _ = self._evaluate(log_weights, proposal_weight)
    return value, coefficients

  def value_and_factors(
    self,
    drawn: evaluation.Draw,
    log_weights: tf.Tensor,
    proposal_weight: float | tf.Tensor = 1,
    with_curvature: bool = False,
  ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
    """Returns the value, and the factors of the surrogate's terms: a, b, c and at most two more.

    If only some latents have a path, the next is c of the others (`Gradient.of_discrete`). The
    last is F_ii, if `with_curvature`. A value that depends on a mixture's probabilities has a
    gradient in them.
    """
    bound = self
    if drawn.is_stratified and "probs" in inspect.signature(self.objective).parameters:
      probs = tf.cast(drawn.proposal.probs(), log_weights.dtype)
      bound = dataclasses.replace(self, objective=functools.partial(self.objective, probs=probs))
    value, coefficients, curvature = bound._evaluate(log_weights, proposal_weight)
    if bound is not self:
      live = bound.objective(log_weights).value
      value += tf.where(tf.math.is_finite(live), live - tf.stop_gradient(live), 0)
    factors = tuple(coefficients)
    if drawn.is_mixed:
      c, followed = coefficients.score, self.gradient.of_discrete(self.objective)
      if followed:
        mix, objective = followed
        c = tf.cast(mix.discrete_score(objective, log_weights, proposal_weight), value.dtype)
      factors += (tf.stop_gradient(c),)
    return value, factors + (curvature,) * (with_curvature or drawn.is_stratified)

  @tf.autograph.experimental.do_not_convert
  def _evaluate(self, log_weights, weight) -> tuple[tf.Tensor, Coefficients, tf.Tensor]:
    """Returns the value, the coefficients and F_ii, all stopped."""
    log_weights = at_least_float32(tf.stop_gradient(tf.convert_to_tensor(log_weights)))
    if log_weights.shape[0] is not None:
      check_num_samples(log_weights.shape[0], self, "axis 0 of log_weights")
    value, *derivatives = self.objective(log_weights)
    # A sample of weight 0 has no effect, even if its coefficient would be 1/K, as in the ELBO.
    no_weight = log_weights == -math.inf
    terms = Terms(value, *(tf.where(no_weight, tf.zeros_like(d), d) for d in derivatives))
    coefficients = self.gradient.coefficients(terms, log_weights, weight)
    stopped = Coefficients(*map(tf.stop_gradient, coefficients))
    return tf.stop_gradient(value), stopped, tf.stop_gradient(terms.difference)


def names() -> tuple[str, ...]:
  """Returns the names that `get` takes."""
  return tuple(catalogue.BOUNDS)


def get(name: str, **options: Any) -> Bound:
  """Returns the published bound called `name`.

  Args:
    name: one of `names()`.
    **options: the options of that bound in `catalogue.BOUNDS`, such as `alpha` for dreg_alpha and
      vr_iwae_dreg, `order` for jvi_dreg, `groups` for miwae_dreg. A number may also be a scalar
      Tensor or Variable, unless it is a count. Factors of iwae_cv that are not given are trained
      with a compiled model; elsewhere they are those of iwae_dreg.

  Raises:
    ValueError: if there is no such bound, if it does not take the option, or the option's value
      is out of range.
  """
  options = catalogue.options_of(name, options)
  row = catalogue.BOUNDS[name]
  gradient = _GRADIENTS[row.gradient]
  present = options | catalogue.trained_options(name, options)
  objective = _with_options(getattr(objectives, row.objective), options)
  total = catalogue.total_of(name)
  return Bound(
    name,
    objective=objective,
    make_gradient=_with_options(gradient, present) if callable(gradient) else lambda: gradient,
    options=tuple(sorted(options.items())),
    min_samples=row.min_samples(**options),
    groups=row.groups(**options),
    linear_up_to=catalogue.linear_up_to(name),
    label=row.label,
    source=row.source,
    total=None if name == total else get(total, **objective.keywords),
  )


def from_function(
  value_fn: Callable[[tf.Tensor], tf.Tensor], name: str, gradient: str = "dreg"
) -> Bound:
  """Makes a bound of any twice differentiable function of the log-weights.

  For F(l_1, ..., l_K) of independent samples, symmetric or not, the second reparameterization has
  the coefficients a = F_i, b = F_i - F_ii, c = 0: replace the score part of the total derivative,
  -E[F_i score_i], by the path F_ii path_i, with the other samples fixed (Eq. 7 for each sample).

  Args:
    value_fn: maps float64 log-weights [num_samples, batch_size] to [batch_size], each example
      separately. Autodiff computes its derivatives, without further evaluation of the model.
    name: its name in tables and logs, which must not be that of a published bound.
    gradient: "total" (the plain reparameterization), "dreg", or "stl" (biased unless F is linear).

  Raises:
    TypeError: if value_fn cannot be called.
    ValueError: if the name is taken, or there is no such gradient.
  """
  kinds = ("total", "dreg", "stl")
  if not callable(value_fn):
    raise TypeError(f"value_fn must be a function of the log-weights, got {value_fn!r}.")
  if not isinstance(name, str) or not name or name in catalogue.BOUNDS:
    raise ValueError(f"name must be a string that no published bound has, got {name!r}.")
  if gradient not in kinds:
    raise ValueError(f"gradient must be one of {', '.join(kinds)}, got {gradient!r}.")
  total = None if gradient == "total" else from_function(value_fn, f"{name}_total", "total")
  return Bound(
    name,
    objective=functools.partial(gradients.value_and_derivatives, value_fn),
    make_gradient=lambda: _GRADIENTS[gradient],
    function=(value_fn, gradient),
    label=name,
    source="from_function",
    total=total,
  )


def _with_options(function: Callable, options: dict[str, Any]) -> functools.partial:
  """Binds those options that the function takes."""
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
  """Holds the results of `estimate`.

  objective: [batch_size]; its value is the bound in nats, its gradient the estimator's. Maximize it
    using first derivatives only: the coefficients are stopped, so second ones are not the bound's.
  log_weights: [num_samples, batch_size], in nats, stopped; for a `StratifiedMixture` of M
    components log (M pi_m w_mk), [M num_samples, batch_size].
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
  seed: seeds.Seed = None,
  stopped_proposal: tfd.Distribution | None = None,
  num_backward_samples: int | None = None,
  proposal_weight: float | tf.Tensor = 1.0,
  prior: tfd.Distribution | None = None,
) -> Estimate:
  """Estimates a bound and its gradient for each example with one evaluation of the model.

  Eqs. 11-17 write log p(x, z) twice, once stopped in z and once in the parameters. Here it is
  evaluated once and weighed by a, at samples whose gradient a gate scales by b / a. So the model's
  parameters receive a and the path receives b, including shared parameters.

  Args:
    bound: a `Bound`, or a name that `get` takes.
    target_log_prob_fn: log p(x, z) as a function of samples [num_samples, batch_size, ...], of
      shape [num_samples, batch_size]. With `num_backward_samples` it is also called with fewer.
    proposal: q(z | x), of batch shape [batch_size]. A bound with a path takes a reparameterized
      distribution, or a joint one whose other parts do not depend on reparameterized ones; one
      without a path (rws, vimco, vimco_star, ovis, elbo_loo) also takes discrete ones. All but
      total derivatives and rws need a support that does not depend on parameters.
    num_samples: K, a positive int; for JVI more than its order. For a `StratifiedMixture`, the
      number of samples of each component.
    seed: an int or a stateless seed of shape [2]: the same seed draws the same samples. None draws
      new ones at every call.
    stopped_proposal: the proposal with its parameters stopped, of which only `log_prob` is used. By
      default made by `dregs_tf.stop_parameters` or, if that is impossible, `dregs_tf.PathOnly`.
    num_backward_samples: M, at most K; None for K. The value uses all K samples, the gradient M of
      them, the heaviest always and the rest at random: cheaper, and unbiased for the gradient of
      all K (see `dregs_tf/selection.py`).
    proposal_weight: beta of log-weights log r(z) - beta log q(z), where target_log_prob_fn is log r
      rather than log p(x, z); a number or a scalar Tensor. With r = p(x | z) p(z)^beta it weighs
      the KL divergence, as annealing and the beta-VAE do.
    prior: p(z), if its parameters are also to receive the doubly reparameterized gradient (Bauer
      and Mnih 2021, https://arxiv.org/abs/2101.11046). target_log_prob_fn is then log p(x | z)
      alone, and proposal_weight weighs both log p(z) and log q(z | x). The gradients of all other
      parameters do not change. The prior's samples must be an invertible transformation of noise
      (see `gradients.reparameterize`), with a support that does not depend on parameters; it may be
      a joint distribution of such conditionals.

  Returns:
    An `Estimate`. Log-weights, values and coefficients are float32 or better. Differentiate the
    objective once: its second derivatives are not the bound's, and forward-mode autodiff is refused
    if a gate is needed.

  Raises:
    TypeError: if `proposal` is not a distribution or `num_samples` not an int.
    ValueError: if num_samples is too small for the bound, the bound does not take the proposal, the
      prior cannot be reparameterized, or target_log_prob_fn returns a wrong shape.
  """
  bound = as_bound(bound)
  check_num_samples(num_samples, bound)
  check_num_backward_samples(num_backward_samples, num_samples)
  check_weight(proposal_weight, bound, num_samples)
  weight = proposal_weight
  if stopped_proposal is not None and stopped_proposal is proposal:
    raise ValueError(
      "stopped_proposal is the proposal itself, with nothing stopped: build it from parameters "
      "under tf.stop_gradient, or leave it out."
    )
  seed = seeds.stateless(seed)
  drawn = evaluation.draw(proposal, num_samples, seed, **evaluation.needs([bound]))
  if drawn.is_stratified:
    mixtures.check_options(bound, stopped_proposal, num_backward_samples, prior)
    num_samples *= drawn.num_strata
  samples = drawn.samples
  evaluate = functools.partial(
    surrogate.evaluate, bound.gradient, target_log_prob_fn, drawn, stopped_proposal, prior, weight
  )
  factors = functools.partial(
    bound.value_and_factors, drawn, proposal_weight=weight, with_curvature=prior is not None
  )
  if num_backward_samples in (None, num_samples):
    densities = evaluate(samples, num_samples)
    log_weights = evaluation.stopped_log_weights(*densities[:2], num_samples, weight)
    value, coefficients = factors(log_weights)
  else:
    if prior is not None:
      target_log_prob_fn = evaluation.log_joint(target_log_prob_fn, prior, weight)
    log_weights = evaluation.log_weights_without_recording(
      target_log_prob_fn, drawn.proposal, samples, num_samples, weight
    )
    value, coefficients = factors(log_weights)
    chosen, coefficients = selection.select(
      coefficients, num_backward_samples, seeds.fold_in(seed, 1)
    )
    samples_of_pass = tf.nest.map_structure(lambda z: selection.take(z, chosen), samples)
    densities = evaluate(samples_of_pass, num_backward_samples)

  total = tf.reduce_sum(surrogate.terms(densities, coefficients, weight), axis=0)
  # x - stop_gradient(x) is exactly 0, so the value loses no precision.
  return Estimate(value + (total - tf.stop_gradient(total)), log_weights, samples)


def check_num_samples(num_samples: int, bound: Bound, argument: str = "num_samples") -> None:
  """Raises unless `bound` is defined for the int `num_samples`; `argument` is its name."""
  if not catalogue.is_int(num_samples):
    raise TypeError(f"{argument} must be an int, got {num_samples!r}.")
  if num_samples < bound.min_samples:
    raise ValueError(
      f"{argument} must be at least {bound.min_samples} for {bound.name}, got {num_samples}."
    )
  if num_samples % bound.groups:
    raise ValueError(
      f"{argument} must be a multiple of groups={bound.groups} for {bound.name}, got {num_samples}."
    )


def check_weight(
  proposal_weight: Any, bound: Bound, num_samples: int, argument: str = "proposal_weight"
) -> None:
  """Raises unless the weight is 1, or `bound` takes it: a number >= 0, or a scalar Tensor."""
  if isinstance(proposal_weight, numbers.Real) and not isinstance(proposal_weight, bool):
    is_valid = 0 <= float(proposal_weight) < math.inf
  else:
    is_valid = getattr(proposal_weight, "shape", None) == ()
  if not is_valid:
    raise ValueError(
      f"{argument} must be a number of 0 or more, or a scalar Tensor, got {proposal_weight!r}."
    )
  is_one = isinstance(proposal_weight, numbers.Real) and proposal_weight == 1
  if not (is_one or bound.takes_weight(num_samples)):
    raise ValueError(
      f"{argument} must be 1 for {bound.name}, got {proposal_weight!r}: no unbiased gradient "
      f"of the weighted bound has this form. Use {bound.total.name}."
    )
