"""Calls a model's layers as Keras would: in training or inference mode, with noise from a seed.

A step calls `prior`, `proposal` and `likelihood`, which are methods, not layers, so Keras does not
tell the layers in them whether they train. Each step therefore runs inside `step`, which opens a
call context of Keras: Dropout, BatchNormalization and every layer with a `training` argument behave
as inside a Keras model called with that argument, and losses from `add_loss` are collected.

Layers draw noise from Keras' seed generators, variables that count up. A step first sets them from
its own seed. Like the noise of the samples, their noise is then a function of the seed and the
step's number, so a resumed run draws the same noise as an uninterrupted one.
"""

import contextlib
import contextvars
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from dregs_tf import evaluation, gradients, seeds
from dregs_tf.models import contracts, keras_privates

# Folded into a step's seed, so that the layers' noise differs from that of the samples.
_LAYERS = 2

# Folded into that seed: for draws with a seed generator, and for draws without one.
_GENERATORS, _GLOBAL = range(2)


class Step:
  """Describes a step in progress: its tape, and the samples at which log p is evaluated.

  tape: a persistent tape, or None where no gradient is taken.
  seen: a structure of Tensors; None before log p is evaluated.
  """

  tape: tf.GradientTape | None = None
  seen = None


_step: contextvars.ContextVar["Step | None"] = contextvars.ContextVar("step", default=None)


@contextlib.contextmanager
def mode(model: keras.Model, training: bool | None) -> Iterator[None]:
  """Sets whether the layers called inside train; None keeps the mode of the call in progress.

  Earlier losses of layers are cleared, unless a call is in progress, as Keras does.
  """
  outer = keras_privates.training()
  if outer is None:
    keras_privates.clear_losses(model)
  with keras_privates.call_context(bool(outer if training is None else training)):
    yield


@contextlib.contextmanager
def looking(model: keras.Model) -> Iterator[None]:
  """Runs the layers called inside in inference mode, and discards what they assign.

  It is for calls that inspect a model: they do not change the counts, metrics and statistics of
  layers. Variables created inside are kept.
  """
  with mode(model, training=False), keras.StatelessScope():
    yield


@contextlib.contextmanager
def step(
  model: keras.Model, *, training: bool, seed: tf.Tensor, part: seeds.Part | None
) -> Iterator[Step]:
  """Runs a step, whose layers' noise is a function of the seed.

  Losses that layers add inside are in the model's `losses` until the end of the step.

  Args:
    model: the model whose layers are called.
    training: whether they are in training mode.
    seed: the step's stateless seed, the same on every replica.
    part: the replica's part of the batch; every replica draws different noise.
  """
  seed = seeds.fold_in(seed, _LAYERS)
  if part is not None:
    seed = seeds.fold_in(seed, part.replica)
  _seed_generators(model, seeds.fold_in(seed, _GENERATORS))
  keras_privates.clear_losses(model)
  current = Step()
  token = _step.set(current)
  try:
    with (
      keras_privates.global_seed_generator(_Unseeded(seeds.fold_in(seed, _GLOBAL))),
      keras_privates.call_context(training),
    ):
      yield current
  finally:
    _step.reset(token)
    keras_privates.clear_losses(model)


def _seed_generators(model: keras.Model, seed: tf.Tensor) -> None:
  """Sets every seed generator from the seed, its place and its layer's own seed."""
  for place, generator in enumerate(keras_privates.seed_generators(model)):
    given = generator.get_config()["seed"]
    words = [] if given is None else seeds.words(given)
    state = seeds.fold_in(seed, place, *words)
    generator.state.assign(tf.cast(state, generator.state.dtype))


class _Unseeded:
  """Replaces Keras' global seed generator: the n-th draw of a step is a function of its seed."""

  def __init__(self, seed: tf.Tensor):
    self._seed = seed
    self.count = 0

  def next(self, ordered: bool = True) -> tf.Tensor:
    """Returns the next stateless seed."""
    del ordered
    self.count += 1
    return seeds.fold_in(self._seed, self.count)


def sum_of_losses(model: keras.Model) -> tf.Tensor | None:
  """Adds up the losses of this step that layers and regularizers add; None if there are none."""
  losses = [tf.reduce_sum(tf.cast(loss, model.float_dtype)) for loss in model.losses]
  return tf.add_n(losses) if losses else None


@contextlib.contextmanager
def averaged_statistics(
  model: keras.Model, part: seeds.Part | None, size: tf.Tensor
) -> Iterator[None]:
  """Averages over replicas the statistics that layers keep, such as BatchNormalization's.

  Each replica's layers see only its part of the batch. The change of each statistic is averaged
  over the replicas, weighed by their numbers of examples.

  Args:
    model: the model whose layers are called inside.
    part: the replica's part of the batch; None changes nothing.
    size: its number of examples.
  """
  variables = [] if part is None else keras_privates.statistics(model)
  before = [tf.identity(variable) for variable in variables]
  yield
  if not variables:
    return
  share = tf.cast(size, tf.float32) / tf.cast(part.total, tf.float32)
  changes = [
    # A replica without examples has statistics that are NaN.
    tf.math.multiply_no_nan(variable - old, tf.cast(share, old.dtype))
    for variable, old in zip(variables, before, strict=True)
  ]
  changes = tf.distribute.get_replica_context().all_reduce("SUM", changes)
  for variable, old, change in zip(variables, before, changes, strict=True):
    variable.assign(old + change)


def note_samples(z: Any) -> None:
  """Notes the samples at which log p is evaluated, for the gradient of losses added there."""
  current = _step.get()
  if current is not None and current.tape is not None:
    current.seen = z
    gradients.watch(current.tape, z)


def call(method: Callable, *args: Any):
  """Calls a model's prior, proposal or likelihood, with `training` if it takes that argument.

  Raises:
    TypeError: if the method takes other arguments or does not return a distribution.
    ValueError: if its distribution is narrower than float32.
  """
  training = keras_privates.training()
  kwargs = {}
  if "training" in inspect.signature(method).parameters:
    kwargs["training"] = bool(training)
  # Within a call the method gets its own context: a layer inside that is called with another
  # `training` does not change it for the other methods.
  own = contextlib.nullcontext() if training is None else keras_privates.call_context(training)
  contracts.check_signature(method, args, kwargs)
  with own:
    result = method(*args, **kwargs)
  contracts.check_distribution(method, result)
  return result


def propose(model: keras.Model, x: Any, context: Any):
  """Calls a model's proposal on observations x, as `proposal_input` prepares them."""
  return call(model.proposal, model.proposal_input(x), context)


def check(model: keras.Model, x: Any, context: Any) -> None:
  """Raises if a step would silently train wrongly; checks the densities of one sample.

  A layer must use the same noise and statistics in all its calls. A distribution may call layers
  itself, as a flow or a joint distribution does, once to sample and once for each density;
  with `num_backward_samples`, prior and likelihood are evaluated twice. The model must also hold
  the variables that the densities depend on: Keras trains and saves no others. Warns if the model
  has no trainable variables.

  Args:
    model: a compiled `LatentVariableModel` whose layers are built.
    x: a batch of observations.
    context: their contexts, or None.
  """
  _check(model, lambda watch: _densities(model, x, context, watch))


def check_without_effects(model: keras.Model, densities: Callable) -> None:
  """Raises if a model's methods, which a step of a sequence calls repeatedly, have side effects.

  Args:
    model: a compiled model whose layers are built.
    densities: a function of a watch that calls the methods and returns log-densities.
  """

  def looked_at(watch):
    log_densities = densities()
    if watch.count:
      raise ValueError(
        f"{type(model).__name__}: its methods are called several times in each step of a sequence, "
        "and they call layers that draw noise, keep statistics or add losses in training (such as "
        "Dropout, BatchNormalization, ActivityRegularization). Call them with training=False."
      )
    return log_densities

  _check(model, looked_at)


def _check(model: keras.Model, densities: Callable) -> None:
  """Checks a model given a function of a `_Watch` that returns log-densities."""
  if not model.trainable_variables:
    warnings.warn(
      f"{type(model).__name__} has no trainable variables: training changes nothing.", stacklevel=3
    )

  def look():
    with (
      tf.GradientTape() as tape,
      _Watch() as watch,
      keras_privates.global_seed_generator(watch),
      keras_privates.call_context(True),
    ):
      log_densities = densities(watch)
    _check_variables(model, tape, log_densities)

  if tf.executing_eagerly():
    look()
  else:
    # Traced in a separate graph, which is never run.
    tf.function(look, autograph=False).get_concrete_function()


def _densities(model, x, context, watch: "_Watch") -> tuple[tf.Tensor, tf.Tensor]:
  proposal = propose(model, x, context)
  before = watch.count
  proposal, z, _ = evaluation.draw(proposal, 1, seed=tf.zeros([2], tf.int32))
  log_q = proposal.log_prob(z)
  if watch.count > before:
    raise ValueError(
      f"{type(model).__name__}.proposal: the {type(proposal).__name__} that it returns calls "
      "layers that draw noise, keep statistics or add losses in training (such as Dropout, "
      "BatchNormalization, ActivityRegularization). It calls them again for every density, and "
      "samples and densities would not agree. Call such layers in proposal itself, or with "
      "training=False."
    )
  before = watch.count
  log_p = model.target_log_prob(x, z, context)
  noisy = watch.count > before
  is_chosen = model.followers is not None and model.followers.backward_samples is not None
  all_recorded = not is_chosen and model.num_backward_samples in (None, model.num_samples)
  if not all_recorded and noisy:
    raise ValueError(
      f"num_backward_samples={model.num_backward_samples} evaluates prior and likelihood twice, "
      f"and {type(model).__name__} calls layers there that draw noise, keep statistics or add "
      "losses in training (such as Dropout, BatchNormalization, ActivityRegularization). Drop "
      "num_backward_samples, or call them with training=False."
    )
  if model.prior_gradient == "dreg":
    prior = call(model.prior, context)
    before = watch.count
    prior.log_prob(z)
    if watch.count > before:
      raise ValueError(
        f'prior_gradient must be "direct" for {type(model).__name__}, got "dreg": the '
        f"{type(prior).__name__} that its prior returns calls layers that draw noise, keep "
        "statistics or add losses in training, but its density is evaluated more than once. Call "
        "such layers with training=False."
      )
  return log_q, log_p


def _check_variables(model, tape: tf.GradientTape, log_densities) -> None:
  """Raises if what a tape recorded depends on trainable variables that the model does not hold."""
  values = [variable.value for variable in model.variables]
  # On replicas a tape sees either a distributed variable or the replicas' own.
  local = model.distribute_strategy.experimental_local_results
  held = {id(part) for value in values for part in (value, *local(value))}
  others = [variable for variable in tape.watched_variables() if id(variable) not in held]
  slopes = tape.gradient(log_densities, others) if others else []
  names = [
    f"{variable.name} {list(variable.shape)}"
    for variable, slope in zip(others, slopes, strict=True)
    if slope is not None
  ]
  if names:
    raise ValueError(
      f"{type(model).__name__}: prior, proposal or likelihood depend on trainable variables that "
      f"the model does not hold: {', '.join(names)}. They would be neither trained nor saved. Make "
      "variables with self.add_weight, and hold layers as attributes of the model; constants are "
      "tf.Variables with trainable=False."
    )


class _Watch(keras.StatelessScope):
  """Counts how often layers draw noise, assign variables and add losses; discards the results."""

  def __init__(self):
    super().__init__(collect_losses=True)
    self.count = 0

  def add_update(self, update) -> None:
    """Counts an assignment, a seed generator's for instance."""
    del update
    self.count += 1

  def add_loss(self, loss) -> None:
    """Counts a loss."""
    del loss
    self.count += 1

  def next(self, ordered: bool = True) -> tf.Tensor:
    """Counts a draw of noise without a seed, and returns a stateless seed."""
    del ordered
    self.count += 1
    return tf.zeros([2], tf.int32)
