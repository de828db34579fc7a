"""Tests of --model, --kl_weight and --kl_warmup_steps, and of bounds' options as flags."""

import json

import numpy as np
import pytest

from dregs_tf import bounds, catalogue
from dregs_tf.proposals import Requirement
from dregs_tf.training import config, run_data, run_directory, runners
from dregs_tf.training.errors import ConfigError
from tests import binaries
from tests.eager import functions_run_eagerly

SMALL = ["--max_steps=4", "--summarize_every=2", "--checkpoint_every=2", "--num_samples=6"]
SMALL += ["--latent_dim=3", "--jit_compile=false"]


def test_which_bounds_need_a_path():
  for name in bounds.names():
    needs = Requirement.PATH in bounds.get(name).gradient.requirement
    assert catalogue.needs_path(name) == needs, name


@pytest.mark.parametrize(
  "fields,words",
  [
    ({"model": "flow"}, ["--model", "'flow'", "discrete"]),
    ({"model": "discrete"}, ["--bound", "'iwae_dreg'", "vimco_star", "--model=discrete"]),
    (
      {"model": "discrete", "bound": "rws", "track_variance": "vimco,stl"},
      ["--track_variance", "'stl'"],
    ),
    (
      {"model": "discrete", "bound": "rws", "task": "structured"},
      ["--model=discrete", "--task=structured"],
    ),
    ({"latent_dims": (3, 2)}, ["--latent_dims", "--model=hierarchical", "--model=vae"]),
    ({"model": "hierarchical", "latent_dims": ["3", "x"]}, ["--latent_dims", "'x'"]),
    ({"model": "hierarchical", "latent_dims": ()}, ["--latent_dims", "none"]),
    ({"model": "hierarchical", "latent_dim": 4}, ["--latent_dims", "--latent_dim=4"]),
    (
      {"model": "hierarchical", "task": "structured"},
      ["--model=hierarchical", "--task=structured"],
    ),
    ({"prior_gradient": "stl"}, ["--prior_gradient", "'stl'", "direct, dreg"]),
    (
      {"prior_gradient": "dreg"},
      ["--prior_gradient=dreg", "--model=vae", "--task=structured", "--model=hierarchical"],
    ),
    (
      {"prior_gradient": "dreg", "model": "hierarchical", "latent_dims": ["4"]},
      ["--prior_gradient", "--latent_dims=4"],
    ),
    (
      {"prior_gradient": "dreg", "task": "structured", "init_from": "x", "freeze_model": True},
      ["--prior_gradient", "--freeze_model"],
    ),
    ({"dtype_policy": "float16"}, ["--dtype_policy", "'float16'", "mixed_bfloat16"]),
    ({"kl_weight": -1.0}, ["--kl_weight", "-1.0"]),
    ({"kl_weight": float("nan")}, ["--kl_weight", "nan"]),
    ({"kl_warmup_steps": -1}, ["--kl_warmup_steps", "-1"]),
  ],
)
def test_bad_values_are_refused(fields, words):
  with pytest.raises(ConfigError) as error:
    config.TrainConfig(**fields)
  assert all(word in str(error.value) for word in words)


def test_directories_tell_models_and_weights_apart():
  names = {
    config.TrainConfig(**fields).directory.name
    for fields in (
      {},
      {"kl_weight": 0.5},
      {"dtype_policy": "mixed_bfloat16"},
      {"kl_warmup_steps": 10},
      {"bound": "rws"},
      {"bound": "rws", "model": "discrete"},
      {"model": "hierarchical"},
      {"model": "hierarchical", "latent_dims": (4, 3)},
      {"model": "hierarchical", "prior_gradient": "dreg"},
    )
  }
  assert len(names) == 9
  assert "digits_generative_iwae_dreg_K64_seed0" in names


@pytest.mark.parametrize(
  "flags",
  [
    ["--model=discrete", "--bound=vimco_star", "--track_variance=vimco"],
    ["--kl_weight=0.5", "--kl_warmup_steps=3", "--bound=vr_iwae_dreg", "--alpha=0.3"],
    ["--dtype_policy=mixed_bfloat16", "--bound=tvo_dreg", "--betas=0,0.2,1"],
  ],
  ids=lambda flags: flags[0],
)
def test_they_train_resume_and_evaluate(flags, tmp_path, monkeypatch):
  monkeypatch.setattr(runners, "NUM_MEASURED", 3)
  arguments = [*SMALL, *flags, f"--logdir={tmp_path}"]
  assert binaries.run("train.py", *arguments, "--max_steps=2") == 0
  with functions_run_eagerly():  # The graph of a step is built once.
    assert binaries.run("train.py", *arguments) == 0
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 4
    assert binaries.run("eval.py", f"--logdir={tmp_path}", "--num_samples=20") == 0


def test_a_weight_that_a_bound_does_not_take(tmp_path, capsys):
  arguments = [*SMALL, "--bound=rws", "--kl_weight=0.5", f"--logdir={tmp_path}"]
  assert binaries.run("train.py", *arguments) == 1
  error = capsys.readouterr().err
  assert "kl_weight must be 1 for rws, got 0.5" in error


def test_layers_are_followed(tmp_path, monkeypatch):
  """By metrics.csv, which TensorBoard shows as well; on many images, even if K leaves few."""
  monkeypatch.setattr(runners, "eval_batch_size", lambda settings: 25)
  arguments = [*SMALL, "--model=hierarchical", "--latent_dims=4,3", "--prior_gradient=dreg"]
  arguments.remove("--latent_dim=3")
  assert binaries.run("train.py", *arguments, "--max_steps=2", f"--logdir={tmp_path}") == 0
  run = run_directory.Run(tmp_path)
  metrics, model = run.read_metrics(), run.load(2)
  settings = run.read_config()
  valid = run_data.eval_batches(settings, run_data.load(settings, None), "valid", batch_size=50)
  (images,) = valid
  for name, divergences in model.kl_divergence(images).items():
    np.testing.assert_allclose(metrics[f"valid_kl_{name}"], [np.mean(divergences)], rtol=1e-5)
  assert 0 <= metrics["valid_active_units_z1"][-1] <= 4
  assert model.prior_gradient == "dreg" and model.latent_dims == (4, 3)
