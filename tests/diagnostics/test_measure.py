"""Tests what `compare` measures, what it leaves alone, and what it refuses."""

import dataclasses
import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds, diagnostics, models
from dregs_tf.diagnostics import measure, plan
from tests.diagnostics.helpers import LogNormal, Uniform, compare
from tests.models import helpers

STATISTICS = [field.name for field in dataclasses.fields(diagnostics.Row)][4:-1]


def test_each_of_several_k_is_measured_as_alone():
  model, x = helpers.vae(), helpers.binary(4, 6)
  several = compare(model, x, ["rws"], (2, 3), 30)
  alone = compare(model, x, "rws", 3, 30)
  assert [(row.bound, row.num_samples) for row in several.rows] == [
    ("iwae", 2),
    ("rws", 2),
    ("iwae", 3),
    ("rws", 3),
  ]
  for one, other in zip(several.rows[2:], alone.rows, strict=True):
    for name in STATISTICS:
      np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-6)


def test_what_is_measured():
  """References come first; a bound is left out where K is too small for it."""
  asked = ["stl", "jvi_dreg", bounds.get("jvi_dreg", order=3), "iwae", "elbo_stl"]
  planned = plan.of_bounds(measure._as_bounds(asked), [1, 5], has_path=True)
  of_l_k = ["iwae", "stl"]
  of_jvi = ["jvi", "jvi_dreg", "jvi(order=3)", "jvi_dreg(order=3)"]
  of_elbo = ["elbo", "elbo_stl"]
  assert [e.name for e in planned[1]] == of_l_k + of_elbo
  assert [e.name for e in planned[5]] == of_l_k + of_jvi + of_elbo
  assert [e.reference for e in planned[5]] == [
    *["iwae"] * 2,
    *["jvi"] * 2,
    *["jvi(order=3)"] * 2,
    *["elbo"] * 2,
  ]


def test_a_bound_is_left_out_where_its_groups_do_not_fit():
  grouped = [bounds.get(name) for name in ("iwae", "miwae")]
  planned = plan.of_bounds(grouped, [8, 12], has_path=True)
  assert [e.name for e in planned[8]] == ["iwae", "miwae"]
  assert [e.name for e in planned[12]] == ["iwae"]
  assert [len(each) for each in plan.of_priors(grouped, [8, 12]).values()] == [4, 2]
  for make in (plan.of_priors, functools.partial(plan.of_bounds, has_path=True)):
    with pytest.raises(ValueError, match="multiple of groups=8 for miwae, got 12"):
      make(grouped, [4, 12])


def test_by_default_a_proposal_without_a_path_is_measured_with_bounds_that_need_none():
  model = models.DiscreteVAE(np.full(6, 0.4), latent_dim=2, hidden_units=(4,))
  x = (np.random.default_rng(0).random((3, 6)) > 0.5).astype("float32")
  result = diagnostics.compare(model, x, num_samples=3, num_measurements=30, measure_cost=False)
  names = {row.bound for row in result.rows}
  assert names == {"elbo_loo", "rws", "vimco", "vimco_star", "ovis"}


def test_nothing_of_the_model_changes():
  model = helpers.compiled(helpers.vae(), run_eagerly=True)
  model.fit(helpers.binary(8, 6), verbose=0)

  def state():
    variables = [*model.variables, *model.optimizer.variables]
    return [v.numpy() for v in variables], [v.trainable for v in variables], sorted(vars(model))

  before = state()
  compare(model, helpers.binary(4, 6), "iwae", 2, 30)
  after = state()
  assert before[1:] == after[1:]
  for old, new in zip(before[0], after[0], strict=True):
    np.testing.assert_array_equal(old, new)


def test_a_model_that_no_batch_has_built_yet_and_the_costs():
  result = compare(LogNormal(), helpers.binary(4, 5), ["elbo_stl"], 2, 30, measure_cost=True)
  assert [row.bound for row in result.rows] == ["elbo", "elbo_stl"]
  assert all(row.milliseconds > 0 for row in result.rows)
  assert " ms\n" in result.table()


def test_xla_is_used_where_the_model_was_compiled_with_it(monkeypatch):
  asked = []
  original = measure._gradients

  def spy(*args):
    asked.append(args[-2])  # jit_compile
    return original(*args)

  monkeypatch.setattr(measure, "_gradients", spy)
  x, options = helpers.binary(4, 6), {"measure_cost": False}
  model = helpers.vae()
  without = diagnostics.compare(model, x, "iwae", 2, 400, **options).rows[0]
  helpers.compiled(model, jit_compile=True)
  with_xla = diagnostics.compare(model, x, "iwae", 2, 400, **options).rows[0]
  assert asked == [False, True]
  # Other samples of the same distribution: each SNR has an error of about 5 %.
  np.testing.assert_allclose(with_xla.snr, without.snr, rtol=0.3)
  np.testing.assert_allclose(with_xla.variance, without.variance, rtol=0.3)


# --- what is refused -----------------------------------------------------------------------------

X = helpers.binary(4, 6)
BAD = [
  ({"model": keras.Sequential()}, TypeError, "model .*LatentVariableModel.* Sequential"),
  ({"batch": None}, TypeError, "batch .*None"),
  ({"batch": {"x": X}}, ValueError, r"x .*\[batch_size, 6\].* dict"),
  ({"batch": (X, X, X)}, TypeError, r"batch .*pair.* tuple of 3"),
  ({"batch": X[:0]}, ValueError, r"batch .*\[0\]"),
  ({"batch": (X[:3], X)}, ValueError, r"batch .*\[3, 4\]"),
  ({"bounds": "svi"}, ValueError, "bound .*iwae_dreg.*'svi'"),
  ({"bounds": [3]}, TypeError, "bounds .* 3"),
  ({"bounds": []}, ValueError, "bounds .*at least one"),
  ({"bounds": ["stl", bounds.get("stl")]}, ValueError, "bounds .*stl, stl"),
  ({"num_samples": 0}, ValueError, "num_samples .*at least 1, got 0"),
  ({"num_samples": 2.5}, TypeError, "num_samples .*int, got 2.5"),
  ({"num_samples": [2, True]}, TypeError, "num_samples .*int, got True"),
  ({"num_samples": []}, ValueError, "num_samples .*at least one"),
  ({"num_samples": 1, "bounds": "jvi"}, ValueError, "num_samples .*at least 2 .*jvi.* 1"),
  ({"num_measurements": 29}, ValueError, "num_measurements .*at least 30, got 29"),
  ({"num_measurements": [40]}, TypeError, r"num_measurements .*int, got \[40\]"),
  ({"seed": "a"}, ValueError, "seed .*int"),
]


@pytest.mark.parametrize(
  "case", BAD, ids=[f"{next(iter(case[0]))}-{i}" for i, case in enumerate(BAD)]
)
def test_bad_arguments_are_refused_in_one_line(case):
  values, kind, message = case
  arguments = {"model": helpers.vae(), "batch": X} | values
  with pytest.raises(kind, match=message) as error:
    compare(**arguments)
  assert "\n" not in str(error.value)


def test_a_support_that_moves_is_refused_where_training_refuses_it():
  """In the same words, and for the same bounds: total derivatives take it."""
  x = helpers.binary(4, 5)
  model = Uniform()
  with pytest.raises(ValueError, match="proposal.*Uniform.*moves the support") as error:
    compare(model, x, ["iwae", "iwae_dreg"], 2, 30)
  with pytest.raises(ValueError) as in_training:
    model.estimate(x, bound="iwae_dreg", num_samples=2, seed=0)
  assert str(error.value) == str(in_training.value)
  result = compare(model, x, ["iwae", "jvi", "elbo"], 2, 30)
  assert [row.bound for row in result.rows] == ["iwae", "jvi", "elbo"]


def test_models_that_cannot_be_compared_are_refused():
  with pytest.raises(ValueError, match="float16"):
    compare(helpers.vae(dtype="mixed_float16"), X)
  frozen = helpers.vae()
  frozen.encoder.trainable = False
  with pytest.raises(ValueError, match="depends on no trainable variable"):
    compare(frozen, X, "iwae", 2, 30)
  broken = helpers.vae()
  broken.encoder.trainable_variables[0].assign(tf.fill([6, 5], math.nan))
  with pytest.raises(FloatingPointError, match="gradient of iwae is not finite.*K = 2"):
    compare(broken, X, "iwae", 2, 30)


def test_a_bound_whose_alpha_is_a_variable_is_taken_at_its_value():
  alpha = bounds.get("dreg_alpha", alpha=tf.Variable(0.25))
  (bound,) = measure._as_bounds([alpha])
  assert bound == bounds.get("dreg_alpha", alpha=0.25)
