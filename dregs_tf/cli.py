"""What the binaries share: errors in one line, and TensorFlow loaded late and quietly."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable

from absl import app, flags

from dregs_tf.errors import ConfigError, Interrupted

_DEBUG = flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def run(main: Callable[[], None]) -> None:
  """Parses the flags and calls `main`; an expected error becomes one line and exit status 1."""
  if any(argument in ("--help", "-help", "--helpshort", "-h") for argument in sys.argv[1:]):
    flags.FLAGS(sys.argv[:1])
    print(f"{sys.modules['__main__'].__doc__}\nflags:\n")
    print(flags.FLAGS.main_module_help() + "\n" + flags.FLAGS.module_help("dregs_tf.cli"))
    sys.exit(0)
  app.run(lambda argv: _guarded(main, argv))


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
  except (ValueError, OSError, ArithmeticError) as error:
    if _DEBUG.value:
      raise
    print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(1)


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
