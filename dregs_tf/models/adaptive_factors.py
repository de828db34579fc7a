"""Trains the factors of iwae_cv's control variates along with the model, to reduce the variance.

The gradient g of `iwae_cv` has the same mean at every value of its factors A, B, G, D, so where
E |g|^2 is least, so is the variance (the authors' dreg-cv, as in REBAR, Tucker
et al. 2017, https://arxiv.org/abs/1703.07370). g is linear in each factor if the others are fixed:
if g_f is the gradient of the same samples with the factor f larger by 1, then

  dg/df = g_f - g   and so   d|g|^2/df = 2 < g, g_f - g >,

exactly and without bias. g_f costs a backward pass through the proposal's network, which has 1/K
of the decoder's rows. The factors are moved after they are used, so those of a step depend on
earlier samples alone and the gradient stays unbiased.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from dregs_tf.evaluation import at_least_float32
from dregs_tf.models.averages import Averages, adams_direction

# With this rate Adam takes at least a hundred steps from 0 to 1. |g|^2 is flat around its minimum,
# where noise of this size in a factor costs nothing.
_LEARNING_RATE = 1e-2


class AdaptiveFactors(Averages):
  """Holds the factors to train, as variables, and their Adam, which descends on |g|^2.

  Args:
    starts: the initial value of each factor to train, by name; factors not listed stay fixed.
    **kwargs: arguments of a Keras layer.
  """

  def __init__(self, starts: Mapping[str, float], **kwargs: Any):
    super().__init__(**kwargs)
    constant = keras.initializers.Constant
    self._factors = {
      name: self.add_average(name, initializer=constant(start)) for name, start in starts.items()
    }

  @property
  def factors(self) -> dict[str, keras.Variable]:
    """Returns the factors by name."""
    return self._factors

  def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
    """Makes Adam's averages; they do not depend on the shapes of the model's variables."""
    del shapes
    size = (len(self._factors),)
    self._mean, self._square = self.add_average("mean", size), self.add_average("square", size)
    self._steps = self.add_average("steps")
    self.built = True

  def update(self, gradients: Sequence, raised: Mapping[str, Sequence]) -> None:
    """Moves the factors by a step of Adam along the slope of |g|^2.

    Args:
      gradients: g, of each variable or None.
      raised: by factor, the gradients g_f of each variable with that factor larger by 1; None for a
        variable that no factor affects.
    """
    slopes = tf.stack([_slope(gradients, raised[name]) for name in self._factors])
    # An optimizer that scales the loss skips a step that overflows, so such a slope counts as 0.
    slopes = tf.where(tf.math.is_finite(slopes), slopes, tf.zeros_like(slopes))
    self._steps.assign_add(1.0)
    directions = adams_direction(slopes, self._mean, self._square, self._steps)
    for i, factor in enumerate(self._factors.values()):
      factor.assign_sub(_LEARNING_RATE * directions[i])


def _slope(gradients: Sequence, raised: Sequence) -> tf.Tensor:
  """Returns d|g|^2/df, a float32 scalar."""
  total = tf.zeros([])
  for g, g_f in zip(gradients, raised, strict=True):
    if g_f is not None:
      g, g_f = (at_least_float32(tf.convert_to_tensor(each)) for each in (g, g_f))
      total += tf.cast(2 * tf.reduce_sum(g * (g_f - g)), tf.float32)
  return total
