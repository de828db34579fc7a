"""Checks the data of `fit` and `evaluate` before Keras makes batches of them."""

import contextlib
import functools
import inspect
import re
import types
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import gradients
from dregs_tf.models import batches

tfd = tfp.distributions

# Marks the message of an assertion inside a tf.data pipeline; the range follows.
_MARK = "Observations are not in the unit interval:"


class CheckedInputs(keras.Model):
  """Checks a Keras model's data before a step: its parts, weights and ranges.

  - Keras drops the `sample_weight` of observations without a context; this class passes it on.
  - Observations outside [0, 1] are refused if the likelihood, or their part of it, is Bernoulli.
  - `fit(x, x)`, the habit of autoencoders, causes a warning.
  """

  # Whether observations must be in [0, 1], or a structure that says it of each part. None: decided
  # by the likelihood, the first time that it is evaluated. A subclass may set it.
  binary_observations: Any = None

  # Whether contexts are the lengths of sequences, whose values beyond the end are not checked.
  contexts_are_lengths = False

  @functools.wraps(keras.Model.fit)
  def fit(self, *args: Any, **kwargs: Any):
    return _call(self, super().fit, args, kwargs)

  @functools.wraps(keras.Model.evaluate)
  def evaluate(self, *args: Any, **kwargs: Any):
    if kwargs.get("_use_cached_eval_dataset"):  # Called by `fit`, which has checked the data.
      return super().evaluate(*args, **kwargs)
    return _call(self, super().evaluate, args, kwargs)

  @functools.wraps(keras.Model.train_on_batch)
  def train_on_batch(self, *args: Any, **kwargs: Any):
    return _call(self, super().train_on_batch, args, kwargs)

  @functools.wraps(keras.Model.test_on_batch)
  def test_on_batch(self, *args: Any, **kwargs: Any):
    return _call(self, super().test_on_batch, args, kwargs)

  def _check_parts(self, context, x) -> None:
    """Raises if batches lack a part or have an extra one, given the specs of their parts."""


_PARTS = ("x", "y", "sample_weight")


def _call(model: CheckedInputs, method, args, kwargs):
  """Checks the data of a call, calls Keras' method, and explains errors that wrong data cause."""
  call = inspect.signature(method).bind(*args, **kwargs)
  given = call.arguments
  if given.get("class_weight") is not None:
    raise ValueError(
      f"class_weight has no meaning without classes, got {given['class_weight']}: weigh the "
      "examples by sample_weight."
    )
  data = [given.pop(name, None) for name in _PARTS]
  try:
    given |= zip(_PARTS, _seen_to(model, *data), strict=True)
    validation = given.get("validation_data")
    if validation is not None:
      parts = keras.utils.unpack_x_y_sample_weight(validation)
      given["validation_data"] = keras.utils.pack_x_y_sample_weight(*_seen_to(model, *parts))
    return method(*call.args, **call.kwargs)
  except Exception as error:
    found = re.search(re.escape(_MARK) + r"[^\[]*\[([^]]*)\] \[([^]]*)\]", str(error))
    if found:
      raise _not_binary(model, float(found[1]), float(found[2])) from None
    _explain(error, *data[:2])
    raise


def _seen_to(model: CheckedInputs, x, y, sample_weight) -> tuple:
  """Returns x, y and sample_weight in the form that Keras needs.

  Raises:
    ValueError: if batches have the wrong parts, or observations outside [0, 1] that must be inside.
  """
  if y is not None and y is x:
    warnings.warn(
      "fit(x, x) makes the observations their own context: the second argument is the observation, "
      "the first what it is conditioned on. An autoencoder takes fit(x).",
      stacklevel=5,
    )
  batch = _look_into(x, y)
  if batch is not None:
    _check(model, batch)
  one_device = model.distribute_strategy.num_replicas_in_sync == 1
  if isinstance(x, types.GeneratorType):
    x = _first_checked(model, x)
  elif isinstance(x, tf.data.Dataset) and one_device and model.binary_observations:
    x = x.enumerate().map(functools.partial(_assert_first_in_unit_interval, model))
  elif y is None and sample_weight is not None and not _makes_batches(x):
    context, x, own_weight = batches.parts(x)
    if own_weight is not None:
      raise ValueError("sample_weight is given twice: as an argument and as the third part of x.")
    # An empty tuple stands for no context, since tf.distribute takes no None.
    return (() if context is None else context, x, sample_weight), None, None
  return x, y, sample_weight


def _makes_batches(x) -> bool:
  """Returns whether x yields batches, as opposed to arrays that Keras cuts into batches."""
  kinds = (tf.data.Dataset, tf.distribute.DistributedDataset, keras.utils.PyDataset)
  return isinstance(x, (*kinds, types.GeneratorType))


def _look_into(x, y):
  """Returns the arrays, one batch, or a batch's spec; None if x cannot be inspected."""
  if isinstance(x, tf.data.Dataset):
    return x.element_spec
  if isinstance(x, keras.utils.PyDataset):
    return x[0]
  if x is None or _makes_batches(x):
    return None
  return x if y is None else (x, y)


def _check(model: CheckedInputs, batch) -> None:
  """Raises if the parts of a batch, arrays or specs, are not what the model takes."""
  for leaf in tf.nest.flatten(batches.parts(batch)[1]):
    if not isinstance(leaf, tf.TypeSpec) and np.shape(leaf)[:1] == (0,):
      raise ValueError(f"Observations must be examples, got none, in the shape {np.shape(leaf)}.")
  spec = tf.nest.map_structure(_spec_of, batch)
  model._check_parts(*batches.parts(spec)[:2])
  _build_and_decide(model, spec)
  if model.binary_observations:
    context, x, _ = batches.parts(batch)
    _check_unit_interval(model, x, context)


def _first_checked(model: CheckedInputs, generator):
  for number, batch in enumerate(generator):
    if number == 0:
      _check(model, batch)
    yield batch


def _explain(error: Exception, data, y) -> None:
  """Adds a note to an error if batches look like single examples, or like (image, label)."""
  with contextlib.suppress(ValueError):  # The error itself reports a wrong number of parts.
    batch = tf.nest.map_structure(_spec_of, _look_into(data, y))
    context, x, _ = batches.parts(batch)
    are_arrays = all(isinstance(part, tf.TensorSpec) for part in (context, x))
    if are_arrays and x.dtype.is_integer and x.shape.rank == 1 and context.shape.ndims != 1:
      error.add_note(
        "Batches are pairs (context, observation). Here the observations are integers of shape "
        f"[batch_size], and the contexts have the shape {context.shape}. If these are images and "
        "their labels, swap them with dataset.map(lambda image, label: (label, image)) or, for a "
        "model without a context, drop the labels."
      )
    if isinstance(data, tf.data.Dataset) and isinstance(error, ValueError):
      shapes = [part.shape for part in tf.nest.flatten(x) if isinstance(part, tf.TensorSpec)]
      if all(shape.rank is not None and None not in shape[:1] for shape in shapes):
        error.add_note(
          "A Dataset yields batches. This one yields observations of the shape "
          f"{', '.join(map(str, shapes))}. If these are single examples, call "
          "dataset.batch(batch_size)."
        )


# --- observations of a Bernoulli -----------------------------------------------------------------


def note_likelihood(model: CheckedInputs, likelihood: tfd.Distribution, x: Any) -> None:
  """Determines from a likelihood whether observations must be in [0, 1]; checks them.

  Raises:
    ValueError: if x has values outside [0, 1] that must be inside, or if its shape is not that of
      the likelihood's events.
  """
  _check_event_shape(model, likelihood, x)
  if model.binary_observations is None:
    flags = tuple(tf.nest.flatten(_are_binary(likelihood)))
    model.binary_observations = flags if any(flags) else False
  check_values(model, x)


def _are_binary(likelihood: Any) -> Any:
  """Returns whether a likelihood is Bernoulli; a structure of bools if its events have parts."""
  while isinstance(likelihood, gradients.INDEPENDENT):
    likelihood = likelihood.distribution
  parts = getattr(likelihood, "parts", None)
  if isinstance(likelihood, tfd.JointDistribution):
    parts, _ = likelihood.sample_distributions(seed=[0, 0])
  if parts is not None:
    return tf.nest.map_structure(_are_binary, parts)
  is_binary = isinstance(likelihood, tfd.Bernoulli)
  return tf.nest.map_structure(lambda _: is_binary, getattr(likelihood, "dtype", None))


def _binary_leaves(model: CheckedInputs, x: Any, context: Any) -> list:
  """Returns the arrays or Tensors in observations that must be in [0, 1]; leaves out specs."""
  leaves, flags = tf.nest.flatten(x), tf.nest.flatten(model.binary_observations)
  if len(flags) == 1:
    flags *= len(leaves)
  pairs = zip(leaves, flags, strict=False)
  leaves = [leaf for leaf, flag in pairs if flag and not isinstance(leaf, tf.TypeSpec)]
  if not model.contexts_are_lengths or context is None:
    return leaves
  return [tf.boolean_mask(leaf, tf.sequence_mask(context, tf.shape(leaf)[1])) for leaf in leaves]


def _check_event_shape(model: CheckedInputs, likelihood: tfd.Distribution, x) -> None:
  """Raises a ValueError if observations would broadcast against the likelihood's events."""
  events = tf.nest.flatten(getattr(likelihood, "event_shape", None))
  leaves = tf.nest.flatten(x)
  if len(events) != len(leaves):
    return  # The distribution's own error says which structure it expects.
  for leaf, event in zip(leaves, events, strict=True):
    if event is not None and not leaf.shape[1:].is_compatible_with(event):
      raise ValueError(
        f"{type(model).__name__}: likelihood(z, context) has the event shape {event}, and an "
        f"observation has the shape {leaf.shape[1:]}; they must be the same. If event axes remain "
        "in the batch shape, wrap the distribution in tfd.Independent."
      )


def check_values(model: CheckedInputs, x: Any, context: Any = None) -> None:
  """Raises a ValueError if x must be in [0, 1] and has known values outside."""
  if model.binary_observations and tf.executing_eagerly():
    _check_unit_interval(model, x, context)


def _check_unit_interval(model: CheckedInputs, x, context) -> None:
  """Raises a ValueError unless the numbers that must be in [0, 1] are; passes specs."""
  for leaf in _binary_leaves(model, x, context):
    values = np.asarray(leaf)
    if model.missing and values.dtype.kind == "f":
      values = values[~np.isnan(values)]
    if values.size and values.dtype.kind in "biuf":
      low, high = values.min(), values.max()
      if not (low >= 0 and high <= 1):
        raise _not_binary(model, low, high)


def _not_binary(model: CheckedInputs, low: float, high: float) -> ValueError:
  return ValueError(
    f"{type(model).__name__}: observations must be in [0, 1] for a Bernoulli likelihood, got "
    f"values from {low:g} to {high:g}. Scale or binarize them; gray values are fine. Divide pixels "
    "of 0 to 255 by 255."
  )


@tf.autograph.experimental.do_not_convert
def _assert_first_in_unit_interval(model: CheckedInputs, number: tf.Tensor, batch):
  """Returns a batch of a tf.data pipeline; asserts that the first batch is in [0, 1] or missing."""
  context, x, _ = batches.parts(batch)
  leaves = _binary_leaves(model, x, context)
  leaves = [leaf for leaf in leaves if leaf.dtype.is_floating or leaf.dtype.is_integer]

  def check():
    for leaf in leaves:
      if model.missing and leaf.dtype.is_floating:
        leaf = tf.boolean_mask(leaf, tf.logical_not(tf.math.is_nan(leaf)))
      low, high = (tf.cast(f(leaf), tf.float64) for f in (tf.reduce_min, tf.reduce_max))
      inside = tf.logical_or(tf.equal(tf.size(leaf), 0), tf.logical_and(low >= 0, high <= 1))
      tf.debugging.Assert(inside, [_MARK, low, high])
    return tf.constant(True)

  checked = tf.cond(tf.equal(number, 0), check, lambda: tf.constant(True))
  with tf.control_dependencies([checked]):
    return tf.nest.map_structure(lambda part: None if part is None else tf.identity(part), batch)


def _build_and_decide(model: CheckedInputs, spec) -> None:
  """Builds the layers, and decides whether observations must be in [0, 1], where either is open.

  It traces the likelihood for a batch of this spec. A model that runs eagerly, or on several
  replicas, does both in its first step.
  """
  one_device = model.distribute_strategy.num_replicas_in_sync == 1
  is_done = model.built and model.binary_observations is not None
  if one_device and not is_done and not model.run_eagerly:

    def trace(data):
      context, x, _ = batches.split(data, model.float_dtype)
      model._build_for(x, context)
      if model.binary_observations is None:
        model._evaluate_once(x, context)

    tf.function(trace, autograph=False).get_concrete_function(spec)


def _spec_of(array) -> tf.TypeSpec | None:
  """Returns the spec of an array with any number of examples; a spec and None stay."""
  if isinstance(array, tf.TypeSpec):
    return None if array == tf.type_spec_from_value(None) else array
  if array is None:
    return None
  if not isinstance(array, (np.ndarray, tf.Tensor, tf.Variable)):
    array = np.asarray(array)
  return tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype))
