"""Tests of differences over seeds: which bounds are compared, intervals, and their table."""

import math

import pytest

from dregs_tf import catalogue
from experiments import differences
from experiments.tables import tables
from tests.experiments.helpers import groups_in, write


def test_intervals_by_hand():
  """The quantiles of t are 12.7062 and 4.30265 for 1 and 2 degrees of freedom."""
  # Deviation 1, standard error 1 / sqrt(3) = 0.57735.
  assert differences.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.484138, 4.484138))
  # Deviation 0.353553, standard error 0.25.
  assert differences.interval([1.0, 1.5]) == pytest.approx((1.25, -1.926551, 4.426551))
  assert differences.interval([1.5]) == (1.5, -math.inf, math.inf)


def test_the_bases_of_bounds():
  bases = {
    "iwae": "iwae",
    "iwae_dreg": "iwae",
    "rws": "iwae",
    "rws_dreg": "rws",
    "stl": "iwae",
    "elbo_stl": "elbo",
    "dreg_alpha": "iwae_dreg",
    "jvi_dreg": "jvi",
    "vr_iwae_dreg": "vr_iwae",
    "piwae_dreg": "piwae",
    "vimco_star": "iwae",
    "fivo": "fivo",
    "fivo_dreg": "fivo",
  }
  assert {bound: differences.base_of(bound) for bound in bases} == bases
  assert {differences.base_of(bound) for bound in catalogue.BOUNDS} <= set(catalogue.BOUNDS)


def compared(place):
  return [
    tuple((group.settings.bound, *group.settings.bound_options.values()) for group in pair)
    for pair in differences.pairs(groups_in(place))
  ]


def test_bounds_are_compared_with_their_base_and_with_iwae_dreg(tmp_path):
  for bound in ("iwae", "iwae_dreg", "rws", "rws_dreg", "elbo"):
    write(tmp_path / bound, bound=bound)
  assert compared(tmp_path) == [
    (("elbo",), ("iwae_dreg",)),
    (("iwae_dreg",), ("iwae",)),
    (("rws",), ("iwae",)),
    (("rws",), ("iwae_dreg",)),
    (("rws_dreg",), ("rws",)),
    (("rws_dreg",), ("iwae_dreg",)),
  ]


def test_options_and_settings_must_be_the_same(tmp_path):
  for i, order in enumerate((1, 2)):
    write(tmp_path / f"a{i}", bound="jvi", jvi_order=order)
    write(tmp_path / f"b{i}", bound="jvi_dreg", jvi_order=order)
  write(tmp_path / "c", bound="jvi_dreg", learning_rate=1.0)
  write(tmp_path / "d", bound="rws")
  write(tmp_path / "e", bound="rws_dreg", track_variance="rws", seed=4)
  assert compared(tmp_path) == [
    (("rws_dreg",), ("rws",)),
    (("jvi_dreg", 1), ("jvi", 1)),
    (("jvi_dreg", 2), ("jvi", 2)),
  ]


def test_runs_in_progress_have_no_difference_yet(tmp_path):
  """A seed that has just begun does not move the others' window either."""
  for bound, level in (("iwae", 1.0), ("iwae_dreg", 2.5)):
    write(tmp_path / f"{bound}0", bound=bound, columns={"test_bound": [9.0, 9.0, 9.0, level]})
    early = {"test_bound": [level]}
    write(tmp_path / f"{bound}1", bound=bound, seed=1, steps=(10,), columns=early)
  iwae, dreg = groups_in(tmp_path)
  assert differences.common_seeds(dreg, iwae) == [0, 1]
  assert differences.late_bound_differences(dreg, iwae) == [1.5]


def made_up(directory, bound, seed, late, log_likelihood=None, untrusted=None):
  """A run whose last summary, its last quarter, has the test bound `late`."""
  evaluation = {"step": 40, "log_likelihood": log_likelihood, "standard_error": 0.2}
  if untrusted is not None:
    evaluation["untrusted"] = untrusted
  columns = {"test_bound": [-90.0, -90.0, -90.0, late]}
  write(
    directory / f"{bound}{seed}",
    bound=bound,
    seed=seed,
    columns=columns,
    evaluation=evaluation if log_likelihood is not None else None,
  )


def test_a_table_of_differences(tmp_path):
  for seed, noise in enumerate((0.0, 3.0, -5.0)):  # It is the same for all bounds of a seed.
    made_up(tmp_path, "iwae", seed, -20.0 + noise, -19.0 + noise)
    lead, log_likelihood = (0.5, 0.75, 1.0)[seed], (1.0, 2.0, 3.0)[seed] - 19.0 + noise
    made_up(tmp_path, "iwae_dreg", seed, -20.0 + lead + noise, log_likelihood, 0.25 * seed)
  for seed in (1, 2, 7):
    made_up(tmp_path, "jvi", seed, -30.0, -18.0 if seed == 1 else None)
  made_up(tmp_path, "rws", 0, -19.0, -18.0)
  text = tables(groups_in(tmp_path))
  # Differences 0.5, 0.75, 1: deviation 0.25, half width 4.30265 * 0.25 / sqrt(3) = 0.621034.
  # JVI's objective is another one, and its log p(x) is known with one of two seeds in common:
  # -18 - (-19 + 2 + 3) = -4. RWS has no more than one seed.
  expected = """
| trained with | minus | seeds | test bound, late | log p(x), 5000 samples |
| --- | --- | --- | --- | --- |
| IWAE-DReG | IWAE | 0, 1, 2 | +0.750 (+0.129 to +1.371) | +2.000 (-0.484 to +4.484), unresolved |
| JVI | IWAE-DReG | 1, 2 |  | -4.000 (-inf to +inf) (1 of 2 seeds), unresolved |

Unresolved: the interval holds 0, so the order cannot be told."""
  assert expected in text
  header, _, iwae, dreg = text.splitlines()[2:6]
  assert "| images with k-hat > 0.7 |" in header
  assert iwae.startswith("| IWAE |") and iwae.endswith("| 0.200 |  |")
  assert dreg.startswith("| IWAE-DReG |") and dreg.endswith("| 0.200 | 25.0% |")


def test_no_table_of_differences_without_several_seeds_in_common(tmp_path):
  for bound, seeds in (("iwae", (0, 1)), ("iwae_dreg", (1, 2))):
    for seed in seeds:
      made_up(tmp_path, bound, seed, -20.0)
  text = tables(groups_in(tmp_path))
  assert "minus" not in text and "k-hat" not in text
