"""Estimators side by side: statistics against NumPy's, calibration and power, what is refused."""

import csv
import dataclasses
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import dregs_tf
from dregs_tf import bounds, checkpoints, config, data, diagnostics, models, runners, seeds
from dregs_tf.errors import ConfigError
from tests import binaries
from tests.diagnostics.helpers import row_of
from tests.models import helpers

tfd = tfp.distributions
ROOT = pathlib.Path(__file__).parents[1]
STATISTICS = [field.name for field in dataclasses.fields(diagnostics.Row)][4:-1]


def compare(model, batch, *args, **options):
  return diagnostics.compare(
    model, batch, *args, **({"measure_cost": False, "jit_compile": False} | options)
  )


# --- statistics, against NumPy's of gradients that are taken one by one ---------------------------


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
      a = bound.coefficients(estimate.log_weights).log_p
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


class LogNormal(models.LatentVariableModel):
  """A LogNormal prior and proposal, which share a location; layers that a batch builds."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.encoder = keras.layers.Dense(6, dtype=self.dtype_policy)
    self.decoder = models.ConditionalBernoulli(
      event_size=5, hidden_units=(), dtype=self.dtype_policy
    )
    self.location = self.add_weight(name="location", shape=(3,), initializer="zeros")

  def prior(self, context):
    return tfd.Independent(tfd.LogNormal(tf.convert_to_tensor(self.location), 1.0), 1)

  def proposal(self, x, context):
    loc, raw = tf.split(self.encoder(x), 2, axis=-1)
    return tfd.Independent(tfd.LogNormal(loc + self.location, tf.nn.softplus(raw)), 1)

  def likelihood(self, z, context):
    return self.decoder.distribution(z)


class Shared(models.LatentVariableModel):
  """Contexts, latents in two layers, and a trunk that prior, proposal and likelihood share."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    options = {"hidden_units": (), "dtype": self.dtype_policy}
    self.trunk = keras.layers.Dense(3, "tanh", dtype=self.dtype_policy)
    self.first = models.ConditionalNormal(3, **options)
    self.second = models.ConditionalNormal(2, **options)
    self.decoder = models.ConditionalBernoulli(event_size=5, **options)
    self.trunk.build((None, 4))
    self.first.build([(None, 5), (None, 3)])
    self.second.build((None, 3))
    self.decoder.build([(None, 3), (None, 2), (None, 3)])
    self.built = True

  def prior(self, context):
    return tfd.JointDistributionSequential(
      [
        tfd.Independent(tfd.Normal(self.trunk(context), 1.0), 1),
        tfd.Independent(tfd.Normal(tf.zeros([2], tf.float64), 1.0), 1),
      ]
    )

  def proposal(self, x, context):
    return tfd.JointDistributionSequential(
      [
        self.first.distribution([x, self.trunk(context)]),
        lambda first: self.second.distribution(first),
      ]
    )

  def stopped_proposal(self, proposal):
    return dregs_tf.PathOnly(proposal)

  def likelihood(self, z, context):
    return self.decoder.distribution([*z, self.trunk(context)])


def log_normal():
  x = helpers.binary(7, 5, dtype="float64")
  model = LogNormal(dtype="float64")
  model._build_for(x, None)
  return model, None, x


def shared():
  context = np.random.default_rng(0).normal(size=[7, 4])
  return Shared(dtype="float64"), context, helpers.binary(7, 5)


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
  """In float64: a LogNormal proposal and prior; contexts, a structure, shared variables, PathOnly.

  Batch, samples, latents, data and measurements differ in number, and so do parts of the latter.
  """
  monkeypatch.setattr(diagnostics, "_MEASUREMENTS_AT_A_TIME", 6)
  make, compared = CASES[case]
  keras.utils.set_random_seed(0)
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
  plan = diagnostics._plan(diagnostics._as_bounds(asked), [1, 5])
  of_l_k = ["iwae", "stl"]
  of_jvi = ["jvi", "jvi_dreg", "jvi(order=3)", "jvi_dreg(order=3)"]
  of_elbo = ["elbo", "elbo_stl"]
  assert [e.name for e in plan[1]] == of_l_k + of_elbo
  assert [e.name for e in plan[5]] == of_l_k + of_jvi + of_elbo
  assert [e.reference for e in plan[5]] == [
    *["iwae"] * 2,
    *["jvi"] * 2,
    *["jvi(order=3)"] * 2,
    *["elbo"] * 2,
  ]


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
  original = diagnostics._gradients

  def spy(*args):
    asked.append(args[-1])
    return original(*args)

  monkeypatch.setattr(diagnostics, "_gradients", spy)
  x, options = helpers.binary(4, 6), {"measure_cost": False}
  model = helpers.vae()
  without = diagnostics.compare(model, x, "iwae", 2, 400, **options).rows[0]
  helpers.compiled(model, jit_compile=True)
  with_xla = diagnostics.compare(model, x, "iwae", 2, 400, **options).rows[0]
  assert asked == [False, True]
  # Other samples of the same distribution: each SNR has an error of about 5 %.
  np.testing.assert_allclose(with_xla.snr, without.snr, rtol=0.3)
  np.testing.assert_allclose(with_xla.variance, without.variance, rtol=0.3)


# --- the test of bias ----------------------------------------------------------------------------


def measured(name, num_measurements, num_samples=5, size=20):
  """[num_measurements, size]: independent measurements of a gradient, the same samples for all.

  q = N(0.3, 0.8^2) in each coordinate, narrower than the posterior N(0.6, 1.2^2): weights are
  skewed, and through them the coordinates depend on each other.
  """
  loc = tf.fill([num_measurements, size], 0.3)
  with tf.GradientTape() as tape:
    tape.watch(loc)
    objective = bounds.estimate(
      name,
      lambda z: -0.5 * tf.reduce_sum(((z - 0.6) / 1.2) ** 2, axis=-1),
      tfd.Independent(tfd.Normal(loc, 0.8), 1),
      num_samples,
      seed=1,
    ).objective
  return tape.gradient(objective, loc).numpy()


def rows_of(name, reference, num_measurements, repetitions):
  one, other = (measured(b, num_measurements * repetitions) for b in (name, reference))
  shape = [repetitions, num_measurements, -1]
  return [row_of(*pair) for pair in zip(one.reshape(shape), other.reshape(shape), strict=True)]


@pytest.mark.parametrize("name", ["iwae", "jvi", "elbo"])
def test_without_bias_small_p_values_are_rare(name):
  """500 comparisons of 100 measurements each, in 20 coordinates, at a fixed seed.

  Uniform p-values, which are the most that is allowed, would fail at another seed with probability
  7e-4 by the number below 0.01: 5 are expected, 14 are too many; and 2e-4 by that below 0.001.
  """
  other = {"iwae": "iwae_dreg", "jvi": "jvi_dreg", "elbo": "elbo_stl"}[name]
  p_values = np.array([row.p_value for row in rows_of(other, name, 100, 500)])
  assert (p_values < 0.01).sum() < 14
  assert (p_values < 1e-3).sum() < 5


def test_rws_differ_as_iwae_differ():
  """Sample by sample: the p-value of iwae_dreg against iwae is that of rws_dreg against rws."""
  iwae, iwae_dreg, rws, rws_dreg = (
    measured(name, 100) for name in ("iwae", "iwae_dreg", "rws", "rws_dreg")
  )
  np.testing.assert_allclose(rws_dreg - rws, iwae - iwae_dreg, atol=1e-5)
  assert np.abs(iwae - iwae_dreg).max() > 0.1


def test_the_limit_of_the_bias_and_the_error_of_the_snr_hold():
  """Against what all 50000 measurements say, for an estimator with a bias of 0.3.

  Were the limit to hold with probability 0.99 (as simulated), 0.95 of 500 would fail at another
  seed with probability 1e-10; and 4e-6 if the SNR were within twice its error with 0.95.
  """
  rows = rows_of("rws_dreg", "iwae", 100, 500)
  one, other = measured("rws_dreg", 50_000), measured("iwae", 50_000)
  bias = np.linalg.norm((one - other).mean(axis=0)) / np.linalg.norm(other.mean(axis=0))
  snr = np.linalg.norm(one.mean(axis=0)) / math.sqrt(one.var(axis=0).sum())
  assert 0.25 < bias < 0.4
  assert np.mean([row.bias_limit >= bias for row in rows]) > 0.95
  assert np.mean([abs(row.snr - snr) < 2 * row.snr_error for row in rows]) > 0.9
  assert abs(np.mean([row.snr for row in rows]) - snr) < 0.02


@pytest.mark.parametrize("size,errors", [(1, 2), (1, 3), (3, 3), (50, 4)])
def test_the_limit_of_the_bias_holds_where_the_noise_has_few_directions(size, errors):
  """A bias of some standard errors in the first of the coordinates, whose deviations are 1 / i.

  Simulated, the limit held in 0.95 or more of 200; fewer than 0.9 would come with probability 1e-3.
  """
  random = np.random.default_rng(1)
  scale = 1 / np.arange(1, size + 1)
  bias = errors / math.sqrt(100) * np.eye(size)[0]
  rows = []
  for _ in range(200):
    reference = 10 + 0.1 * random.normal(size=[100, size])
    rows.append(row_of(reference + scale * random.normal(size=[100, size]) + bias, reference))
  true = np.linalg.norm(bias) / math.sqrt(100 * size)
  assert np.mean([row.bias_limit >= true for row in rows]) > 0.9


@pytest.mark.parametrize("size,snr", [(1, 5.0), (10, 2.0), (30, 0.5)])
def test_the_error_of_the_snr_is_its_deviation(size, snr):
  """The deviation of 200 SNRs is known to 5 %: beyond 0.8 or 1.25 is four errors away or more."""
  random = np.random.default_rng(2)
  draws = snr + random.normal(size=[200, 100, size])
  rows = [row_of(draw, 10 + random.normal(size=draw.shape)) for draw in draws]
  ratio = np.mean([row.snr_error for row in rows]) / np.std([row.snr for row in rows])
  assert 0.8 < ratio < 1.25


def test_opposite_biases_do_not_cancel():
  """A bias of +-0.02 standard deviations in halves of 2000 coordinates, too small in any of them.

  Its t-statistic is 6 to 8, and p < 1e-6 takes 4.8; a false alarm comes with probability 1e-3.
  """
  random = np.random.default_rng(0)
  reference = random.normal(size=[400, 2000])
  bias = 0.02 * np.repeat([1.0, -1.0], 1000)
  row = row_of(reference + random.normal(size=[400, 2000]) + math.sqrt(2) * bias, reference)
  assert row.p_value < 1e-6
  assert abs(row.max_t) < 5
  assert row_of(reference + random.normal(size=[400, 2000]), reference).p_value > 1e-3


def test_stl_is_found_to_be_biased_and_iwae_dreg_is_not():
  """The false alarm, p < 1e-3 for iwae_dreg or jvi_dreg, would come with probability 2e-3.

  STL's t-statistic is 19 to 20, and p < 1e-6 takes 4.9: that is 14 standard errors away.
  """
  model = helpers.vae(latent_dim=2)
  helpers.perturb(model)
  names = ["stl", "iwae_dreg", "rws", "rws_dreg", "jvi_dreg"]
  result = compare(model, helpers.binary(9, 6), names, 8, 300)
  rows = {row.bound: row for row in result.rows}
  assert rows["stl"].p_value < 1e-6
  assert rows["stl"].is_biased and rows["stl"].bias > 0.3
  for name in ("iwae_dreg", "jvi_dreg"):
    assert rows[name].p_value > 1e-3
    assert not rows[name].is_biased
    assert rows[name].cosine > 0.98
  best = "iwae" if rows["iwae"].snr > rows["iwae_dreg"].snr else "iwae_dreg"
  assert result.recommendation.startswith(f"L_K, K = 8: take {best}.")


# --- what is refused -----------------------------------------------------------------------------

X = helpers.binary(4, 6)
BAD = [
  ({"model": keras.Sequential()}, TypeError, "model must be a LatentVariableModel, got Sequential"),
  ({"batch": None}, TypeError, "batch must be observations.*got None"),
  ({"batch": {"x": X}}, ValueError, r"x must have shape \[batch_size, 6\], got a dict"),
  ({"batch": (X, X, X)}, TypeError, r"batch must be observations.*pair.*got a tuple of 3"),
  ({"batch": X[:0]}, ValueError, r"batch must hold.*got \[0\]"),
  ({"batch": (X[:3], X)}, ValueError, r"batch must hold as many.*got \[3, 4\]"),
  ({"bounds": "vimco"}, ValueError, "bound must be one of.*'vimco'"),
  ({"bounds": [3]}, TypeError, "bounds must be Bounds or names of them, got 3"),
  ({"bounds": []}, ValueError, "bounds must name at least one"),
  ({"bounds": ["stl", bounds.get("stl")]}, ValueError, "bounds names one twice, got stl, stl"),
  ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
  ({"num_samples": 2.5}, TypeError, "num_samples must be an int, got 2.5"),
  ({"num_samples": [2, True]}, TypeError, "num_samples must be an int, got True"),
  ({"num_samples": []}, ValueError, "num_samples must hold at least one"),
  (
    {"num_samples": 1, "bounds": "jvi"},
    ValueError,
    "num_samples must be at least 2 for jvi, got 1",
  ),
  ({"num_measurements": 29}, ValueError, "num_measurements must be at least 30, got 29"),
  ({"num_measurements": [20]}, TypeError, r"num_measurements must be an int, got \[20\]"),
  ({"seed": "a"}, ValueError, "seed must be an int"),
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


def test_models_that_cannot_be_compared_are_refused():
  model, context, x = shared()
  model.stopped_proposal = lambda proposal: None
  with pytest.raises(ValueError, match="cannot be stopped automatically.*PathOnly"):
    compare(model, (context, x))
  with pytest.raises(ValueError, match="float16"):
    compare(helpers.vae(dtype="mixed_float16"), X)
  frozen = helpers.vae()
  frozen.encoder.trainable = False
  with pytest.raises(ValueError, match="depends on no trainable variable"):
    compare(frozen, X, "iwae", 2, 30)
  broken = helpers.vae()
  broken.encoder.trainable_variables[0].assign(tf.fill([6, 5], math.nan))
  with pytest.raises(FloatingPointError, match="The gradient of iwae is not finite at K = 2"):
    compare(broken, X, "iwae", 2, 30)


def test_a_bound_whose_alpha_is_a_variable_is_taken_at_its_value():
  alpha = bounds.get("dreg_alpha", alpha=tf.Variable(0.25))
  (bound,) = diagnostics._as_bounds([alpha])
  assert bound == bounds.get("dreg_alpha", alpha=0.25)


# --- the binary ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "values, words",
  [
    ({}, ["--logdir"]),
    ({"bounds": ["iwae", "vimco"]}, ["--bounds", "'vimco'", "iwae_dreg"]),
    ({"bounds": []}, ["--bounds", "empty"]),
    ({"num_samples": ["1", "x"]}, ["--num_samples", "'x'", "whole number"]),
    ({"num_samples": [1], "bounds": ["jvi"]}, ["--num_samples", "at least 2", "jvi"]),
    ({"num_measurements": 29}, ["--num_measurements", "at least 30", "got 29"]),
    ({"batch_size": 0}, ["--batch_size", "at least 1"]),
    ({"split": "dev"}, ["--split", "'dev'"]),
    ({"seed": -1}, ["--seed", "got -1"]),
  ],
)
def test_bad_values_of_a_comparison_are_refused(values, words):
  with pytest.raises(ConfigError) as error:
    config.CompareConfig(**({"logdir": "x"} if values else {}) | values)
  for word in words:
    assert word in str(error.value)


def test_the_binary_compares_on_a_run(tmp_path, capsys):
  """On a structured run whose alpha has moved."""
  settings = config.TrainConfig(
    bound="dreg_alpha",
    alpha="auto",
    num_samples=3,
    task="structured",
    latent_dim=2,
    jit_compile=False,
    logdir=str(tmp_path / "run"),
  )
  model = runners.build_model(settings, data.load("digits", None))
  model.optimizer.build(model.trainable_variables)
  model.followers.adaptive_alpha.alpha.assign(0.125)
  settings.directory.mkdir()
  settings.save()
  checkpoints.save(model, settings.directory, 3)
  arguments = ["--bounds=dreg_alpha", "--num_samples=4", "--num_measurements=30"]
  arguments += [f"--logdir={tmp_path / 'run'}", f"--output_dir={tmp_path / 'new' / 'out'}"]
  arguments += ["--batch_size=5", "--nomeasure_cost"]
  assert binaries.run("compare_estimators.py", *arguments) == 0
  out = capsys.readouterr().out
  assert "digits, test set, step 3.\n30 measurements on 5 examples" in out
  assert "L_K, K = 4: " in out
  with open(tmp_path / "new" / "out" / "comparison.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [(row["bound"], row["num_samples"]) for row in rows] == [
    ("iwae", "4"),
    ("dreg_alpha(alpha=0.125)", "4"),
  ]
  assert (tmp_path / "new" / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
  assert binaries.run("compare_estimators.py", f"--logdir={tmp_path}") == 1
  assert "holds no run" in capsys.readouterr().err


def test_bounds_that_a_run_was_not_trained_with_take_its_options(tmp_path):
  options = {"num_samples": 3, "latent_dim": 2, "jit_compile": False, "logdir": str(tmp_path)}
  settings = config.TrainConfig(bound="jvi", jvi_order=2, **options)
  settings.save()
  model = runners.build_model(settings, data.load("digits", None))
  model.optimizer.build(model.trainable_variables)
  checkpoints.save(model, tmp_path, 3)
  options = {"logdir": str(tmp_path), "num_measurements": 30, "measure_cost": False}
  options |= {"bounds": ("jvi_dreg",), "batch_size": 5}
  result = runners.compare(config.CompareConfig(num_samples=(2, 3), **options))
  assert [(row.bound, row.num_samples) for row in result.rows] == [
    ("jvi(order=2)", 3),
    ("jvi_dreg(order=2)", 3),
  ]
  with pytest.raises(ConfigError, match="--num_samples.*at least 3.*jvi_dreg of order 2, got 2"):
    runners.compare(config.CompareConfig(num_samples=(2,), **options))
  (tmp_path / "file").touch()
  with pytest.raises(ConfigError, match="--output_dir=.*file cannot be written"):
    runners.compare(config.CompareConfig(output_dir=str(tmp_path / "file"), **options))
