"""Adapts the alpha of DReG(alpha) during training by hypergradient descent through Adam.

Eq. 10 mixes two path gradients of the proposal's parameters phi, from one pass of the model:

  g(alpha) = g_I + alpha D,   D = g_R - g_I,

where g_I is IWAE-DReG's and g_R is RWS-DReG's. The paper leaves the choice of alpha open; the best
one differs between tasks. Baydin et al. (2017) adapt a learning rate by the derivative of the next
step's objective with respect to it; this module does the same for alpha.

Adam moves phi_{t+1} = phi_t + eta u_t, u = m / (sqrt(v) + eps_t), with debiased moving averages m
of g and v of g^2, and eps_t = eps / sqrt(1 - beta_2^t) in Keras. Had the steps that they remember
been taken with this alpha, then

  m(alpha) = m_I + alpha m_D   and so   dm/dalpha = m_D, the average of D,
  dv/dalpha = s, the average of dg^2/dalpha = 2 g D,
  du/dalpha = m_D / (sqrt(v) + eps_t)  -  m s / (2 sqrt(v) (sqrt(v) + eps_t)^2).

A gradient does not act at once: through m, the effect on phi of its mean and of its noise is spread
over the next 1 / (1 - beta_1) steps. The slope of phi itself is followed for as long, with the
objective's curvature left out:

  phi_{t+1} = phi_t + eta u_t,   dphi_{t+1}/dalpha = eta z_t,   z_t = beta_1 z_{t-1} + du_t/dalpha,

and the derivative of the bound at step t+1 in alpha is

  h_{t+1} = < g_I at step t+1,  z_t >     (times eta).

IWAE-DReG is unbiased for grad L_K (Eq. 7), and the samples of step t+1 are independent of those in
z_t. So, given phi_{t+1} and z_t, h is an unbiased estimate of < grad L_K(phi_{t+1}), z_t >.
The second term of du/dalpha accounts for noise: a noisier g makes v larger and the step along the
mean smaller. So alpha rises where RWS-DReG follows the bound's gradient with more signal, and falls
where its bias points elsewhere. Adam moves alpha along h, which makes eta and the model's scale
irrelevant; alpha is kept in [0, 1].
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dregs_tf.models.averages import Averages, adams_direction, follow

# Alpha's own Adam takes a few hundred steps or more from one end of [0, 1] to the other.
_LEARNING_RATE = 2e-3

# Options with which an optimizer's steps are no longer those of the formulas above.
_REFUSED = ("gradient_accumulation_steps", "clipnorm", "clipvalue", "global_clipnorm")


class AdaptiveAlpha(Averages):
  """Holds alpha of Eq. 10 as a variable, and the moving averages for its hypergradient.

  Args:
    initial_alpha: where it starts, in [0, 1].
    optimizer: the model's optimizer: `keras.optimizers.Adam` or AdamW. The hypergradient treats the
      gradient of an Embedding as dense, whereas Adam skips the rows that a batch does not use.
    **kwargs: arguments of a Keras layer.

  Raises:
    ValueError: if the optimizer's steps are not those of Adam.
  """

  def __init__(self, initial_alpha: float, optimizer: keras.optimizers.Optimizer, **kwargs: Any):
    super().__init__(**kwargs)
    adam = _as_adam(optimizer)
    self._beta_1, self._beta_2 = float(adam.beta_1), float(adam.beta_2)
    self._epsilon = float(adam.epsilon)
    start = keras.initializers.Constant(initial_alpha)
    self.alpha = self.add_average("alpha", initializer=start)

  def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
    """Makes the averages, for variables of these shapes."""
    self._m, self._m_slope = (self.add_averages(name, shapes) for name in ("m", "m_slope"))
    self._v, self._v_slope = (self.add_averages(name, shapes) for name in ("v", "v_slope"))
    self._z = self.add_averages("z", shapes)
    self._steps = self.add_average("steps")
    self._h_mean, self._h_square = self.add_average("h_mean"), self.add_average("h_square")
    self.built = True

  def update(self, iwae_dreg: Sequence, rws_dreg: Sequence) -> None:
    """Moves alpha, given the two gradients of each variable, None where alpha has no effect.

    Values that are not finite count as 0: an optimizer that scales the loss skips such a step.
    """

    def finite(gradient):
      gradient = tf.cast(gradient, tf.float32)
      return tf.where(tf.math.is_finite(gradient), gradient, 0.0)

    gradients = [
      (i, finite(g_i), finite(g_r))
      for i, (g_i, g_r) in enumerate(zip(iwae_dreg, rws_dreg, strict=True))
      if g_i is not None
    ]
    used = tf.identity(self.alpha)  # This step's gradient was mixed with it.
    self._move(sum(tf.reduce_sum(g_i * self._z[i]) for i, g_i, _ in gradients))
    self._steps.assign_add(1.0)
    for i, g_i, g_r in gradients:
      difference = g_r - g_i
      g = g_i + used * difference
      follow(self._m[i], g, self._beta_1)
      follow(self._m_slope[i], difference, self._beta_1)
      follow(self._v[i], g**2, self._beta_2)
      follow(self._v_slope[i], 2 * g * difference, self._beta_2)
      self._z[i].assign(self._beta_1 * self._z[i] + self._slope(i))

  def _slope(self, i: int) -> tf.Tensor:
    """Returns du/dalpha of variable i, as of the last step."""
    first, second = 1 - self._beta_1**self._steps, 1 - self._beta_2**self._steps
    epsilon = self._epsilon / tf.sqrt(second)
    m, m_slope = self._m[i] / first, self._m_slope[i] / first
    v_slope = self._v_slope[i] / second
    root = tf.sqrt(self._v[i] / second)
    shift = tf.math.divide_no_nan(m * v_slope, 2 * root * (root + epsilon) ** 2)
    return m_slope / (root + epsilon) - shift

  def _move(self, hypergradient: tf.Tensor) -> None:
    """Moves alpha by one step of Adam, upward, within [0, 1]."""
    direction = adams_direction(hypergradient, self._h_mean, self._h_square, self._steps)
    self.alpha.assign(tf.clip_by_value(self.alpha + _LEARNING_RATE * direction, 0.0, 1.0))


def _as_adam(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Adam:
  """Returns the Adam that an optimizer is or wraps; raises a ValueError if there is none."""
  adam = getattr(optimizer, "inner_optimizer", optimizer)
  takes_adams_steps = getattr(type(adam), "update_step", None) is keras.optimizers.Adam.update_step
  if not takes_adams_steps or adam.amsgrad:
    name = type(adam).__name__ + "(amsgrad=True)" * takes_adams_steps
    raise ValueError(
      f"adapt_alpha follows the steps of Adam or AdamW without amsgrad, got optimizer {name}."
    )
  for option in _REFUSED:
    value = getattr(adam, option)
    if value is not None:
      raise ValueError(f"adapt_alpha needs an optimizer without {option}, got {option}={value}.")
  return adam
