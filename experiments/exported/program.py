"""Turns functions of a model into StableHLO programs over a table of its variables."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import keras
import tensorflow as tf

from dregs_tf.models import bernoulli, products


@contextlib.contextmanager
def for_a_gpu() -> Iterator[None]:
  """Builds models' functions as for a GPU: in one piece, with products of bfloat16 if asked for."""
  with (
    mock.patch.object(bernoulli, "_LOGITS_AT_A_TIME", sys.maxsize),
    mock.patch.object(products, "multiplies_bfloat16", lambda: True),
  ):
    yield


class Program(NamedTuple):
  """A StableHLO program, and what its arguments and results are.

  text: the program.
  arguments: the places in the table of the variables that follow the inputs.
  results: the names of the first results.
  updates: pairs of a result and the place in the table of the variable that it updates.
  """

  text: str
  arguments: list[int]
  results: list[str]
  updates: list[tuple[int, int]]


def export(function: Callable, inputs: Sequence[tf.Tensor], table: Sequence[tf.Variable]):
  """Compiles a function for XLA, and returns it as a `Program`.

  Args:
    function: takes Tensors, reads and assigns variables, and returns a dict of Tensors.
    inputs: examples of its arguments.
    table: the variables that it may use.

  Raises:
    ValueError: if it uses a variable that is not in the table.
  """
  places = {id(variable.handle): i for i, variable in enumerate(table)}
  compiled = tf.function(function, jit_compile=True, autograph=False)
  graph = compiled.get_concrete_function(*inputs)
  unknown = [v.name for v in graph.variables if id(v.handle) not in places]
  if unknown:
    raise ValueError(f"table must hold every variable, got none for {', '.join(unknown)}.")
  arguments = [places[id(handle)] for handle in graph.captured_inputs]
  program = compiled.experimental_get_compiler_ir(*inputs)
  # The text names the argument that a result replaces.
  aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", program(stage="hlo").split("entry_comp")[0])
  updates = [(int(i), arguments[int(argument) - len(inputs)]) for i, argument in aliases]
  names = sorted(graph.structured_outputs)  # As tf.nest flattens a dict.
  return Program(_without_copies(program(stage="stablehlo")), arguments, names, updates)


def variables(model: keras.Model) -> list[tf.Variable]:
  """Returns every variable that a step of a compiled and built model uses, each once."""
  kept = [*model.variables, *model.optimizer.variables, *model.followers.variables]
  kept += [variable for metric in metrics(model) for variable in metric.variables]
  return list({id(variable): variable.value for variable in kept}.values())


def metrics(model: keras.Model) -> list[keras.metrics.Metric]:
  """Returns the metrics that an interval of training, or an evaluation, starts anew."""
  return [*model.metrics, model._num_seen]


def _without_copies(text: str) -> str:
  """Returns a program with reshapes for copies, which StableHLO does not have."""
  return re.sub(r"mhlo\.copy (%\w+) : (tensor<[^>]*>)", r"stablehlo.reshape \1 : (\2) -> \2", text)
