"""Lists the private parts of Keras that the models use. Checked with Keras 3.15.1.

A layer resolves its `training` argument and clears its losses through a call context. The outermost
`Layer.__call__` opens it, and layers inside find it in the thread's global state. Here the library,
not a layer, calls the three methods of a model, so the library opens that context. Seed generators
and statistics are listed layer by layer, since the public lists mix them with other variables.

Models also override the hooks `_maybe_symbolic_build` and `_get_metrics_result_or_logs` of
Keras' Trainer, and leave its `_loss_tracker` out of the metrics.

TensorFlow has no public way to tell whether a graph is built for XLA. Checked with TensorFlow 2.21.
"""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import AutocastScope
from keras.src.layers.layer import CallContext
from tensorflow.python.ops import control_flow_util

# Names in Keras' global state.
_CALL_CONTEXT = "current_call_ctx"
_SEED_GENERATOR = "global_seed_generator"


def training() -> bool | None:
  """Returns whether the call in progress trains; None if no call is in progress."""
  context = global_state.get_global_attribute(_CALL_CONTEXT)
  return None if context is None else bool(context.get_value("training"))


@contextlib.contextmanager
def call_context(training: bool) -> Iterator[None]:
  """Runs the layers called inside as if an outer layer were called with this `training`.

  The context is separate: a layer inside that is called with another `training` changes it for the
  layers after it, as in Keras, but never for those outside.
  """
  outer = global_state.get_global_attribute(_CALL_CONTEXT)
  context = CallContext(entry_layer=None)  # Without an entry layer, no layer closes it.
  context.set_value("training", training)
  global_state.set_global_attribute(_CALL_CONTEXT, context)
  try:
    yield
  finally:
    global_state.set_global_attribute(_CALL_CONTEXT, outer)


@contextlib.contextmanager
def global_seed_generator(generator: keras.random.SeedGenerator) -> Iterator[None]:
  """Makes `keras.random` draw seeds from `generator.next(ordered)` if it is given none."""
  outer = global_state.get_global_attribute(_SEED_GENERATOR)
  global_state.set_global_attribute(_SEED_GENERATOR, generator)
  try:
    yield
  finally:
    global_state.set_global_attribute(_SEED_GENERATOR, outer)


def without_autocast() -> contextlib.AbstractContextManager:
  """Keeps variables in their own dtype inside, also for layers whose `autocast` is False.

  Outside of any such scope, Keras casts the variables of a mixed-precision layer regardless.
  """
  return AutocastScope(None)


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
  """Returns the seed generators of the model and its layers, in an order that loading keeps."""
  return [g for layer in model._flatten_layers() for g in layer._seed_generators]


def statistics(model: keras.Model) -> list[keras.Variable]:
  """Returns the variables of floats that layers assign themselves, such as moving averages."""
  return [
    variable
    for layer in model._flatten_layers()
    for variable in layer._non_trainable_variables
    if keras.backend.is_float_dtype(variable.dtype)
  ]


def clear_losses(model: keras.Model) -> None:
  """Forgets the losses that layers added in earlier calls."""
  model._clear_losses()


def in_xla() -> bool:
  """Returns whether XLA compiles the operations that are being built."""
  return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
    tf.compat.v1.get_default_graph()
  )
