"""Defines a Gaussian model with exact gradients of its bounds: the toy example of Sec. 6.1.

Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better" (ICML 2018):
z ~ N(theta, I) and x | z ~ N(z, I), with the proposal q(z | x) = N(A x + b, s^2 I), s^2 = 2/3. The
posterior is N((x + theta) / 2, I / 2). With z = A x + b + s eps and the shift d, the difference of
the proposal's mean and the posterior's,

    log w(z) - log p(x) = (D / 2) log(2 s^2) - |d + s eps|^2 + |eps|^2 / 2,
    dlog w / dz = -2 d + (1 / s - 2 s) eps   (the path, q's parameters stopped),
    dlog q / dloc = eps / s                  (the score, z stopped).

The gradient of any estimator in loc = A x + b is thus a sum of the noise with weights.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

from dregs_tf.bounds import Coefficients

tfd = tfp.distributions

PROPOSAL_VARIANCE = 2 / 3
_SCALE = math.sqrt(PROPOSAL_VARIANCE)
_PATH_OF_NOISE = 1 / _SCALE - 2 * _SCALE

# Standard deviation of the perturbation of every parameter from its optimum.
_PERTURBATION = 0.01

# Nodes of the quadrature in each of its two dimensions, and its grid of log t. For 20 latent
# dimensions the gradients are within 1e-11 of those with many more nodes, for 50 within 1e-8.
_NODES = 32
_LOG_T = np.arange(-30, 45, 0.3)
# Degree of the polynomial in |d|^2 that interpolates the slope.
_DEGREE = 10


class Parameters(NamedTuple):
  """Holds theta [D] of the model, a [D, D] and b [D] of the proposal."""

  theta: np.ndarray
  a: np.ndarray
  b: np.ndarray


def draw(
  generator: np.random.Generator, latent_dim: int, num_observations: int
) -> tuple[Parameters, np.ndarray]:
  """Draws observations of the model, and parameters close to the optimum for them.

  The true theta is drawn from N(0, I). The optimum is theta = the observations' mean, A = I / 2,
  b = theta / 2; every parameter is then moved by N(0, 0.01^2).

  Returns:
    (parameters, x [num_observations, latent_dim]), in float64.
  """
  true_theta = generator.standard_normal(latent_dim)
  x = true_theta + math.sqrt(2) * generator.standard_normal((num_observations, latent_dim))
  mean = x.mean(axis=0)
  optimum = Parameters(mean, np.eye(latent_dim) / 2, mean / 2)
  moved = (part + _PERTURBATION * generator.standard_normal(part.shape) for part in optimum)
  return Parameters(*moved), x


def target_log_prob(parameters: Parameters, x: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
  """Returns log p(x, z), [num_samples, batch_size], for z [num_samples, ..., D]."""
  prior = tfd.MultivariateNormalDiag(parameters.theta, tf.ones_like(parameters.theta))
  return prior.log_prob(z) + tfd.MultivariateNormalDiag(z, tf.ones_like(z)).log_prob(x)


def proposal(parameters: Parameters, x: tf.Tensor) -> tfd.Distribution:
  """Returns q(z | x), of batch shape [batch_size], for x [batch_size, D]."""
  loc = tf.linalg.matvec(parameters.a, x) + parameters.b
  return tfd.MultivariateNormalDiag(loc, _SCALE * tf.ones_like(loc))


def shifts(parameters: Parameters, x: np.ndarray) -> np.ndarray:
  """Returns d = A x + b - (x + theta) / 2, [batch_size, D], for x of that shape."""
  return x @ parameters.a.T + parameters.b - (x + parameters.theta) / 2


def log_weights(noise: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
  """Returns log w - log p(x) in nats, [...], of noise [..., D] and shifts that broadcast."""
  latent_dim = noise.shape[-1]
  slope = -2 * _SCALE * shift - (PROPOSAL_VARIANCE - 0.5) * noise
  at_zero = 0.5 * latent_dim * math.log(2 * PROPOSAL_VARIANCE) - tf.reduce_sum(shift**2, axis=-1)
  return at_zero + tf.reduce_sum(noise * slope, axis=-1)


def loc_gradients(noise: tf.Tensor, shift: tf.Tensor, estimators: list[Coefficients]) -> tf.Tensor:
  """Computes gradients in the proposal's mean, of several estimators on the same samples.

  Args:
    noise: eps, [batch_size, num_samples, D].
    shift: [batch_size, D].
    estimators: b and c of each, [num_samples, batch_size], as `Bound.coefficients` gives them.

  Returns:
    sum_i b_i dlog w_i / dz_i + c_i dlog q_i / dloc: [number of estimators, batch_size, D].
  """
  path = tf.stack([coefficients.path for coefficients in estimators])
  score = tf.stack([coefficients.score for coefficients in estimators])
  weights = _PATH_OF_NOISE * path + score / _SCALE
  total = tf.einsum("jkb,bkd->jbd", weights, noise)
  return total - 2 * shift * tf.reduce_sum(path, axis=1)[..., tf.newaxis]


def exact_loc_gradients(
  shift: np.ndarray, all_num_samples, alpha: float = 0.0
) -> dict[int, np.ndarray]:
  """Computes the expected gradient of L_K in the proposal's mean, without sampling error.

  By symmetry the gradient points along d: it is -2 d h_K(|d|). `exact_slope` computes h_K, a
  smooth function of |d|^2 that is interpolated here between Chebyshev nodes.

  Args:
    shift: [batch_size, D].
    all_num_samples: the K's to compute it for.
    alpha: that of VR-IWAE; 0 is L_K.

  Returns:
    For each K, [batch_size, D] in float64.
  """
  latent_dim = shift.shape[-1]

  def slopes(distance):
    return list(exact_slope(distance, latent_dim, all_num_samples, alpha=alpha).values())

  values = _interpolated(slopes, shift)
  return {
    k: -2 * shift * slope[:, np.newaxis] for k, slope in zip(all_num_samples, values, strict=True)
  }


def _interpolated(function, shift: np.ndarray) -> np.ndarray:
  """Returns functions of |d|, [their number, batch_size], as polynomials in |d|^2."""
  squares = np.sum(shift**2, axis=-1)
  low, high = squares.min(), squares.max() + 1e-9
  nodes = low + (high - low) * (np.polynomial.chebyshev.chebpts1(_DEGREE + 1) + 1) / 2
  values = np.array([function(math.sqrt(node)) for node in nodes]).T
  fit = np.polynomial.Chebyshev.fit
  return np.array([fit(nodes, each, _DEGREE, domain=[low, high])(squares) for each in values])


def exact_slope(
  distance: float,
  latent_dim: int,
  all_num_samples,
  doubly_reparameterized: bool = True,
  alpha: float = 0.0,
) -> dict[int, float]:
  """Computes h_K of `exact_loc_gradients` at |d| = distance > 0, by quadrature.

  With 1 / S^2 = int_0^inf t exp(-t S) dt and S the sum of K independent weights,

    E sum_i wbar_i^2 f_i = K int_0^inf t E[w^2 f exp(-t w)] phi(t)^(K-1) dt,  phi(t) = E exp(-t w).

  A weight is a function of two independent numbers: the noise along d, which is normal, and the
  squared norm of the rest, which is chi-squared. Gauss-Hermite and Gauss-Laguerre quadrature give
  the inner means. In log t the trapezoidal rule converges faster than any power of its step.

  Args:
    distance: |d|.
    latent_dim: D.
    all_num_samples: the K's to compute it for.
    doubly_reparameterized: f is the path's, with wbar^2 (Eq. 7), or the total derivative's, with
      wbar (Eq. 3): the same mean, and for large K more digits in the first form.
    alpha: that of VR-IWAE, whose weights are w^(1 - alpha), with the path's factor
      alpha wbar + (1 - alpha) wbar^2; 0 is L_K.

  Returns:
    h_K for each K; h_1 = 1, and it falls like 1 / K.
  """
  log_weight, along, _, mass = _quadrature(distance, latent_dim)
  of_noise = _PATH_OF_NOISE if doubly_reparameterized else -2 * _SCALE
  term = mass * (-2 * distance + of_noise * along)

  t_w = np.exp(_LOG_T[:, np.newaxis] + (1 - alpha) * log_weight)
  factor = alpha + (1 - alpha) * t_w if doubly_reparameterized else 1.0
  mean = (factor * t_w * np.exp(-t_w)) @ term
  log_phi = _log_phi(t_w, mass)
  step = _LOG_T[1] - _LOG_T[0]
  return {
    k: k * step * np.sum(mean * np.exp((k - 1) * log_phi)) / (-2 * distance)
    for k in all_num_samples
  }


class Estimator(NamedTuple):
  """Describes sum_i b_i f_i with f_i = -2 d + of_noise eps_i and b_i a polynomial in wbar_i.

  factors: of wbar^1, wbar^2 in b. of_noise: of the noise in f. alpha: of VR-IWAE's weights.
  """

  factors: tuple[float, ...]
  of_noise: float
  alpha: float


def estimator(gradient: str, alpha: float) -> Estimator:
  """Returns the estimator "total", "dreg" or "stl" of VR-IWAE; alpha = 0 is L_K, 1 the ELBO."""
  if gradient == "dreg":
    return Estimator((alpha, 1 - alpha), _PATH_OF_NOISE, alpha)
  return Estimator((1.0,), -2 * _SCALE if gradient == "total" else _PATH_OF_NOISE, alpha)


def exact_variances(shift: np.ndarray, num_samples: int, of: Estimator) -> np.ndarray:
  """Computes the variance of a gradient in the proposal's mean, summed over coordinates.

  Args:
    shift: [batch_size, D].
    num_samples: K.
    of: the estimator.

  Returns:
    [batch_size] in float64, interpolated in |d|^2 as `exact_loc_gradients` is.
  """
  latent_dim = shift.shape[-1]
  (values,) = _interpolated(lambda d: [_exact_variance(d, latent_dim, num_samples, of)], shift)
  return values


def _exact_variance(distance: float, latent_dim: int, num_samples: int, of: Estimator) -> float:
  """Computes it by quadrature: as `exact_slope`, with 1 / S^n and pairs of samples.

  E |sum_i wbar_i^p f_i|^2 = K E[wbar_1^2p |f_1|^2] + K (K - 1) E[wbar_1^p f_1 . wbar_2^p f_2]
  """
  log_weight, along, across, mass = _quadrature(distance, latent_dim)
  along = -2 * distance + of.of_noise * along
  norm = along**2 + of.of_noise**2 * across
  t_w = np.exp(_LOG_T[:, np.newaxis] + (1 - of.alpha) * log_weight)
  decay, log_phi = np.exp(-t_w), _log_phi(t_w, mass)
  step, k = _LOG_T[1] - _LOG_T[0], num_samples

  def integral(values, others, power):
    return step * np.sum(values * np.exp(others * log_phi)) / math.gamma(power)

  factors = dict(enumerate(of.factors, start=1))
  one = {p: (t_w**p * decay) @ (mass * along) for p in factors}
  mean = sum(factor * k * integral(one[p], k - 1, p) for p, factor in factors.items())
  square = 0.0
  for p, factor in factors.items():
    for q, other in factors.items():
      same = integral((t_w ** (p + q) * decay) @ (mass * norm), k - 1, p + q)
      pairs = integral(one[p] * one[q], k - 2, p + q) if k > 1 else 0.0
      square += factor * other * k * (same + (k - 1) * pairs)
  return float(square - mean**2)


def _quadrature(distance: float, latent_dim: int) -> tuple[np.ndarray, ...]:
  """Returns log w - log p(x), eps along d, |eps|^2 across it, and probabilities, of all nodes."""
  along, mass = special.roots_hermitenorm(_NODES)
  across = np.zeros_like(along)
  if latent_dim > 1:
    half_square, mass_across = special.roots_genlaguerre(_NODES, (latent_dim - 1) / 2 - 1)
    mass = np.outer(mass, mass_across).ravel()
    along, across = np.repeat(along, _NODES), np.tile(2 * half_square, _NODES)
  excess = PROPOSAL_VARIANCE - 0.5
  log_weight = -(distance**2) - 2 * _SCALE * distance * along - excess * (along**2 + across)
  return log_weight, along, across, mass / mass.sum()


def _log_phi(t_w: np.ndarray, mass: np.ndarray) -> np.ndarray:
  """Returns log E exp(-t w) from 1 - phi, which keeps its digits where phi is about 1.

  Where phi is about 0, what it multiplies vanishes.
  """
  return np.log1p(-np.minimum(-np.expm1(-t_w) @ mass, 1 - 2.0**-53))
