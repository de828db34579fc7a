"""Checks the values of flags; a message names the flag, what was given and what is allowed."""

from collections.abc import Callable, Sequence
from typing import Any

from dregs_tf import catalogue
from dregs_tf.training.errors import ConfigError

# Shapes, steps and seeds are int32 in TensorFlow.
_LARGEST_INT = 2**31 - 1


def check_lists(
  settings: Any,
  allowed: Sequence[str] = tuple(catalogue.BOUNDS),
  parse: Callable[[str], tuple[str, dict]] = lambda text: (text, {}),
) -> None:
  """Checks --bounds and --num_samples, lists or strings; drops duplicates and sorts the K's.

  Args:
    settings: a dataclass with these fields; bounds that are None are not checked.
    allowed: the names of the bounds to allow.
    parse: returns the name and the options that an element of --bounds stands for.

  Raises:
    ConfigError: if a list is empty, or a value is not allowed.
  """
  for name in ("bounds", "num_samples"):
    if getattr(settings, name) in ("", (), []):
      raise ConfigError(f"--{name} must not be empty: separate values by commas.")
  if settings.bounds is not None:
    names = [str(name).strip() for name in settings.bounds]
    for name in names:
      if parse(name)[0] not in catalogue.SEQUENCE_BOUNDS:
        check_bound("bounds", parse(name)[0])
      check_choice("bounds", parse(name)[0], allowed)
    object.__setattr__(settings, "bounds", tuple(dict.fromkeys(names)))
  all_num_samples = [as_int(value) for value in settings.num_samples]
  for value in all_num_samples:
    check_int("num_samples", value, at_least=1, note=", or several separated by commas")
  object.__setattr__(settings, "num_samples", tuple(sorted(set(all_num_samples))))


def check_defined(bound: str, options: dict, all_num_samples: Sequence[int]) -> None:
  """Raises a ConfigError unless --num_samples has a K for which a bound is defined."""
  row = catalogue.BOUNDS[bound]
  try:
    options = catalogue.options_of(bound, options)
  except ValueError as error:
    raise ConfigError(f"--bounds: {error}") from error
  least, groups = row.min_samples(**options), row.groups(**options)
  if not any(k >= least and k % groups == 0 for k in all_num_samples):
    given = "".join(f" with {name}={value}" for name, value in options.items())
    name = f"the bound {bound}{given}"
    multiple = f", a multiple of {groups}," if groups > 1 else ""
    raise ConfigError(
      f"--num_samples must hold a number of at least {least}{multiple} for {name}, "
      f"got {', '.join(map(str, all_num_samples))}."
    )


def check_bound(name: str, value: Any) -> None:
  """Raises a ConfigError unless `value` is the name of a bound; suggests a similar name."""
  try:
    catalogue.options_of(value if isinstance(value, str) else repr(value), {})
  except ValueError as error:
    raise ConfigError(f"--{name}{str(error).removeprefix('bound')}") from error


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
  """Raises a ConfigError unless `value` is one of `allowed`."""
  if value not in allowed:
    raise ConfigError(f"--{name} must be one of {', '.join(allowed)}, got {value!r}.")


def check_int(name: str, value: Any, at_least: int, note: str = "") -> None:
  """Raises a ConfigError unless `value` is an int of at least `at_least` that fits an int32."""
  if not (isinstance(value, int) and catalogue.is_int(value, at_least)):
    raise ConfigError(
      f"--{name} must be a whole number of at least {at_least}{note}, got {value!r}."
    )
  if value > _LARGEST_INT:
    raise ConfigError(f"--{name} must be at most {_LARGEST_INT}, got {value}.")


def is_number(value: Any) -> bool:
  """Returns whether it is an int or a float."""
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_int(value: Any) -> Any:
  """Converts a string to the int that it spells; returns anything else unchanged."""
  try:
    return int(value) if isinstance(value, str) else value
  except ValueError:
    return value
