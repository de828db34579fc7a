"""Makes the flags of the bounds' options, checks them, and formats them for directory names."""

import contextlib
from collections.abc import Sequence
from typing import Any

from dregs_tf import catalogue
from dregs_tf.training import checks
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.flags import flag

DEFAULT_INITIAL_ALPHA = 0.5

# Flags that are named differently from the bounds' options.
_RENAMED = {"order": "jvi_order"}
OPTION_FIELDS = {
  option: _RENAMED.get(option, option)
  for row in catalogue.BOUNDS.values()
  for option in row.options
}


def _bounds_with(option: str) -> list[str]:
  """Returns the names of the bounds that take an option."""
  return [name for name, row in catalogue.BOUNDS.items() if option in row.options]


def _any_of(names: Sequence[str]) -> str:
  """Lists names with an "or" before the last."""
  return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _short(value: Any, comma: str) -> str:
  """Formats an option's value; `comma` separates the numbers of a sequence."""
  return comma.join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)


def option_flag(option: str, kind: type, note: str = ""):
  """Returns the field of a bound's option; help and default come from the catalogue."""
  meanings = {}
  for name in _bounds_with(option):
    default, _, allowed, help, _ = catalogue.BOUNDS[name].options[option]
    shown = "" if default is None else f" ({_short(default, ',')})"
    meanings.setdefault(f"{help}, {allowed}{shown}", []).append(name)
  texts = [f"For --bound={_any_of(names)}: {text}." for text, names in meanings.items()]
  return flag(None, kind, " ".join([*texts, *filter(None, [note])]))


def options_in_name(settings: Any) -> str:
  """Returns the options of a `TrainConfig`'s bound as part of the default directory's name."""
  given = {name: value for name, value in settings.bound_options.items() if value is not None}
  options = "".join(f"_{name}{_short(value, '-')}" for name, value in given.items())
  return options.replace("_alpha", "_alpha-auto") if settings.adapt_alpha else options


def parsed(settings: Any) -> dict[str, Any]:
  """Returns parsed values of a `TrainConfig`'s text and list fields; `check` validates them."""
  fields = {
    "num_backward_samples": checks.as_int(settings.num_backward_samples),
    # An empty flag overrides a value that a flagfile has set.
    "track_variance": None if settings.track_variance == "" else settings.track_variance,
  }
  with contextlib.suppress(ValueError):
    if isinstance(settings.alpha, str) and settings.alpha != "auto":
      fields["alpha"] = float(settings.alpha)
  if isinstance(settings.betas, (list, tuple)):  # A list in flags and in JSON.
    with contextlib.suppress(TypeError, ValueError):
      fields["betas"] = tuple(map(float, settings.betas))
  return fields


def check(settings: Any, bounds: Sequence[str]) -> None:
  """Checks the bounds, their options and the numbers of samples of a `TrainConfig`.

  Args:
    settings: the configuration.
    bounds: the bound to train with, a valid name, then the tracked ones.

  Raises:
    ConfigError: if a value is not allowed, or a bound does not take it.
  """
  _check_tracked(settings, bounds[1:])
  for option in OPTION_FIELDS:
    _check_option(settings, option, bounds)
  _check_adapted_alpha(settings)
  _check_num_samples(settings, bounds)
  if settings.num_backward_samples is not None:
    _check_num_backward_samples(settings)


def defaults(settings: Any, bounds: Sequence[str]) -> dict[str, Any]:
  """Returns defaults of options that are not given, so giving a default does not change the run.

  If bounds have different defaults for an option, it stays None, so each uses its own default.
  """
  fields = {}
  for option, name in OPTION_FIELDS.items():
    values = {meaning.default for meaning in meanings(option, bounds)}
    if getattr(settings, name) is None and len(values) == 1:
      fields[name] = values.pop()
  if settings.adapt_alpha and settings.initial_alpha is None:
    fields["initial_alpha"] = DEFAULT_INITIAL_ALPHA
  return fields


def meanings(option: str, bounds: Sequence[str]) -> dict[catalogue.Option, str]:
  """Returns what an option is to the bounds that take it, each meaning with one of them."""
  all_options = {bound: catalogue.row(bound).options for bound in bounds}
  return {options[option]: bound for bound, options in all_options.items() if option in options}


def _check_tracked(settings: Any, names: Sequence[str]) -> None:
  for name in names:
    checks.check_bound("track_variance", name)
  if len(set(names)) < len(names):
    raise ConfigError(f"--track_variance names a bound twice, got {settings.track_variance}.")
  for name in names:
    missing = catalogue.trained_options(name, settings.options_of(name))
    if missing and name != settings.bound:
      raise ConfigError(
        f"--track_variance={name} needs {', '.join(f'--{option}' for option in missing)}, which "
        f"are trained only with --bound={name}, got --bound={settings.bound}."
      )


def _check_option(settings: Any, option: str, bounds: Sequence[str]) -> None:
  name = OPTION_FIELDS[option]
  value, meant = getattr(settings, name), meanings(option, bounds)
  if value is None or (name == "alpha" and settings.adapt_alpha and meant):
    return
  if not meant:
    raise ConfigError(
      f"--{name} is only valid with --bound={_any_of(_bounds_with(option))}, "
      f"got --bound={settings.bound}."
    )
  if len(meant) > 1:
    raise ConfigError(
      f"--{name} has another meaning for {' than for '.join(meant.values())}, so it must not be "
      f"given, got {value!r}: without it, each bound takes its default."
    )
  (meaning,) = meant
  if not meaning.is_valid(value):
    also = ", or auto" if name == "alpha" else ""
    raise ConfigError(f"--{name} must be {meaning.allowed}{also}, got {value!r}.")


def _check_adapted_alpha(settings: Any) -> None:
  if settings.adapt_alpha and settings.bound != "dreg_alpha":
    raise ConfigError(
      f"--alpha=auto is only valid with --bound=dreg_alpha, got --bound={settings.bound}."
    )
  if settings.initial_alpha is None:
    return
  if not settings.adapt_alpha:
    raise ConfigError(
      f"--initial_alpha is only valid with --alpha=auto, got --alpha={settings.alpha}."
    )
  if not (checks.is_number(settings.initial_alpha) and 0 <= settings.initial_alpha <= 1):
    raise ConfigError(f"--initial_alpha must be in [0, 1], got {settings.initial_alpha!r}.")


def _check_num_samples(settings: Any, bounds: Sequence[str]) -> None:
  for i, bound in enumerate(bounds):
    row, options = catalogue.row(bound), settings.options_of(bound)
    note = f" for --{'track_variance' if i else 'bound'}={bound}"
    checks.check_int("num_samples", settings.num_samples, row.min_samples(**options), note)
    groups = row.groups(**options)
    if settings.num_samples % groups:
      raise ConfigError(
        f"--num_samples must be a multiple of --groups={groups}{note}, got {settings.num_samples}."
      )


def _check_num_backward_samples(settings: Any) -> None:
  given = settings.num_backward_samples
  without = [f"--{option}" for option in settings.trained_options]
  takes_all = {
    "track_variance": settings.track_variance,
    "alpha=auto": settings.adapt_alpha,
    f"bound={settings.bound}, without {', '.join(without)},": without,
  }
  for name, is_given in takes_all.items():
    if is_given:
      raise ConfigError(
        f"--{name} takes all samples: it cannot be combined with --num_backward_samples={given}."
      )
  if given != "auto":
    checks.check_int("num_backward_samples", given, 1, note=", or auto")
    if given > settings.num_samples:
      raise ConfigError(
        f"--num_backward_samples must be at most --num_samples={settings.num_samples}, got {given}."
      )
