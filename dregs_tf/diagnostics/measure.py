"""Measures the gradients of several estimators on one batch."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dregs_tf import catalogue, evaluation, output, seeds, side_by_side
from dregs_tf.bounds import Bound
from dregs_tf.bounds import get as get_bound
from dregs_tf.diagnostics import plan, statistics
from dregs_tf.diagnostics.report import Comparison, Row
from dregs_tf.models import batches, calls, steps
from dregs_tf.models.base import LatentVariableModel

# Between two calls of a compiled loop of measurements, the progress bar moves and Ctrl-C works.
_MEASUREMENTS_PER_CALL = 50

_TIMED_STEPS = 7


def compare(
  model: LatentVariableModel,
  batch: Any,
  bounds: Sequence[Bound | str] | None = None,
  num_samples: int | Sequence[int] = 64,
  num_measurements: int = 200,
  *,
  seed: seeds.Seed = 0,
  jit_compile: bool | None = None,
  measure_cost: bool = True,
  gradient_of: str = "proposal",
) -> Comparison:
  """Compares estimators of the proposal's gradient on one batch, at the model's parameters.

  Measures the gradient of the proposal's parameters many times, each time with new samples that all
  estimators share, and reports signal, noise and bias. Nothing is trained or changed. Each further
  estimator costs one backward pass of the proposal's net (see `dregs_tf/side_by_side.py`).

  Bias is relative to the bound's own gradient. `rws`, `rws_dreg`, `dreg_alpha` and the `_norm`
  variants follow another direction on purpose, such as the wake update, and count as biased here.
  `rws_dreg` needs no test against `rws`: rws_dreg - rws = iwae - iwae_dreg sample by sample, so the
  p-value of `iwae_dreg` holds for that pair as well.

  An estimator that is unbiased by construction (`Bound.is_unbiased`) is so on three conditions: log
  p(x, z) is continuous in z, no parameter moves the support of the proposal, and the derivatives of
  the proposal's samples are correct. If a bias is found, one of the conditions is violated.

  The test of bias is a cross U-statistic (Kim and Ramdas, "Dimension-agnostic inference using cross
  U-statistics", Bernoulli 2024), taken in both directions. Each half of the measurements gives the
  direction of a possible bias: its mean difference from the reference, in all P coordinates.
  The differences of the other half are projected on that direction, and a one-sided test
  (`statistics.bias_test`) tells whether the projections have a mean above 0. The larger of the two
  p-values counts. The statistic estimates |E difference|^2, in which opposite biases do not cancel.

  Without bias, the projections of a half are independent numbers of mean 0, however many and
  however dependent the coordinates are. If few coordinates or few examples dominate, the
  projections are as skewed as the differences, and a plain t-test misleads: with two parameters and
  one example it called an unbiased estimator biased in up to 14 % of comparisons at 20 measurements
  and 2.6 % at 200. Hall's correction for skewness and the agreement of two halves keep the rate
  low. In 20 simulated problems (2 to 40 parameters, K from 1 to 512, proposals down to 0.3 of the
  posterior's width, 30 to 400 measurements, 8,000 to 20,000 comparisons each) p was below 0.001
  without bias in at most 0.17 % of comparisons; tests/diagnostics/test_calibration.py repeats some
  of them. No test can account for a tail that none of its measurements reaches.

  With gradient_of="prior", it measures the gradient of the parameters of p(z | context) instead, in
  the two forms "direct" and "dreg" of `compile`, for each value among the bounds. Both are
  unbiased.

  The KL divergence has weight 1, whatever `kl_weight` the model is trained with.

  Args:
    model: a model, compiled by Keras or not. It is not changed, except that its variables are
      created if it has not seen a batch yet. Its layers are in inference mode: measurements share
      one function of the parameters, without dropout.
    batch: observations [batch_size, ...], or a pair (context, observation) of such.
    bounds: `bounds.Bound`s or names, by default those of `catalogue.compared`. The references that
      they need are also measured. The bound that the model is trained with has the current value of
      an alpha or factors in training.
    num_samples: K, or several of them; a bound is skipped where K is too small for it.
    num_measurements: n at each K, at least 30. Errors fall like n^-1/2. The first half is drawn
      twice.
    seed: as `bounds.estimate` takes it; the same seed gives the same results. Measurement i = 0,
      1, ... of each K draws its samples with `seeds.fold_in(seeds.stateless(seed), i)`.
    jit_compile: whether XLA compiles the gradients; None for the model's own setting.
    measure_cost: whether to also compile and time a training step's gradient of each bound.
    gradient_of: "proposal", or "prior" for a model with a learned prior.

  Returns:
    A `Comparison`. While measuring, memory holds several numbers per coordinate and estimator.

  Raises:
    TypeError: if an argument is of the wrong kind; the message names it.
    ValueError: if a value is out of range, if the bounds do not take the proposal (see
      `bounds.estimate`), or if the prior has no parameters or cannot be reparameterized.
    FloatingPointError: if a gradient is not finite.
  """
  if not isinstance(model, LatentVariableModel):
    raise TypeError(f"model must be a LatentVariableModel, got {type(model).__name__}.")
  if tf.as_dtype(model.compute_dtype) == tf.float16:
    raise ValueError("model: compare needs more range than float16 has, use mixed_bfloat16.")
  context, x = _split(batch, model.float_dtype)
  given = None if bounds is None else _as_bounds(bounds)
  all_num_samples = as_ints("num_samples", num_samples)
  num_measurements = evaluation.check_int(
    "num_measurements", num_measurements, catalogue.MIN_MEASUREMENTS
  )
  seed = seeds.stateless(seed)
  if jit_compile is None:
    jit_compile = model.compiled and bool(model.jit_compile)
  if not model.built:
    model._build_for(x, context)
  has_path = plan.has_path(model, x, context)
  chosen = given or _as_bounds(catalogue.compared(has_path))
  compared = [_at_present(model, bound) for bound in chosen]
  is_prior = plan.is_prior(gradient_of)
  if is_prior:
    steps.check_prior_gradient(model, "dreg")
    planned = plan.of_priors(compared, all_num_samples)
  else:
    planned = plan.of_bounds(compared, all_num_samples, has_path)

  rows = []
  total = len(planned) * (num_measurements + num_measurements // 2)
  with output.Progress(total, "measurements") as progress:
    for k, estimators in planned.items():
      basis, matrix = _basis(estimators, is_prior)
      gradients = _gradients(model, x, context, k, basis, seed, jit_compile, is_prior)
      groups = plan.groups(estimators)
      measured = repeat(gradients, matrix, groups, num_measurements, progress.update)
      _check_finite(measured, estimators, k)
      times = {}
      if measure_cost:
        times = _milliseconds(model, x, context, k, estimators, seed, jit_compile)
      for estimator, values in zip(estimators, statistics.summarize(measured, groups), strict=True):
        rows.append(_row(estimator, k, values, times))
  sizes = measured.center.shape[1], batches.static_size(x)
  return Comparison(tuple(rows), num_measurements, *sizes, gradient_of)


# --- bounds and rows -----------------------------------------------------------------------------


def _at_present(model: LatentVariableModel, bound: Bound) -> Bound:
  """Returns the bound with the current values of options that training adapts."""
  if model.followers is None or bound != model.bound:
    return bound
  moving = {name: float(value) for name, value in model.followers.moving_options.items()}
  return get_bound(bound.name, **dict(bound.options) | moving) if moving else bound


def _row(estimator: plan.Estimator, num_samples: int, values: dict, times: dict[str, float]) -> Row:
  return Row(
    bound=estimator.name,
    num_samples=num_samples,
    reference=estimator.reference,
    unbiased=estimator.bound.is_unbiased(num_samples),
    milliseconds=times.get(estimator.name, times.get(estimator.reference, float("nan"))),
    **values,
  )


def _check_finite(measured: statistics.Measurements, estimators, num_samples: int) -> None:
  for estimator, total in zip(estimators, measured.total, strict=True):
    if not np.isfinite(total).all():
      raise FloatingPointError(
        f"The gradient of {estimator.name} is not finite at K = {num_samples}: check log p(x, z) "
        "and the proposal of this batch."
      )


# --- arguments ----------------------------------------------------------------------------------


def _split(batch, dtype: tf.DType):
  """Returns the checked context and x of a batch, as Tensors."""
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
    raise ValueError(
      f"batch must hold as many contexts as observations, at least one, got {sizes}."
    )
  return context, x


def _describe(value) -> str:
  if isinstance(value, tuple):
    return f"a tuple of {len(value)}"
  return repr(value) if value is None or np.isscalar(value) else f"a {type(value).__name__}"


def _as_bounds(bounds) -> list[Bound]:
  """Returns checked Bounds, given Bounds or names; options that are Tensors get their value."""
  bounds = [bounds] if isinstance(bounds, (Bound, str)) else list(bounds)
  for i, bound in enumerate(bounds):
    bound = get_bound(bound) if isinstance(bound, str) else bound
    if not isinstance(bound, Bound):
      raise TypeError(f"bounds must be Bounds or names of them, got {bound!r}.")
    if bound.function is None:
      options = {name: getattr(o, "numpy", lambda o=o: o)() for name, o in bound.options}
      bound = get_bound(bound.name, **options)
    bounds[i] = bound
  if not bounds:
    raise ValueError("bounds must name at least one, got none.")
  names = [plan.name_of(bound) for bound in bounds]
  if len(set(names)) < len(names):
    raise ValueError(f"bounds must not repeat a bound, got {', '.join(names)}.")
  return bounds


def as_ints(argument: str, values: Any) -> list[int]:
  """Returns one int or several as a list of ints without duplicates; raises for other values."""
  values = values if isinstance(values, (list, tuple, range, np.ndarray)) else [values]
  values = [evaluation.check_int(argument, value, at_least=1) for value in values]
  if not values:
    raise ValueError(f"{argument} must hold at least one int, got none.")
  return list(dict.fromkeys(values))


# --- measuring ----------------------------------------------------------------------------------


def _basis(estimators: list[plan.Estimator], is_prior: bool) -> tuple[list[Bound], np.ndarray]:
  """Returns the bounds to differentiate, and a matrix from their gradients to the estimators."""
  if is_prior:  # There are two gradients of each bound.
    return [each.bound for each in estimators if each.is_reference], np.eye(len(estimators))
  return side_by_side.basis([each.bound for each in estimators])


def _gradients(
  model,
  x,
  context,
  num_samples: int,
  bounds: list[Bound],
  seed,
  jit_compile: bool,
  is_prior: bool = False,
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns a function of a measurement's number that computes its gradients, [M, P].

  Each bound has one gradient through the proposal, or two through the prior.
  """
  scale = 1 / batches.static_size(x)
  propose = functools.partial(calls.propose, model, x, context)

  @tf.function(autograph=False, jit_compile=jit_compile)
  def by_variable(number):
    noise = seeds.fold_in(seed, number)
    variables = model.trainable_variables
    with calls.mode(model, training=False):
      if is_prior:
        found = side_by_side.differentiate_prior(
          bounds,
          lambda z: model.conditional_log_prob(x, z, context),
          propose,
          lambda: calls.call(model.prior, context),
          variables,
          num_samples,
          noise,
          scale=scale,
        )
      else:
        found = side_by_side.differentiate(
          bounds,
          lambda z: model.target_log_prob(x, z, context),
          propose,
          variables,
          num_samples,
          noise,
          scale=scale,
          with_model=False,
        ).proposal
    return [[g for g in gradients if g is not None] for gradients in found]

  def as_matrix(number):
    # Concatenated outside of XLA, which on a CPU takes longer for this than for the gradients.
    by_estimator = by_variable(number)
    parts = [tf.reshape(g, [-1]) for gradients in by_estimator for g in gradients]
    if not parts:
      kind = "prior" if is_prior else "proposal"
      raise ValueError(f"model: its {kind} depends on no trainable variable.")
    dtype = tf.float64 if any(part.dtype == tf.float64 for part in parts) else tf.float32
    whole = tf.concat([tf.cast(part, dtype) for part in parts], axis=0)
    return tf.reshape(whole, [len(by_estimator), -1])

  return as_matrix


def repeat(
  gradients: Callable[[tf.Tensor], tf.Tensor],
  matrix: np.ndarray,
  groups: list[tuple[int, int]],
  num_measurements: int,
  update: Callable[[int], None],
) -> statistics.Measurements:
  """Measures gradients without keeping them, since they may be too large.

  Each half is projected on the mean of the other. So the first half is drawn twice, the first time
  for its mean alone.

  Args:
    gradients: a function of a measurement's number that returns M gradients, [M, P].
    matrix: [E, M], the linear map from these to the gradients of the E estimators.
    groups: see `statistics.summarize`.
    num_measurements: n.
    update: called with the number of measurements made since the last call.
  """
  output = tf.function(gradients, autograph=False).get_concrete_function(tf.constant(0))
  zeros = tf.zeros(output.structured_outputs.shape, output.structured_outputs.dtype)
  contrasts = np.concatenate([matrix[start + 1 : end] - matrix[start] for start, end in groups])
  loop = _loop(gradients, tf.constant(contrasts, zeros.dtype), zeros)

  def run(start, stop, center, directions):
    """Returns the sums over measurements `start` to `stop`, and the inner products of each."""
    total = squares = 0.0
    grams, products = [], []
    for first in range(start, stop, _MEASUREMENTS_PER_CALL):
      count = min(_MEASUREMENTS_PER_CALL, stop - first)
      sums = loop(tf.constant(first), tf.constant(count), center, directions)
      total, squares = total + sums[0], squares + sums[1]
      grams.append(sums[2].numpy().astype(np.float64))
      products.append(sums[3].numpy().astype(np.float64))
      update(count)
    return total, squares, np.concatenate(grams), np.concatenate(products)

  half = num_measurements // 2
  center = run(0, half, zeros, zeros)[0] / half
  total, squares, grams, products = run(half, num_measurements, center, center)
  second_mean = center + total / (num_measurements - half)
  first_total, first_squares, first_grams, first_products = run(0, half, center, second_mean)

  center = center.numpy().astype(np.float64)
  first_products += center @ second_mean.numpy().astype(np.float64).T
  products += center @ center.T
  return statistics.Measurements(
    matrix @ center,
    matrix @ (first_total + total).numpy().astype(np.float64),
    (first_squares + squares).numpy().astype(np.float64),
    matrix @ np.concatenate([first_grams, grams]) @ matrix.T,
    matrix @ np.concatenate([first_products, products]) @ matrix.T,
  )


def _loop(gradients, contrasts: tf.Tensor, like: tf.Tensor):
  """Returns a compiled loop of measurements.

  It takes the number of the first measurement, their count, and `center` and `directions`, [M, P].
  With h = gradients - center, it returns the sum of h, [M, P], the sum of squares of
  `contrasts` @ h, and for each measurement the inner products of h, and those of h with
  `directions`, [count, M, M].
  """

  def measure(first, count, center, directions):
    def body(number, total, squares, grams, products):
      shifted = gradients(number) - center
      squares += tf.square(tf.matmul(contrasts, shifted))
      grams = grams.write(number - first, tf.matmul(shifted, shifted, transpose_b=True))
      products = products.write(number - first, tf.matmul(shifted, directions, transpose_b=True))
      return number + 1, total + shifted, squares, grams, products

    total, squares = tf.zeros_like(like), tf.zeros_like(tf.matmul(contrasts, like))
    arrays = [tf.TensorArray(like.dtype, size=count) for _ in range(2)]
    _, total, squares, grams, products = tf.while_loop(
      lambda number, *_: number < first + count, body, (first, total, squares, *arrays)
    )
    return total, squares, grams.stack(), products.stack()

  # A concrete function, since TensorFlow warns of functions that are retraced for every K.
  compiled = tf.function(measure, autograph=False)
  return compiled.get_concrete_function(tf.constant(0), tf.constant(1), like, like)


def _milliseconds(
  model, x, context, num_samples: int, estimators: list[plan.Estimator], seed, jit_compile: bool
) -> dict[str, float]:
  """Returns the median time of a training step's gradient, for estimators that differ in it."""

  def estimate(bound, prior_gradient, seed):
    options = {} if prior_gradient == "direct" else {"prior_gradient": prior_gradient}
    return model.estimate(x, context, bound=bound, num_samples=num_samples, seed=seed, **options)

  estimates = {
    each.name: functools.partial(estimate, each.bound, each.prior_gradient)
    for each in estimators
    if each.is_timed
  }
  return milliseconds(model.trainable_variables, estimates, seed, jit_compile)


def milliseconds(
  variables: Sequence, estimates: Mapping[str, Callable], seed: tf.Tensor, jit_compile: bool
) -> dict[str, float]:
  """Returns the median time of each estimate's gradient by name; an estimate maps a seed."""

  def make(estimate):
    @tf.function(autograph=False, jit_compile=jit_compile)
    def step(seed):
      with tf.GradientTape() as tape:
        objective = tf.reduce_mean(estimate(seed).objective)
      gradients = tape.gradient(objective, variables)
      return [gradient for gradient in gradients if gradient is not None]

    return step.get_concrete_function(seed)

  steps = {name: make(estimate) for name, estimate in estimates.items()}
  times = {name: [] for name in steps}
  for i in range(_TIMED_STEPS + 1):
    for name, step in steps.items():  # In turns, so that a busy machine slows down all alike.
      start = time.perf_counter()
      step(seed)
      tf.test.experimental.sync_devices()  # A GPU may still be working.
      if i:  # The first call compiles.
        times[name].append(1000 * (time.perf_counter() - start))
  return {name: float(np.median(values)) for name, values in times.items()}
