"""Defines the commands' configurations: plain values, checked before TensorFlow is loaded.

A field is a flag (see `flags`): its default and its help stand here alone.
"""

import dataclasses
import math
import os
import pathlib

from dregs_tf import catalogue
from dregs_tf.training import bound_flags, checks, model_flags
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.flags import flag

TASKS = ("generative", "structured")
DISTRIBUTE = ("none", "mirrored", "multi_worker")
LEARNING_RATE_SCHEDULES = ("constant", "burda")
SPLITS = ("train", "valid", "test")
GRADIENTS_OF = ("proposal", "prior")
BOUNDS = tuple(catalogue.BOUNDS)

# Paths, which may differ between the workers of a run.
_PATHS = ("data_dir", "logdir")

# A resumed run may change its length, its paths, and its devices, on which results depend only
# through the order of sums.
_MAY_CHANGE = ("max_steps", "distribute", "num_devices", *_PATHS)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Holds the flags of `bin/train.py`."""

  bound: str = flag("iwae_dreg", str, f"Bound and its gradient estimator: {', '.join(BOUNDS)}.")
  num_samples: int = flag(64, int, "K, samples of each example.")
  num_backward_samples: int | str | None = flag(
    None, str, "M, samples that the gradient is taken through, or auto; all K by default."
  )
  alpha: float | str | None = bound_flags.option_flag(
    "alpha", str, "--alpha=auto adapts the alpha of dreg_alpha during training."
  )
  initial_alpha: float | None = flag(
    None, float, f"For --alpha=auto: its start, in [0, 1]. ({bound_flags.DEFAULT_INITIAL_ALPHA})"
  )
  jvi_order: int | None = bound_flags.option_flag("order", int)
  dataset: str = flag(
    "digits", str, "digits (bundled), mnist, omniglot, or a path to an .npz or .mat file."
  )
  task: str = flag(
    "generative", str, "Model whole images, or the bottom half given the top half.", TASKS
  )
  data_dir: str | None = flag(
    None,
    str,
    "Folder of prepared TensorFlow Datasets; $TFDS_DATA_DIR, or a download, by default.",
  )
  batch_size: int = flag(32, int, "Examples in a step, on all devices together.")
  latent_dim: int = flag(model_flags.LATENT_DIM, int, "Number of latent variables.")
  learning_rate: float = flag(3e-4, float, "Adam's learning rate, or where its schedule begins.")
  max_steps: int = flag(5000, int, "Steps to train; a resumed run may have more.")
  summarize_every: int = flag(500, int, "Steps between summaries.")
  checkpoint_every: int = flag(500, int, "Steps between checkpoints.")
  gradient_statistics: bool = flag(
    False, bool, "Follow variance and SNR of the proposal's and the model's gradients."
  )
  track_variance: str | None = flag(
    None,
    str,
    "Bounds, such as iwae,rws_dreg: follow variance and SNR of their estimators of the proposal's "
    "gradient along this run.",
  )
  follow_test: bool = flag(
    False, bool, "Also evaluate on the test set at each summary, as the paper's figures do."
  )
  init_from: str | None = flag(
    None, str, "Directory of a run; training starts from its newest parameters."
  )
  freeze_model: bool = flag(False, bool, "With --init_from: train the inference network alone.")
  jit_compile: bool = flag(True, bool, "Compile the step with XLA.")
  dtype_policy: str = flag("float32", str, model_flags.DTYPE_HELP, model_flags.DTYPE_POLICIES)
  seed: int = flag(0, int, "Seed of variables, data order and noise.")
  distribute: str = flag(
    "none",
    str,
    "mirrored: the devices of this machine; multi_worker: several machines, see "
    "docs/distribution.md. The results stay the same.",
    DISTRIBUTE,
  )
  num_devices: int | None = flag(
    None,
    int,
    "For --distribute=mirrored: number of GPUs, or of CPU devices where there is no GPU; all GPUs "
    "by default.",
  )
  logdir: str | None = flag(
    None, str, "Directory of the run; by default a folder in ./runs that the main flags name."
  )
  beta: float | None = bound_flags.option_flag("beta", float)
  groups: int | None = bound_flags.option_flag("groups", int)
  betas: tuple[float, ...] | None = bound_flags.option_flag("betas", list)
  gamma: float | None = bound_flags.option_flag("gamma", float)
  a: float | None = bound_flags.option_flag("a", float)
  b: float | None = bound_flags.option_flag("b", float)
  g: float | None = bound_flags.option_flag("g", float)
  d: float | None = bound_flags.option_flag("d", float)
  model: str = flag(
    "vae",
    str,
    "vae: Normal latents; discrete: Bernoulli; hierarchical: layers of Normals; vrnn: sequences.",
    model_flags.MODELS,
  )
  kl_weight: float = flag(1.0, float, "Weight of the KL divergence in training.")
  kl_warmup_steps: int = flag(
    0, int, "Steps in which the KL divergence's weight rises from 0 to --kl_weight, linearly."
  )
  missing_fraction: float = flag(
    0.0,
    float,
    "Fraction, in [0, 1), of all images' pixels to remove at random, the same in every epoch.",
  )
  latent_dims: tuple[int, ...] | None = flag(
    None,
    list,
    "For --model=hierarchical: latent variables of each layer, from x up "
    f"({','.join(map(str, model_flags.LATENT_DIMS))}).",
  )
  prior_gradient: str = flag(
    "direct",
    str,
    "Gradient of a learned prior: by its score, or reparameterized twice.",
    model_flags.PRIOR_GRADIENTS,
  )
  resampling: str = flag(
    model_flags.RESAMPLING, str, "For --model=vrnn: how to resample.", catalogue.RESAMPLING
  )
  resample_when: str = flag(model_flags.RESAMPLE_WHEN, str, model_flags.RESAMPLE_WHEN_HELP)
  learning_rate_schedule: str = flag(
    "constant",
    str,
    "burda: --learning_rate times 10^(-i/7) for 3^i passes over the training images, i = 0 to 7 "
    "(Burda et al. 2015, who begin with 0.001); the last rate stays after these 3280 passes.",
    LEARNING_RATE_SCHEDULES,
  )

  def __post_init__(self):
    checks.check_choice("task", self.task, TASKS)
    checks.check_choice("model", self.model, model_flags.MODELS)
    model_flags.check_bound(self)
    checks.check_choice("prior_gradient", self.prior_gradient, model_flags.PRIOR_GRADIENTS)
    checks.check_choice("dtype_policy", self.dtype_policy, model_flags.DTYPE_POLICIES)
    checks.check_choice("distribute", self.distribute, DISTRIBUTE)
    schedule = self.learning_rate_schedule
    checks.check_choice("learning_rate_schedule", schedule, LEARNING_RATE_SCHEDULES)
    for name in ("batch_size", "latent_dim", "max_steps", "summarize_every", "checkpoint_every"):
      checks.check_int(name, getattr(self, name), at_least=1)
    checks.check_int("seed", self.seed, at_least=0)
    checks.check_int("kl_warmup_steps", self.kl_warmup_steps, at_least=0)
    if not (checks.is_number(self.kl_weight) and 0 <= self.kl_weight < math.inf):
      raise ConfigError(f"--kl_weight must be a number of 0 or more, got {self.kl_weight!r}.")
    if not (checks.is_number(self.learning_rate) and 0 < self.learning_rate < math.inf):
      raise ConfigError(f"--learning_rate must be a positive number, got {self.learning_rate!r}.")
    if not isinstance(self.track_variance, (str, type(None))):
      raise ConfigError(f"--track_variance must name bounds, got {self.track_variance!r}.")
    self._set(**bound_flags.parsed(self))
    bound_flags.check(self, self._bounds)
    self._set(**bound_flags.defaults(self, self._bounds))
    self._set(latent_dims=model_flags.checked_latent_dims(self))
    model_flags.check(self, self._bounds)
    if self.num_devices is not None:
      if self.distribute != "mirrored":
        raise ConfigError(
          "--num_devices is only valid with --distribute=mirrored, "
          f"got --distribute={self.distribute}."
        )
      checks.check_int("num_devices", self.num_devices, at_least=1)
    if self.freeze_model and not self.init_from:
      raise ConfigError("--freeze_model needs --init_from, the run whose model is kept.")

  def _set(self, **fields) -> None:
    for name, value in fields.items():
      object.__setattr__(self, name, value)

  def without_paths(self) -> dict:
    """Returns the fields except those that name directories."""
    fields = dataclasses.asdict(self)
    return {name: value for name, value in fields.items() if name not in _PATHS}

  @property
  def adapt_alpha(self) -> bool:
    """Returns whether training adapts alpha."""
    return isinstance(self.alpha, str) and self.alpha == "auto"

  @property
  def bound_options(self) -> dict:
    """Returns the options of `bounds.get` for the bound to train with."""
    return self.options_of(self.bound)

  @property
  def trained_options(self) -> tuple[str, ...]:
    """Returns the names of the bound's options that are trained, since they are not given."""
    return tuple(catalogue.trained_options(self.bound, self.bound_options))

  @property
  def tracked_bounds(self) -> dict[str, dict]:
    """Returns the options of `bounds.get` for each bound that --track_variance names."""
    return {name: self.options_of(name) for name in self._bounds[1:]}

  @property
  def _bounds(self) -> list[str]:
    """Returns the bound to train with, then the tracked ones."""
    return [self.bound, *(self.track_variance.split(",") if self.track_variance else ())]

  def options_of(self, bound: str) -> dict:
    """Returns the options of `bounds.get` for a bound on this run's model.

    They are the run's, if its own bounds give an option the same meaning, or the defaults.
    """
    options = {}
    for name, option in catalogue.row(bound).options.items():
      is_meant = option in bound_flags.meanings(name, self._bounds)
      value = getattr(self, bound_flags.OPTION_FIELDS[name]) if is_meant else None
      if name == "alpha" and self.adapt_alpha:
        value = self.initial_alpha if bound == "dreg_alpha" else None
      options[name] = option.default if value is None else value
    return options

  @property
  def absolute_paths(self) -> dict[str, str]:
    """Returns --dataset, --data_dir and --init_from as absolute paths, those that are paths."""
    paths = {"init_from": self.init_from}
    if pathlib.Path(self.dataset).suffix:  # A name has none, and a file needs one.
      paths["dataset"] = os.path.expanduser(self.dataset)
    if self.data_dir and "://" not in self.data_dir:  # It may be in a bucket.
      paths["data_dir"] = os.path.expanduser(self.data_dir)
    return {name: os.path.abspath(path) for name, path in paths.items() if path}

  @property
  def directory(self) -> pathlib.Path:
    """Returns the run's directory: --logdir, or one named after its main flags."""
    if self.logdir:
      return pathlib.Path(self.logdir)
    data = pathlib.Path(self.dataset).stem
    samples = f"K{self.num_samples}"
    if self.num_backward_samples:
      samples += f"-{self.num_backward_samples}"
    if self.freeze_model:
      samples += "_frozen"
    kind = model_flags.kind_in_name(self)
    if self.prior_gradient != "direct":
      samples += f"_prior-{self.prior_gradient}"
    if (self.kl_weight, self.kl_warmup_steps) != (1, 0):
      samples += f"_kl{self.kl_weight:g}-{self.kl_warmup_steps}"
    if self.missing_fraction:
      samples += f"_missing{self.missing_fraction:g}"
    if self.learning_rate_schedule != "constant":
      samples += f"_{self.learning_rate_schedule}"
    options = bound_flags.options_in_name(self)
    name = f"{data}_{kind}_{self.bound}{options}_{samples}_seed{self.seed}"
    return pathlib.Path("runs") / name

  def check_resumes(self, saved: "TrainConfig", step: int = 0) -> None:
    """Raises a ConfigError unless this configuration can resume the run of `saved` from a step."""
    was, now = (
      dataclasses.asdict(each)
      | {name: os.path.realpath(path) for name, path in each.absolute_paths.items()}
      for each in (saved, self)
    )
    differ = [
      f"--{name} was {was[name]}, now {now[name]}"
      for name in now
      if name not in _MAY_CHANGE and was[name] != now[name]
    ]
    if differ:
      raise ConfigError(
        f"--logdir={self.directory} holds another run: {'; '.join(differ)}. "
        "Give the same flags to resume it, or another --logdir."
      )
    if self.max_steps < step:
      raise ConfigError(
        f"--max_steps must be at least {step}, the last step of the run in "
        f"--logdir={self.directory}, got {self.max_steps}."
      )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Holds the flags of `bin/eval.py`."""

  logdir: str = flag("", str, "The directory of a training run.")
  num_samples: int = flag(5000, int, "Samples of each example.")
  split: str = flag("test", str, "Images to evaluate on.", SPLITS)
  batch_size: int = flag(100, int, "Images at a time.")
  data_dir: str | None = flag(
    None, str, "Folder of prepared TensorFlow Datasets; the run's by default."
  )
  seed: int = flag(0, int, "Seed of the samples.")

  def __post_init__(self):
    if not self.logdir:
      raise ConfigError("--logdir must name the directory of a training run.")
    checks.check_choice("split", self.split, SPLITS)
    checks.check_int("num_samples", self.num_samples, at_least=1)
    checks.check_int("batch_size", self.batch_size, at_least=1)
    checks.check_int("seed", self.seed, at_least=0)


@dataclasses.dataclass(frozen=True)
class CompareConfig:
  """Holds the flags of `bin/compare_estimators.py`; lists may hold strings."""

  logdir: str = flag("", str, "The directory of a training run.")
  bounds: tuple[str, ...] | None = flag(None, list, model_flags.COMPARED_HELP)
  num_samples: tuple[int, ...] = flag(
    (1, 8, 64), list, "Values of K, samples of each image. A bound is skipped if K is too small."
  )
  num_measurements: int = flag(200, int, "Measurements of the gradients at each K.")
  batch_size: int = flag(32, int, "Number of images, the first ones of the split.")
  split: str = flag("test", str, "Images to take.", SPLITS)
  data_dir: str | None = flag(
    None, str, "Folder of prepared TensorFlow Datasets; the run's by default."
  )
  jit_compile: bool | None = flag(None, bool, "Compile with XLA; as in the run by default.")
  measure_cost: bool = flag(True, bool, "Also time a training step's gradient of each bound.")
  seed: int = flag(0, int, "Seed of the samples.")
  output_dir: str | None = flag(
    None, str, "Directory for comparison.csv and comparison.png; the run's by default."
  )
  gradient_of: str = flag(
    "proposal",
    str,
    "Parameters whose gradient to compare; prior: the two gradients of --prior_gradient.",
    GRADIENTS_OF,
  )

  def __post_init__(self):
    if not self.logdir:
      raise ConfigError("--logdir must name the directory of a training run.")
    checks.check_lists(self, (*BOUNDS, *catalogue.SEQUENCE_BOUNDS))
    checks.check_int("num_measurements", self.num_measurements, at_least=catalogue.MIN_MEASUREMENTS)
    checks.check_int("batch_size", self.batch_size, at_least=1)
    checks.check_choice("split", self.split, SPLITS)
    checks.check_choice("gradient_of", self.gradient_of, GRADIENTS_OF)
    checks.check_int("seed", self.seed, at_least=0)
