"""Builds a model's variables from a batch, a shape or a file, and exports its forward call."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dregs_tf.models import batches, calls, keras_privates, specs


class BuiltFromData(keras.Model):
  """Builds a model's layers by using them, on an example of its batches.

  The methods that use the layers are in a subclass, such as `LatentVariableModel`.
  """

  _graphs: Sequence[str]  # The cached properties that are traced functions, of a subclass.
  _specs: dict | None = None  # The specs of the batches that the layers are built for.
  _is_building = False

  @property
  def float_dtype(self) -> tf.DType:
    """Returns the dtype of data, latents and log-weights: the layers', but at least float32."""
    return batches.float_dtype(self.compute_dtype)

  def _as_tensors(self, structure):
    return batches.as_tensors(structure, self.float_dtype)

  def _maybe_symbolic_build(self, *args, **kwargs) -> None:
    """Skips Keras' hook before the first batch under a strategy, if the model is built.

    The hook averages that batch over the replicas, which fails if they have different numbers of
    examples.
    """
    if not all(layer.built for layer in self._flatten_layers()):
      super()._maybe_symbolic_build(*args, **kwargs)

  def make_train_function(self, force: bool = False):
    """Creates the optimizer's variables before the first step, which Keras leaves to that step.

    A replica must not create them, and a function that creates variables is traced twice.
    """
    if self.built and not self.optimizer.built:
      with self.distribute_strategy.scope():
        self.optimizer.build(self.trainable_variables)
    return super().make_train_function(force)

  def build(self, input_shape: Any) -> None:
    """Creates the variables of every layer, for `load_weights` or `summary` before any data.

    A subclass may override it to create variables of its own before it calls this.

    Args:
      input_shape: the shape of a batch of observations, such as (None, 784), or a pair of the
        context's and the observations' shapes. If data have another dtype than the model's floats,
        call the model on a batch instead.

    Raises:
      ValueError: if a size other than the batch's is unknown, or differs from the model's.
    """
    if self._is_building:
      return  # A batch called a subclass' `build`; the layers are built on that batch next.
    batch = specs.example(specs.from_shape(input_shape, self.float_dtype))
    self._evaluate_once(**batch)
    self._specs = specs.of(batch)
    self.built = True
    self._build_followers()

  def __call__(self, inputs: Any, *args: Any, **kwargs: Any):
    """Calls the model on a batch, which builds its layers for the batch's dtypes."""
    if not self.built:
      context, x, _ = batches.split(inputs, self.float_dtype)
      self._build_for(x, context)
      self._build_followers()
    with keras_privates.without_autocast():
      return super().__call__(inputs, *args, **kwargs)

  @functools.wraps(keras.Model.quantize)
  def quantize(self, *args: Any, **kwargs: Any) -> None:
    super().quantize(*args, **kwargs)
    self._forget_graphs()

  def _forget_graphs(self) -> None:
    """Drops the graphs that were traced for earlier arguments of `compile`, or other layers."""
    for name in self._graphs:
      self.__dict__.pop(name, None)

  def predict_step(self, data: Any):
    """Takes one step of Keras' `predict`: calls the model on a batch, with its context."""
    context, x, _ = batches.parts(data)
    return super().predict_step((x,) if context is None else ((context, x),))

  def export(
    self,
    filepath: str | os.PathLike,
    format: str = "tf_saved_model",
    verbose: bool | None = None,
    input_signature: Any = None,
    **kwargs: Any,
  ):
    """Exports the forward call, `reconstruct`, as `serve` of the artifact, as Keras does.

    Args:
      filepath: where to write the artifact.
      format: as Keras takes it.
      verbose: as Keras takes it.
      input_signature: a list of one spec of observations, or of one (context, observation) pair of
        specs. By default the specs that the model was built for, with any batch size.
      **kwargs: as Keras takes them.

    Raises:
      ValueError: if there is no input_signature and the model has seen no batch, in `fit`, a call
        or `build(input_shape)`.
    """
    if input_signature is None:
      if self._specs is None:
        raise ValueError(
          "export needs input_signature, got None, for a model that has seen no batch: pass it, or "
          "call build(input_shape) first."
        )
      context, x = (specs.signature(self._specs[name]) for name in ("context", "x"))
      input_signature = [x if context is None else (context, x)]
    super().export(filepath, format, verbose, input_signature, **kwargs)

  def get_build_config(self) -> dict:
    """Returns the specs of an observation and of a context, once the model has seen a batch."""
    return keras.saving.serialize_keras_object(self._specs or {})

  def build_from_config(self, config: dict) -> None:
    """Creates the variables of a loaded model whose layers were built when it was saved."""
    if not config:
      return
    found = keras.saving.deserialize_keras_object(config)
    if specs.are_known(found):
      self._build_for(**specs.example(found))
    else:  # Traced, as in `fit`: a number in place of an unknown size may not suit every layer.
      build = tf.function(self._build_for, autograph=False)
      build.get_concrete_function(**specs.of_one_example(found))

  def _build_for(self, x, context) -> None:
    """Builds every layer for batches such as these, and stores their specs for saving."""
    self._specs = specs.of({"x": x, "context": context})
    if not self.built:
      if type(self).build is not BuiltFromData.build:
        self._call_build()
      self._evaluate_once(x, context)
      self.built = True

  def _call_build(self) -> None:
    """Calls a subclass' own `build`, outside of the graph that may be traced."""
    self._is_building = True
    try:
      with tf.init_scope():
        self.build(specs.shapes(**self._specs))
    finally:
      self._is_building = False

  def _build_followers(self) -> None:
    """Creates further variables, once the layers are built."""

  def _evaluate_once(self, x, context) -> None:
    """Uses every layer, which builds those that are not built."""
    with calls.looking(self):
      z = calls.propose(self, x, context).sample(1, seed=[0, 0])
      self.target_log_prob(x, z, context)
