"""Checks the flags that choose the model, and whether its data and bound fit it."""

import contextlib
from collections.abc import Sequence
from typing import Any

from dregs_tf import catalogue
from dregs_tf.training import checks
from dregs_tf.training.errors import ConfigError

MODELS = ("vae", "discrete", "hierarchical", "vrnn")
PRIOR_GRADIENTS = ("direct", "dreg")
DTYPE_POLICIES = ("float32", "mixed_bfloat16")
DTYPE_HELP = "mixed_bfloat16 trains with matrix products of bfloat16."

RESAMPLING = catalogue.RESAMPLING[0]
RESAMPLE_WHEN = "always"
RESAMPLE_WHEN_HELP = f"For --model=vrnn, when particles are resampled: {catalogue.SCHEDULES}."

# The bounds of --model=discrete, whose latents have no path.
_WITHOUT_PATH = catalogue.compared(has_path=False)

COMPARED_HELP = (
  f"Any of {', '.join(catalogue.BOUNDS)} (by default {','.join(catalogue.compared())}; of a run of "
  f"--model=discrete, {','.join(_WITHOUT_PATH)}); of a run of --model=vrnn, any of "
  f"{', '.join(catalogue.SEQUENCE_BOUNDS)} (by default all)."
)

# Flags that --model=vrnn does not use, with the only value that it accepts.
_NOT_OF_SEQUENCES = {
  "distribute": "none",
  "num_backward_samples": None,
  "gradient_statistics": False,
  "track_variance": None,
  "freeze_model": False,
  "kl_weight": 1.0,
  "kl_warmup_steps": 0,
  "missing_fraction": 0.0,
  "prior_gradient": "direct",
  "dtype_policy": "float32",
}

LATENT_DIM = 50
LATENT_DIMS = (100, 50)  # of the two layers of Burda et al. (2015)


def checked_latent_dims(settings: Any) -> tuple[int, ...] | None:
  """Returns the sizes of a hierarchical model's layers, the default if none are given.

  Raises:
    ConfigError: if they are not sizes, or the model takes the other flag.
  """
  given = settings.latent_dims
  if settings.model != "hierarchical":
    if given is not None:
      raise ConfigError(
        f"--latent_dims is only valid with --model=hierarchical, got --model={settings.model}."
      )
    return None
  if settings.latent_dim != LATENT_DIM:
    raise ConfigError(
      "--model=hierarchical takes --latent_dims, a number for each layer, got "
      f"--latent_dim={settings.latent_dim}."
    )
  sizes = tuple(map(checks.as_int, LATENT_DIMS if given is None else given))
  if not sizes:
    raise ConfigError("--latent_dims must have a number for each layer, got none.")
  for size in sizes:
    checks.check_int("latent_dims", size, at_least=1, note=", or several separated by commas")
  return sizes


def compared(model: str) -> tuple[str, ...]:
  """Returns the bounds that are compared by default on a run of images with a `--model`."""
  return catalogue.compared(has_path=model != "discrete")


def data_task(settings: Any) -> str:
  """Returns the kind of a `TrainConfig`'s batches, the argument `task` of `data`."""
  return "rows" if settings.model == "vrnn" else settings.task


def kind_in_name(settings: Any) -> str:
  """Returns the model of a `TrainConfig` as part of the default directory's name."""
  kind = settings.task if settings.model == "vae" else settings.model
  if settings.latent_dims not in (None, LATENT_DIMS):
    kind += "-" + "-".join(map(str, settings.latent_dims))
  kind += "-bfloat16" * (settings.dtype_policy == "mixed_bfloat16")
  if (settings.resampling, settings.resample_when) != (RESAMPLING, RESAMPLE_WHEN):
    kind += f"-{settings.resampling}-{str(settings.resample_when).replace(',', '-')}"
  return kind


def check_bound(settings: Any) -> None:
  """Raises a ConfigError unless --bound fits the kind of model that --model names."""
  names = tuple(catalogue.SEQUENCE_BOUNDS)
  if settings.model == "vrnn":
    checks.check_choice("bound", settings.bound, names)
  elif settings.bound in names and settings.bound not in catalogue.BOUNDS:
    raise ConfigError(
      f"--bound={settings.bound} is only valid with --model=vrnn, got --model={settings.model}."
    )
  else:
    checks.check_bound("bound", settings.bound)


def as_schedule(text: Any) -> Any:
  """Parses the text of --resample_when: a word, a number, or a list of steps."""
  if isinstance(text, str) and text not in ("always", "never"):
    parts = text.split(",")
    with contextlib.suppress(ValueError):
      if len(parts) > 1:
        return [int(part) for part in parts]
      return float(text) if "." in text else int(text)
  return text


def _check_resampling(settings: Any) -> None:
  """Checks the flags that only models of sequences use, and those that only others use."""
  when = settings.resample_when
  checks.check_choice("resampling", settings.resampling, catalogue.RESAMPLING)
  if not catalogue.is_schedule(as_schedule(when)):
    raise ConfigError(f"--resample_when must be {catalogue.SCHEDULES}, got {when!r}.")
  given = {"resampling": (settings.resampling, RESAMPLING), "resample_when": (when, RESAMPLE_WHEN)}
  for name, (value, default) in given.items():
    resamples = settings.model == "vrnn" and catalogue.sequence_row(settings.bound).resamples
    if value != default and not resamples and (settings.model, value) != ("vrnn", "never"):
      raise ConfigError(
        f"--{name} needs --model=vrnn and a bound that resamples, fivo or fivo_dreg, got "
        f"--model={settings.model}, --bound={settings.bound}."
      )
  for name, unused in _NOT_OF_SEQUENCES.items() if settings.model == "vrnn" else ():
    value = getattr(settings, name)
    if value != unused:
      raise ConfigError(f"--{name} must be {unused} with --model=vrnn, got {value!r}.")


def check(settings: Any, bounds: Sequence[str]) -> None:
  """Checks combinations of flags in a `TrainConfig` whose single values are all allowed.

  Args:
    settings: the configuration.
    bounds: the bound to train with, then the tracked ones.

  Raises:
    ConfigError: if two flags do not fit each other.
  """
  model, task = settings.model, settings.task
  if model != "vae" and task != "generative":
    raise ConfigError(f"--model={model} needs --task=generative, got --task={task}.")
  _check_resampling(settings)
  if settings.prior_gradient != "direct":
    _check_prior_gradient(settings)
  missing = settings.missing_fraction
  if not (checks.is_number(missing) and 0 <= missing < 1):
    raise ConfigError(f"--missing_fraction must be in [0, 1), got {missing!r}.")
  if missing and task != "generative":
    raise ConfigError(
      f"--missing_fraction needs --task=generative, got --task={task}: contexts must be complete."
    )
  for i, bound in enumerate(bounds if model == "discrete" else ()):
    if bound not in _WITHOUT_PATH:
      name = "track_variance" if i else "bound"
      raise ConfigError(
        f"--{name} must be one of {', '.join(_WITHOUT_PATH)} for --model={model}, got {bound!r}: "
        "its latents have no path."
      )


def check_learns_prior(settings: Any, flag: str) -> None:
  """Raises a ConfigError unless the model of a `TrainConfig` has a learned prior for `flag`."""
  sizes = settings.latent_dims or ()
  if settings.task == "generative" and len(sizes) < 2:
    model = f"--model={settings.model}" + (f" of --latent_dims={sizes[0]}" if sizes else "")
    raise ConfigError(
      f"{flag} needs a learned prior, got {model}: its prior has no parameters. --task=structured "
      "and --model=hierarchical, with two layers or more, learn one."
    )


def _check_prior_gradient(settings: Any) -> None:
  """Raises a ConfigError if no prior is trained, since the flag would then do nothing."""
  given = settings.prior_gradient
  check_learns_prior(settings, f"--prior_gradient={given}")
  if settings.freeze_model:
    raise ConfigError(
      f"--prior_gradient must be direct with --freeze_model, got {given!r}: the prior is frozen."
    )
