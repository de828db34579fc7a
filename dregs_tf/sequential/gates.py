"""Gates and stops that work inside a `tf.while_loop`, where a later step decides on the ratio.

A gate in a loop cannot be told its ratio by a function, as `gradients.gate` is: the ratio may be
known only when the loop has ended. So it arrives as gradients do. A gate returns a second Tensor,
its ticket, and `set_ratios` makes the ratio the objective's gradient in the ticket, which autodiff
brings back to the step that the gate is in.
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
      # A ratio of 0 closes the gate, whatever the gradient: 0 * inf is 0 here.
      no_nan = tf.math.multiply_no_nan
      return [no_nan(up, expand_to(tf.cast(ratio, up.dtype), up)) for up in upstream]

    return [ticket, *(tf.identity(leaf) for leaf in leaves)], backward

  ticket, *leaves = gated(*leaves)
  return tf.nest.pack_sequence_as(samples, leaves), ticket


def set_ratios(tickets: tf.Tensor, ratios: tf.Tensor) -> tf.Tensor:
  """Returns 0, to be added to an objective whose gradient passes the gates of these tickets.

  Args:
    tickets: [num_steps, num_particles, batch_size].
    ratios: the ratios, of the same shape.
  """

  @tf.custom_gradient
  def zero(tickets):
    # A ratio scales gradients that are scaled already: it is the same for every upstream.
    return tf.zeros([], tickets.dtype), lambda upstream: tf.stop_gradient(ratios)

  return zero(tickets)


def through_arguments(function: Callable, *arguments: Any) -> Any:
  """Calls a function; gradients flow through it into the arguments, and nowhere else.

  Variables and Tensors that the function refers to are held fixed, as `gradients.PathOnly` holds
  the parameters of a distribution.

  Args:
    function: returns a Tensor or a structure of Tensors.
    *arguments: structures of Tensors, or None.
  """
  structure = []

  @tf.custom_gradient
  def call(*leaves):
    with tf.GradientTape(persistent=True) as tape:
      # New tensors: a bijector's cache would answer for the old ones, past the tape.
      inputs = [tf.identity(leaf) for leaf in leaves]
      tape.watch(_floating(inputs))
      result = function(*pack(arguments, inputs))
      outputs = leaves_of(result)
    structure.append(result)  # Its form is all that is used of it.

    def backward(*upstream, variables=None):
      pairs = [p for p in zip(outputs, upstream, strict=True) if p[0].dtype.is_floating]
      targets, slopes = zip(*pairs, strict=True)
      slopes = iter(
        tape.gradient(
          targets, _floating(inputs), output_gradients=slopes, unconnected_gradients="zero"
        )
      )
      paths = [next(slopes) if leaf.dtype.is_floating else None for leaf in inputs]
      return (paths, [None] * len(variables)) if variables else paths

    return [tf.stop_gradient(output) for output in outputs], backward

  outputs = call(*leaves_of(arguments))
  return pack(structure[0], outputs)


def pack(structure: Any, leaves: Sequence[tf.Tensor]) -> Any:
  """Returns the structure with other Tensors in it; None stays."""
  rest = iter(leaves)
  return tf.nest.map_structure(lambda leaf: None if leaf is None else next(rest), structure)


def leaves_of(structure: Any) -> list[tf.Tensor]:
  """Returns the Tensors in a structure, in the order in which `pack` takes them."""
  return [leaf for leaf in tf.nest.flatten(structure) if leaf is not None]


def _floating(leaves: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  return [leaf for leaf in leaves if leaf.dtype.is_floating]
