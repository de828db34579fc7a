"""The paper on one page: every bound is a value and three coefficients per sample.

Tucker, Lawson, Gu and Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo
Objectives" (ICLR 2019). Every estimator there is the gradient of a surrogate that is linear in
its samples,

    sum_i  a_i log p~(x, z_i)  +  b_i log w^_i  +  c_i log q~(z_i | x),

where a, b, c are numbers (functions of the log-weights, stopped), a tilde stops the gradient
through z, and a hat stops the gradient to the parameters but not through z. So `a` weighs the
model's gradient, `b` the path through the samples and `c` the score of the proposal. `_BOUNDS`
below is the whole table; `estimate` turns a row of it into a gradient in one pass of the model.
"""

import dataclasses
import difflib
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, gradients, seeds, selection
from dregs_tf import importance_weights as iw
from dregs_tf.evaluation import at_least_float32, log_likelihood
from dregs_tf.proposals import Requirement

__all__ = [
  "Bound",
  "Coefficients",
  "Estimate",
  "as_bound",
  "estimate",
  "get",
  "log_likelihood",
  "names",
]

tfd = tfp.distributions


class Coefficients(NamedTuple):
  """a, b, c of the surrogate, Tensors of shape [num_samples, batch_size], stopped."""

  log_p: tf.Tensor
  log_w: tf.Tensor
  log_q: tf.Tensor


class Average(NamedTuple):
  """A bound's value and the weights that its gradient takes with it.

  value: [batch_size], in nats. first: the weight u_i of dlog w_i in the value's total derivative.
  second: the weight v_i of the path after the second reparameterisation (Eq. 7).
  difference: u_i - v_i, which must not cancel where one weight holds all the mass (Eq. 9).
  """

  value: tf.Tensor
  first: tf.Tensor
  second: tf.Tensor
  difference: tf.Tensor


def _elbo(log_weights: tf.Tensor) -> Average:
  """The mean of K ELBOs."""
  uniform = tf.ones_like(log_weights) / tf.cast(tf.shape(log_weights)[0], log_weights.dtype)
  return Average(tf.reduce_mean(log_weights, axis=0), uniform, uniform, tf.zeros_like(uniform))


def _iwae(log_weights: tf.Tensor) -> Average:
  """The K-sample bound L_K = log (1/K) sum_i w_i, with wbar and wbar^2 (Eqs. 3 and 7)."""
  log_normalized = iw.log_normalize(log_weights)
  weights = tf.exp(log_normalized)
  others = tf.exp(iw.leave_one_out_log_sum(log_normalized))  # 1 - wbar
  difference = tf.math.multiply_no_nan(others, weights)
  return Average(iw.log_mean(log_weights), weights, weights**2, difference)


def _jvi(log_weights: tf.Tensor, order: int) -> Average:
  """Jackknife of order m (Sec. 4.2; Nowozin 2018): a combination of bounds on subsets.

    JVI_m = sum_{j=0..m} C(K, m, j) * mean over subsets S of size K-j of L(S),
    C(K, m, j) = (-1)^j (K-j)^m / ((m-j)! j!)

  The coefficients grow like K^m and cancel, so this is computed in float64.
  """
  num_samples = log_weights.shape[0]
  if num_samples is None:
    raise ValueError("axis 0 of log_weights, the samples, must be of a known size for JVI.")
  exact = tf.cast(log_weights, tf.float64)
  # Relative to the largest: an offset would cost digits.
  largest = tf.reduce_max(exact, axis=0)
  largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
  total = [0.0] * len(Average._fields)
  for j in range(order + 1):
    scale = (-1) ** j * (num_samples - j) ** order / (math.factorial(order - j) * math.factorial(j))
    parts = _subset_average(exact - largest, j)
    total = [t + scale * part for t, part in zip(total, parts, strict=True)]
  value, *weights = total
  # Without any weight the sum would be one of infinities.
  no_weight = tf.reduce_all(exact == -math.inf, axis=0)
  value = tf.where(no_weight, tf.constant(-math.inf, tf.float64), value + largest)
  return Average(*(tf.cast(part, log_weights.dtype) for part in (value, *weights)))


def _subset_average(log_weights: tf.Tensor, num_left_out: int) -> Average:
  """The mean of `_iwae` over all subsets that leave out `num_left_out` of the K samples.

  One left out takes O(K) memory; every further one, a factor of K.
  """
  if num_left_out == 0:
    return _iwae(log_weights)
  if num_left_out == 1:
    return _leave_one_out_average(log_weights)
  # Leave out each sample in turn, then fewer of the others: axis 0 the others, axis 1 who is out.
  num_samples = log_weights.shape[0]
  sample, out = tf.meshgrid(tf.range(num_samples), tf.range(num_samples), indexing="ij")
  others = tf.gather(log_weights, sample[:-1] + tf.cast(sample[:-1] >= out[:-1], tf.int32))
  value, *weights = _subset_average(others, num_left_out - 1)

  def put_back(part):
    """[K-1 others, K, ...] -> [K, ...], the mean over who is out; who is out weighs 0."""
    place = tf.stack(
      [tf.minimum(sample - tf.cast(sample > out, tf.int32), num_samples - 2), out], -1
    )
    part = tf.gather_nd(part, place)
    is_out = tf.reshape(sample == out, [num_samples, num_samples] + [1] * (part.shape.rank - 2))
    return tf.reduce_mean(tf.where(is_out, tf.zeros_like(part), part), axis=1)

  return Average(tf.reduce_mean(value, axis=0), *map(put_back, weights))


def _leave_one_out_average(log_weights: tf.Tensor) -> Average:
  """The mean over i of `_iwae` without sample i, in O(K).

  With S_-j the sum of weights without w_j, sample i weighs w_i / S_-j in the subset without j:
  u_i = (1/K) w_i sum_{j != i} 1/S_-j, and v_i has squares. In logs, where nothing cancels.
  """
  num_samples = tf.cast(tf.shape(log_weights)[0], log_weights.dtype)
  log_sums = iw.leave_one_out_log_sum(log_weights)
  value = tf.reduce_mean(log_sums, axis=0) - tf.math.log(num_samples - 1)

  def weights(power):
    """(1/K) sum_{j != i} (w_i / S_-j)^power; a subset of weights that are all 0 adds nothing."""
    inverse = tf.where(log_sums == -math.inf, log_sums, -log_sums) * power
    scale = iw.leave_one_out_log_sum(inverse)
    log_weight = log_weights * power + scale
    return (
      tf.where(log_weights == -math.inf, tf.zeros_like(scale), tf.exp(log_weight)) / num_samples
    )

  first, second = weights(1.0), weights(2.0)
  return Average(value, first, second, first - second)


class _Row(NamedTuple):
  """One bound of the table. a = u, b = b_v v + b_d (u - v), c = c_u u."""

  average: Callable[..., Average]
  b: Any  # (b_v, b_d), or a function of alpha that returns them
  c: int  # c_u
  reference: str
  shared_out: bool = False  # whether b is divided by its sum over the samples

  @property
  def has_path(self) -> bool:
    """Whether the samples' path carries a gradient."""
    return self.b != (0, 0)

  @property
  def is_total_derivative(self) -> bool:
    """Whether a = b = -c: the surrogate is sum_i a_i log w_i, and nothing has to be stopped."""
    return self.b == (1, 1) and self.c == -1


# fmt: off
# a = u in every row. u = wbar and v = wbar^2 where the average is _iwae; both are 1/K where it is
# _elbo, and the jackknife's combinations of wbar and wbar^2 on subsets where it is _jvi. So
# (1, 0) is b = v, (0, 1) is b = u - v, and (1, 1) is b = u.
_BOUNDS = {
  # name                  average  b: (v, u - v) times             c: u times  equation
  "elbo":           _Row(_elbo,   (1, 1),                          -1,       "Fig. 1, K ELBOs"),
  "elbo_stl":       _Row(_elbo,   (1, 1),                           0,       "Roeder et al. 2017"),
  "iwae":           _Row(_iwae,   (1, 1),                          -1,       "Eqs. 3, 11"),
  "iwae_dreg":      _Row(_iwae,   (1, 0),                           0,       "Eqs. 7, 12"),
  "rws":            _Row(_iwae,   (0, 0),                           1,       "Eqs. 8, 13"),
  "rws_dreg":       _Row(_iwae,   (0, 1),                           0,       "Eqs. 9, 14"),
  "stl":            _Row(_iwae,   (1, 1),                           0,       "Eq. 15"),
  "dreg_alpha":     _Row(_iwae,   lambda alpha: (1 - alpha, alpha), 0,       "Eqs. 10, 16"),
  "jvi":            _Row(_jvi,    (1, 1),                          -1,       "Sec. 4.2"),
  "jvi_dreg":       _Row(_jvi,    (1, 0),                           0,       "Sec. 4.2, Eq. 7"),
  "iwae_dreg_norm": _Row(_iwae,   (1, 0),                           0,       "authors' code", True),
  "rws_dreg_norm":  _Row(_iwae,   (0, 1),                           0,       "authors' code", True),
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Bound:
  """A bound on log p(x) with a gradient estimator for it. Get one from `get`."""

  name: str
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def reference(self) -> str:
    """Where the paper defines it."""
    return _BOUNDS[self.name].reference

  @property
  def min_samples(self) -> int:
    """The smallest num_samples that it is defined for."""
    return dict(self.options).get("order", 0) + 1

  @property
  def unbiased(self) -> "Bound":
    """The estimator that is the gradient of the same value: unbiased, whatever the proposal."""
    average = _BOUNDS[self.name].average
    rows = _BOUNDS.items()
    (name,) = (n for n, row in rows if row.average is average and row.is_total_derivative)
    return get(name, **{k: v for k, v in self.options if k == "order"})

  @property
  def mixture(self) -> tuple[float, float, float] | None:
    """For an estimator of L_K's gradient: b_v, b_d, c_u of b = b_v v + b_d (u - v), c = c_u u.

    So in the proposal's parameters it is b_v iwae_dreg + b_d rws_dreg + c_u rws, sample by sample.
    None for other bounds, and where b is divided by its sum.
    """
    row = _BOUNDS[self.name]
    return None if row.average is not _iwae or row.shared_out else (*self._b, row.c)

  def is_unbiased(self, num_samples: int) -> bool:
    """Returns whether the expectation of the gradient is the gradient of the expected value.

    It is where the value is differentiated as it stands, and where the second reparameterization
    has made the score a path: b = v, c = 0 (Eq. 7). Both hold for any proposal with samples that
    are differentiable in its parameters, and log p(x, z) that is continuous in z; the second also
    needs a support that no parameter moves, which `estimate` checks.
    """
    row, (b_v, b_d) = _BOUNDS[self.name], self._b
    if num_samples == 1 or row.average is _elbo:
      return b_v == 1  # u = v is a constant, so the score has the mean 0.
    is_dreg = (b_v, b_d, row.c) == (1, 0, 0) and not row.shared_out
    return row.is_total_derivative or is_dreg

  @property
  def requirement(self) -> Requirement:
    """What the estimator asks of a proposal."""
    row = _BOUNDS[self.name]
    if not row.has_path:
      return Requirement.LOG_PROB
    if row.is_total_derivative:
      return Requirement.REPARAMETERIZED
    return Requirement.FIXED_SUPPORT

  @property
  def _b(self) -> tuple[float, float]:
    """(b_v, b_d) of b = b_v v + b_d (u - v)."""
    b = _BOUNDS[self.name].b
    return b(dict(self.options)["alpha"]) if callable(b) else b

  def value(self, log_weights: tf.Tensor) -> tf.Tensor:
    """The bound in nats, [batch_size], from log_weights [num_samples, batch_size]."""
    return self.value_and_coefficients(log_weights)[0]

  def coefficients(self, log_weights: tf.Tensor) -> Coefficients:
    """a, b, c of the surrogate, each [num_samples, batch_size], from log_weights of that shape."""
    return self.value_and_coefficients(log_weights)[1]

  @tf.autograph.experimental.do_not_convert
  def value_and_coefficients(self, log_weights: tf.Tensor) -> tuple[tf.Tensor, Coefficients]:
    """`value` and `coefficients` at the cost of one; both are stopped."""
    log_weights = at_least_float32(tf.stop_gradient(tf.convert_to_tensor(log_weights)))
    if log_weights.shape[0] is not None:
      check_num_samples(log_weights.shape[0], self, "axis 0 of log_weights")
    row = _BOUNDS[self.name]
    options = dict(self.options)
    order = {"order": options["order"]} if "order" in options else {}
    value, *weights = row.average(log_weights, **order)
    # A sample of weight 0 has no say, also where the weights are 1/K.
    no_weight = log_weights == -math.inf
    u, v, difference = (tf.where(no_weight, tf.zeros_like(part), part) for part in weights)
    if "alpha" in options:
      b_v, b_d = row.b(_as_scalar(options["alpha"], u.dtype))
      b = b_v * v + b_d * difference
    else:
      # What a row does not take is not computed.
      b = {(1, 1): u, (1, 0): v, (0, 1): difference, (0, 0): tf.zeros_like(u)}[row.b]
    if row.shared_out:
      # 0 where every term is 0.
      b = tf.math.divide_no_nan(b, tf.reduce_sum(b, axis=0))
    return value, Coefficients(u, tf.stop_gradient(b), row.c * u)


def _as_scalar(value, dtype: tf.DType):
  """A number as it is, a Tensor or Variable cast to `dtype`."""
  return value if isinstance(value, numbers.Real) else tf.cast(value, dtype)


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


def names() -> tuple[str, ...]:
  """The names that `get` takes."""
  return tuple(_BOUNDS)


_DEFAULTS = {"dreg_alpha": {"alpha": 0.9}, "jvi": {"order": 1}, "jvi_dreg": {"order": 1}}


def get(name: str, **options) -> Bound:
  """The bound called `name`.

  Args:
    name: one of `names()`.
    **options: `alpha` in [0, 1] for dreg_alpha: the weight of RWS-DReG against IWAE-DReG, 0.9
      unless told; a scalar Tensor or Variable serves too. `order` of 0 or more for jvi and
      jvi_dreg, 1 unless told.

  Raises:
    ValueError: if there is no such bound, if it does not take the option, or the option's value
      is out of range.
  """
  if name not in _BOUNDS:
    close = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"bound must be one of {', '.join(names())}, got {name!r}.{hint}")
  defaults = _DEFAULTS.get(name, {})
  unknown = [option for option in options if option not in defaults]
  if unknown:
    takes = f"only {', '.join(defaults)}" if defaults else "no options"
    raise ValueError(f"bound {name} takes {takes}, got {', '.join(unknown)}.")
  options = {**defaults, **options}
  if "order" in options:
    order = options["order"]
    if isinstance(order, bool) or not hasattr(order, "__index__") or order < 0:
      raise ValueError(f"order must be an int of 0 or more, got {order!r}.")
  if "alpha" in options:
    alpha = options["alpha"]
    is_tensor = hasattr(alpha, "dtype") and hasattr(alpha, "shape") and len(alpha.shape) == 0
    is_number = isinstance(alpha, numbers.Real) and not isinstance(alpha, bool)
    if not (0 <= alpha <= 1 if is_number else is_tensor):
      raise ValueError(f"alpha must be in [0, 1], got {alpha!r}.")
  return Bound(name, tuple(sorted(options.items())))


def as_bound(bound: Bound | str) -> Bound:
  """A Bound, given one or its name; a TypeError otherwise."""
  bound = get(bound) if isinstance(bound, str) else bound
  if not isinstance(bound, Bound):
    raise TypeError(f"bound must be a Bound or one of {', '.join(names())}, got {bound!r}.")
  return bound


def estimate(
  bound: Bound | str,
  target_log_prob_fn: Callable[[Any], tf.Tensor],
  proposal: tfd.Distribution,
  num_samples: int,
  seed=None,
  stopped_proposal=None,
  num_backward_samples: int | None = None,
) -> Estimate:
  """A bound of each example and its gradient, from one evaluation of the model.

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
  proposal, samples = evaluation.draw(proposal, num_samples, seed, bound.requirement, bound.name)
  if stopped_proposal is not None and stopped_proposal in (given, proposal):
    raise ValueError(
      "stopped_proposal is the proposal itself, with nothing stopped: build it from parameters "
      "under tf.stop_gradient, or leave it out."
    )
  stopped = functools.partial(_stopped, proposal, stopped_proposal)
  if num_backward_samples in (None, num_samples):
    log_p, log_q, set_ratio = _evaluate(bound, target_log_prob_fn, proposal, stopped, samples)
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
    log_p, log_q, set_ratio = _evaluate(bound, target_log_prob_fn, proposal, stopped, recorded)
    log_p, log_q = evaluation.same_shape(log_p, log_q, num_backward_samples)

  if set_ratio:
    a, ratio = _finite_ratio(a, b)
    set_ratio(ratio)
  # 0 * -inf is 0 here: a sample of weight 0 adds nothing.
  surrogate = tf.math.multiply_no_nan(log_p, a) + tf.math.multiply_no_nan(
    log_q, -b if bound.requirement > Requirement.LOG_PROB else c
  )
  surrogate = tf.reduce_sum(surrogate, axis=0)
  return Estimate(value + (surrogate - tf.stop_gradient(surrogate)), log_weights, samples)


def _evaluate(bound: Bound, target_log_prob_fn, proposal, stopped, samples):
  """Evaluates log p and log q with the gradients that the bound's surrogate needs, and the gate.

  log p is differentiable in the model's parameters, and in the samples behind a gate whose ratio
  the third result sets; it is None where there is nothing to set. log q is q itself for a total
  derivative, q~ where only the score counts, and q^ otherwise.
  """
  set_ratio = None
  if bound.requirement == Requirement.REPARAMETERIZED:
    log_q, gated = proposal.log_prob(samples), samples
  elif bound.requirement == Requirement.LOG_PROB:
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
