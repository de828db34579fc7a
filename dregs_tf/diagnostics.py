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

from dregs_tf import config, seeds, side_by_side
from dregs_tf.bounds import Bound, check_num_samples
from dregs_tf.bounds import get as get_bound
from dregs_tf.comparison import Comparison, Row
from dregs_tf.models import batches
from dregs_tf.models.base import LatentVariableModel

_UPPER_5_PERCENT = 1.645  # of a standard Normal

_LEAST_MEASUREMENTS = 10
_MEASUREMENTS_AT_A_TIME = 50  # in one call: between calls the bar moves and Ctrl-C is heard
_TIMED_STEPS = 7


def compare(
  model: LatentVariableModel,
  batch,
  bounds: Sequence[Bound | str] = config.CompareConfig.bounds,
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
  U-statistics", Bernoulli 2024). The first half of the measurements says where a bias would be:
  the direction of their mean difference from the reference, in all P coordinates. The differences
  of the second half are projected on it, and a one-sided t-test tells whether their mean is above
  0. It estimates |E difference|^2, in which opposite biases do not cancel. Without bias, the
  projections are independent numbers of mean 0, however many and however dependent the coordinates
  are: all that is asked of them is that the mean of n / 2 of them be about Normal. In 210,000
  simulated comparisons without bias (skewed weights, 20 to 400 measurements) p was below 0.01 in
  0.96 % and below 0.001 in 0.09 %.

  Args:
    model: a model, compiled by Keras or not. Nothing of it is changed, but for variables that are
      made if it has not seen a batch yet.
    batch: observations [batch_size, ...], or a pair (context, observation) of such.
    bounds: `bounds.Bound`s or names. The references that they need are measured as well.
    num_samples: K, or several of them; a bound is left out where K is too small for it.
    num_measurements: n, of each K. Errors fall like n^-1/2.
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
  num_measurements = _as_int("num_measurements", num_measurements, _LEAST_MEASUREMENTS)
  seed = seeds.stateless(seed)
  if jit_compile is None:
    jit_compile = model.compiled and bool(model.jit_compile)
  if not model.built:
    model._build_for(x, context)
  # Refuses what training refuses, in the same words.
  model.estimate(x, context, bound="iwae_dreg", num_samples=2, seed=seed)

  rows = []
  total = len(plan) * num_measurements
  with tqdm(total=total, unit=" measurements", disable=not sys.stderr.isatty()) as bar:
    for k, estimators in plan.items():
      measured, matrix = side_by_side.basis([estimator.bound for estimator in estimators])
      gradients = _gradients(model, x, context, k, measured, seed, jit_compile)
      sums = _measure(gradients, matrix, _groups(estimators), num_measurements, bar)
      times = {}
      if measure_cost:
        times = _milliseconds(model, x, context, k, estimators, seed, jit_compile)
      rows += _summarize(sums, estimators, k, times)
  return Comparison(tuple(rows), num_measurements, sums.pilot.shape[1], batches.static_size(x))


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


class _Sums(NamedTuple):
  """Sums over n measurements of the gradients less the first of them, which saves digits.

  pilot: the first gradients, [num_estimators, P].
  total: the sum of g - pilot, of the same shape.
  squares: of the estimators that are not a reference, [_, P]: the sum of squares of g - pilot less
    the reference's.
  grams: [n, num_estimators, num_estimators], the inner products of each g - pilot.
  directions: the mean gradients of the first half, [num_estimators, P].
  projections: [n / 2, num_estimators, num_estimators], the inner products of each g - pilot of the
    second half with the directions.
  from_first_half: [n / 2, num_estimators, num_estimators], the same with the directions - pilot.
  """

  pilot: np.ndarray
  total: np.ndarray
  squares: np.ndarray
  grams: np.ndarray
  directions: np.ndarray
  projections: np.ndarray
  from_first_half: np.ndarray


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
      stop=model.stopped_proposal,
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
) -> _Sums:
  """Measures. What is summed stays in a compiled loop, inner products leave it.

  All of it is of the gradients that are taken; in the end `matrix` makes the estimators' of theirs.
  """

  def measure(first, count, total, squares, anchors):
    def body(number, total, squares, grams, projections):
      shifted = gradients(number) - pilot
      squares += tf.square(tf.matmul(contrasts, shifted))
      grams = grams.write(number - first, tf.matmul(shifted, shifted, transpose_b=True))
      if anchors is not None:
        products = tf.matmul(shifted, anchors, transpose_b=True)
        projections = projections.write(number - first, products)
      return number + 1, total + shifted, squares, grams, projections

    arrays = [tf.TensorArray(pilot.dtype, size=count) for _ in range(2)]
    _, total, squares, grams, projections = tf.while_loop(
      lambda number, *_: number < first + count, body, (first, total, squares, *arrays)
    )
    return total, squares, grams.stack(), None if anchors is None else projections.stack()

  def run(start, stop, total, squares, anchors=None):
    """Measurements `start` to `stop`: the sums, and the inner products of all of them."""
    compiled, products = None, []
    for first in range(start, stop, _MEASUREMENTS_AT_A_TIME):
      count = min(_MEASUREMENTS_AT_A_TIME, stop - first)
      sums = tf.constant(first), tf.constant(count), total, squares
      # Of a function that is called, TensorFlow says after a few K's that it was traced too often.
      compiled = compiled or tf.function(
        lambda *sums: measure(*sums, anchors), autograph=False
      ).get_concrete_function(*sums)
      total, squares, *several = compiled(*sums)
      products.append(several)
      bar.update(count)
    grams, projections = zip(*products, strict=True)
    projections = None if anchors is None else np.concatenate(projections)
    return total, squares, np.concatenate(grams), projections

  pilot = tf.function(gradients, autograph=False).get_concrete_function(tf.constant(0))
  pilot = pilot(tf.constant(0))
  contrasts = np.concatenate([matrix[start + 1 : end] - matrix[start] for start, end in groups])
  contrasts = tf.constant(contrasts, pilot.dtype)
  half = num_measurements // 2
  squares = tf.zeros([len(contrasts), pilot.shape[1]], pilot.dtype)
  total, squares, before, _ = run(0, half, tf.zeros_like(pilot), squares)
  shift = total / half
  anchors = tf.concat([pilot + shift, shift], axis=0)
  total, squares, after, products = run(half, num_measurements, total, squares, anchors)
  projections, from_first_half = np.split(products, 2, axis=2)
  return _Sums(
    matrix @ pilot.numpy(),
    matrix @ total.numpy(),
    squares.numpy(),
    matrix @ np.concatenate([before, after]) @ matrix.T,
    matrix @ (pilot + shift).numpy(),
    matrix @ projections @ matrix.T,
    matrix @ from_first_half @ matrix.T,
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


def _summarize(sums: _Sums, estimators: list[_Estimator], num_samples: int, times) -> list[Row]:
  """The rows of one K."""
  for i, estimator in enumerate(estimators):
    if not np.isfinite(sums.total[i]).all():
      raise FloatingPointError(
        f"The gradient of {estimator.name} is not finite at K = {num_samples}: look at log p(x, z) "
        "and the proposal of this batch."
      )
  n = len(sums.grams)
  size = sums.pilot.shape[1]
  shift = sums.total.astype(np.float64) / n
  mean = sums.pilot + shift
  # [num_estimators, num_estimators]: traces of covariances, and inner products of means.
  traces = (sums.grams.sum(axis=0, dtype=np.float64) - n * shift @ shift.T) / (n - 1)
  products = mean @ mean.T - traces / n
  # The same with the directions, of each measurement of the second half.
  projections = sums.projections + sums.pilot.astype(np.float64) @ sums.directions.T

  # Of |E g|^2, whichever of signal g and noise S is larger: at most 4 g'Sg / n + 2 tr(S^2) / n^2.
  errors = [2 * _deviation(projections[:, i, i]) / math.sqrt(n) for i in range(len(estimators))]
  squares = [max(0.0, float(products[i, i])) for i in range(len(estimators))]
  lengths = [math.sqrt(s) if s > e else math.nan for s, e in zip(squares, errors, strict=True)]

  rows = []
  squares_of_differences = iter(sums.squares)
  for start, end in _groups(estimators):
    for i in range(start, end):
      trace = max(0.0, float(traces[i, i]))
      snr, upper = (
        math.sqrt(square / trace) if trace else math.nan
        for square in (squares[i], squares[i] + errors[i])
      )
      # And the variance's own error, from squared distances to the mean of the first half.
      distances = sums.grams[-len(projections) :, i, i] - 2 * sums.from_first_half[:, i, i]
      error_of_trace = _deviation(distances) / math.sqrt(n)
      snr_error = math.hypot(upper - snr, snr * error_of_trace / (2 * trace)) if trace else math.nan
      cosine = products[i, start] / (lengths[i] * lengths[start])
      test = dict.fromkeys(("bias", "bias_limit", "t_statistic", "max_t"), 0.0)
      test |= {"p_value": 1.0, "max_t_p_value": 1.0}
      if i > start:
        p = projections
        along = p[:, i, i] - p[:, i, start] - p[:, start, i] + p[:, start, start]
        difference = mean[i] - mean[start]
        variance = _variance(next(squares_of_differences), shift[i] - shift[start], n)
        bias = max(0.0, float(difference @ difference - variance.sum() / n))
        limit = _upper_limit(bias, variance, along, n)
        test = {
          "bias": math.sqrt(bias) / lengths[start],
          "bias_limit": math.sqrt(limit) / lengths[start],
          **_cross_test(along),
          **_coordinate_test(difference, variance, n),
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


def _upper_limit(square: float, variance: np.ndarray, along: np.ndarray, n: int) -> float:
  """What |d|^2 is below, with 95 % confidence, d the expectation of n differences.

  Its estimate `square`, |mean|^2 less what noise adds, has the variance 4 d'Sd / n + 2 tr(S^2) /
  n^2, where S is the covariance of a difference. The projections on the mean of the first half,
  `along`, have d'Sd + 2 tr(S^2) / n on average. That is sharp where the noise has many directions;
  with few, the first half may happen to be small. So the limit is also at least that of independent
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


def _cross_test(along: np.ndarray) -> dict[str, float]:
  """The t-test of a mean above 0."""
  n = len(along)
  t = _ratio_of(along.mean(), _deviation(along) / math.sqrt(n))
  return {"t_statistic": float(t), "p_value": float(stats.t.sf(t, n - 1))}


def _coordinate_test(difference, variance, n: int) -> dict[str, float]:
  """The paired t-test of the coordinate where it is farthest from 0, Bonferroni's correction."""
  t = _ratio_of(difference, np.sqrt(variance / n))
  largest = t[np.argmax(np.abs(t))]
  p = min(1.0, 2 * stats.t.sf(abs(largest), n - 1) * t.size)
  return {"max_t": float(largest), "max_t_p_value": float(p)}


def _ratio_of(mean, error):
  """mean / error, 0 where the mean is."""
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(mean == 0, 0.0, mean / error)


def _variance(squares: np.ndarray, shift: np.ndarray, n: int) -> np.ndarray:
  return np.maximum(0.0, squares - n * shift**2) / (n - 1)


def _deviation(values: np.ndarray) -> float:
  return float(np.std(values, ddof=1))
