"""Lists the bounds by name: objective, gradient, options, label, source. Needs no TensorFlow.

This is their only list. `dregs_tf/bounds.py` makes a `Bound` from a row, configurations and flags
take names and options from here, and tables and figures take labels.
"""

import difflib
import itertools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Option(NamedTuple):
  """Describes an option of a bound: a keyword of `bounds.get`, and a flag.

  start: for an option that is trained unless it is given: its initial value, which is also its
    value where nothing trains it. The default of such an option is None.
  """

  default: Any
  is_valid: Callable[[Any], bool]
  allowed: str  # the allowed values, for messages
  help: str
  start: float | None = None


class Row(NamedTuple):
  """Describes a bound: its value, and how its gradient is estimated.

  objective: the name of a function in `dregs_tf/objectives.py`.
  gradient: a name in the table of gradients in `dregs_tf/bounds.py`.
  label: its name in figures.
  source: where it was published.
  options: its options by name.
  min_samples: the smallest num_samples allowed, a function of the options.
  groups: the number of equal groups of samples, a function of the options.
  """

  objective: str
  gradient: str
  label: str
  source: str
  options: Mapping[str, Option] = {}
  min_samples: Callable[..., int] = lambda **_: 1
  groups: Callable[..., int] = lambda **_: 1


def _is_number(value, low: float, high: float) -> bool:
  """Returns whether `value` is a number in [low, high], or a scalar Tensor or Variable."""
  if hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, numbers.Real):
    return len(value.shape) == 0
  is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return is_real and low <= value <= high


def is_int(value: Any, least: float = -math.inf) -> bool:
  """Returns whether `value` is an int, of NumPy or Python, of at least `least`."""
  is_integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return is_integral and int(value) >= least


def _is_ladder(betas) -> bool:
  """Returns whether `betas` is a tuple of numbers that rises from 0 to 1."""
  if not isinstance(betas, tuple) or len(betas) < 2:
    return False
  if not all(isinstance(b, numbers.Real) and not isinstance(b, bool) for b in betas):
    return False
  return (betas[0], betas[-1]) == (0, 1) and all(a < b for a, b in itertools.pairwise(betas))


def _unit(default: float, help: str) -> Option:
  return Option(default, lambda value: _is_number(value, 0, 1), "in [0, 1]", help)


def _trained(start: float, help: str) -> Option:
  def is_valid(value):
    return value is None or _is_number(value, -math.inf, math.inf)

  return Option(None, is_valid, "a number", f"{help}; trained from {start:g} unless given", start)


def _count(default: int, least: int, help: str) -> Option:
  return Option(default, lambda value: is_int(value, least), f"an int of {least} or more", help)


_DREG_ALPHA = {"alpha": _unit(0.9, "weight of RWS-DReG against IWAE-DReG")}  # the authors' default
_VR_ALPHA = {"alpha": _unit(0.5, "order of the Renyi divergence: L_K at 0, the ELBO at 1")}
_BETA = {"beta": _unit(0.05, "weight of the mean ELBO against L_K")}
_GROUPS = {"groups": _count(8, 1, "number of groups of samples")}
_ORDER = {"order": _count(1, 0, "order of the jackknife")}
_GAMMA = {"gamma": _unit(1.0, "weight of the mean of rws")}
_BETAS = {
  "betas": Option(
    (0.0, 0.1, 0.4, 1.0), _is_ladder, "a sequence of numbers that rises from 0 to 1", "ladder"
  )
}
_FACTORS = {
  "a": _trained(0.0, "factor of the score's control variate"),
  "b": _trained(1.0, "factor of the second reparameterization"),
  "g": _trained(0.0, "part of the leave-one-out baseline that is dropped"),
  "d": _trained(0.0, "part of 1 / K that is dropped"),
}


# Options, with the smallest number of samples as a function of them.
_JACKKNIFE = (_ORDER, lambda order: order + 1)
_OTHERS = ({}, lambda: 2)  # Each sample is compared with the others.
_SCORE = (_GAMMA, lambda gamma: 2)
_CONTROLS = (_FACTORS, lambda **_: 2)
_GROUPED = (_GROUPS, lambda groups: groups, lambda groups: groups)

# fmt: off
BOUNDS = {
  # name                objective  gradient      label             source, options and limits
  "elbo":           Row("elbo",    "total",      "ELBO",           "Fig. 1, K ELBOs"),
  "elbo_stl":       Row("elbo",    "stl",        "ELBO-STL",       "Roeder et al. 2017"),
  "elbo_loo":       Row("elbo",    "elbo_loo",   "ELBO-LOO",       "Richter et al. 2020", *_OTHERS),
  "iwae":           Row("iwae",    "total",      "IWAE",           "Eqs. 3, 11"),
  "iwae_dreg":      Row("iwae",    "dreg",       "IWAE-DReG",      "Eqs. 7, 12"),
  "rws":            Row("iwae",    "wake",       "RWS",            "Eqs. 8, 13"),
  "rws_dreg":       Row("iwae",    "wake_dreg",  "RWS-DReG",       "Eqs. 9, 14"),
  "stl":            Row("iwae",    "stl",        "STL",            "Eq. 15"),
  "dreg_alpha":     Row("iwae",    "alpha",      "DReG(alpha)",    "Eqs. 10, 16", _DREG_ALPHA),
  "jvi":            Row("jvi",     "total",      "JVI",            "Sec. 4.2", *_JACKKNIFE),
  "jvi_dreg":       Row("jvi",     "dreg",       "JVI-DReG",       "Sec. 4.2", *_JACKKNIFE),
  "iwae_dreg_norm": Row("iwae",    "dreg_norm",  "IWAE-DReG-norm", "authors' code"),
  "rws_dreg_norm":  Row("iwae",    "wake_norm",  "RWS-DReG-norm",  "authors' code"),
  "iwae_cv":        Row("iwae",    "cv",         "IWAE-CV",        "authors' code", *_CONTROLS),
  "vimco":          Row("iwae",    "vimco",      "VIMCO",          "Mnih, Rezende 2016", *_OTHERS),
  "vimco_star":     Row("iwae",    "vimco_star", "VIMCO*",         "Daudel et al. 2026", *_OTHERS),
  "ovis":           Row("iwae",    "ovis",       "OVIS",           "Lievin et al. 2020", *_SCORE),
  "vr_iwae":        Row("vr_iwae", "total",      "VR-IWAE",        "Daudel et al. 2023", _VR_ALPHA),
  "vr_iwae_dreg":   Row("vr_iwae", "dreg",       "VR-IWAE-DReG",   "Daudel et al. 2023", _VR_ALPHA),
  "ciwae":          Row("ciwae",   "total",      "CIWAE",          "Rainforth 2018", _BETA),
  "ciwae_dreg":     Row("ciwae",   "dreg",       "CIWAE-DReG",     "Rainforth 2018", _BETA),
  "miselbo":        Row("miselbo", "total",      "MISELBO",        "Kviman et al. 2022"),
  "miselbo_dreg":   Row("miselbo", "dreg",       "MISELBO-DReG",   "Kviman et al. 2022"),
  "miwae":          Row("miwae",   "total",      "MIWAE",          "Rainforth 2018", *_GROUPED),
  "miwae_dreg":     Row("miwae",   "dreg",       "MIWAE-DReG",     "Rainforth 2018", *_GROUPED),
  "piwae":          Row("iwae",    "piwae",      "PIWAE",          "Rainforth 2018", *_GROUPED),
  "piwae_dreg":     Row("iwae",    "piwae_dreg", "PIWAE-DReG",     "Rainforth 2018", *_GROUPED),
  "tvo":            Row("tvo",     "total",      "TVO",            "Masrani et al. 2019", _BETAS),
  "tvo_dreg":       Row("tvo",     "dreg",       "TVO-DReG",       "Masrani et al. 2019", _BETAS),
}
# fmt: on

_COMPARED = ("iwae", "iwae_dreg", "stl", "rws", "rws_dreg", "dreg_alpha", "jvi", "jvi_dreg")

# With fewer measurements, the test of bias in `diagnostics.compare` has too many false alarms if
# gradients are skewed.
MIN_MEASUREMENTS = 30


class SequenceRow(NamedTuple):
  """Describes a bound of a sequence, see `dregs_tf/sequential`.

  gradient: "total", the plain reparameterization, or "dreg", the double one of each block.
  resamples: whether it resamples particles; if not, the whole sequence is one block.
  label: its name in figures.
  source: where it was published.
  """

  gradient: str
  resamples: bool
  label: str
  source: str
  options: Mapping[str, Option] = {}
  min_samples: Callable[..., int] = lambda **_: 1
  groups: Callable[..., int] = lambda **_: 1

  @property
  def objective(self) -> str:
    """Returns the name of the value, which bounds with different gradients share."""
    return "fivo" if self.resamples else "iwae"

  def is_unbiased(self, with_resampling_term: bool = False) -> bool:
    """Returns whether the expectation of the gradient is the gradient of the expected value."""
    return with_resampling_term or not self.resamples


SEQUENCE_BOUNDS = {
  "iwae": SequenceRow("total", False, "IWAE", "Burda et al. 2016"),
  "iwae_dreg": SequenceRow("dreg", False, "IWAE-DReG", "Eqs. 7, 12"),
  "fivo": SequenceRow("total", True, "FIVO", "Maddison et al. 2017"),
  "fivo_dreg": SequenceRow("dreg", True, "FIVO-DReG", "this library"),
}

# Schemes of resampling, the default first.
RESAMPLING = ("systematic", "stratified", "multinomial")

# The values that `is_schedule` accepts, for messages.
SCHEDULES = (
  "always, never, a number of steps between resamplings, the steps before which to resample (ints "
  "of 1 or more), or a fraction of the effective sample size, in (0, 1)"
)


def is_schedule(value: Any) -> bool:
  """Returns whether `sequential.estimate` takes a value as `resample_when`."""
  if isinstance(value, str):
    return value in ("always", "never")
  if isinstance(value, (list, tuple)):
    return all(is_int(step, 1) for step in value)
  return is_int(value, 1) or (isinstance(value, numbers.Real) and 0 < float(value) < 1)


def row(name: str) -> Row | SequenceRow:
  """Returns the row of a bound, or of a bound of sequences."""
  return BOUNDS[name] if name in BOUNDS else SEQUENCE_BOUNDS[name]


def sequence_row(name: str) -> SequenceRow:
  """Returns the row of a bound of sequences; raises a ValueError if it does not exist."""
  if not isinstance(name, str) or name not in SEQUENCE_BOUNDS:
    raise ValueError(f"bound must be one of {', '.join(SEQUENCE_BOUNDS)}, got {name!r}.")
  return SEQUENCE_BOUNDS[name]


def total_of(name: str) -> str:
  """Returns the bound of the same value whose gradient is the total derivative."""
  objective = BOUNDS[name].objective
  (total,) = (n for n, r in BOUNDS.items() if (r.objective, r.gradient) == (objective, "total"))
  return total


# Unbiased bounds for proposals without a path, by objective.
_WITHOUT_PATH = {"iwae": "vimco", "elbo": "elbo_loo"}


def without_path(name: str) -> str | None:
  """Returns the unbiased bound of the same value that needs no path, None if there is none."""
  return _WITHOUT_PATH.get(BOUNDS[name].objective)


# The objectives that are still bounds with samples of each component of a mixture, whose shares are
# unequal.
_OF_STRATA = ("iwae", "miselbo", "vr_iwae")


def for_strata() -> tuple[str, ...]:
  """Returns the bounds that take samples of each component of a mixture."""
  return tuple(
    name
    for name, row in BOUNDS.items()
    if row.objective in _OF_STRATA and row.gradient in ("total", "dreg")
  )


def needs_path(name: str) -> bool:
  """Returns whether the bound needs reparameterized latents."""
  return BOUNDS[name].gradient not in ("wake", "vimco", "vimco_star", "ovis", "elbo_loo")


def compared(has_path: bool = True) -> tuple[str, ...]:
  """Returns the bounds that `diagnostics.compare` compares by default, with or without a path."""
  return _COMPARED if has_path else tuple(name for name in BOUNDS if not needs_path(name))


def linear_up_to(name: str) -> float:
  """Returns the largest num_samples for which the value is linear in the log-weights."""
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
  values = {option: _hashable(value) for option, value in given.items()}
  for option, value in values.items():
    if not options[option].is_valid(value):
      raise ValueError(f"{option} must be {options[option].allowed}, got {given[option]!r}.")
  return {option: default for option, (default, *_) in options.items()} | values


def _hashable(value: Any) -> Any:
  """Returns a list or an array as a tuple, so that bounds can be compared; others as they are."""
  is_array = hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1
  return tuple(value) if is_array or isinstance(value, list) else value


def trained_options(name: str, options: Mapping[str, Any]) -> dict[str, float]:
  """Returns the initial values of the options to train, those that are None."""
  row = BOUNDS.get(name)
  return {
    option: spec.start
    for option, spec in (row.options if row else {}).items()
    if spec.start is not None and option in options and options[option] is None
  }
