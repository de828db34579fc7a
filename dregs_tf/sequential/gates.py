"""Gates and stops gradients inside a `tf.while_loop`, where a later step determines the ratio.

A gate in a loop cannot get its ratio from a function, as `gradients.gate` does: the ratio may be
known only after the loop. So the ratio arrives as a gradient. A gate returns a second Tensor, its
ticket; `set_ratios` makes the ratio the objective's gradient in the ticket, and autodiff carries it
back to the gate's step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from dregs_tf.gradients import expand_to


def late_gate(samples: Any) -> tuple[Any, tf.Tensor]:
  """Returns samples whose gradient is scaled by a ratio, and the ticket that brings the ratio.

  Args:
    samples: floats of shape [num_particles, batch_size, ...], or a structure of such Tensors.

  Returns:
    The samples, and zeros [num_particles, batch_size].
  """
  leaves = tf.nest.flatten(samples)

  @tf.custom_gradient
  def gated(*leaves):
    ticket = tf.zeros(tf.shape(leaves[0])[:2], leaves[0].dtype)
    ticket = tf.ensure_shape(ticket, leaves[0].shape[:2])

    def backward(ratio, *upstream):
      # A ratio of 0 closes the gate even if the gradient is infinite: here 0 * inf is 0.
      no_nan = tf.math.multiply_no_nan
      return [no_nan(up, expand_to(tf.cast(ratio, up.dtype), up)) for up in upstream]

    return [ticket, *(tf.identity(leaf) for leaf in leaves)], backward

  ticket, *leaves = gated(*leaves)
  return tf.nest.pack_sequence_as(samples, leaves), ticket


def set_ratios(tickets: tf.Tensor, ratios: tf.Tensor) -> tf.Tensor:
  """Returns a 0 to add to an objective whose gradient passes the gates of these tickets.

  Args:
    tickets: [num_steps, num_particles, batch_size].
    ratios: the ratios, of the same shape.
  """

  @tf.custom_gradient
  def zero(tickets):
    # A ratio multiplies gradients that contain `upstream`, so it must not contain it again.
    return tf.zeros([], tickets.dtype), lambda upstream: tf.stop_gradient(ratios)

  return zero(tickets)


class Recorded:
  """Calls a function once, for results with different gradients.

  `result` has the gradients of an ordinary call. `through` has gradients in the arguments alone:
  variables and Tensors to which the function refers are held fixed, as `gradients.PathOnly` does
  with the parameters of a distribution.
  """

  def __init__(self, function: Callable, *arguments: Any):
    """Calls the function.

    Args:
      function: a function of `mark` and the arguments that returns anything; `through` takes
        Tensors that it has returned. `mark(structure)` returns the same Tensors, in which `through`
        can take gradients.
      *arguments: structures of Tensors, or None.
    """
    self._tape = tf.GradientTape(persistent=True)
    with self._tape:
      inputs = self._mark(arguments)
      self._inputs = leaves_of(inputs)
      self.result = function(self._mark, *inputs)

  def _mark(self, structure: Any) -> Any:
    # New tensors: a bijector's cache would answer for the old ones, past the tape.
    leaves = [tf.identity(leaf) for leaf in leaves_of(structure)]
    self._tape.watch(_floating(leaves))
    return pack(structure, leaves)

  def through(self, outputs: Any, arguments: Any, inside: Any = None, of_inside: Any = None) -> Any:
    """Returns outputs with gradients to arguments.

    Args:
      outputs: Tensors that the function has computed, in a structure.
      arguments: Tensors of the same values as those that the function was called with.
      inside: Tensors that the function has marked, on which the outputs depend.
      of_inside: Tensors with the values of `inside`, which receive the gradients in `inside`.
    """
    sources = [*self._inputs, *leaves_of(inside)]
    results = leaves_of(outputs)

    @tf.custom_gradient
    def carried(*leaves):
      del leaves

      def backward(*upstream):
        pairs = [p for p in zip(results, upstream, strict=True) if p[0].dtype.is_floating]
        targets, slopes = zip(*pairs, strict=True)
        found = iter(
          self._tape.gradient(
            targets, _floating(sources), output_gradients=slopes, unconnected_gradients="zero"
          )
        )
        return [next(found) if leaf.dtype.is_floating else None for leaf in sources]

      return [tf.stop_gradient(result) for result in results], backward

    return pack(outputs, carried(*leaves_of(arguments), *leaves_of(of_inside)))


def pack(structure: Any, leaves: Sequence[tf.Tensor]) -> Any:
  """Returns the structure with its Tensors replaced; None stays."""
  rest = iter(leaves)
  return tf.nest.map_structure(lambda leaf: None if leaf is None else next(rest), structure)


def leaves_of(structure: Any) -> list[tf.Tensor]:
  """Returns the Tensors in a structure, in the order in which `pack` takes them."""
  return [leaf for leaf in tf.nest.flatten(structure) if leaf is not None]


def _floating(leaves: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  return [leaf for leaf in leaves if leaf.dtype.is_floating]
