"""Estimators side by side on a user's own model: which one should it be trained with?

`compare` measures the gradient of the proposal's parameters again and again on one batch, each time
with new samples that all estimators share, and reports signal, noise and bias of each. Nothing is
trained or changed. The gradients are those of `dregs_tf/side_by_side.py`: one more estimator costs
a backward pass of the proposal's net.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy import stats
from tqdm import tqdm

from dregs_tf import catalogue, seeds, side_by_side
from dregs_tf.bounds import Bound, check_num_samples
from dregs_tf.bounds import get as get_bound
from dregs_tf.comparison import Comparison, Row
from dregs_tf.models import batches
from dregs_tf.models.base import LatentVariableModel

_UPPER_5_PERCENT = 1.645  # of a standard Normal

_MEASUREMENTS_AT_A_TIME = 50  # in one call: between calls the bar moves and Ctrl-C is heard
_TIMED_STEPS = 7


def compare(
  model: LatentVariableModel,
  batch,
  bounds: Sequence[Bound | str] = catalogue.COMPARED,
  num_samples: int | Sequence[int] = 64,
  num_measurements: int = 200,
  *,
  seed=0,
  jit_compile: bool | None = None,
  measure_cost: bool = True,
) -> Comparison:
  """Compares estimators of the proposal's gradient on one batch, with the model as it is.

  Bias is that for the bound's own gradient. `rws`, `rws_dreg`, `dreg_alpha` and the `_norm`
  variants aim at another direction on purpose, such as the wake update's, and count as biased here.
  That `rws_dreg` has the mean of `rws` needs no test of its own: rws_dreg - rws = iwae - iwae_dreg
  sample by sample, so the p-value of `iwae_dreg` holds for that pair, too.

  The test of bias is a cross U-statistic (Kim and Ramdas, "Dimension-agnostic inference using cross
  U-statistics", Bernoulli 2024), taken in both directions. Each half of the measurements says where
  a bias would be: the direction of its mean difference from the reference, in all P coordinates.
  The differences of the other half are projected on it, and a one-sided test, `bias_test`, tells
  whether their mean is above 0. The larger of the two p-values counts. The statistic estimates
  |E difference|^2, in which opposite biases do not cancel.

  Without bias, the projections of a half are independent numbers of mean 0, however many and
  however dependent the coordinates are. Where few coordinates or few examples decide, they are as
  skewed as the differences themselves, and a plain t-test misleads: with two parameters and one
  example it called an unbiased estimator biased in up to 14 % of comparisons at 20 measurements and
  2.6 % at 200. Hall's correction for skewness and the agreement of two halves keep the rate low. In
  20 simulated problems (2 to 40 parameters, K from 1 to 512, proposals down to 0.3 of the
  posterior's width, 30 to 400 measurements, 8,000 to 20,000 comparisons each) p was below 0.001
  without bias in at most 0.17 % of comparisons; tests/diagnostics/test_calibration.py repeats some
  of them. No test can know of a tail that none of its measurements meets.

  Args:
    model: a model, compiled by Keras or not. Nothing of it is changed, but for variables that are
      made if it has not seen a batch yet.
    batch: observations [batch_size, ...], or a pair (context, observation) of such.
    bounds: `bounds.Bound`s or names. The references that they need are measured as well.
    num_samples: K, or several of them; a bound is left out where K is too small for it.
    num_measurements: n at each K, at least 30. Errors fall like n^-1/2. Half of them are drawn
      twice.
    seed: as `bounds.estimate` takes it: the same seed, the same numbers. Measurement i = 0, 1, ...
      of each K draws its samples with `seeds.fold_in(seeds.stateless(seed), i)`.
    jit_compile: whether XLA compiles the gradients; None for what the model was compiled with.
    measure_cost: whether to time a training step's gradient of each bound, too, which has to be
      compiled for that.

  Returns:
    A `Comparison`. Several numbers for each coordinate and estimator are kept while measuring.

  Raises:
    TypeError: if an argument is of the wrong kind; the message names it.
    ValueError: if its value is out of range, or if the proposal cannot be stopped (see
      `bounds.estimate`).
    FloatingPointError: if a gradient is not finite.
  """
  if not isinstance(model, LatentVariableModel):
    raise TypeError(f"model must be a LatentVariableModel, got {type(model).__name__}.")
  if tf.as_dtype(model.compute_dtype) == tf.float16:
    raise ValueError("model: compare needs more range than float16 has, use mixed_bfloat16.")
  context, x = _split(batch, model.float_dtype)
  plan = _plan(_as_bounds(bounds), _as_ints("num_samples", num_samples))
  num_measurements = _as_int("num_measurements", num_measurements, catalogue.MIN_MEASUREMENTS)
  seed = seeds.stateless(seed)
  if jit_compile is None:
    jit_compile = model.compiled and bool(model.jit_compile)
  if not model.built:
    model._build_for(x, context)
  # Refuses what training refuses, in the same words.
  model.estimate(x, context, bound="iwae_dreg", num_samples=2, seed=seed)

  rows = []
  total = len(plan) * (num_measurements + num_measurements // 2)
  with tqdm(total=total, unit=" measurements", disable=not sys.stderr.isatty()) as bar:
    for k, estimators in plan.items():
      needed, matrix = side_by_side.basis([estimator.bound for estimator in estimators])
      gradients = _gradients(model, x, context, k, needed, seed, jit_compile)
      measured = _measure(gradients, matrix, _groups(estimators), num_measurements, bar)
      times = {}
      if measure_cost:
        times = _milliseconds(model, x, context, k, estimators, seed, jit_compile)
      rows += _summarize(measured, estimators, k, times)
  return Comparison(tuple(rows), num_measurements, measured.center.shape[1], batches.static_size(x))


class _Estimator(NamedTuple):
  """An estimator to measure, and the name of its reference, which may be its own."""

  name: str
  bound: Bound
  reference: str


def _plan(bounds: list[Bound], all_num_samples: list[int]) -> dict[int, list[_Estimator]]:
  """What to measure at each K: estimators of the same reference together, that one first."""
  named = {}
  for bound in bounds:
    check_num_samples(max(all_num_samples), bound)
    reference = bound.unbiased
    group = named.setdefault(_name(reference), {_name(reference): reference})
    group[_name(bound)] = bound
  estimators = [
    _Estimator(name, bound, reference)
    for reference, group in named.items()
    for name, bound in group.items()
  ]
  plan = {k: [e for e in estimators if k >= e.bound.min_samples] for k in all_num_samples}
  return {k: there for k, there in plan.items() if there}


def _name(bound: Bound) -> str:
  """The bound's name, with the options that are not the default."""
  defaults = get_bound(bound.name).options
  options = [f"{name}={value:g}" for name, value in bound.options if (name, value) not in defaults]
  return f"{bound.name}({', '.join(options)})" if options else bound.name


def _groups(estimators: list[_Estimator]) -> list[tuple[int, int]]:
  """Where the estimators of each reference begin, with that reference, and where they end."""
  references = [estimator.reference for estimator in estimators]
  starts = [references.index(name) for name in dict.fromkeys(references)]
  return list(zip(starts, [*starts[1:], len(references)], strict=True))


def _split(batch, dtype: tf.DType):
  """(context, x) of a batch, as Tensors; checked."""
  try:
    context, x, sample_weight = batches.split(batch, dtype)
  except (TypeError, ValueError):
    context = x = sample_weight = None
  parts = [part for part in tf.nest.flatten((context, x)) if part is not None]
  if x is None or sample_weight is not None or any(part.shape.rank == 0 for part in parts):
    raise TypeError(
      "batch must be observations [batch_size, ...] or a pair (context, observation) of arrays, "
      f"got {_describe(batch)}."
    )
  sizes = [part.shape[0] for part in parts]
  if len(set(sizes)) > 1 or not sizes[0]:
    raise ValueError(f"batch must hold as many contexts as observations, and one, got {sizes}.")
  return context, x


def _describe(value) -> str:
  if isinstance(value, tuple):
    return f"a tuple of {len(value)}"
  return repr(value) if value is None or np.isscalar(value) else f"a {type(value).__name__}"


def _as_bounds(bounds) -> list[Bound]:
  """Bounds, given those or names; checked. An option that is a Tensor stands for its value now."""
  bounds = [bounds] if isinstance(bounds, (Bound, str)) else list(bounds)
  for i, bound in enumerate(bounds):
    bound = get_bound(bound) if isinstance(bound, str) else bound
    if not isinstance(bound, Bound):
      raise TypeError(f"bounds must be Bounds or names of them, got {bound!r}.")
    options = {name: getattr(o, "numpy", lambda o=o: o)() for name, o in bound.options}
    bounds[i] = get_bound(bound.name, **options)
  if not bounds:
    raise ValueError("bounds must name at least one, got none.")
  names = [_name(bound) for bound in bounds]
  if len(set(names)) < len(names):
    raise ValueError(f"bounds names one twice, got {', '.join(names)}.")
  return bounds


def _as_ints(argument: str, values) -> list[int]:
  """A whole number or several as ints; checked."""
  several = isinstance(values, (list, tuple, range, np.ndarray))
  values = [_as_int(argument, value, at_least=1) for value in (values if several else [values])]
  if not values:
    raise ValueError(f"{argument} must hold at least one int, got none.")
  return list(dict.fromkeys(values))


def _as_int(argument: str, value, at_least: int) -> int:
  if isinstance(value, bool) or not hasattr(value, "__index__"):
    raise TypeError(f"{argument} must be an int, got {value!r}.")
  if value < at_least:
    raise ValueError(f"{argument} must be at least {at_least}, got {value}.")
  return int(value)


# --- measuring ----------------------------------------------------------------------------------


class _Measurements(NamedTuple):
  """Keeps what the statistics need of n measurements of E gradients g in P parameters.

  center: [E, P], about the mean of the first n // 2 measurements. To subtract it saves digits.
  total: [E, P], the sum of g - center.
  squares: [_, P], for each estimator that is not a reference, the sum of squares of its g - center
    less its reference's.
  grams: [n, E, E], the inner products of each measurement's g - center.
  projections: [n, E, E], the inner products of each measurement's g with the mean gradients of the
    half that it does not belong to: of the second half for the first n // 2, and vice versa.
  """

  center: np.ndarray
  total: np.ndarray
  squares: np.ndarray
  grams: np.ndarray
  projections: np.ndarray


def _gradients(
  model, x, context, num_samples: int, bounds: list[Bound], seed, jit_compile: bool
) -> Callable[[tf.Tensor], tf.Tensor]:
  """A function of a measurement's number that returns its gradients, [len(bounds), P]."""

  @tf.function(autograph=False, jit_compile=jit_compile)
  def by_variable(number):
    result = side_by_side.differentiate(
      bounds,
      lambda z: model.target_log_prob(x, z, context),
      lambda: model.proposal(x, context),
      model.trainable_variables,
      num_samples,
      seeds.fold_in(seed, number),
      scale=1 / batches.static_size(x),
      with_model=False,
    )
    return [[g for g in gradients if g is not None] for gradients in result.proposal]

  def as_matrix(number):
    # Out here: on a CPU, XLA takes longer to concatenate gradients than to compute them.
    parts = [tf.reshape(g, [-1]) for gradients in by_variable(number) for g in gradients]
    if not parts:
      raise ValueError("model: its proposal depends on no trainable variable.")
    dtype = tf.float64 if any(part.dtype == tf.float64 for part in parts) else tf.float32
    whole = tf.concat([tf.cast(part, dtype) for part in parts], axis=0)
    return tf.reshape(whole, [len(bounds), -1])

  return as_matrix


def _measure(
  gradients, matrix: np.ndarray, groups: list[tuple[int, int]], num_measurements: int, bar
) -> _Measurements:
  """Measures; `matrix` makes the estimators' gradients of those that `gradients` returns.

  Gradients may be too large to be kept, and each half is projected on the mean of the other. So the
  first half is drawn twice, the first time for its mean.
  """

  def measure(first, count, center, directions):
    def body(number, total, squares, grams, products):
      shifted = gradients(number) - center
      squares += tf.square(tf.matmul(contrasts, shifted))
      grams = grams.write(number - first, tf.matmul(shifted, shifted, transpose_b=True))
      products = products.write(number - first, tf.matmul(shifted, directions, transpose_b=True))
      return number + 1, total + shifted, squares, grams, products

    total, squares = tf.zeros_like(center), tf.zeros_like(tf.matmul(contrasts, center))
    arrays = [tf.TensorArray(center.dtype, size=count) for _ in range(2)]
    _, total, squares, grams, products = tf.while_loop(
      lambda number, *_: number < first + count, body, (first, total, squares, *arrays)
    )
    return total, squares, grams.stack(), products.stack()

  def run(start, stop, center, directions):
    """Returns the sums over measurements `start` to `stop`, and the inner products of each."""
    total = squares = 0.0
    all_grams, all_products = [], []
    for first in range(start, stop, _MEASUREMENTS_AT_A_TIME):
      count = min(_MEASUREMENTS_AT_A_TIME, stop - first)
      sums = compiled(tf.constant(first), tf.constant(count), center, directions)
      total, squares = total + sums[0], squares + sums[1]
      all_grams.append(sums[2].numpy().astype(np.float64))
      all_products.append(sums[3].numpy().astype(np.float64))
      bar.update(count)
    return total, squares, np.concatenate(all_grams), np.concatenate(all_products)

  output = tf.function(gradients, autograph=False).get_concrete_function(tf.constant(0))
  zeros = tf.zeros(output.structured_outputs.shape, output.structured_outputs.dtype)
  contrasts = np.concatenate([matrix[start + 1 : end] - matrix[start] for start, end in groups])
  contrasts = tf.constant(contrasts, zeros.dtype)
  # A concrete function: TensorFlow warns of a function that is traced anew at each K.
  compiled = tf.function(measure, autograph=False).get_concrete_function(
    tf.constant(0), tf.constant(1), zeros, zeros
  )
  half = num_measurements // 2
  center = run(0, half, zeros, zeros)[0] / half
  total, squares, grams, products = run(half, num_measurements, center, center)
  of_second_half = center + total / (num_measurements - half)
  more_total, more_squares, *first_half = run(0, half, center, of_second_half)

  center = center.numpy().astype(np.float64)
  projections = np.concatenate(
    [
      first_half[1] + center @ of_second_half.numpy().astype(np.float64).T,
      products + center @ center.T,
    ]
  )
  return _Measurements(
    matrix @ center,
    matrix @ (total + more_total).numpy(),
    (squares + more_squares).numpy(),
    matrix @ np.concatenate([first_half[0], grams]) @ matrix.T,
    matrix @ projections @ matrix.T,
  )


def _milliseconds(
  model, x, context, num_samples: int, estimators: list[_Estimator], seed, jit_compile: bool
) -> dict[str, float]:
  """What a training step's gradient takes, of each reference by name; in turns, the median."""

  def make(bound):
    @tf.function(autograph=False, jit_compile=jit_compile)
    def step(seed):
      with tf.GradientTape() as tape:
        estimate = model.estimate(x, context, bound=bound, num_samples=num_samples, seed=seed)
        objective = tf.reduce_mean(estimate.objective)
      gradients = tape.gradient(objective, model.trainable_variables)
      return [gradient for gradient in gradients if gradient is not None]

    return step.get_concrete_function(seed)

  steps = {name: make(bound) for name, bound, reference in estimators if name == reference}
  times = {name: [] for name in steps}
  for i in range(_TIMED_STEPS + 1):
    for name, step in steps.items():
      start = time.perf_counter()
      step(seed)
      tf.test.experimental.sync_devices()  # A GPU has only been told what to do.
      if i:  # The first compiles.
        times[name].append(1000 * (time.perf_counter() - start))
  return {name: statistics.median(several) for name, several in times.items()}


# --- statistics ---------------------------------------------------------------------------------


def _summarize(
  measured: _Measurements, estimators: list[_Estimator], num_samples: int, times
) -> list[Row]:
  """The rows of one K."""
  for i, estimator in enumerate(estimators):
    if not np.isfinite(measured.total[i]).all():
      raise FloatingPointError(
        f"The gradient of {estimator.name} is not finite at K = {num_samples}: look at log p(x, z) "
        "and the proposal of this batch."
      )
  n, half = len(measured.grams), len(measured.grams) // 2
  size = measured.center.shape[1]
  shift = measured.total / n
  mean = measured.center + shift
  # [num_estimators, num_estimators]: traces of covariances, and inner products of means.
  traces = (measured.grams.sum(axis=0) - n * shift @ shift.T) / (n - 1)
  products = mean @ mean.T - traces / n
  projections = measured.projections

  # Of |E g|^2, whichever of signal g and noise S is larger: at most 4 g'Sg / n + 2 tr(S^2) / n^2.
  errors = [2 * _deviation(projections[:, i, i]) / math.sqrt(n) for i in range(len(estimators))]
  squares = [max(0.0, float(products[i, i])) for i in range(len(estimators))]
  # Below two errors, what is divided by a length would be noise.
  lengths = [math.sqrt(s) if s > 2 * e else math.nan for s, e in zip(squares, errors, strict=True)]

  rows = []
  squares_of_differences = iter(measured.squares)
  for start, end in _groups(estimators):
    for i in range(start, end):
      trace = max(0.0, float(traces[i, i]))
      snr, upper = (
        math.sqrt(square / trace) if trace else math.nan
        for square in (squares[i], squares[i] + errors[i])
      )
      # And the variance's own error, from squared distances to the mean of the first half.
      error_of_trace = _deviation(measured.grams[:, i, i]) / math.sqrt(n)
      snr_error = math.hypot(upper - snr, snr * error_of_trace / (2 * trace)) if trace else math.nan
      cosine = products[i, start] / (lengths[i] * lengths[start])
      test = dict.fromkeys(("bias", "bias_limit", "t_statistic", "max_t"), 0.0) | {"p_value": 1.0}
      if i > start:
        p = projections
        along = p[:, i, i] - p[:, i, start] - p[:, start, i] + p[:, start, start]
        difference = mean[i] - mean[start]
        variance = _variance(next(squares_of_differences), shift[i] - shift[start], n)
        bias = max(0.0, float(difference @ difference - variance.sum() / n))
        limit = _upper_limit(bias, variance, along, n)
        t, p_value = bias_test(along[:half], along[half:])
        test = {
          "bias": math.sqrt(bias) / lengths[start],
          "bias_limit": math.sqrt(limit) / lengths[start],
          "t_statistic": t,
          "p_value": p_value,
          "max_t": _largest_t(difference, variance, n),
        }
      rows.append(
        Row(
          bound=estimators[i].name,
          num_samples=num_samples,
          reference=estimators[start].name,
          unbiased=estimators[i].bound.is_unbiased(num_samples),
          norm=math.sqrt(squares[i]),
          variance=trace / size,
          snr=snr,
          snr_error=snr_error,
          cosine=1.0 if i == start else float(np.clip(cosine, -1, 1)),
          milliseconds=times.get(estimators[i].reference, math.nan),
          **test,
        )
      )
  return rows


def bias_test(*halves: np.ndarray) -> tuple[float, float]:
  """Tests whether the means of both halves' projections are above 0; see `compare`.

  A skewed distribution whose tail was not met looks like one of another mean: its t-statistic is
  large. Hall's statistic takes the skewness g of the sample out of it (Hall, "On the removal of
  skewness by transformation", J. R. Statist. Soc. B 54, 1992). With W = mean / deviation it is

    sqrt(n) (W + g W^2 / 3 + g^2 W^3 / 27 + g / (6 n)),

  which grows with W whatever g is. Where the projections have few directions, the halves are
  misled independently, so that both of them are is rare.

  Args:
    *halves: the projections of each half of the measurements, [num_projections].

  Returns:
    The statistic of the half that says less, and its one-sided p-value by Student's t-distribution.
  """
  tests = []
  for values in halves:
    n, deviations, deviation = len(values), values - values.mean(), _deviation(values)
    if deviation:
      ratio = values.mean() / deviation
      skewness = n * np.sum((deviations / deviation) ** 3) / ((n - 1) * (n - 2))
      cubic = ratio + skewness * ratio**2 / 3 + skewness**2 * ratio**3 / 27
      t = math.sqrt(n) * (cubic + skewness / (6 * n))
    else:
      t = math.copysign(math.inf, values.mean()) if values.mean() else 0.0
    tests.append((float(t), float(stats.t.sf(t, n - 1))))
  return max(tests, key=lambda test: test[1])


def _upper_limit(square: float, variance: np.ndarray, along: np.ndarray, n: int) -> float:
  """What |d|^2 is below, with 95 % confidence, d the expectation of n differences.

  Its estimate `square`, |mean|^2 less what noise adds, has the variance 4 d'Sd / n + 2 tr(S^2) /
  n^2, where S is the covariance of a difference. The projections `along` on the mean of the other
  half have d'Sd + 2 tr(S^2) / n on average. That is sharp where the noise has many directions; with
  few, a half's mean may happen to be small. So the limit is also at least that of independent
  coordinates, with d'Sd as of a direction of the noise: the largest |d|^2 that `square` is not too
  far below.
  """
  by_projections = square + 2 * _UPPER_5_PERCENT * _deviation(along) / math.sqrt(n)
  total, total_square = variance.sum(), np.sum(variance**2)
  per_square = 4 * total_square / total / n if total else 0.0  # of |d|^2
  slope = _UPPER_5_PERCENT**2 * per_square
  constant = _UPPER_5_PERCENT**2 * 2 * total_square / n**2
  by_coordinates = square + slope / 2 + math.sqrt(slope * square + constant + slope**2 / 4)
  return max(by_projections, float(by_coordinates))


def _largest_t(difference: np.ndarray, variance: np.ndarray, n: int) -> float:
  """The paired t-statistic of the coordinate where it is farthest from 0."""
  with np.errstate(divide="ignore", invalid="ignore"):
    t = np.where(difference == 0, 0.0, difference / np.sqrt(variance / n))
  return float(t[np.argmax(np.abs(t))])


def _variance(squares: np.ndarray, shift: np.ndarray, n: int) -> np.ndarray:
  return np.maximum(0.0, squares - n * shift**2) / (n - 1)


def _deviation(values: np.ndarray) -> float:
  return float(np.std(values, ddof=1))
