"""What the binaries share: errors in one line, and TensorFlow loaded late and quietly."""

import contextlib
import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Callable

from absl import app, flags

from dregs_tf.errors import ConfigError, Interrupted

# Errors whose message is meant for the user.
_EXPECTED = (ValueError, OSError, ArithmeticError)

_DEBUG = flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def run(main: Callable[[], None]) -> None:
  """Parses the flags and calls `main`; an expected error becomes one line and exit status 1."""
  if any(argument in ("--help", "-help", "--helpshort", "-h") for argument in sys.argv[1:]):
    flags.FLAGS(sys.argv[:1])
    print(f"{sys.modules['__main__'].__doc__}\nflags:\n")
    print(flags.FLAGS.main_module_help() + "\n" + flags.FLAGS.module_help("dregs_tf.cli"))
    sys.exit(0)
  app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """Parses the flags and returns the other arguments; a wrong flag becomes one line."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    if "--debug" in argv:
      traceback.print_exc()
    else:
      _print_error(argv, _explained(error))
    sys.exit(1)


def _explained(error: flags.Error) -> str:
  """What absl says of a wrong flag, with what is allowed."""
  match = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL)
  if isinstance(error, flags.UnrecognizedFlagError):
    return f"{error} --help lists the flags."
  if not match:
    return str(error)
  name, given = match.groups()
  flag = flags.FLAGS[name]
  allowed = {"int": "a whole number", "float": "a number", "bool": "true or false"}
  if isinstance(flag, flags.EnumFlag):
    allowed[flag.flag_type()] = f"one of {', '.join(flag.parser.enum_values)}"
  return f"--{name} must be {allowed.get(flag.flag_type(), 'another value')}, got {given!r}."


def _print_error(argv: list[str], error) -> None:
  print(f"{os.path.basename(argv[0])}: error: {' '.join(str(error).split())}", file=sys.stderr)


def _guarded(main, argv) -> None:
  name = os.path.basename(argv[0])
  try:
    if len(argv) > 1:
      raise ConfigError(f"unexpected argument {argv[1]!r}: flags are written --name=value.")
    main()
  except Interrupted as stop:
    print(stop, file=sys.stderr)
    sys.exit(130)
  except KeyboardInterrupt:
    print(f"{name}: stopped; nothing had to be saved.", file=sys.stderr)
    sys.exit(130)
  except Exception as error:
    if _DEBUG.value or not isinstance(error, (*_EXPECTED, *_out_of_memory())):
      raise
    if isinstance(error, _out_of_memory()):
      error = "there is not enough memory: try fewer samples, smaller batches or fewer latents."
    _print_error(argv, error)
    sys.exit(1)


def _out_of_memory() -> tuple[type[Exception], ...]:
  """What NumPy and, if it is loaded, TensorFlow raise when memory runs out."""
  tf = sys.modules.get("tensorflow")
  return (MemoryError, tf.errors.ResourceExhaustedError) if tf else (MemoryError,)


def from_flags(config_class):
  """A configuration with the values of the flags that have its fields' names."""
  names = [field.name for field in dataclasses.fields(config_class)]
  return config_class(**{name: flags.FLAGS[name].value for name in names})


@contextlib.contextmanager
def _stderr_to_devnull():
  """Sends what native code writes to standard error nowhere."""
  sys.stderr.flush()
  saved = os.dup(2)
  devnull = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(devnull, 2)
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(devnull)


def load_runners():
  """The module `dregs_tf.runners`, TensorFlow loaded with it, its start-up messages left out."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with _stderr_to_devnull():
    import tensorflow as tf

    from dregs_tf import runners
  tf.get_logger().setLevel("ERROR")
  return runners
