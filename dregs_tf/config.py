"""What a run is told to do: plain values, checked before TensorFlow is loaded."""

import contextlib
import dataclasses
import json
import math
import pathlib

from dregs_tf import catalogue
from dregs_tf.errors import ConfigError

TASKS = ("generative", "structured")
DISTRIBUTE = ("none", "mirrored", "multi_worker")
SPLITS = ("train", "valid", "test")

BOUNDS = tuple(catalogue.BOUNDS)
DEFAULT_ALPHA = catalogue.BOUNDS["dreg_alpha"].options["alpha"].default
DEFAULT_INITIAL_ALPHA = 0.5
DEFAULT_ORDER = catalogue.BOUNDS["jvi"].options["order"].default

# Shapes, steps and seeds are int32 somewhere below.
_LARGEST_INT = 2**31 - 1

# The largest latent_dim of the toy experiment.
_LARGEST_TOY = 50

_FILE_NAME = "config.json"

# Where things are: that may differ between the workers of a run.
_PLACES = ("data_dir", "logdir")

# What a resumed run may change: how long it goes on, where things are, and the devices: the
# numbers depend on them only through the order of sums.
_MAY_CHANGE = ("max_steps", "distribute", "num_devices", *_PLACES)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """What `bin/train.py` takes, flag by flag."""

  bound: str = "iwae_dreg"
  num_samples: int = 64
  num_backward_samples: int | None = None
  alpha: float | str | None = None
  initial_alpha: float | None = None
  jvi_order: int | None = None
  dataset: str = "digits"
  task: str = "generative"
  data_dir: str | None = None
  batch_size: int = 32
  latent_dim: int = 50
  learning_rate: float = 3e-4
  max_steps: int = 5000
  summarize_every: int = 500
  checkpoint_every: int = 500
  gradient_statistics: bool = False
  track_variance: str | None = None
  follow_test: bool = False
  init_from: str | None = None
  freeze_model: bool = False
  jit_compile: bool = True
  seed: int = 0
  distribute: str = "none"
  num_devices: int | None = None
  logdir: str | None = None

  def __post_init__(self):
    _check_choice("bound", self.bound, BOUNDS)
    _check_choice("task", self.task, TASKS)
    _check_choice("distribute", self.distribute, DISTRIBUTE)
    for name in ("batch_size", "latent_dim", "max_steps", "summarize_every", "checkpoint_every"):
      _check_int(name, getattr(self, name), at_least=1)
    _check_int("seed", self.seed, at_least=0)
    if not (_is_number(self.learning_rate) and 0 < self.learning_rate < math.inf):
      raise ConfigError(f"--learning_rate must be a positive number, got {self.learning_rate!r}.")
    self._check_tracked()
    self._check_alpha()
    if {"jvi", "jvi_dreg"} & set(self._bounds):
      self._fill_in("jvi_order", DEFAULT_ORDER)
    if self.jvi_order is not None:
      if not {"jvi", "jvi_dreg"} & set(self._bounds):
        raise ConfigError(
          f"--jvi_order goes with --bound=jvi or jvi_dreg, got --bound={self.bound}."
        )
      _check_int("jvi_order", self.jvi_order, at_least=1)
    for name in self._bounds:
      least = self.options_of(name).get("order", 0) + 1
      flag = "bound" if name == self.bound else "track_variance"
      _check_int("num_samples", self.num_samples, at_least=least, note=f" for --{flag}={name}")
    if self.num_backward_samples is not None:
      for name, given in (
        ("track_variance", self.track_variance),
        ("alpha=auto", self.adapt_alpha),
      ):
        if given:
          raise ConfigError(
            f"--{name} takes all samples: it does not go with --num_backward_samples."
          )
      _check_int("num_backward_samples", self.num_backward_samples, at_least=1)
      if self.num_backward_samples > self.num_samples:
        raise ConfigError(
          f"--num_backward_samples must be at most --num_samples={self.num_samples}, "
          f"got {self.num_backward_samples}."
        )

    if self.num_devices is not None:
      if self.distribute != "mirrored":
        raise ConfigError(
          f"--num_devices goes with --distribute=mirrored, got --distribute={self.distribute}."
        )
      _check_int("num_devices", self.num_devices, at_least=1)

    if self.freeze_model and not self.init_from:
      raise ConfigError("--freeze_model needs --init_from, the run whose model is kept.")

  def _check_tracked(self) -> None:
    if self.track_variance == "":  # as a flagfile takes back what another one has set
      object.__setattr__(self, "track_variance", None)
    if not isinstance(self.track_variance, (str, type(None))):
      raise ConfigError(f"--track_variance must be names of bounds, got {self.track_variance!r}.")
    names = self._bounds[1:]
    for name in names:
      _check_choice("track_variance", name, BOUNDS)
    if len(set(names)) < len(names):
      raise ConfigError(f"--track_variance names a bound twice, got {self.track_variance}.")

  def _check_alpha(self) -> None:
    if isinstance(self.alpha, str) and self.alpha != "auto":
      with contextlib.suppress(ValueError):
        object.__setattr__(self, "alpha", float(self.alpha))
    if "dreg_alpha" in self._bounds:
      self._fill_in("alpha", DEFAULT_ALPHA)
    if self.adapt_alpha:
      self._fill_in("initial_alpha", DEFAULT_INITIAL_ALPHA)
    if self.alpha is not None:
      if "dreg_alpha" not in self._bounds:
        raise ConfigError(f"--alpha goes with --bound=dreg_alpha, got --bound={self.bound}.")
      if not (self.adapt_alpha or (_is_number(self.alpha) and 0 <= self.alpha <= 1)):
        raise ConfigError(f"--alpha must be a number in [0, 1], or auto, got {self.alpha!r}.")
      if self.adapt_alpha and self.bound != "dreg_alpha":
        raise ConfigError(f"--alpha=auto goes with --bound=dreg_alpha, got --bound={self.bound}.")
    if self.initial_alpha is not None:
      if not self.adapt_alpha:
        raise ConfigError(f"--initial_alpha goes with --alpha=auto, got --alpha={self.alpha}.")
      if not (_is_number(self.initial_alpha) and 0 <= self.initial_alpha <= 1):
        raise ConfigError(f"--initial_alpha must be in [0, 1], got {self.initial_alpha!r}.")

  def _fill_in(self, name: str, default) -> None:
    """Gives a flag its default where it has a meaning: a run is the same with and without it."""
    if getattr(self, name) is None:
      object.__setattr__(self, name, default)

  def without_places(self) -> dict:
    """Its fields, but for those that name directories."""
    fields = dataclasses.asdict(self)
    return {name: value for name, value in fields.items() if name not in _PLACES}

  @property
  def adapt_alpha(self) -> bool:
    """Whether alpha moves while training."""
    return self.alpha == "auto"

  @property
  def bound_options(self) -> dict:
    """The options of `bounds.get` for the bound that is trained on."""
    return self.options_of(self.bound)

  @property
  def tracked_bounds(self) -> dict[str, dict]:
    """The options of `bounds.get` for each bound that --track_variance names."""
    return {name: self.options_of(name) for name in self._bounds[1:]}

  @property
  def _bounds(self) -> list[str]:
    """The bound that is trained on, and those that are tracked."""
    return [self.bound, *(self.track_variance.split(",") if self.track_variance else ())]

  def options_of(self, bound: str) -> dict:
    """The options of `bounds.get` that this run has for a bound: the flags', or the defaults."""
    if bound == "dreg_alpha":
      if self.adapt_alpha:
        return {"alpha": _given(self.initial_alpha, DEFAULT_INITIAL_ALPHA)}
      return {"alpha": _given(self.alpha, DEFAULT_ALPHA)}
    if bound in ("jvi", "jvi_dreg"):
      return {"order": _given(self.jvi_order, DEFAULT_ORDER)}
    return {}

  @property
  def directory(self) -> pathlib.Path:
    """The logdir; unless it was given, one that the run's main flags name."""
    if self.logdir:
      return pathlib.Path(self.logdir)
    options = "".join(f"_{name}{value}" for name, value in self.bound_options.items())
    if self.adapt_alpha:
      options = options.replace("_alpha", "_alpha-auto")
    data = pathlib.Path(self.dataset).stem
    samples = f"K{self.num_samples}"
    if self.num_backward_samples:
      samples += f"-{self.num_backward_samples}"
    if self.freeze_model:
      samples += "_frozen"
    name = f"{data}_{self.task}_{self.bound}{options}_{samples}_seed{self.seed}"
    return pathlib.Path("runs") / name

  def save(self) -> None:
    """Writes the configuration into its directory."""
    text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
    (self.directory / _FILE_NAME).write_text(text)

  def check_resumes(self, saved: "TrainConfig", step: int = 0) -> None:
    """Raises unless this configuration can go on with the run that `saved` began, from a step."""
    differ = [
      f"--{field.name} was {getattr(saved, field.name)}, now {getattr(self, field.name)}"
      for field in dataclasses.fields(self)
      if field.name not in _MAY_CHANGE and getattr(saved, field.name) != getattr(self, field.name)
    ]
    if differ:
      raise ConfigError(
        f"--logdir={self.directory} holds another run: {'; '.join(differ)}. "
        "Give the same flags to resume it, or another --logdir."
      )
    if self.max_steps < step:
      raise ConfigError(
        f"--max_steps must be at least {step}, where the run in --logdir={self.directory} has come "
        f"to, got {self.max_steps}."
      )


def load(directory) -> TrainConfig | None:
  """The configuration of the run in `directory`, None if there is none.

  Raises:
    ConfigError: if there is one that cannot be read.
  """
  path = pathlib.Path(directory) / _FILE_NAME
  if not path.exists():
    return None
  try:
    config = TrainConfig(**json.loads(path.read_text()))
  except (OSError, TypeError, ValueError) as error:
    raise ConfigError(f"{path} is not a configuration of this version: {error}") from error
  return dataclasses.replace(config, logdir=str(directory))


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What `bin/eval.py` takes, flag by flag."""

  logdir: str = ""
  num_samples: int = 5000
  split: str = "test"
  batch_size: int = 100
  data_dir: str | None = None
  seed: int = 0

  def __post_init__(self):
    if not self.logdir:
      raise ConfigError("--logdir must name the directory of a training run.")
    _check_choice("split", self.split, SPLITS)
    _check_int("num_samples", self.num_samples, at_least=1)
    _check_int("batch_size", self.batch_size, at_least=1)
    _check_int("seed", self.seed, at_least=0)


@dataclasses.dataclass(frozen=True)
class CompareConfig:
  """What `bin/compare_estimators.py` takes, flag by flag; the lists also as strings."""

  logdir: str = ""
  bounds: tuple[str, ...] = catalogue.COMPARED
  num_samples: tuple[int, ...] = (1, 8, 64)
  num_measurements: int = 200
  batch_size: int = 32
  split: str = "test"
  data_dir: str | None = None
  jit_compile: bool | None = None
  measure_cost: bool = True
  seed: int = 0
  output_dir: str | None = None

  def __post_init__(self):
    if not self.logdir:
      raise ConfigError("--logdir must name the directory of a training run.")
    _check_lists(self)
    _check_int("num_measurements", self.num_measurements, at_least=catalogue.MIN_MEASUREMENTS)
    _check_int("batch_size", self.batch_size, at_least=1)
    _check_choice("split", self.split, SPLITS)
    _check_int("seed", self.seed, at_least=0)


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  """What `bin/toy_gaussian.py` takes, flag by flag; the lists also as strings."""

  bounds: tuple[str, ...] = ("elbo", "iwae", "stl", "iwae_dreg")
  num_samples: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
  num_trials: int = 10
  num_measurements: int = 1000
  batch_size: int = 128
  num_observations: int = 1024
  latent_dim: int = 20
  seed: int = 0
  output_dir: str = "runs/toy_gaussian"

  def __post_init__(self):
    _check_lists(self)
    for name in ("num_trials", "batch_size", "num_observations", "latent_dim"):
      _check_int(name, getattr(self, name), at_least=1)
    _check_int("num_measurements", self.num_measurements, at_least=2, note=", for a variance")
    _check_int("seed", self.seed, at_least=0)
    if self.batch_size > self.num_observations:
      raise ConfigError(
        f"--batch_size must be at most --num_observations={self.num_observations}, "
        f"got {self.batch_size}."
      )
    if self.latent_dim > _LARGEST_TOY:
      # Beyond, the quadrature of the exact gradient would need more nodes.
      raise ConfigError(f"--latent_dim must be at most {_LARGEST_TOY}, got {self.latent_dim}.")
    if not self.output_dir:
      raise ConfigError("--output_dir must name a directory.")


def _check_lists(settings) -> None:
  """Checks --bounds and --num_samples, lists that may hold strings, and puts them in order."""
  for name in ("bounds", "num_samples"):
    if not getattr(settings, name):
      raise ConfigError(f"--{name} must not be empty: separate values by commas.")
  names = [str(name).strip() for name in settings.bounds]
  for name in names:
    _check_choice("bounds", name, BOUNDS)
  object.__setattr__(settings, "bounds", tuple(dict.fromkeys(names)))
  all_num_samples = [_whole_number(value) for value in settings.num_samples]
  for value in all_num_samples:
    _check_int("num_samples", value, at_least=1, note=", or several separated by commas")
  object.__setattr__(settings, "num_samples", tuple(sorted(set(all_num_samples))))
  for name in {"jvi", "jvi_dreg"} & set(settings.bounds):
    if settings.num_samples[-1] <= DEFAULT_ORDER:
      raise ConfigError(
        f"--num_samples must hold a number of at least {DEFAULT_ORDER + 1} for the bound {name}, "
        f"got {settings.num_samples[-1]}."
      )


def _whole_number(value):
  """An int written as a string as that int; anything else as it is."""
  try:
    return int(value) if isinstance(value, str) else value
  except ValueError:
    return value


def _check_choice(name: str, value, allowed) -> None:
  if value not in allowed:
    raise ConfigError(f"--{name} must be one of {', '.join(allowed)}, got {value!r}.")


def _check_int(name: str, value, at_least: int, note: str = "") -> None:
  if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
    raise ConfigError(
      f"--{name} must be a whole number of at least {at_least}{note}, got {value!r}."
    )
  if value > _LARGEST_INT:
    raise ConfigError(f"--{name} must be at most {_LARGEST_INT}, got {value}.")


def _given(value, default):
  return default if value is None else value


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)
