"""Defines a mixture as a proposal that is sampled in strata: K samples of each component.

All samples z_mk ~ q_m are weighed against the whole mixture, w = p(x, z) / q_mix(z), so each
log-weight depends on the parameters of every component. So the second reparameterization must
replace the score of q_mix, at a sample of q_m. With r_j(z) = pi_j q_j(z) / q_mix(z), and T_j the
transformation of noise to a sample of q_j,

  y(z) = sum_j r_j(z) T_j(T_j^-1(z); phi_j),   r_j and z held fixed,

is z as a function of the mixture's parameters. For any function g, integration by parts for each j
gives

  E_{q_m}[g dlog q_mix / dphi] = E_{q_m}[(dg/dz + g dlog q_m/dz - g dlog q_mix/dz) dy/dphi].

With g = F_i, whose derivative is F_ii dlog w/dz, this gives the gradient of any objective F of the
log-weights; `surrogate.terms` computes it. Weighing the path of z by F_i - F_ii, as if q_m were the
density in the weight, is biased. The probabilities keep their score.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import catalogue, gradients, proposals, seeds
from dregs_tf.coefficients import Mix

tfd = tfp.distributions


class StratifiedMixture(tfd.Distribution):
  """Mixes M distributions, q_mix = sum_m pi_m q_m; as a proposal, draws K samples of each.

  `bounds.estimate` with num_samples = K draws samples [M K, batch_size, ...], those of the first
  component first, and evaluates the model once, at all of them. With w = p(x, z) / q_mix(z),

  - iwae, iwae_dreg: log (1/K) sum_mk pi_m w_mk, the tight bound (SIWAE; Morningstar et al. 2021,
    https://arxiv.org/abs/2003.01687);
  - miselbo, miselbo_dreg: sum_m pi_m log (1/K) sum_k w_mk, the looser bound (MMVAE; Shi et al.
    2019, https://arxiv.org/abs/1911.03393; Kviman et al. 2022, https://arxiv.org/abs/2202.10951).

  The log-weights, [M K, batch_size], are log (M pi_m w_mk): the logarithm of the mean weight is the
  tight bound, and functions of `importance_weights` apply to them. Learned probabilities also have
  a gradient. With one component, the estimate is that of the component.

  As a distribution it is the mixture: `sample(n)` draws from q_mix, each sample from a random
  component, and is not differentiable.

  Args:
    components: distributions of a Tensor, of one dtype, batch shape and event shape. For "_dreg"
      bounds, `gradients.reparameterize` must support them.
    probs: probabilities, of shape [M] or [batch_size, M], numbers or a Tensor, divided by their
      sum; None for equal ones. Samples of a component of probability 0 have weight 0.

  Raises:
    ValueError: if there are no components, or if they or probs do not match.
  """

  def __init__(
    self,
    components: Sequence[tfd.Distribution],
    probs: Any = None,
    validate_args: bool = False,
    allow_nan_stats: bool = True,
    name: str = "StratifiedMixture",
  ):
    parameters = dict(locals())
    components = [proposals.unwrap(component) for component in components]
    _check_components(components)
    probs = _as_probs(np.ones(len(components)) if probs is None else probs)
    _check_probs(probs, len(components), components[0].batch_shape)
    self._components, self._probs = components, probs
    super().__init__(
      dtype=components[0].dtype,
      reparameterization_type=tfd.NOT_REPARAMETERIZED,
      validate_args=validate_args,
      allow_nan_stats=allow_nan_stats,
      parameters=parameters,
      name=name,
    )

  @property
  def components(self) -> Sequence[tfd.Distribution]:
    """Returns q_1, ..., q_M."""
    return self._components

  def log_probs(self) -> tf.Tensor:
    """Returns log pi, [M], or [M, 1 or batch_size] for a batch; -inf for a probability of 0."""
    probs = tf.cast(self._probs, self.dtype)
    probs = probs / tf.reduce_sum(probs, axis=-1, keepdims=True)  # It may be a Variable.
    if probs.shape.rank == 2:
      probs = tf.transpose(probs)
    elif self.batch_shape.rank:
      probs = probs[:, tf.newaxis]
    is_positive = probs > 0
    logs = tf.math.log(tf.where(is_positive, probs, tf.ones_like(probs)))
    return tf.where(is_positive, logs, tf.constant(-np.inf, logs.dtype))

  def probs(self) -> tf.Tensor:
    """Returns pi, of the shape of `log_probs()`."""
    return tf.exp(self.log_probs())

  def log_shares(self, num_samples: int) -> tf.Tensor:
    """Returns log (M pi_m) of each sample drawn in strata, [num_samples, 1 or batch_size]."""
    num_components = len(self.components)
    logs = self.log_probs()
    return tf.repeat(logs + float(np.log(num_components)), num_samples // num_components, axis=0)

  def sample_strata(self, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws num_samples of each component, [M num_samples, batch_size, ...]."""
    samples = [
      component.sample(num_samples, seed=seeds.fold_in(seed, place))
      for place, component in enumerate(self.components)
    ]
    return tf.concat(samples, axis=0)

  def log_prob_with(
    self, densities: Sequence, log_probs: tf.Tensor, samples: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes log q_mix, and log q_m of the component that a sample is from, each [n, batch_size].

    Args:
      densities: M objects with a log_prob, used instead of the components.
      log_probs: log pi, used instead of `log_probs()`.
      samples: [n, batch_size, ...], drawn in strata.
    """
    by_component = tf.stack([density.log_prob(samples) for density in densities])
    num_components = len(densities)
    own = [
      tf.split(log_q, num_components, axis=0)[place]
      for place, log_q in enumerate(tf.unstack(by_component, num_components))
    ]
    log_q = tf.reduce_logsumexp(log_probs[:, tf.newaxis] + by_component, axis=0)
    return log_q, tf.concat(own, axis=0)

  def reparameterize(self, samples: tf.Tensor) -> tf.Tensor:
    """Returns samples as functions y of the components' parameters: see the top of this file.

    Args:
      samples: [n, batch_size, ...], of any component.

    Raises:
      ValueError: if a component has no known invertible transformation.
    """
    samples = tf.stop_gradient(samples)
    shares = tf.stop_gradient(tf.nn.softmax(self._joint_log_probs(samples), axis=0))
    parts = [
      tf.math.multiply_no_nan(
        gradients.reparameterize(component, samples), gradients.expand_to(share, samples)
      )
      for component, share in zip(self.components, tf.unstack(shares), strict=True)
    ]
    return tf.add_n(parts)

  def _joint_log_probs(self, samples: tf.Tensor) -> tf.Tensor:
    """Returns log (pi_m q_m(z)), [M, n, batch_size]."""
    log_q = tf.stack([component.log_prob(samples) for component in self.components])
    log_probs = self.log_probs()
    for _ in range(log_q.shape.rank - log_probs.shape.rank):
      log_probs = log_probs[:, tf.newaxis]
    return log_q + log_probs

  def _log_prob(self, value):
    return tf.reduce_logsumexp(self._joint_log_probs(value), axis=0)

  def _sample_n(self, n, seed=None):
    seed = seeds.fold_in(tfp.random.sanitize_seed(seed), len(self.components))
    samples = [
      component.sample(n, seed=seeds.fold_in(seed, place))
      for place, component in enumerate(self.components)
    ]
    batch = tf.concat([[n], self.components[0].batch_shape_tensor()], axis=0)
    ends = tf.cumsum(self.probs(), axis=0)[:, tf.newaxis]
    uniform = tf.random.stateless_uniform(batch, seed, dtype=self.dtype)
    passed = tf.reduce_sum(tf.cast(uniform >= ends[:-1], tf.int32), axis=0)
    passed = gradients.expand_to(passed, samples[0])
    drawn = samples[0]
    for place, sample in enumerate(samples):
      drawn = tf.where(passed == place, sample, drawn)
    return tf.stop_gradient(drawn)

  def _mean(self):
    means = tf.stack([component.mean() for component in self.components])
    weights = self.probs()
    return tf.reduce_sum(means * gradients.expand_to(weights, means), axis=0)

  def _batch_shape(self):
    return self.components[0].batch_shape

  def _batch_shape_tensor(self, **parameters):
    return self.components[0].batch_shape_tensor()

  def _event_shape(self):
    return self.components[0].event_shape

  def _event_shape_tensor(self, **parameters):
    return self.components[0].event_shape_tensor()


def check_options(bound: Any, *options: Any) -> None:
  """Raises unless a `Bound` takes samples of each component, and the options are None.

  The options are stopped_proposal, num_backward_samples and prior.
  """
  gradient, names = bound.gradient, catalogue.for_strata()
  if bound.name in catalogue.BOUNDS:
    is_served = bound.name in names
  else:
    is_served = gradient.is_total or gradient == Mix(1, 0, 0)
  if not is_served:
    raise ValueError(
      f"bound must be one of {', '.join(names)} for a StratifiedMixture, or made by from_function "
      f"with a total or dreg gradient, got {bound.name}."
    )
  names = "stopped_proposal", "num_backward_samples", "prior (of prior_gradient='dreg')"
  for name, value in zip(names, options, strict=True):
    if value is not None:
      raise ValueError(f"{name} must be None for a StratifiedMixture, got {value!r}.")


def _check_components(components: Sequence[tfd.Distribution]) -> None:
  if not components:
    raise ValueError("components must be one distribution or more, got none.")
  for component in components:
    if isinstance(component, StratifiedMixture) or tf.nest.is_nested(component.dtype):
      raise ValueError(
        "components must be distributions of one Tensor and no stratified mixtures, got a "
        f"{type(component).__name__}."
      )
  for attribute in ("dtype", "batch_shape", "event_shape"):
    first, *others = (getattr(component, attribute) for component in components)
    is_same: Callable = getattr(first, "is_compatible_with", first.__eq__)
    for other in others:
      if not is_same(other):
        raise ValueError(f"components must have one {attribute}, got {first} and {other}.")


def _as_probs(probs: Any) -> Any:
  """Returns numbers as a float64 array, in full precision; Tensors and variables unchanged."""
  is_sequence = isinstance(probs, (list, tuple))
  if is_sequence and not all(isinstance(p, numbers.Real) for p in tf.nest.flatten(probs)):
    return tf.convert_to_tensor(probs)
  if is_sequence or isinstance(probs, (np.ndarray, numbers.Real)):
    return np.asarray(probs, np.float64)
  return probs


def _check_probs(probs: Any, num_components: int, batch_shape: tf.TensorShape) -> None:
  if isinstance(probs, np.ndarray) and not (
    (probs >= 0).all() and (probs.sum(axis=-1, initial=0) > 0).all()
  ):
    raise ValueError(f"probs must be 0 or more, and not all 0, got {probs.tolist()}.")
  shape = tf.TensorShape(probs.shape)
  fits = [[num_components], [*(batch_shape.dims or [None])[:1], num_components]]
  if not any(shape.is_compatible_with(each) for each in fits):
    raise ValueError(
      f"probs must have the shape [{num_components}] or [batch_size, {num_components}], one for "
      f"each component, got {shape}."
    )
