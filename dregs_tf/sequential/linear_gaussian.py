"""Defines the linear-Gaussian model of sequences, whose likelihood and filter are exact."""

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


class LinearGaussianSSM:
  """Models z_1 ~ N(m, P), z_t ~ N(A z_{t-1}, Q), x_t ~ N(C z_t, R), with an exact likelihood.

  It has the methods that `estimate` needs, to compare a particle filter with the Kalman filter.

  Args:
    transition_matrix: A, [D, D].
    transition_covariance: Q, [D, D].
    observation_matrix: C, [X, D].
    observation_covariance: R, [X, X].
    initial_mean: m, [D].
    initial_covariance: P, [D, D].
    proposal: "filtering", p(z_t | z_{t-1}, x_t), which is optimal among those that know x_t but not
      the future; or "bootstrap", the transition p(z_t | z_{t-1}).

  Raises:
    ValueError: if the proposal is another.
  """

  def __init__(
    self,
    transition_matrix: Any,
    transition_covariance: Any,
    observation_matrix: Any,
    observation_covariance: Any,
    initial_mean: Any,
    initial_covariance: Any,
    proposal: str = "filtering",
  ):
    if proposal not in ("filtering", "bootstrap"):
      raise ValueError(f"proposal must be filtering or bootstrap, got {proposal!r}.")
    self.transition_matrix = tf.convert_to_tensor(transition_matrix)
    self.observation_matrix = tf.convert_to_tensor(observation_matrix)
    self.initial_mean = tf.convert_to_tensor(initial_mean)
    self._transition_scale = tf.linalg.cholesky(transition_covariance)
    self._observation_scale = tf.linalg.cholesky(observation_covariance)
    self._initial_scale = tf.linalg.cholesky(initial_covariance)
    self._is_bootstrap = proposal == "bootstrap"

  def initial_state(self, batch_size: tf.Tensor) -> Any:
    """Returns None: z_t is the whole state."""

  def next_state(self, state: Any, z: tf.Tensor, x: tf.Tensor) -> Any:
    """Returns None."""

  def prior(self, z_previous: tf.Tensor | None, state: Any) -> tfd.Distribution:
    """Returns p(z_t | z_{t-1}) for z_previous [..., D]."""
    return tfd.MultivariateNormalTriL(*self._prior(z_previous))

  def likelihood(self, z: tf.Tensor, state: Any) -> tfd.Distribution:
    """Returns p(x_t | z_t) for z [..., D]: batch shape [...], event shape [X]."""
    return tfd.MultivariateNormalTriL(
      tf.linalg.matvec(self.observation_matrix, z), self._observation_scale
    )

  def proposal(self, x: tf.Tensor, z_previous: tf.Tensor | None, state: Any) -> tfd.Distribution:
    """Returns q(z_t | x_t, z_{t-1}) for x [batch_size, X], z_previous [..., batch_size, D]."""
    loc, scale = self._prior(z_previous)
    if self._is_bootstrap:
      return tfd.MultivariateNormalTriL(loc + tf.zeros_like(x[:, :1]), scale)
    return _condition(loc, scale, *self._evidence(x, state))

  def log_likelihood(self, observations: tf.Tensor) -> tf.Tensor:
    """Computes log p(x_1, ..., x_T) in nats, [batch_size], for observations [batch_size, T, X]."""
    return self._joint(observations.shape[1]).log_prob(observations)

  def filter(self, observations: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes mean [batch_size, T, D] and covariance [..., D, D] of p(z_t | x_1, ..., x_t)."""
    result = self._joint(observations.shape[1]).forward_filter(observations)
    return result.filtered_means, result.filtered_covs

  def posterior_marginals(self, observations: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes mean and covariance of p(z_t | x_1, ..., x_T), with the shapes of `filter`."""
    return self._joint(observations.shape[1]).posterior_marginals(observations)

  def sample(self, num_sequences: int, num_steps: int, seed: Any = None) -> tf.Tensor:
    """Draws observations, [num_sequences, num_steps, X]."""
    return self._joint(num_steps).sample(num_sequences, seed=seed)

  def given(self, observations: tf.Tensor) -> "LinearGaussianSSM":
    """Returns the model with the posterior given these observations as its proposal.

    With q(z_t | z_{t-1}) = p(z_t | z_{t-1}, x_t, ..., x_T), the weight of a whole sequence is
    p(x_1, ..., x_T) for any samples, so `iwae` is the log-likelihood for every K.

    Args:
      observations: [batch_size, T, X], the same as passed to `estimate`.
    """
    return _Given(self, tf.convert_to_tensor(observations))

  def _prior(self, z_previous) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and scale of p(z_t | z_{t-1})."""
    if z_previous is None:
      return self.initial_mean, self._initial_scale
    return tf.linalg.matvec(self.transition_matrix, z_previous), self._transition_scale

  def _evidence(self, x: tf.Tensor, state: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns J [D, D] and j [batch_size, D] with p(x_t | z) proportional to exp(j.z - z.J z/2)."""
    del state
    weighted = tf.linalg.cholesky_solve(self._observation_scale, self.observation_matrix)
    return tf.transpose(self.observation_matrix) @ weighted, x @ weighted

  def _joint(self, num_steps: int) -> tfd.Distribution:
    zeros = tf.zeros_like(self.observation_matrix[:, 0])
    return tfd.LinearGaussianStateSpaceModel(
      num_timesteps=num_steps,
      transition_matrix=self.transition_matrix,
      transition_noise=tfd.MultivariateNormalTriL(
        tf.zeros_like(self.initial_mean), self._transition_scale
      ),
      observation_matrix=self.observation_matrix,
      observation_noise=tfd.MultivariateNormalTriL(zeros, self._observation_scale),
      initial_state_prior=tfd.MultivariateNormalTriL(self.initial_mean, self._initial_scale),
    )


class _Given(LinearGaussianSSM):
  """Proposes from the posterior given observations; the state is the number of the step."""

  def __init__(self, model: LinearGaussianSSM, observations: tf.Tensor):
    vars(self).update(vars(model), _is_bootstrap=False)
    inverse = _inverse(self._transition_scale)
    matrix = self.transition_matrix
    precision, linear = tf.zeros_like(matrix), tf.zeros([], matrix.dtype)
    evidence = []
    for x in reversed(tf.unstack(observations, axis=1)):
      of_x = super()._evidence(x, None)
      precision, linear = precision + of_x[0], linear + of_x[1]
      evidence.append((precision, linear))
      # Integrating over z_t ~ N(A z_{t-1}, Q) gives the evidence for z_{t-1}.
      gain = inverse @ tf.linalg.inv(inverse + precision)
      linear = linear @ tf.transpose(gain) @ matrix
      precision = tf.transpose(matrix) @ gain @ precision @ matrix
    self._precisions, self._linears = (tf.stack(part) for part in zip(*evidence[::-1], strict=True))

  def initial_state(self, batch_size: tf.Tensor) -> tf.Tensor:
    return tf.zeros([batch_size], tf.int32)

  def next_state(self, state: tf.Tensor, z: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    return state + 1

  def _evidence(self, x, state):
    step = tf.reduce_max(state)
    return tf.gather(self._precisions, step), tf.gather(self._linears, step)


def _condition(
  loc: tf.Tensor, scale: tf.Tensor, precision: tf.Tensor, linear: tf.Tensor
) -> tfd.Distribution:
  """Returns the Normal N(loc, scale scale') times exp(linear.z - z.precision z / 2).

  Args:
    loc: [..., D].
    scale: lower triangular, [D, D].
    precision: [D, D].
    linear: [batch_size, D].
  """
  inverse = _inverse(scale)
  covariance = tf.linalg.inv(inverse + precision)
  mean = tf.linalg.matvec(covariance, tf.linalg.matvec(inverse, loc) + linear)
  return tfd.MultivariateNormalTriL(mean, tf.linalg.cholesky(covariance))


def _inverse(scale: tf.Tensor) -> tf.Tensor:
  """Returns the inverse of scale scale', for a lower triangular scale."""
  return tf.linalg.cholesky_solve(scale, tf.eye(scale.shape[0], dtype=scale.dtype))
