"""Tests programs of runs: what is written for machines without TensorFlow, and what comes back."""

import gzip
import json

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf.models import products
from dregs_tf.training import ConfigError, Run
from experiments import runs
from experiments.exported import program, read, write


def test_a_program_says_what_it_reads_and_updates():
  unused, factor, total = (tf.Variable(value) for value in (7.0, 3.0, [1.0, 2.0]))

  def function(x, y):
    total.assign_add(factor * x)
    return {"sum": tf.reduce_sum(total), "difference": x - y}

  inputs = tf.zeros([2]), tf.zeros([2])
  exported = program.export(function, inputs, [unused, factor, total])
  assert sorted(exported.arguments) == [1, 2]
  assert exported.results == ["difference", "sum"]
  assert exported.updates == [(2, 2)]
  assert "stablehlo.multiply" in exported.text
  assert "mhlo.copy" not in exported.text


def test_a_variable_that_is_not_in_the_table_is_refused():
  variable = tf.Variable(1.0, name="missing")
  with pytest.raises(ValueError, match=r"table .* got none for missing"):
    program.export(lambda x: {"y": x * variable}, [tf.zeros([])], [])


@pytest.mark.parametrize(
  "given", ["--num_backward_samples=auto", "--missing_fraction=0.5", "--summarize_every=300"]
)
def test_runs_of_other_shapes_are_refused(tmp_path, given):
  settings = runs.ExperimentConfig(
    experiment="digits_objectives",
    only=("*_generative_iwae_K*",),
    output_dir=str(tmp_path),
    train_flags=f"--track_variance= --max_steps=1000 {given}",
  )
  with pytest.raises(ConfigError, match=given):
    write.write(settings)


def test_results_become_the_directories_of_runs(tmp_path):
  settings = runs.ExperimentConfig(
    experiment="digits_objectives",
    seeds=("3",),
    only=("*_generative_iwae_K*", "*_generative_iwae_dreg_K*"),
    output_dir=str(tmp_path),
    train_flags="--max_steps=4 --summarize_every=2",
  )
  found = {
    "rows": [
      {
        "step": step,
        "train": {"bound": -30.0 - step, "loss": 30.0 + step, "iwae_gradient_snr": 0.5},
        "valid": {"bound": -31.0, "loss": 31.0},
        "test": {"bound": -32.0 + step, "loss": 32.0 - step},
      }
      for step in (2, 4)
    ],
    "evaluation": {
      "value": [-20.0, -24.0, -28.0],
      "standard_error": [0.3, 0.0, 0.0],
      "effective_sample_size": [5.0, 9.0, 7.0],
      "pareto_k": [0.2, 0.8, 0.6],
      "upper": [-19.0, -23.0, -26.0],
    },
    "device": "a device",
  }
  iwae, dreg = (each.settings for each in runs.all_runs(settings))
  (tmp_path / "exported").mkdir()

  def written(run, result):
    path = tmp_path / "exported" / f"{run.directory.name}.json.gz"
    path.write_bytes(gzip.compress(json.dumps(result).encode()))

  written(iwae, found)
  read.read(settings)
  assert not dreg.directory.exists()
  written(dreg, {"rows": found["rows"][:1], "device": "a device"})  # It was cut short.
  read.read(settings)
  np.testing.assert_array_equal(Run(dreg.directory).read_metrics()["step"], [2])
  assert Run(dreg.directory).read_result() is None
  run = Run(iwae.directory)
  assert run.read_config() == iwae
  metrics = run.read_metrics()
  np.testing.assert_array_equal(metrics["step"], [2, 4])
  np.testing.assert_array_equal(metrics["train_bound"], [-32, -34])
  np.testing.assert_array_equal(metrics["train_iwae_gradient_snr"], [0.5, 0.5])
  np.testing.assert_array_equal(metrics["valid_bound"], [-31, -31])
  np.testing.assert_array_equal(metrics["test_bound"], [-30, -28])
  assert run.read_result() == {"step": 4, "test_bound": -28.0}
  evaluation = run.read_evaluation()
  assert evaluation["step"] == 4
  assert evaluation["log_likelihood"] == -24.0
  assert evaluation["sampling_error"] == pytest.approx(0.1)
  assert evaluation["untrusted"] == pytest.approx(1 / 3)


def test_products_of_bfloat16_are_exported_from_any_processor(monkeypatch):
  monkeypatch.setattr(products, "multiplies_bfloat16", lambda: False)
  a, b = tf.ones([2, 3]), tf.ones([3, 4])
  with program.for_a_gpu():
    exported = program.export(
      lambda a, b: {"product": products.multiply(a, b, tf.bfloat16)}, [a, b], []
    )
  assert "bf16" in exported.text
  assert not products.multiplies_bfloat16()
