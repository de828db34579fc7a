"""Makes flags from the fields of a dataclass, and runs commands that take them.

A field declares its flag once: `name: int = flag(64, int, "K, samples of each example.")`.
Every command parses its flags into an instance, which checks their values; no other code sees
flags. Errors become one line that names the flag.
"""

import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from dregs_tf.training.errors import ConfigError, Interrupted

# Errors whose messages are meant for the user.
_EXPECTED = (ValueError, OSError, ArithmeticError)

_HELP = ("--help", "-help", "--helpshort", "--helpfull", "-h")

# For each kind: absl's function that defines a flag, and the allowed values as messages name them.
_KINDS: dict[type, tuple[Callable, str]] = {
  str: (flags.DEFINE_string, "text"),
  int: (flags.DEFINE_integer, "a whole number"),
  float: (flags.DEFINE_float, "a number"),
  bool: (flags.DEFINE_boolean, "true or false"),
  list: (flags.DEFINE_list, "values separated by commas"),
}


def flag(default: Any, kind: type, help: str, choices: Sequence[str] = ()):
  """Returns a dataclass field that is a flag.

  Args:
    default: the default of the flag and of the field.
    kind: str, int, float, bool or list, whose values are strings separated by commas.
    help: what the flag does.
    choices: the values to list in the help. The dataclass itself must refuse others.
  """
  return dataclasses.field(
    default=default, metadata={"kind": kind, "help": help, "choices": choices}
  )


def define(config_class: type) -> flags.FlagValues:
  """Defines a flag for each field of a dataclass, and --debug."""
  values = flags.FlagValues()
  for field in dataclasses.fields(config_class):
    kind, help, choices = (field.metadata[key] for key in ("kind", "help", "choices"))
    default: Any = field.default
    if kind is list and default is not None:
      default = [str(value) for value in default]
    help = f"<{'|'.join(choices)}>: {help}" if choices else help
    _KINDS[kind][0](field.name, default, help, flag_values=values)
  flags.DEFINE_boolean("debug", False, "Show the traceback of an error.", flag_values=values)
  return values


def parse(config_class: type, arguments: Sequence[str]) -> flags.FlagValues:
  """Parses arguments into the flags of a dataclass; reads flagfiles.

  Raises:
    ConfigError: if an argument is not a flag, or its value is not of the flag's kind.
  """
  values = define(config_class)
  try:
    rest = values(["", *arguments])[1:]
  except flags.Error as error:
    raise ConfigError(_explained(values, error)) from error
  if rest:
    raise ConfigError(f"unexpected argument {rest[0]!r}: flags are written --name=value.")
  return values


def configuration(config_class: type, values: flags.FlagValues):
  """Returns an instance of the dataclass with the values of the flags.

  Raises:
    ConfigError: if the dataclass refuses a value.
  """
  return config_class(**{f.name: values[f.name].value for f in dataclasses.fields(config_class)})


def run(config_class: type, main: Callable, description: str) -> None:
  """Runs a command: parses its arguments, `sys.argv`, and calls `main` with a configuration.

  An expected error is printed in one line, with exit status 1; SIGTERM and Ctrl-C give exit status
  130.

  Args:
    config_class: a dataclass whose fields are made by `flag`.
    main: the function to call.
    description: a text for --help.
  """
  program, *arguments = sys.argv
  program = os.path.basename(program)
  if any(argument in _HELP for argument in arguments):
    print(f"{description.strip()}\n\nFlags, which may also be given in a --flagfile:\n")
    listed = define(config_class).get_help(include_special_flags=False)
    print(listed.strip().partition("\n")[2])
    return
  debug = "--debug" in arguments
  try:
    values = parse(config_class, arguments)
    debug = values["debug"].value
    main(configuration(config_class, values))
  except Interrupted as stop:
    print(stop, file=sys.stderr)
    sys.exit(130)
  except KeyboardInterrupt:
    print(f"{program}: stopped; there was nothing to save.", file=sys.stderr)
    sys.exit(130)
  except _EXPECTED + _out_of_memory() as error:
    if debug:
      traceback.print_exc()
    else:
      print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
    sys.exit(1)


def _explained(values: flags.FlagValues, error: flags.Error) -> str:
  """Rewords absl's message on a wrong flag to name the flag, its value and what is allowed."""
  match = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL)
  if isinstance(error, flags.UnrecognizedFlagError):
    return f"{error} --help lists the flags."
  if not match:
    return str(error)
  name, given = match.groups()
  kinds = {"int": int, "float": float, "bool": bool}
  allowed = _KINDS[kinds.get(values[name].flag_type(), str)][1]
  return f"--{name} must be {allowed}, got {given!r}."


def _one_line(error: BaseException) -> str:
  if isinstance(error, _out_of_memory()):
    return "there is not enough memory: try fewer samples, smaller batches or fewer latents."
  return " ".join(str(error).split())


def _out_of_memory() -> tuple[type[Exception], ...]:
  """Returns the errors of NumPy and, if it is loaded, TensorFlow when memory runs out."""
  tf = sys.modules.get("tensorflow")
  return (MemoryError, tf.errors.ResourceExhaustedError) if tf else (MemoryError,)
