"""Checks the flags that say which model is trained, and whether its data and bound fit it."""

from collections.abc import Sequence
from typing import Any

from dregs_tf import catalogue
from dregs_tf.training import checks
from dregs_tf.training.errors import ConfigError

MODELS = ("vae", "discrete", "hierarchical")
PRIOR_GRADIENTS = ("direct", "dreg")

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


def check(settings: Any, bounds: Sequence[str]) -> None:
  """Checks a `TrainConfig` whose single values are all allowed.

  Args:
    settings: the configuration.
    bounds: the bound to train with, then the tracked ones.

  Raises:
    ConfigError: if two flags do not fit each other.
  """
  model, task = settings.model, settings.task
  if model != "vae" and task != "generative":
    raise ConfigError(f"--model={model} needs --task=generative, got --task={task}.")
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
    if catalogue.needs_path(bound):
      name = "track_variance" if i else "bound"
      allowed = ", ".join(each for each in catalogue.BOUNDS if not catalogue.needs_path(each))
      raise ConfigError(
        f"--{name} must be one of {allowed} for --model={model}, got {bound!r}: its latents have "
        "no path."
      )


def check_learns_prior(settings: Any, flag: str) -> None:
  """Raises unless the model of a `TrainConfig` has a prior with parameters, which a flag needs."""
  sizes = settings.latent_dims or ()
  if settings.task == "generative" and len(sizes) < 2:
    model = f"--model={settings.model}" + (f" of --latent_dims={sizes[0]}" if sizes else "")
    raise ConfigError(
      f"{flag} needs a learned prior, got {model}: its prior has no parameters. --task=structured "
      "and --model=hierarchical, with two layers or more, learn one."
    )


def _check_prior_gradient(settings: Any) -> None:
  """Raises if there is no prior to train: the flag would do nothing."""
  given = settings.prior_gradient
  check_learns_prior(settings, f"--prior_gradient={given}")
  if settings.freeze_model:
    raise ConfigError(
      f"--prior_gradient must be direct with --freeze_model, got {given!r}: the prior is frozen."
    )
