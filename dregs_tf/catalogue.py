"""The bounds by name: objective, gradient, options, label and source; needs no TensorFlow.

This is the only list of them. `dregs_tf/bounds.py` makes a `Bound` of a row, configurations and
flags take names and options from here, tables and figures take labels.
"""

import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Option(NamedTuple):
  """An option of a bound: a keyword of `bounds.get`, and a flag."""

  default: Any
  is_valid: Callable[[Any], bool]
  allowed: str  # what a message says is allowed
  help: str


class Row(NamedTuple):
  """A bound: the value, and how its gradient is estimated.

  objective: the name of a function in `dregs_tf/objectives.py`.
  gradient: a name in the table of gradients in `dregs_tf/bounds.py`.
  label: what figures call it.
  source: where it was published.
  options: by name.
  min_samples: the smallest num_samples that it is defined for, a function of the options.
  """

  objective: str
  gradient: str
  label: str
  source: str
  options: Mapping[str, Option] = {}
  min_samples: Callable[..., int] = lambda **_: 1


def _is_number(value, low: float, high: float) -> bool:
  """Whether it is a number in [low, high], or a scalar Tensor or Variable, whose value may move."""
  if hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, numbers.Real):
    return len(value.shape) == 0
  is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return is_real and low <= value <= high


def _is_int(value, least: int) -> bool:
  return not isinstance(value, bool) and hasattr(value, "__index__") and value >= least


_ALPHA = {
  "alpha": Option(
    0.9,  # the authors'
    lambda alpha: _is_number(alpha, 0, 1),
    "in [0, 1]",
    "weight of RWS-DReG against IWAE-DReG",
  )
}
_ORDER = {
  "order": Option(
    1, lambda order: _is_int(order, 0), "an int of 0 or more", "order of the jackknife"
  )
}


def _above(order: int) -> int:
  return order + 1


# fmt: off
BOUNDS = {
  # name                objective gradient          label             source, options, min_samples
  "elbo":           Row("elbo", "total",          "ELBO",           "Fig. 1, K ELBOs"),
  "elbo_stl":       Row("elbo", "stl",            "ELBO-STL",       "Roeder et al. 2017"),
  "iwae":           Row("iwae", "total",          "IWAE",           "Eqs. 3, 11"),
  "iwae_dreg":      Row("iwae", "dreg",           "IWAE-DReG",      "Eqs. 7, 12"),
  "rws":            Row("iwae", "wake",           "RWS",            "Eqs. 8, 13"),
  "rws_dreg":       Row("iwae", "wake_dreg",      "RWS-DReG",       "Eqs. 9, 14"),
  "stl":            Row("iwae", "stl",            "STL",            "Eq. 15"),
  "dreg_alpha":     Row("iwae", "alpha",          "DReG(alpha)",    "Eqs. 10, 16", _ALPHA),
  "jvi":            Row("jvi",  "total",          "JVI",            "Sec. 4.2", _ORDER, _above),
  "jvi_dreg":       Row("jvi",  "dreg",           "JVI-DReG",       "Sec. 4.2", _ORDER, _above),
  "iwae_dreg_norm": Row("iwae", "dreg_norm",      "IWAE-DReG-norm", "authors' code"),
  "rws_dreg_norm":  Row("iwae", "wake_dreg_norm", "RWS-DReG-norm",  "authors' code"),
}
# fmt: on

# What `diagnostics.compare` compares by default.
COMPARED = ("iwae", "iwae_dreg", "stl", "rws", "rws_dreg", "dreg_alpha", "jvi", "jvi_dreg")

# With fewer measurements, the test of bias in `diagnostics.compare` is misled too often where
# gradients are skewed.
MIN_MEASUREMENTS = 30


def total_of(name: str) -> str:
  """Returns the bound of the same value whose gradient is the total derivative."""
  objective = BOUNDS[name].objective
  (total,) = (n for n, r in BOUNDS.items() if (r.objective, r.gradient) == (objective, "total"))
  return total


def linear_up_to(name: str) -> float:
  """Returns up to how many samples the value is linear in the log-weights: the ELBO's always is."""
  return math.inf if BOUNDS[name].objective == "elbo" else 1


def options_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a bound's options: those given, and the defaults of the others.

  Raises:
    ValueError: if there is no such bound, it does not take an option, or a value is not allowed.
  """
  if name not in BOUNDS:
    close = difflib.get_close_matches(str(name), BOUNDS, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"bound must be one of {', '.join(BOUNDS)}, got {name!r}.{hint}")
  options = BOUNDS[name].options
  unknown = [option for option in given if option not in options]
  if unknown:
    takes = f"only {', '.join(options)}" if options else "no options"
    raise ValueError(f"bound {name} takes {takes}, got {', '.join(unknown)}.")
  for option, value in given.items():
    if not options[option].is_valid(value):
      raise ValueError(f"{option} must be {options[option].allowed}, got {value!r}.")
  return {option: default for option, (default, *_) in options.items()} | dict(given)
