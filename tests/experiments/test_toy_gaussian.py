"""The toy experiment: its gradients, its statistics, what it leaves and what it refuses."""

import csv
import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds
from dregs_tf.training.errors import ConfigError
from experiments.toy_gaussian import figure, measure, model, run, statistics
from experiments.toy_gaussian.config import ToyConfig
from tests import binaries
from tests.eager import functions_run_eagerly
from tests.problems import PAPER

ROOT = pathlib.Path(__file__).parents[2]
COLUMNS = ["bound", "num_samples", "snr", "bias_squared", "variance", "t_statistic", "p_value"]
SMALL = {
  "num_trials": 2,
  "num_measurements": 30,
  "batch_size": 3,
  "num_observations": 5,
  "latent_dim": 2,
}

# By whether the mean of their gradient is that of what they report.
UNBIASED = ("elbo", "elbo_stl", "iwae", "iwae_dreg", "jvi", "jvi_dreg")
BIASED = ("rws", "rws_dreg", "stl", "dreg_alpha", "iwae_dreg_norm", "rws_dreg_norm")


@functions_run_eagerly()  # Of few parts; the test of the binary has their graph.
def summaries(bound_names, **settings):
  """{(bound, K): the columns over all coordinates}."""
  settings = ToyConfig(bounds=bound_names, **settings)
  measured = measure.measure(settings)
  n = settings.num_measurements
  return {key: statistics.summarize(moments, n) for key, moments in measured.items()}


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_gradients_are_those_of_estimate(name):
  """On the same samples, in float64: 4 measurements of 3 observations, K = 5, D = 2."""
  num_measurements, batch_size, num_samples, latent_dim = 4, 3, 5, 2
  parameters, x = model.draw(np.random.default_rng(0), latent_dim, batch_size)
  # Each measurement has a copy of the parameters, so that one call gives all gradients.
  a, b = (tf.constant(np.stack([part] * num_measurements)) for part in parameters[1:])
  with tf.GradientTape() as tape:
    tape.watch([a, b])
    rows = model.Parameters(parameters.theta, *(tf.repeat(p, batch_size, 0) for p in (a, b)))
    tiled = np.tile(x, [num_measurements, 1])
    q = model.proposal(rows, tiled)
    estimate = bounds.estimate(
      name, lambda z: model.target_log_prob(rows, tiled, z), q, num_samples, seed=1
    )
    total = tf.reduce_sum(estimate.objective) / batch_size
  of_a, of_b = tape.gradient(total, [a, b])
  expected = np.concatenate([of_a, of_b[..., tf.newaxis]], axis=-1).reshape(num_measurements, -1)

  noise = (estimate.samples - q.mean()) / q.stddev()
  noise = tf.reshape(noise, [num_samples, num_measurements, batch_size, latent_dim])
  actual = measure.estimate(
    tf.transpose(noise, [1, 2, 0, 3]), model.shifts(parameters, x), x, [name], [num_samples]
  )
  np.testing.assert_allclose(actual[name, num_samples], expected, rtol=1e-9, atol=1e-12)


def test_a_smaller_k_takes_the_first_samples():
  generator = np.random.default_rng(0)
  noise, shift, x = (tf.constant(generator.normal(size=s)) for s in ([4, 3, 5, 2], [3, 2], [3, 2]))
  both = measure.estimate(noise, shift, x, ["iwae_dreg", "jvi"], [1, 3, 5])
  fewer = measure.estimate(noise[:, :, :3], shift, x, ["iwae_dreg"], [3])
  assert set(both) == {("iwae_dreg", k) for k in (1, 3, 5)} | {("jvi", 3), ("jvi", 5)}
  np.testing.assert_allclose(both["iwae_dreg", 3], fewer["iwae_dreg", 3], rtol=1e-12)


def test_float32_is_enough():
  """Rounding is a small part of the standard deviation, also where that has fallen like K^-3/2."""
  parameters, x = model.draw(np.random.default_rng(0), 20, 8)
  shift = model.shifts(parameters, x)
  noise = np.random.default_rng(1).standard_normal([6, 8, 500, 20]).astype(np.float32)
  names = [name for name in PAPER if not name.startswith("elbo")]
  single, double = (
    measure.estimate(*(tf.constant(p, dtype) for p in (noise, shift, x)), names, [500])
    for dtype in (tf.float32, tf.float64)
  )
  for key, gradient in double.items():
    deviation = math.sqrt(np.mean(np.var(gradient, axis=0)))
    assert np.max(np.abs(single[key].numpy() - gradient)) < 1e-3 * deviation, key


def test_bias_is_found_where_there_is_one():
  """Every bound, at K = 8, on 2 trials of 400 measurements.

  False failures: one of 12 p-values below 8e-6 where there is no bias, at most once in 10,000. The
  other bounds have a coordinate whose bias is 10 standard errors (of RWS) or more; 6.4 make 1e-6.
  """
  settings = {"num_samples": [8], "num_trials": 2, "num_measurements": 400, "batch_size": 32}
  rows = summaries(PAPER, **settings)
  for name in UNBIASED:
    assert rows[name, 8]["p_value"] > 8e-6, name
    assert rows[name, 8]["exact_p_value"] > 8e-6, name
  for name in BIASED:
    assert rows[name, 8]["p_value"] < 1e-6, name
    assert rows[name, 8]["exact_p_value"] < 1e-6, name


# --- against exact second moments ---------------------------------------------------------------


TEMPERED = ("vr_iwae(alpha=0.2)", "vr_iwae_dreg(alpha=0.2)")


def test_variances_are_the_exact_ones():
  """D = 20, one trial of 800 measurements of 24 observations.

  Sixteen repetitions had relative standard deviations of up to 0.7 % (of IWAE-DReG at K = 6): 4 %
  is 6 of them, and finds an error of 6 % with probability 0.99.
  """
  settings = {"num_samples": [1, 6, 16], "num_trials": 1, "num_measurements": 800, "batch_size": 24}
  names = ["iwae", "iwae_dreg", "stl", "elbo", "vimco_star", *TEMPERED]
  rows = summaries(names, **settings)
  exact = measure.exact_variances(ToyConfig(bounds=names, **settings))
  assert set(exact) == {key for key in rows if key[0] != "vimco_star"}
  for (name, k), variances in exact.items():
    assert rows[name, k]["variance"] == pytest.approx(variances[0], rel=0.04), (name, k)
  for name in TEMPERED:
    assert rows[name, 6]["exact_p_value"] > 1e-4  # once in 10,000


def exact_snr(name, num_samples):
  """Of the default settings' first trial, as `summarize` defines it."""
  settings = ToyConfig(bounds=[name], num_samples=[num_samples], num_trials=1)
  parameters, x = model.draw(np.random.default_rng([0, 0]), 20, settings.num_observations)
  x = x[: settings.batch_size]
  key = (name, num_samples)
  gradient = measure.exact_gradients(model.shifts(parameters, x), x, [key])[key]
  return math.sqrt(np.mean(gradient**2) / measure.exact_variances(settings)[key][0])


def test_the_tempered_bound_has_twice_the_signal_at_many_samples():
  """By quadrature: 8.1 and 3.9."""
  tempered, tight = (exact_snr(name, 64) for name in ("vr_iwae_dreg(alpha=0.2)", "iwae_dreg"))
  assert tempered > 1.5 * tight


def test_exact_slopes_of_the_tempered_variances():
  """D = 20: about K^-1.0 and K^-1.2, where iwae_dreg's falls like K^-3."""
  num_samples = [16, 1024]
  names = [*TEMPERED, "iwae_dreg"]
  settings = ToyConfig(bounds=names, num_samples=num_samples, num_trials=1, batch_size=8)
  exact = measure.exact_variances(settings)
  slopes = [math.log(exact[name, 1024][0] / exact[name, 16][0], 64) for name in names]
  np.testing.assert_allclose(slopes, [-1.0, -1.2, -2.95], atol=0.05)


def test_slopes():
  """D = 3, where K = 4 is already many: variances like K^-1 and K^-3, the SNR of DReG like K^1/2.

  Quadrature gives the exponents -1.03, -3.05 and 0.50. Twelve repetitions had standard deviations
  of 0.008: a tolerance of 7 of them. Without any path, vimco has IWAE's rate and vimco_star DReG's.
  """
  rows = summaries(
    ["iwae", "iwae_dreg", "vimco", "vimco_star"],
    num_samples=[4, 16, 64],
    num_trials=3,
    num_measurements=500,
    batch_size=16,
    latent_dim=3,
  )
  rows = [{"bound": name, "num_samples": k} | row for (name, k), row in rows.items()]
  assert statistics.slope(rows, "iwae", "variance") == pytest.approx(-1.03, abs=0.06)
  assert statistics.slope(rows, "iwae_dreg", "variance") == pytest.approx(-3.05, abs=0.06)
  assert statistics.slope(rows, "iwae_dreg", "snr") == pytest.approx(0.5, abs=0.06)
  assert statistics.slope(rows, "vimco", "variance") == pytest.approx(-1, abs=0.15)
  assert statistics.slope(rows, "vimco_star", "variance") == pytest.approx(-3, abs=0.3)


# --- the statistics -----------------------------------------------------------------------------


def moments_of(samples, reference=0.0, exact=0.0):
  """Moments of samples [num_trials, n, num_coordinates] whose reference's are `reference`."""
  error, difference = samples - exact, samples - reference
  exact = np.broadcast_to(exact, error[:, 0].shape)
  parts = (error, error**2, difference, difference**2)
  return statistics.Moments(exact, *(part.sum(axis=1) for part in parts))


def test_moments_of_a_known_sample():
  samples = np.array([[[1.0, 5.0], [3.0, 5.0], [5.0, 8.0]]])  # means 3, 6; variances 4, 3
  row = statistics.summarize(moments_of(samples, exact=np.array([2.0, 6.0])), 3)
  assert row["variance"] == pytest.approx(3.5)
  assert row["bias_squared"] == pytest.approx(0.5)
  assert row["snr"] == pytest.approx(math.sqrt(((9 - 4 / 3 + 36 - 1) / 2) / 3.5))
  assert row["t_statistic"] == pytest.approx(6.0)  # 6 / sqrt(3 / 3), above 3 / sqrt(4 / 3)
  # Two-sided, 2 degrees of freedom: 1 - t / sqrt(t^2 + 2); two coordinates.
  assert row["p_value"] == pytest.approx(2 * (1 - 6 / math.sqrt(38)))


def test_an_snr_below_what_the_measurements_resolve_is_not_made_up():
  """True SNR 0.05 from 100 measurements, whose mean alone has an SNR of 0.1.

  The standard error of the squared SNR is 1e-4 (20,000 coordinates): 5 of them.
  """
  samples = np.random.default_rng(0).normal(0.05, 1, [2, 100, 10_000])
  assert statistics.summarize(moments_of(samples), 100)["snr"] ** 2 == pytest.approx(
    0.0025, abs=5e-4
  )


def test_biases_of_opposite_signs_do_not_cancel():
  samples = np.random.default_rng(0).normal(0, 1, [2, 400, 4])
  bias = np.array([0.5, -0.5, 0.5, -0.5])
  biased = samples + np.stack([bias, -bias])[:, np.newaxis]
  assert biased.mean() == pytest.approx(samples.mean())
  assert statistics.summarize(moments_of(samples), 400)["p_value"] > 1e-4
  assert statistics.summarize(moments_of(biased), 400)["p_value"] < 1e-6


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_p_value_holds_under_the_null_hypothesis(correlation):
  """4000 experiments without bias, 3 trials of 5 coordinates, n = 12.

  Independent coordinates: rejected at 0.05 with probability 0.0489, standard error 0.0034, 4.5 of
  them allowed (once in 1e5). Dependent ones: no more often. A normal in place of Student's t would
  reject more than twice as often.
  """
  generator = np.random.default_rng(0)
  common = generator.standard_normal([4000, 3, 12, 1])
  own = generator.standard_normal([4000, 3, 12, 5])
  samples = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
  p = [statistics.summarize(moments_of(part), 12)["p_value"] for part in samples]
  rejected = np.mean(np.array(p) < 0.05)
  assert rejected < 0.0489 + 4.5 * 0.0034
  if correlation == 0:
    assert rejected > 0.0489 - 4.5 * 0.0034


def test_a_reference_is_not_tested_against_itself():
  samples = np.random.default_rng(0).normal(0, 1, [2, 10, 3])
  row = statistics.summarize(moments_of(samples, reference=samples), 10)
  assert (row["t_statistic"], row["p_value"]) == (0, 1)


def test_a_constant_has_no_variance_and_no_snr():
  row = statistics.summarize(moments_of(np.full([1, 300, 2], 0.1)), 300)
  assert row["variance"] == 0
  assert math.isnan(row["snr"])
  assert (row["t_statistic"], row["p_value"]) == (math.inf, 0)


# --- a run --------------------------------------------------------------------------------------


def read(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


@functions_run_eagerly()
def test_a_run_leaves_results_trials_and_figures(tmp_path, capsys):
  """All bounds: some have no gradient at K = 1, which must not stop the figure."""
  settings = ToyConfig(
    bounds=PAPER, num_samples=[1, 4], output_dir=str(tmp_path / "a" / "b"), **SMALL
  )
  run.run(settings)
  said = capsys.readouterr().out
  rows = read(tmp_path / "a" / "b" / "results.csv")
  assert list(rows[0])[:7] == COLUMNS
  pairs = [(row["bound"], int(row["num_samples"])) for row in rows]
  expected = [(name, k) for name in PAPER for k in (1, 4)]
  assert pairs == [key for key in expected if key not in (("jvi", 1), ("jvi_dreg", 1))]
  assert "jvi is left out at K = 1:" in said
  assert "nan." not in said
  trials = read(tmp_path / "a" / "b" / "trials.csv")
  assert len(trials) == 2 * len(rows)
  assert list(trials[0])[:8] == ["trial", *COLUMNS]
  for column in ("variance", "bias_squared"):
    mean = np.mean([float(row[column]) for row in trials[:2]])
    assert float(rows[0][column]) == pytest.approx(mean, rel=1e-4)
  for name in ("toy_gaussian.png", "toy_gaussian_coordinate.png"):
    assert (tmp_path / "a" / "b" / name).read_bytes()[:4] == b"\x89PNG"
  assert str(tmp_path / "a" / "b" / "results.csv") in said


@functions_run_eagerly()
def test_the_same_seed_gives_the_same_numbers(monkeypatch):
  """Also when the measurements are cut into other parts."""

  def errors(seed):
    settings = ToyConfig(bounds=["iwae_dreg"], num_samples=[4], seed=seed, **SMALL)
    return measure.measure(settings)["iwae_dreg", 4].error

  first = errors(3)
  np.testing.assert_array_equal(errors(3), first)
  assert np.all(errors(4) != first)
  monkeypatch.setattr(measure, "_PAIRS", 7 * 4 * 3)
  np.testing.assert_allclose(errors(3), first, rtol=1e-3, atol=1e-5)


def test_a_figure_without_a_value_to_show(tmp_path):
  row = {"bound": "rws_dreg", "num_samples": 1, "snr": math.nan, "bias_squared": 0, "variance": 0}
  figure.figure(tmp_path / "a.png", "title", [row], [row | {"trial": 0}], 10)
  assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


# --- flags --------------------------------------------------------------------------------------


def test_lists_may_be_strings():
  names = ["stl", "vr_iwae(alpha=0.2)", "stl"]
  settings = ToyConfig(bounds=names, num_samples=["10", " 1", "10"])
  assert settings.bounds == ("stl", "vr_iwae(alpha=0.2)")
  assert settings.num_samples == (1, 10)


BAD = [
  ({"bounds": ["iwae", "svi"]}, "--bounds", "'svi'", "iwae_dreg"),
  ({"bounds": []}, "--bounds", "empty"),
  ({"bounds": ["vr_iwae(alpha=2)"]}, "--bounds", "alpha must be in [0, 1]", "got 2"),
  ({"bounds": ["iwae(alpha=0.2)"]}, "--bounds", "iwae takes no options", "alpha"),
  ({"bounds": ["vr_iwae(0.2)"]}, "--bounds", "'vr_iwae(0.2)'"),
  ({"bounds": ["tvo"]}, "--bounds", "'tvo'"),
  ({"num_samples": []}, "--num_samples", "empty"),
  ({"num_samples": ["1", "x"]}, "--num_samples", "'x'", "whole number"),
  ({"num_samples": ["0"]}, "--num_samples", "got 0", "at least 1"),
  ({"num_samples": [2.5]}, "--num_samples", "got 2.5", "whole number"),
  ({"num_samples": [True]}, "--num_samples", "got True", "whole number"),
  ({"num_samples": [1], "bounds": ["iwae", "jvi"]}, "--num_samples", "at least 2", "jvi", "got 1"),
  ({"num_trials": 0}, "--num_trials", "got 0", "at least 1"),
  ({"num_measurements": 1}, "--num_measurements", "got 1", "at least 2"),
  ({"batch_size": 0}, "--batch_size", "got 0", "at least 1"),
  ({"batch_size": 9, "num_observations": 8}, "--batch_size", "--num_observations=8", "got 9"),
  ({"num_observations": 0}, "--num_observations", "got 0", "at least 1"),
  ({"latent_dim": 0}, "--latent_dim", "got 0", "at least 1"),
  ({"latent_dim": 51}, "--latent_dim", "got 51", "at most 50"),
  ({"seed": -1}, "--seed", "got -1", "at least 0"),
  ({"output_dir": ""}, "--output_dir"),
]


@pytest.mark.parametrize("case", BAD, ids=[str(case[0]) for case in BAD])
def test_bad_values_are_refused_in_one_line(case):
  values, *words = case
  with pytest.raises(ConfigError) as error:
    ToyConfig(**values)
  message = str(error.value)
  assert "\n" not in message
  for word in words:
    assert word in message


def test_the_binary(tmp_path, capfd):
  small = [f"--{name}={value}" for name, value in SMALL.items()]
  command = [*small, "--num_samples=2,3", "--bounds=iwae,iwae_dreg", f"--output_dir={tmp_path}"]
  assert binaries.run("toy_gaussian.py", *command) == 0
  assert len(read(tmp_path / "results.csv")) == 4
  capfd.readouterr()
  assert binaries.run("toy_gaussian.py", *command, "--bounds=iwae,svi") == 1
  message = capfd.readouterr().err
  assert message.startswith("toy_gaussian.py: error: --bounds must be one of elbo, ")
  assert message.count("\n") == 1
  assert binaries.run("toy_gaussian.py", *command, f"--output_dir={tmp_path / 'results.csv'}") == 1
  message = capfd.readouterr().err
  assert message.startswith("toy_gaussian.py: error: --output_dir=")
  assert message.count("\n") == 1
