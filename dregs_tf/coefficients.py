"""Computes the surrogate's coefficients a, b, c, which define an estimator, from log-weights.

Every estimator is the gradient of sum_i a_i log p~ + b_i log w^_i + c_i log q~ (see
`dregs_tf/bounds.py`). The kinds of `Gradient` below differ in how they compute b and c.
"""

import abc
import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from dregs_tf import importance_weights as iw
from dregs_tf import objectives
from dregs_tf.importance_weights import as_scalar
from dregs_tf.objectives import Terms
from dregs_tf.proposals import Requirement

Objective = Callable[[tf.Tensor], Terms]


class Coefficients(NamedTuple):
  """Holds a, b, c of the surrogate, stopped Tensors of shape [num_samples, batch_size]."""

  model: tf.Tensor
  path: tf.Tensor
  score: tf.Tensor


class Gradient(abc.ABC):
  """Describes a kind of gradient."""

  @property
  def requirement(self) -> Requirement:
    """Returns what the estimator requires of a proposal."""
    return Requirement.FIXED_SUPPORT

  @property
  def has_score(self) -> bool:
    """Returns whether c is used in addition to a path."""
    return False

  @property
  def is_total(self) -> bool:
    """Returns whether a = b = -c: the surrogate sum_i a_i log w_i has the total derivative."""
    return False

  @abc.abstractmethod
  def is_unbiased(self, is_linear: bool) -> bool:
    """Returns whether it is unbiased for any proposal; `is_linear`: the value is, in log w."""

  @abc.abstractmethod
  def takes_weight(self, is_linear: bool) -> bool:
    """Returns whether there is such an unbiased estimator for log p - weight log q."""

  @abc.abstractmethod
  def coefficients(
    self, terms: Terms, log_weights: tf.Tensor, weight: float | tf.Tensor = 1
  ) -> Coefficients:
    """Returns a, b, c, each [num_samples, batch_size]."""

  def of_discrete(self, objective: Objective) -> "tuple[Mix, Objective] | None":
    """Returns the mix, and its value, that gives c of latents without a path where others have one.

    None if all latents have the same c.
    """
    del objective
    return None


@dataclasses.dataclass(frozen=True)
class Mix(Gradient):
  """Mixes u, v and u - v: a = u, b = v v + d (u - v), c = s u.

  v, difference, score: the factors v, d, s; numbers, or scalar Tensors. The proposal's gradient is
    v dreg + d wake_dreg + s wake of the same value, sample by sample.
  is_normalized: whether b is divided by its sum over the samples.
  """

  v: Any
  difference: Any
  score: float
  is_normalized: bool = False

  @property
  def factors(self) -> tuple[Any, Any, float]:
    """Returns v, d, s."""
    return self.v, self.difference, self.score

  @property
  def _numbers(self) -> tuple[float | None, ...]:
    """Returns the factors, with None for a Tensor, whose value may not be known."""
    return tuple(float(x) if isinstance(x, numbers.Real) else None for x in self.factors)

  @property
  def requirement(self) -> Requirement:
    """Returns the requirement of a proposal; a total derivative allows a moving support."""
    if self._numbers[:2] == (0, 0):
      return Requirement.NOTHING
    return Requirement.PATH if self.is_total else Requirement.PATH | Requirement.FIXED_SUPPORT

  @property
  def is_total(self) -> bool:
    """Returns whether the factors are those of a total derivative."""
    return self._numbers == (1, 1, -1)

  def is_unbiased(self, is_linear: bool) -> bool:
    """Returns whether it is a total derivative or the second reparameterization (Eq. 7).

    If u = v is a constant, the score has mean 0 and may be dropped.
    """
    if is_linear:
      return self._numbers[0] == 1
    return self.is_total or (self._numbers == (1, 0, 0) and not self.is_normalized)

  takes_weight = is_unbiased

  def coefficients(
    self, terms: Terms, log_weights: tf.Tensor, weight: float | tf.Tensor = 1
  ) -> Coefficients:
    """Returns a, b, c.

    With log-weights log p - weight log q the score is weighed by `weight`, so the second
    reparameterization has b = u - weight F_ii; the path is that of log p - weight log q^.
    """
    del log_weights
    if self._numbers[:2] == (1, 1):
      b = terms.u
    else:
      v, difference = (as_scalar(factor, terms.u.dtype) for factor in self.factors[:2])
      b = v * terms.v + (difference + 1 - as_scalar(weight, terms.u.dtype)) * terms.difference
    if self.is_normalized:
      b = tf.math.divide_no_nan(b, tf.reduce_sum(b, axis=0))  # 0 where every term is 0
    return Coefficients(terms.u, b, self.score * as_scalar(weight, terms.u.dtype) * terms.u)

  def of_discrete(self, objective: Objective) -> "tuple[Mix, Objective]":
    """Returns itself, with the same value."""
    return self, objective

  def discrete_score(
    self, objective: Objective, log_weights: tf.Tensor, weight: float | tf.Tensor
  ) -> tf.Tensor:
    """Returns c of latents without a path, v (F - B_i - weight u) + (d + s) u.

    Without a path dreg is F - B_i - u, where B_i is F without sample i (for L_K, s_i - wbar_i as in
    vimco_star), and the wake update is u, reparameterized twice or not.
    """
    exact = tf.cast(log_weights, tf.float64)  # F - B_i and u nearly cancel.
    u = objective(exact).u
    v, difference, score, weight = (as_scalar(x, u.dtype) for x in (*self.factors, weight))
    added = objectives.added_by_each(objective, exact)
    return v * (added - weight * u) + (difference + score) * u


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Gradient):
  """Weighs the score by what a sample adds to L_K (Mnih and Rezende 2016), without any path.

    a = u,  b = 0,  c = s + f u + g log(1 - 1/K),  s_i = -log(1 - wbar_i)

  s_i + log(1 - 1/K) is L_K minus the L of the other samples. f = -1 accounts for the direct
  derivative of log q; g times a constant has mean 0. https://arxiv.org/abs/1602.06725
  """

  u: Any
  constant: Any

  def is_unbiased(self, is_linear: bool) -> bool:
    """Returns whether f = -1."""
    del is_linear
    return isinstance(self.u, numbers.Real) and self.u == -1

  def takes_weight(self, is_linear: bool) -> bool:
    """Returns whether it is unbiased: then the direct derivative of log q may be weighed."""
    return self.is_unbiased(is_linear)

  def coefficients(
    self, terms: Terms, log_weights: tf.Tensor, weight: float | tf.Tensor = 1
  ) -> Coefficients:
    """Returns a, b, c."""
    u, constant, weight = (as_scalar(x, terms.u.dtype) for x in (self.u, self.constant, weight))
    kappa = tf.math.log1p(-1 / iw.count(log_weights))
    signal = _added_to_bound(terms.value, log_weights) + constant * kappa
    c = tf.where(terms.value == -math.inf, tf.zeros_like(signal), signal)
    return Coefficients(terms.u, tf.zeros_like(c), c + u * weight * terms.u)


def _added_to_bound(value: tf.Tensor, log_weights: tf.Tensor) -> tf.Tensor:
  """Returns s_i = log sum_j w_j - log sum_{j != i} w_j.

  If all other samples have weight 0, no baseline is subtracted: the baseline of sample i may be any
  function of the others.
  """
  others = iw.leave_one_out_log_sum(iw.log_normalize(log_weights))
  return tf.where(others == -math.inf, value + tf.zeros_like(others), -others)


@dataclasses.dataclass(frozen=True)
class ElboLeaveOneOut(Gradient):
  """Weighs the score by the log-weight minus the mean of the other samples' (VarGrad, RLOO).

  a = 1/K, b = 0, c_i = (l_i - mean_{j != i} l_j) / K (Kool et al. 2019; Richter et al. 2020,
  https://arxiv.org/abs/2010.10436).
  """

  def is_unbiased(self, is_linear: bool) -> bool:
    """Returns True: the direct derivative of log q has mean 0."""
    del is_linear
    return True

  takes_weight = is_unbiased

  def coefficients(
    self, terms: Terms, log_weights: tf.Tensor, weight: float | tf.Tensor = 1
  ) -> Coefficients:
    """Returns a, b, c; the log-weights already contain the weight."""
    del weight
    # (l_i - mean of the others) / K
    signal = (log_weights - terms.value) / (iw.count(log_weights) - 1)
    c = tf.where(terms.value == -math.inf, tf.zeros_like(signal), signal)
    return Coefficients(terms.u, tf.zeros_like(c), c)


@dataclasses.dataclass(frozen=True)
class Partial(Gradient):
  """Uses L_K for the model and MIWAE for the proposal: PIWAE (Rainforth et al. 2018).

  groups: the number of groups. mix: the kind of MIWAE's gradient. https://arxiv.org/abs/1802.04537
  """

  groups: int
  mix: Mix

  @property
  def requirement(self) -> Requirement:
    """Returns the requirement of MIWAE's gradient."""
    return self.mix.requirement

  @property
  def has_score(self) -> bool:
    """Returns whether a score is added: a total derivative of another value than the model's."""
    return self.mix.is_total

  def is_unbiased(self, is_linear: bool) -> bool:
    """Returns whether it is unbiased for L_K: with one group."""
    return self.groups == 1 or is_linear

  def takes_weight(self, is_linear: bool) -> bool:
    """Returns whether MIWAE's gradient takes a weight."""
    return self.mix.takes_weight(is_linear)

  def coefficients(
    self, terms: Terms, log_weights: tf.Tensor, weight: float | tf.Tensor = 1
  ) -> Coefficients:
    """Returns a of L_K, b and c of MIWAE."""
    miwae = objectives.miwae(log_weights, self.groups)
    _, b, c = self.mix.coefficients(miwae, log_weights, weight)
    return Coefficients(terms.u, b, c)

  def of_discrete(self, objective: Objective) -> tuple[Mix, Objective]:
    """Returns MIWAE's gradient."""
    del objective
    return self.mix, functools.partial(objectives.miwae, groups=self.groups)


@dataclasses.dataclass(frozen=True)
class ControlVariates(Gradient):
  """Combines a path and a score with four control variates (the authors' dreg-cv).

    b = (1 - A) wbar + B (wbar^2 - wbar)
    c = A (L - (1 - G) log mean_{j != i} w_j) + (1 - B) ((1 - D) / K - wbar)

  Unbiased at every A, B, G, D: (0, 1, ., .) is iwae_dreg, (1, 0, 0, .) vimco up to a constant.
  """

  a: Any
  b: Any
  g: Any
  d: Any

  requirement = Requirement.PATH | Requirement.FIXED_SUPPORT
  has_score = True

  def is_unbiased(self, is_linear: bool) -> bool:
    """Returns True."""
    del is_linear
    return True

  def takes_weight(self, is_linear: bool) -> bool:
    """Returns False: no such form is known."""
    del is_linear
    return False

  def coefficients(
    self, terms: Terms, log_weights: tf.Tensor, weight: float | tf.Tensor = 1
  ) -> Coefficients:
    """Returns a, b, c."""
    del weight
    a, b, g, d = (as_scalar(x, terms.u.dtype) for x in (self.a, self.b, self.g, self.d))
    num_samples = iw.count(log_weights)
    others = iw.leave_one_out_log_sum(log_weights) - tf.math.log(num_samples - 1)
    others = tf.where(others == -math.inf, tf.zeros_like(others), others)
    c = a * (terms.value - (1 - g) * others) + (1 - b) * ((1 - d) / num_samples - terms.u)
    c = tf.where(terms.value == -math.inf, tf.zeros_like(c), c)
    return Coefficients(terms.u, (1 - a) * terms.u - b * terms.difference, c)

  def of_discrete(self, objective: Objective) -> tuple[Mix, Objective]:
    """Returns iwae_dreg's."""
    return Mix(1, 0, 0), objective
