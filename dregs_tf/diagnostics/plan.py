"""Plans a comparison: which estimators are measured, and with which reference."""

import numbers
from typing import Any, NamedTuple

from dregs_tf import catalogue, proposals
from dregs_tf.bounds import Bound, check_num_samples
from dregs_tf.bounds import get as get_bound
from dregs_tf.models import calls
from dregs_tf.models.base import LatentVariableModel


class Estimator(NamedTuple):
  """Describes an estimator to measure, and names its reference, which may be itself.

  prior_gradient: how it trains the prior, if gradients of the prior are compared.
  """

  name: str
  bound: Bound
  reference: str
  prior_gradient: str = "direct"

  @property
  def is_reference(self) -> bool:
    """Returns whether others are compared with it."""
    return self.name == self.reference

  @property
  def is_timed(self) -> bool:
    """Returns whether its step time may differ from its reference's."""
    return self.is_reference or self.prior_gradient == "dreg"


def is_prior(gradient_of: Any) -> bool:
  """Returns whether the prior's gradient is compared; raises a ValueError for another value."""
  if gradient_of not in ("proposal", "prior"):
    raise ValueError(f"gradient_of must be proposal or prior, got {gradient_of!r}.")
  return gradient_of == "prior"


def has_path(model: LatentVariableModel, x: Any, context: Any) -> bool:
  """Returns whether samples of a model's proposal are differentiable, at least in part."""
  with calls.mode(model, training=False):
    return proposals.has_path(proposals.unwrap(calls.propose(model, x, context)))


def _reference(bound: Bound, has_path: bool) -> Bound:
  """Returns a bound's reference: an unbiased estimator of the gradient of the same value."""
  if has_path or bound.function is not None:
    return bound.total
  name = catalogue.without_path(bound.name)
  if name is None:
    raise ValueError(
      f"bounds: there is no reference for {bound.name} where the proposal has no path: compare "
      "vimco, vimco_star, ovis, rws or elbo_loo."
    )
  return get_bound(name)


def of_bounds(
  bounds: list[Bound], all_num_samples: list[int], has_path: bool
) -> dict[int, list[Estimator]]:
  """Returns the estimators to measure at each K, grouped by reference, which comes first."""
  groups: dict[str, dict[str, Bound]] = {}
  for bound in bounds:
    _check_defined(bound, all_num_samples)
    reference = _reference(bound, has_path)
    _check_defined(reference, all_num_samples)
    group = groups.setdefault(name_of(reference), {name_of(reference): reference})
    group[name_of(bound)] = bound
  plan = {
    k: [
      Estimator(name, bound, reference)
      for reference, group in groups.items()
      for name, bound in group.items()
      if _is_defined(bound, k) and _is_defined(group[reference], k)
    ]
    for k in all_num_samples
  }
  return {k: defined for k, defined in plan.items() if defined}


def of_priors(bounds: list[Bound], all_num_samples: list[int]) -> dict[int, list[Estimator]]:
  """Returns the two estimators of the prior's gradient for each value among the bounds, at each K.

  The prior's gradient depends only on a bound's value, so bounds of the same value share a pair.
  """
  values = {name_of(bound.total): bound.total for bound in bounds}
  for bound in values.values():
    _check_defined(bound, all_num_samples)
  plan = {
    k: [
      Estimator(f"{name}: {kind}", bound, f"{name}: direct", kind)
      for name, bound in values.items()
      if _is_defined(bound, k)
      for kind in ("direct", "dreg")
    ]
    for k in all_num_samples
  }
  return {k: defined for k, defined in plan.items() if defined}


def _check_defined(bound: Bound, all_num_samples: list[int]) -> None:
  """Raises a ValueError unless a bound is defined for one of the K's at least."""
  if not any(_is_defined(bound, k) for k in all_num_samples):
    check_num_samples(max(all_num_samples), bound)


def _is_defined(bound: Bound, num_samples: int) -> bool:
  return num_samples >= bound.min_samples and num_samples % bound.groups == 0


def name_of(bound: Bound) -> str:
  """Returns the bound's name, with options that differ from their defaults."""
  options = [
    f"{name}={value:g}" if isinstance(value, numbers.Real) else f"{name}={value}"
    for name, value in bound.options
    if value != catalogue.BOUNDS[bound.name].options[name].default
  ]
  return f"{bound.name}({', '.join(options)})" if options else bound.name


def groups(estimators: list[Estimator]) -> list[tuple[int, int]]:
  """Returns the start (the reference) and the end of each group of estimators."""
  references = [estimator.reference for estimator in estimators]
  starts = [references.index(name) for name in dict.fromkeys(references)]
  return list(zip(starts, [*starts[1:], len(references)], strict=True))
