"""Computes differences between bounds that were trained with the same seeds, with intervals."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from dregs_tf import catalogue
from experiments.results import Group, Result, final_mean, shared_settings

# Every bound is compared with this one, and with its base.
_REFERENCE = "iwae_dreg"

_CONFIDENCE = 0.95


def base_of(bound: str) -> str:
  """Returns the bound that another one is a variant of; the bound itself if there is none.

  The base of a doubly reparameterized gradient is its original, that of other alphas is IWAE-DReG
  (alpha = 0), and that of all others is the total gradient of the same objective.
  """
  if bound.endswith("_dreg"):
    return bound.removesuffix("_dreg")
  gradient = catalogue.row(bound).gradient
  if gradient == "alpha":
    return "iwae_dreg"
  if gradient == "total":
    return bound
  return catalogue.total_of(bound)


def pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
  """Returns each group with its base, and with IWAE-DReG, if they have the same settings.

  Args:
    groups: the trials of one problem.
  """
  found = []
  for group in groups:
    bound = group.settings.bound
    for name in dict.fromkeys((base_of(bound), _REFERENCE)):
      if name != bound and base_of(name) != bound:  # Neither itself nor a pair the other way round.
        found += [
          (group, base)
          for base in groups
          if base.settings.bound == name and _are_alike(group, base)
        ]
  return found


def _are_alike(group: Group, other: Group) -> bool:
  """Returns whether the groups differ only in the bound and in options that one bound lacks."""
  ours, theirs = group.settings.bound_options, other.settings.bound_options
  same_options = all(theirs[name] == value for name, value in ours.items() if name in theirs)
  return same_options and shared_settings(group.settings) == shared_settings(other.settings)


def common_seeds(group: Group, base: Group) -> list[int]:
  """Returns the seeds that both groups have."""
  seeds = {run.settings.seed for run in base.runs}
  return [run.settings.seed for run in group.runs if run.settings.seed in seeds]


def late_bound_differences(group: Group, base: Group) -> list[float]:
  """Returns the differences in the late test bound of finished runs with the same objective."""
  rows = (catalogue.row(each.settings.bound) for each in (group, base))
  if len({row.objective for row in rows}) > 1:
    return []
  return paired(group, base, lambda run: final_mean(run, "test_bound"))


def log_likelihood_differences(group: Group, base: Group) -> list[float]:
  """Returns the differences in log p(x), where both have been evaluated."""
  return paired(group, base, lambda run: run.evaluation and run.evaluation["log_likelihood"])


def paired(group: Group, base: Group, value_of: Callable[[Result], float | None]) -> list[float]:
  """Returns the differences of a value between runs of the same seed, where both have it."""
  ours, theirs = ({run.settings.seed: value_of(run) for run in each.runs} for each in (group, base))
  both = [(ours[seed], theirs[seed]) for seed in common_seeds(group, base)]
  return [float(a - b) for a, b in both if a is not None and b is not None]


class Interval(NamedTuple):
  """Holds a mean, and the limits of the 95 % confidence interval of the expectation."""

  mean: float
  low: float
  high: float


def interval(values: Sequence[float]) -> Interval:
  """Returns the t-interval of the mean of independent Normal values; it is unlimited for one."""
  mean, count = float(np.mean(values)), len(values)
  if count == 1:
    return Interval(mean, -math.inf, math.inf)
  quantile = special.stdtrit(count - 1, (1 + _CONFIDENCE) / 2)
  half = float(quantile * np.std(values, ddof=1) / math.sqrt(count))
  return Interval(mean, mean - half, mean + half)
