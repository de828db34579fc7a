"""Tests the statistics of a comparison against NumPy's, of gradients that are taken one by one."""

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dregs_tf import bounds, seeds
from dregs_tf.diagnostics import measure
from tests.diagnostics.helpers import compare, log_normal, shared
from tests.models import helpers
from tests.seeding import seed_layers


def gradients_one_by_one(model, x, context, bound, num_samples, num_measurements, seed):
  """[num_measurements, P]: of the mean objective less its part through log p at fixed samples."""

  @tf.function(autograph=False)
  def gradients(number):
    with tf.GradientTape(persistent=True) as tape:
      estimate = model.estimate(
        x,
        context,
        bound=bound,
        num_samples=num_samples,
        seed=seeds.fold_in(seeds.stateless(seed), number),
      )
      samples = tf.nest.map_structure(tf.stop_gradient, estimate.samples)
      a = bound.coefficients(estimate.log_weights).model
      of_model = tf.reduce_sum(a * model.target_log_prob(x, samples, context), axis=0)
      objective = tf.reduce_mean(estimate.objective - of_model)
      drawn = model.proposal(x, context).sample(1, seed=[0, 0])
    variables = [
      v
      for v, g in zip(
        model.trainable_variables, tape.gradient(drawn, model.trainable_variables), strict=True
      )
      if g is not None
    ]
    parts = tape.gradient(objective, variables)
    return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)

  return np.stack([gradients(tf.constant(i)).numpy() for i in range(num_measurements)])


def by_numpy(gradients, of_reference):
  """The statistics of a row, from two arrays [num_measurements, P]."""
  n, size = gradients.shape
  half = n // 2

  def on_other_half(values):
    first, second = values[:half], values[half:]
    return np.concatenate([first @ second.mean(axis=0), second @ first.mean(axis=0)])

  def square_and_error(values):
    square = (values.mean(axis=0) ** 2).sum() - values.var(axis=0, ddof=1).sum() / n
    return max(0, square), 2 * on_other_half(values).std(ddof=1) / math.sqrt(n)

  square, error = square_and_error(gradients)
  reference_square, reference_error = square_and_error(of_reference)
  variance = gradients.var(axis=0, ddof=1).mean()
  row = {"norm": math.sqrt(square), "variance": variance}
  row["snr"] = math.sqrt(square / size / variance)
  distances = ((gradients - gradients[:half].mean(axis=0)) ** 2).sum(axis=1)
  row["snr_error"] = math.hypot(
    math.sqrt((square + error) / size / variance) - row["snr"],
    row["snr"] / 2 * distances.std(ddof=1) / math.sqrt(n) / (size * variance),
  )
  if gradients is of_reference:
    row |= dict.fromkeys(("bias", "bias_limit", "t_statistic", "max_t"), 0)
    return row | dict.fromkeys(("cosine", "p_value"), 1)

  scale = math.sqrt(reference_square) if reference_square > 2 * reference_error else math.nan
  covariance = ((gradients - gradients.mean(0)) * (of_reference - of_reference.mean(0))).sum()
  inner = (gradients.mean(0) * of_reference.mean(0)).sum() - covariance / (n - 1) / n
  length = math.sqrt(square) if square > 2 * error else math.nan
  difference = gradients - of_reference
  along = on_other_half(difference)
  statistics = [hall(along[:half]), hall(along[half:])]
  p_values = [stats.t.sf(statistics[0], half - 1), stats.t.sf(statistics[1], n - half - 1)]
  paired = np.nan_to_num(stats.ttest_rel(gradients, of_reference).statistic)  # NaN is 0 / 0.
  largest = paired[np.argmax(np.abs(paired))]
  variances = difference.var(axis=0, ddof=1)
  bias = (difference.mean(axis=0) ** 2).sum() - variances.sum() / n
  limit = max(0, bias) + 1.645 * 2 * along.std(ddof=1) / math.sqrt(n)
  # The larger root of (limit - bias)^2 = 1.645^2 (4 limit tr(S^2) / tr(S) / n + 2 tr(S^2) / n^2).
  squares = (variances**2).sum()
  slope = 1.645**2 * 4 * squares / variances.sum() / n
  b, c = -2 * max(0, bias) - slope, max(0, bias) ** 2 - 1.645**2 * 2 * squares / n**2
  limit = max(limit, *np.roots([1, b, c]).real)
  return row | {
    "cosine": np.clip(inner / scale / length, -1, 1),
    "bias": math.sqrt(max(0, bias)) / scale,
    "bias_limit": math.sqrt(limit) / scale,
    "t_statistic": statistics[np.argmax(p_values)],
    "p_value": max(p_values),
    "max_t": largest,
  }


def hall(values):
  """Hall's statistic (1992), from the mean over its deviation and the sample skewness G1."""
  n = len(values)
  w, g = values.mean() / values.std(ddof=1), stats.skew(values, bias=False)
  return math.sqrt(n) * (w + g * w**2 / 3 + g**2 * w**3 / 27 + g / (6 * n))


CASES = {
  "log_normal": (
    log_normal,
    {name: bounds.get(name) for name in ("stl", "rws", "rws_dreg", "rws_dreg_norm")},
  ),
  "shared": (
    shared,
    {
      "dreg_alpha(alpha=0.25)": bounds.get("dreg_alpha", alpha=0.25),
      "elbo": bounds.get("elbo"),
    },
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_statistics_are_numpys(case, monkeypatch):
  """In float64: a LogNormal proposal and prior; contexts, a structure, shared variables.

  Batch, samples, latents, data and measurements differ in number, and so do parts of the latter.
  """
  monkeypatch.setattr(measure, "_MEASUREMENTS_PER_CALL", 6)
  make, compared = CASES[case]
  seed_layers(0)
  model, context, x = make()
  helpers.perturb(model)
  context, x = (None if part is None else tf.constant(part, tf.float64) for part in (context, x))
  n, k, seed = 31, 3, [5, 9]
  batch = x if context is None else (context, x)
  result = compare(model, batch, list(compared.values()), k, n, seed=seed)
  compared = {"iwae": bounds.get("iwae")} | compared
  assert [row.bound for row in result.rows] == list(compared)
  gradients = {
    name: gradients_one_by_one(model, x, context, bound, k, n, seed)
    for name, bound in compared.items()
  }
  assert [row.unbiased for row in result.rows] == [
    row.bound in ("iwae", "elbo") for row in result.rows
  ]
  assert result.num_coordinates == gradients["iwae"].shape[1]
  assert (result.num_measurements, result.batch_size) == (n, 7)
  for row in result.rows:
    assert row.num_samples == k
    for name, value in by_numpy(gradients[row.bound], gradients[row.reference]).items():
      message = f"{row.bound} {name}"
      np.testing.assert_allclose(getattr(row, name), value, rtol=1e-8, atol=1e-9, err_msg=message)
