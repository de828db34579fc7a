"""Freezes layers such that their own `trainable` flags can be restored."""

from collections.abc import Callable, Iterable

import keras


def freeze(layers: Iterable[keras.layers.Layer]) -> Callable[[], None]:
  """Makes layers, and all that they hold, not trainable.

  Args:
    layers: the layers to freeze.

  Returns:
    A function that restores the `trainable` flag of every layer and variable.
  """
  layers = list(layers)
  ordered = _outer_first(layers)
  held = ordered + [variable for layer in layers for variable in layer.variables]
  flags = [(item, item.trainable) for item in held]
  for layer in layers:
    layer.trainable = False

  def thaw():
    # Setting a layer's flag overwrites those of its parts, so the parts come after it.
    for item, trainable in flags:
      item.trainable = trainable

  return thaw


def _outer_first(layers: Iterable[keras.layers.Layer]) -> list[keras.layers.Layer]:
  """Returns the layers and all layers within them, each after every layer that holds it."""
  seen, ordered = set(), []

  def visit(layer):
    if id(layer) not in seen:
      seen.add(id(layer))
      for inner in layer._flatten_layers(include_self=False, recursive=False):
        visit(inner)
      ordered.append(layer)

  for layer in layers:
    visit(layer)
  return ordered[::-1]
