"""Handles observations whose missing features are NaN.

With missing features the likelihood is that of the observed ones, p(x_obs | z), without the others'
factors; bounds and gradients are otherwise the same (Mattei and Frellsen 2019,
https://arxiv.org/abs/1812.02633). This is valid if, given the observed values, whether a feature is
missing does not depend on its value.
"""

import functools
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, seeds
from dregs_tf.models import calls, parts, posterior, steps

tfd = tfp.distributions


class IncompleteData(keras.Model):
  """Trains a model on observations with missing features, and imputes them.

  `compile(missing="nan")` enables it.
  """

  missing: str | None = None  # The argument of `compile`.

  def proposal_input(self, x: Any):
    """Returns the argument of `proposal`, given observations x [batch_size, ...].

    It is x itself; with `compile(missing="nan")`, x with its missing features set to 0. Override it
    to fill them in otherwise, or to pass the proposal more, such as `[filled, mask]`. An override
    must return the same structure without missing features: layers may be built before `compile`.
    """
    return self._filled(x, 0)

  def _filled(self, x: Any, value: Any):
    """Returns x with `value`, broadcast to an example's features, in place of missing ones."""
    if self.missing is None:
      return x

    def fill(leaf):
      is_missing = is_nan(leaf)
      return leaf if is_missing is None else tf.where(is_missing, tf.cast(value, leaf.dtype), leaf)

    return tf.nest.map_structure(fill, x)

  def impute(
    self,
    x: Any,
    num_samples: int = 5000,
    multiple: int | None = None,
    context: Any = None,
    seed: seeds.Seed = 0,
  ) -> tf.Tensor:
    """Fills in missing features, NaN in x, by importance sampling of p(x_missing | x_observed).

    By default it uses their expectation, sum_i wbar_i E[x_missing | z_i], which has the least
    squared error. With `multiple`, it returns draws, whose spread shows how uncertain the features
    are: z is resampled by weight, and x_missing is drawn from its likelihood.
    `log_likelihood(..., return_diagnostics=True)` tells how far to trust the weights.

    Args:
      x: observations, as `log_likelihood` takes them: a Tensor [batch_size, ...] of floats or a
        Dataset.
      num_samples: K.
      multiple: the number of draws; much smaller than the effective sample size. None for the
        expectation.
      context: contexts.
      seed: as `bounds.estimate` takes it.

    Returns:
      x with its missing features filled in, [batch_size, ...], or [multiple, batch_size, ...].

    Raises:
      TypeError: if num_samples or multiple is not an int.
      ValueError: if the model is not compiled with missing="nan", if num_samples or multiple is not
        positive, or if there are no examples.
    """
    if self.missing is None:
      raise ValueError(f"{type(self).__name__}.impute needs compile(missing='nan'), got None.")
    num_samples = evaluation.check_int("num_samples", num_samples, at_least=1)
    if multiple is not None:
      multiple = evaluation.check_int("multiple", multiple, at_least=1)

    def function(x, context, seed):
      return self._impute(x, context, multiple, num_samples, seed)

    seed = seeds.fold_in(seeds.stateless(seed), steps.POSTERIOR)
    return parts.in_parts(self, function, x, context, seed, axis=0 if multiple is None else 1)

  @functools.cached_property
  def _impute(self):
    """Returns `impute` for a batch that fits in memory, traced once per shape."""

    def likelihood(z, context):
      return calls.call(self.likelihood, z, context)

    def function(x, context, multiple, num_samples, seed):
      arguments = posterior.target_and_proposal(self, x, context)
      if multiple is None:
        values = posterior.expectation(
          lambda z: likelihood(z, context).mean(), *arguments, num_samples, seed
        )
      else:
        z = posterior.draws(*arguments, multiple, num_samples, seeds.fold_in(seed, 0))
        values = likelihood(z, context).sample(seed=seeds.fold_in(seed, 1))
      return tf.where(is_nan(x), tf.cast(values, x.dtype), x)

    return parts.compiled(self, function)


def check_argument(value: Any) -> None:
  """Raises a ValueError unless `value` is allowed as `missing` in `compile`."""
  if value not in (None, "nan"):
    raise ValueError(f"missing must be 'nan' or None, got {value!r}.")


def is_nan(x: tf.Tensor) -> tf.Tensor | None:
  """Returns which features are missing, bools of x's shape; None if x is not of floats."""
  return tf.math.is_nan(x) if x.dtype.is_floating else None


def log_prob(name: str, likelihood: tfd.Distribution, x: Any) -> tf.Tensor:
  """Computes log p(x_obs | z), [num_samples, batch_size], of the features that are not NaN.

  If none is missing, it equals `likelihood.log_prob(x)` bit for bit.

  Args:
    name: the model's name, for messages.
    likelihood: a distribution that factorizes over features: tfd.Independent of scalars, or a
      distribution of scalars. One with a method `observed_log_prob(x, is_missing)`, such as
      `IndependentBernoulli`, computes it on its own.
    x: observations, a Tensor of the dtype that the likelihood takes.

  Raises:
    ValueError: if the likelihood is of another kind.
  """
  is_missing = None if tf.nest.is_nested(x) else is_nan(x)
  if hasattr(likelihood, "observed_log_prob"):
    if is_missing is None:
      return likelihood.log_prob(x)
    return likelihood.observed_log_prob(x, is_missing)
  result = _log_prob(likelihood, x, is_missing)
  if result is None:
    raise ValueError(
      f"{name}: missing='nan' needs a likelihood that factorizes over features, tfd.Independent of "
      f"a distribution of scalars, such as tfd.Independent(tfd.Normal(loc, scale), 1), got "
      f"{type(likelihood).__name__} of event shape {likelihood.event_shape}."
    )
  return result


def _log_prob(distribution, x, is_missing) -> tf.Tensor | None:
  """Computes what `log_prob` returns; None if the distribution is of another kind."""
  # A subclass of Independent may define its own density.
  if getattr(type(distribution), "_log_prob", None) is tfd.Independent._log_prob:
    ndims = tf.get_static_value(distribution.reinterpreted_batch_ndims)
    log_probs = _log_prob(distribution.distribution, x, is_missing)
    if log_probs is None or ndims is None:
      return None
    return tf.reduce_sum(log_probs, axis=[-1 - i for i in range(int(ndims))])
  if tf.nest.is_nested(distribution.event_shape) or distribution.event_shape.rank != 0:
    return None
  if is_missing is None:
    return distribution.log_prob(x)
  # The gradient of the density at NaN would be NaN, even with a weight of 0.
  log_probs = distribution.log_prob(tf.where(is_missing, _inside(distribution, x.dtype), x))
  return tf.where(is_missing, tf.zeros_like(log_probs), log_probs)


def _inside(distribution: tfd.Distribution, dtype: tf.DType) -> tf.Tensor:
  """Returns a number within the support of a distribution of scalars."""
  bijector = distribution.experimental_default_event_space_bijector()
  zero = tf.zeros([], dtype)
  return zero if bijector is None else tf.stop_gradient(tf.cast(bijector.forward(zero), dtype))
