"""The multi-modal experiment: a small run of it, and what it refuses."""

import csv
import dataclasses

import pytest

from dregs_tf import data
from dregs_tf.training.errors import ConfigError
from experiments.mixture_of_experts import run
from experiments.mixture_of_experts.config import ExpertsConfig
from tests.eager import functions_run_eagerly


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch):
  monkeypatch.setattr(run, "_NUM_SAMPLES", 50)
  monkeypatch.setattr(run, "_NUM_REPEATS", 40)
  # Steps are traced, log-likelihoods are not: six graphs less.
  monkeypatch.setattr(run, "evaluate", functions_run_eagerly()(run.evaluate))
  images = data.load("digits")
  few = dataclasses.replace(images, test=images.test[:20])
  monkeypatch.setattr(data, "load", lambda name: few)
  settings = ExpertsConfig(
    num_samples=(2,),
    num_seeds=1,
    max_steps=2,
    latent_dim=2,
    hidden_units=4,
    output_dir=str(tmp_path / "new"),
  )
  run.run(settings)
  names = {path.name for path in (tmp_path / "new").iterdir()}
  assert names == {"results.csv", "mixture_of_experts.png", "cross_generation.png"}
  with open(tmp_path / "new" / "results.csv", newline="", encoding="utf-8") as file:
    exact, hooked = csv.DictReader(file)
  assert (exact["gradient"], hooked["gradient"]) == ("exact", "hook")
  assert 0.5 < float(exact["share_of_hook"]) < 1.5 and hooked["share_of_hook"] == ""
  for row in (exact, hooked):
    # 64 pixels of about 1/3 and less: between a fair coin's and those of a model that knows all.
    assert -64 * 0.7 < float(row["log_p"]) < -15
    halves = float(row["log_p_bottom_given_top"]), float(row["log_p_top_given_bottom"])
    assert all(-32 * 0.7 < half < -5 for half in halves)


@pytest.mark.parametrize(
  "options,message",
  [
    ({"bounds": ("elbo",)}, "--bounds must be one of iwae.*got 'elbo'"),
    ({"num_samples": (0,)}, "--num_samples.*got 0"),
    ({"num_seeds": 0}, "--num_seeds.*got 0"),
    ({"learning_rate": 0.0}, "--learning_rate.*got 0.0"),
    ({"output_dir": ""}, "--output_dir"),
  ],
)
def test_wrong_flags_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    ExpertsConfig(**options)


def test_the_hook_takes_no_further_options():
  with pytest.raises(ValueError, match=r"no further options.*0\.5"):
    run.HookedExperts.estimate(None, {}, bound="iwae", num_samples=2, seed=1, kl_weight=0.5)
