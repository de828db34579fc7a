"""Defines the experiments, the paper's and others: change them here."""

from typing import NamedTuple

from dregs_tf import catalogue
from dregs_tf.training.config import TrainConfig


class Experiment(NamedTuple):
  """Describes the runs of a figure.

  flags: the flagfile in experiments/, without its extension, that all its runs share.
  variations: flags of `bin/train.py` by name, for each run of one seed.
  figure: the kind of figure for `bin/plot.py --figure`.
  folder: the folder in runs/ that holds its runs by default. Experiments in the same folder share
    the runs that have the same name.
  """

  flags: str
  variations: tuple[dict, ...]
  figure: str
  folder: str = "reduced"


def num_evaluated(settings: TrainConfig) -> int:
  """Returns the number of samples for a run's log-likelihood; a particle filter needs fewer."""
  return 128 if settings.model == "vrnn" else 5000


def _bounds(*names: str, **others) -> tuple[dict, ...]:
  return tuple({"bound": name} | others for name in names)


def _prior_gradients(*names: str) -> tuple[dict, ...]:
  """Returns variations of bounds with either gradient of the prior."""
  return tuple(
    {"bound": name, "prior_gradient": kind} for name in names for kind in ("direct", "dreg")
  )


def _alphas(*values: float) -> tuple[dict, ...]:
  """Returns variations of alpha; 0 and 1 are estimators with their own names."""
  named = {0: {"bound": "iwae_dreg"}, 1: {"bound": "rws_dreg"}}
  return tuple(named.get(value) or {"bound": "dreg_alpha", "alpha": value} for value in values)


def _adapted_alphas(*starts: float) -> tuple[dict, ...]:
  return tuple({"bound": "dreg_alpha", "alpha": "auto", "initial_alpha": start} for start in starts)


def _originals(num_samples: int) -> tuple[str, ...]:
  """Returns the paper's bounds that have a doubly reparameterized form and a gradient at K."""
  if num_samples == 1:  # With one sample the mean of RWS's gradient is 0, and JVI is not defined.
    return ("iwae",)
  return ("iwae", "rws", "jvi")


def _where(*all_num_samples: int) -> tuple[dict, ...]:
  """Returns variations of both tasks and K; originals also follow the variance of their DReG."""
  return tuple(
    {"task": task, "num_samples": num_samples, "bound": bound, "track_variance": tracked}
    for task in ("generative", "structured")
    for num_samples in all_num_samples
    for original in _originals(num_samples)
    for bound, tracked in (
      (original, f"{original},{original}_dreg"),
      (f"{original}_dreg", f"{original}_dreg"),
    )
  )


_IWAE_AND_RWS = ("iwae", "iwae_dreg", "rws", "rws_dreg")
_PAIRS = (*_IWAE_AND_RWS, "jvi", "jvi_dreg")
_WITH_STL = (*_IWAE_AND_RWS, "stl")
_DIGITS = (*_bounds("elbo", "elbo_stl", *_PAIRS, "stl"), *_alphas(0.9))
_DIGITS_ALPHA = (*_alphas(0, 0.25, 0.5, 0.75, 0.9, 1), *_adapted_alphas(0, 0.5, 1))
_WITHOUT_PATH = ("elbo_loo", "vimco", "vimco_star")
_OBJECTIVES = (
  *_bounds("iwae", "iwae_dreg"),
  *_bounds("vr_iwae", "vr_iwae_dreg", alpha=0.2),
  *_bounds("ciwae", "ciwae_dreg", beta=0.05),
  *_bounds("miwae", "miwae_dreg", groups=4),
  *_bounds("tvo", "tvo_dreg", "iwae_cv", *_WITHOUT_PATH),
)

EXPERIMENTS = {
  "fig2": Experiment("mnist_generative", _bounds(*_PAIRS), "pairs", "paper"),
  "fig3": Experiment(
    "mnist_generative",
    (
      *_bounds(*_WITH_STL, num_samples=32),
      *_bounds(*_WITH_STL, num_samples=256),
      *_alphas(0, 0.5, 0.7, 0.8, 0.9, 1),
    ),
    "bounds,alpha",
    "paper",
  ),
  "fig4": Experiment(
    "mnist_structured",
    (*_bounds(*_WITH_STL), *_bounds(*_WITH_STL, num_samples=256), *_alphas(0.1, 0.2, 0.5)),
    "bounds,alpha",
    "paper",
  ),
  "fig5": Experiment("omniglot_generative", _bounds(*_PAIRS), "pairs", "paper"),
  "fig6": Experiment(
    "omniglot_generative",
    (
      *_bounds(*_WITH_STL),
      *_bounds(*_WITH_STL, num_samples=256),
      *_alphas(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    ),
    "bounds,alpha",
    "paper",
  ),
  "fig7": Experiment("mnist_structured", _bounds(*_PAIRS), "pairs", "paper"),
  "fig2_reduced": Experiment("mnist_generative_reduced", _bounds(*_PAIRS, "stl"), "pairs"),
  "fig3_reduced": Experiment(
    "mnist_generative_reduced",
    (*_bounds(*_WITH_STL, num_samples=32), *_alphas(0, 0.5, 0.9, 1)),
    "bounds,alpha",
  ),
  "fig4_reduced": Experiment(
    "mnist_structured_reduced", (*_bounds(*_WITH_STL), *_alphas(0.1, 0.5)), "bounds,alpha"
  ),
  "fig5_reduced": Experiment("omniglot_generative_reduced", _bounds(*_IWAE_AND_RWS), "pairs"),
  "fig6_reduced": Experiment(
    "omniglot_generative_reduced", (*_bounds(*_WITH_STL), *_alphas(0.1, 0.5)), "bounds,alpha"
  ),
  "fig7_reduced": Experiment("mnist_structured_reduced", _bounds(*_IWAE_AND_RWS), "pairs"),
  "mnist_seeds": Experiment(
    "mnist_generative_reduced",
    (*_bounds(*_PAIRS, "stl"), *_bounds("vr_iwae_dreg", alpha=0.5)),
    "log_likelihoods",
  ),
  "mnist_many_samples": Experiment("mnist_many_samples", _bounds("iwae", "iwae_dreg"), "bounds"),
  "mnist_long": Experiment("mnist_long", _bounds("iwae_dreg"), "bounds", "long"),
  "mnist_hierarchical": Experiment(
    "mnist_hierarchical", _prior_gradients("iwae", "iwae_dreg"), "prior"
  ),
  "mnist_structured_prior": Experiment(
    "mnist_structured_prior", _prior_gradients("iwae", "iwae_dreg"), "prior"
  ),
  "digits_generative": Experiment("digits_generative", _DIGITS, "bounds"),
  "digits_generative_alpha": Experiment("digits_generative", _DIGITS_ALPHA, "alpha,adapted_alpha"),
  "digits_structured": Experiment("digits_structured", _DIGITS, "bounds"),
  "digits_structured_alpha": Experiment("digits_structured", _DIGITS_ALPHA, "alpha,adapted_alpha"),
  "digits_objectives": Experiment("digits_objectives", _OBJECTIVES, "log_likelihoods"),
  "digits_discrete": Experiment(
    "digits_objectives", _bounds("rws", *_WITHOUT_PATH, model="discrete"), "log_likelihoods"
  ),
  "digits_rows": Experiment("digits_rows", _bounds(*catalogue.SEQUENCE_BOUNDS), "bounds"),
  "mnist_rows": Experiment("mnist_rows", _bounds(*catalogue.SEQUENCE_BOUNDS), "bounds"),
  "digits_where": Experiment("digits_where", _where(1, 8, 64, 256), "where", "where"),
}
