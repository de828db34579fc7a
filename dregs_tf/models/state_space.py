"""Defines the Keras model that every model of sequences derives from."""

import functools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import evaluation, importance_weights, seeds, sequential
from dregs_tf.models import batches, building, calls, inputs, metrics, parts, products, steps
from dregs_tf.sequential import filtering, resample
from dregs_tf.sequential.steps import Particles, map_tensors, state_of_each

tfd = tfp.distributions


# `log_likelihood`, `filter` and `forecast` resample when half of the particles are lost.
_FILTER = {"bound": "fivo", "resampling": "systematic", "resample_when": 0.5}

# The purpose of a seed, besides those in `steps`.
_FORECAST = 16

# The number of particles of a forward pass.
_PARTICLES = 100


class Filtered(NamedTuple):
  """Describes latents z_t given x_1, ..., x_t; T is the number of steps.

  mean: [batch_size, T, ...], the mean of p(z_t | x_1, ..., x_t), or a structure of such Tensors.
  samples: [batch_size, T, num_samples, ...], or a structure of such Tensors.
  weights: [batch_size, T, num_samples], the samples' normalized weights.
  effective_sample_size: [batch_size, T], of the weights.
  """

  mean: Any
  samples: Any
  weights: tf.Tensor
  effective_sample_size: tf.Tensor


class StateSpaceModel(building.BuiltFromData, inputs.CheckedInputs, metrics.ReportingModel):
  """A model p(x_1, z_1, ..., x_T, z_T) of sequences, trained with a bound by a particle filter.

  A subclass defines the methods that `sequential.estimate` describes:
  `prior(z_previous, state)`, `proposal(x, z_previous, state)`, `likelihood(z, state)` and, for a
  deterministic state, `initial_state(batch_size)` and `next_state(state, z, x)`. The variables live
  in Keras layers that the subclass holds as attributes. `compile`, `fit`, `evaluate`, `save` and
  the callbacks are Keras' own.

  A batch is observations x [batch_size, T, ...], or a pair (lengths, x) or (lengths, x,
  sample_weight): lengths are ints [batch_size], the number of steps of each sequence. Observations
  may be structures of Tensors. Bounds are in nats per sequence.

  Layers behave as in `LatentVariableModel`, and may have regularizers. Layers that draw noise, keep
  statistics or add losses are refused, as the methods are called several times a step.
  """

  method_parameters = {  # noqa: RUF012
    "prior": "z_previous, state",
    "proposal": "x, z_previous, state",
    "likelihood": "z, state",
  }
  followers = None
  missing = None  # NaN is an error.
  contexts_are_lengths = True
  _graphs = ("_filter_graph",)
  _calls_checked = False

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self.autocast = False  # A call rounds no more than `fit` does: layers cast for themselves.

  def initial_state(self, batch_size: tf.Tensor) -> Any:
    """Returns the state before the first step, Tensors [batch_size, ...]; None without one."""
    del batch_size

  def prior(self, z_previous: Any, state: Any) -> tfd.Distribution:
    """Returns p(z_t | z_{t-1}, state), of batch shape [num_particles, batch_size].

    In the first step z_previous is None and the batch shape is [batch_size] or [].
    """
    raise TypeError(f"{type(self).__name__} must define prior(z_previous, state).")

  def proposal(self, x: Any, z_previous: Any, state: Any) -> tfd.Distribution:
    """Returns q(z_t | x_t, z_{t-1}, state), of batch shape [num_particles, batch_size].

    In the first step z_previous is None and the batch shape is [batch_size].
    """
    raise TypeError(f"{type(self).__name__} must define proposal(x, z_previous, state).")

  def likelihood(self, z: Any, state: Any) -> tfd.Distribution:
    """Returns p(x_t | z_t, state), of batch shape [num_particles, batch_size] as z has."""
    raise TypeError(f"{type(self).__name__} must define likelihood(z, state).")

  def next_state(self, state: Any, z: Any, x: Any) -> Any:
    """Returns the state after a step; None without one."""
    del state, z, x

  def compile(
    self,
    optimizer: keras.optimizers.Optimizer | str = "adam",
    bound: str = "fivo_dreg",
    num_samples: int = 16,
    resampling: str = "systematic",
    resample_when: str | float | Sequence[int] = "always",
    seed: int | None = None,
    **kwargs: Any,
  ) -> None:
    """Sets how the model is trained, as Keras' `compile` does.

    Args:
      optimizer: a Keras optimizer or its name.
      bound: "iwae", "iwae_dreg", "fivo" or "fivo_dreg".
      num_samples: K, the number of particles of each sequence.
      resampling: as `sequential.estimate` takes it.
      resample_when: when particles are resampled, as `sequential.estimate` takes it.
      seed: the noise of a step is a function of the seed and of the step's number. None draws a
        seed.
      **kwargs: arguments of Keras' `compile`: jit_compile, steps_per_execution, run_eagerly.

    Raises:
      ValueError: if there is no such bound, if arguments cannot be combined, or if a strategy has
        several replicas.
    """
    if seed is not None:
      seeds.stateless(seed)  # Raises if it is none.
    num_samples = evaluation.check_int("num_samples", num_samples, at_least=1)
    sequential.schedule_for(bound, resampling, resample_when)  # Raises if they are wrong.
    num_replicas = self.distribute_strategy.num_replicas_in_sync
    if num_replicas > 1:
      raise ValueError(f"{type(self).__name__} trains on one device, got {num_replicas} replicas.")
    super().compile(optimizer=keras.optimizers.get(optimizer), **kwargs)
    self._forget_graphs()
    self.bound = bound
    self.num_samples = num_samples
    self.resampling = resampling
    self.resample_when = resample_when
    self.seed = random.randint(1, int(1e9)) if seed is None else seed
    self._calls_checked = False
    self._compile_arguments = {
      "optimizer": self.optimizer,
      "bound": bound,
      "num_samples": num_samples,
      "resampling": resampling,
      "resample_when": resample_when,
      "seed": self.seed,
      **kwargs,
    }

  def get_compile_config(self) -> dict:
    """Returns the arguments of `compile`, for saving."""
    if not self.compiled:
      return {}
    return keras.saving.serialize_keras_object(self._compile_arguments)

  def compile_from_config(self, config: dict) -> None:
    """Compiles a loaded model as it was when it was saved."""
    self.compile(**keras.saving.deserialize_keras_object(config))
    if self.built:
      self.optimizer.build(self.trainable_variables)

  def estimate(
    self,
    x: Any,
    lengths: Any = None,
    *,
    bound: str,
    num_samples: int,
    seed: seeds.Seed = None,
    training: bool | None = None,
    **options: Any,
  ) -> sequential.Estimate:
    """Estimates the bound of sequences x [batch_size, T, ...], and its gradient.

    Args:
      x: observations.
      lengths: the number of steps of each sequence, [batch_size]; None for T.
      bound: as `sequential.estimate` takes it.
      num_samples: K.
      seed: as `sequential.estimate` takes it.
      training: whether the layers are in training mode. None: the mode of the surrounding step, or
        inference mode outside of `fit`.
      **options: arguments of `sequential.estimate`: resampling, resample_when, resampling_gradient.
    """
    x = self._as_tensors(x)
    with calls.mode(self, training):
      return sequential.estimate(
        bound, _Called(self), x, num_samples, seed=seed, lengths=lengths, **options
      )

  def step_options(self, training: bool) -> dict:
    """Returns the options of `estimate` in a step."""
    del training
    return {"resampling": self.resampling, "resample_when": self.resample_when}

  def sample_size(self, estimate: sequential.Estimate) -> tf.Tensor:
    """Returns the effective sample size of each sequence, averaged over its steps, [batch_size]."""
    sizes = estimate.effective_sample_size
    if estimate.lengths is None:
      return tf.reduce_mean(sizes, axis=0)
    num_steps = tf.maximum(estimate.lengths, 1)
    is_own = tf.transpose(tf.sequence_mask(num_steps, tf.shape(sizes)[0], sizes.dtype))
    return tf.reduce_sum(is_own * sizes, axis=0) / tf.cast(num_steps, sizes.dtype)

  def train_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Takes one step of Keras' `fit`: an update with a gradient of the batch's mean bound."""
    batch = batches.split(data, self.float_dtype)
    self._build_for(batch.x, batch.context)
    if not self._calls_checked:
      calls.check_without_effects(self, lambda: sequential.take_two_steps(_Called(self), batch.x))
      self._calls_checked = True
    result = self._replica_gradients(batch, (steps.TRAIN, steps.number(self)), None)
    logs = self._update_metrics(batch, result.values)
    self.optimizer.apply(result.total(), self.trainable_variables)
    return metrics.as_logs(logs)

  def call(self, inputs: Any):
    """Returns the mean of the next observation given sequences, as Keras' forward pass.

    It uses 100 particles and always the same noise; `forecast` has options for both.
    """
    lengths, x, _ = batches.split(inputs, self.float_dtype)
    seed = tf.zeros([2], tf.int32)
    paths = self._forecast(x, lengths, seed, 1, _PARTICLES, _PARTICLES, mean=True)
    return tf.nest.map_structure(lambda leaf: tf.reduce_mean(leaf[:, :, 0], axis=1), paths)

  def log_likelihood(
    self, x: Any, num_samples: int = 1000, lengths: Any = None, seed: seeds.Seed = 0
  ) -> tf.Tensor:
    """Estimates log p(x_1, ..., x_T) of each sequence in nats by a particle filter.

    Particles are resampled systematically when the effective sample size is below half of
    num_samples. 100 sequences are filtered at a time.

    Args:
      x: observations [batch_size, T, ...], or a `tf.data.Dataset` of batches x or (lengths, x).
      num_samples: K, the number of particles, a positive int.
      lengths: the number of steps of each sequence, [batch_size]; None for T.
      seed: as `sequential.estimate` takes it.

    Returns:
      A lower bound in expectation, of shape [batch_size] or [size of the Dataset].

    Raises:
      TypeError: if num_samples is not an int.
      ValueError: if num_samples is not positive.
    """
    num_samples = evaluation.check_int("num_samples", num_samples, at_least=1)
    return parts.in_parts(
      self,
      lambda *part: self._filtered(part, num_samples).objective,
      x,
      lengths,
      _seed(seed, steps.LOG_LIKELIHOOD),
      empty=tf.zeros([0], self.float_dtype),
    )

  def filter(
    self, x: Any, num_samples: int = 1000, lengths: Any = None, seed: seeds.Seed = 0
  ) -> Filtered:
    """Estimates p(z_t | x_1, ..., x_t) for every step, with the arguments of `log_likelihood`."""
    num_samples = evaluation.check_int("num_samples", num_samples, at_least=1)

    def function(*part):
      estimate = self._filtered(part, num_samples)
      by_sequence = tf.nest.map_structure(_batch_first, estimate.samples)
      weights = tf.nn.softmax(_batch_first(estimate.log_weights), axis=-1)

      def mean(samples):
        samples = batches.as_floats(samples, weights.dtype)
        return tf.einsum("btk...,btk->bt...", samples, weights)

      size = tf.transpose(estimate.effective_sample_size)
      return Filtered(tf.nest.map_structure(mean, by_sequence), by_sequence, weights, size)

    return parts.in_parts(self, function, x, lengths, _seed(seed, steps.POSTERIOR))

  def forecast(
    self,
    x: Any,
    num_steps: int,
    n: int = 100,
    num_samples: int = 1000,
    lengths: Any = None,
    seed: seeds.Seed = None,
    mean: bool = False,
  ) -> Any:
    """Draws continuations of sequences: x_{T+1}, ..., x_{T+num_steps} given x_1, ..., x_T.

    Args:
      x: observations, as `log_likelihood` takes them.
      num_steps: the number of steps to forecast, a positive int.
      n: the number of paths of each sequence, a positive int.
      num_samples: K, the number of particles that filter x.
      lengths: the number of steps of each sequence, 1 or more.
      seed: as `sequential.estimate` takes it.
      mean: whether to return the likelihood's mean in each step rather than a draw from it.

    Returns:
      [batch_size, n, num_steps, ...], or a structure of such Tensors.

    Raises:
      ValueError: if a sequence has no steps.
    """
    arguments = {"num_steps": num_steps, "n": n, "num_samples": num_samples}
    num_steps, n, num_samples = (evaluation.check_int(*a, at_least=1) for a in arguments.items())

    def function(x, lengths, seed):
      return self._forecast(x, lengths, seed, num_steps, n, num_samples, mean)

    return parts.in_parts(self, function, x, lengths, _seed(seed, _FORECAST))

  def sample(self, n: int, num_steps: int, seed: seeds.Seed = None, mean: bool = False) -> Any:
    """Draws n sequences from the model.

    Args:
      n: a positive int.
      num_steps: their number of steps, a positive int.
      seed: as `sequential.estimate` takes it.
      mean: whether to return the likelihood's mean in each step rather than a draw from it.

    Returns:
      [n, num_steps, ...], or a structure of such Tensors.
    """
    n = evaluation.check_int("n", n, at_least=1)
    num_steps = evaluation.check_int("num_steps", num_steps, at_least=1)
    with calls.mode(self, training=False):
      start = Particles(None, self.initial_state(tf.constant(n)))
      return self._simulate(start, n, num_steps, _seed(seed, _FORECAST), mean)

  def _evaluate_once(self, x, context) -> None:
    """Uses every layer, which builds those that are not built."""
    del context
    with calls.looking(self):
      sequential.take_two_steps(_Called(self), x)

  def _check_parts(self, context, x) -> None:
    del x
    if context is not None and not (context.dtype.is_integer and context.shape.rank == 1):
      raise ValueError(
        f"{type(self).__name__} takes batches of sequences, or pairs (lengths, sequences) with "
        f"integer lengths [batch_size], got {context.dtype.name} of shape {context.shape}."
      )

  def _filtered(self, part: tuple, num_samples: int) -> sequential.Estimate:
    x, lengths, _ = part
    if lengths is not None:
      sequential.check_lengths(lengths, x)  # Their values are not known in the graph.
    return self._filter_graph(*part, num_samples)

  @functools.cached_property
  def _filter_graph(self):
    """Returns a compiled function (x, lengths, seed, num_samples) that returns an `Estimate`."""

    def run(x, lengths, seed, num_samples):
      with products.in_float32():  # also in Keras' forward pass
        return self.estimate(x, lengths, num_samples=num_samples, seed=seed, **_FILTER)

    return parts.compiled(self, run)

  def _forecast(self, x, lengths, seed, num_steps, n, num_samples, mean) -> Any:
    known = None if lengths is None else tf.get_static_value(lengths)
    if known is not None and not known.all():
      raise ValueError(
        "lengths must be 1 or more to forecast, got 0: `sample` draws sequences from the beginning."
      )
    filter_seed, draw_seed, path_seed = (seeds.fold_in(seed, i) for i in range(3))
    estimate = self._filtered((x, lengths, filter_seed), num_samples)
    weights = importance_weights.normalize(estimate.log_weights[-1])
    batch_size = tf.shape(weights)[1]
    uniform = tf.random.stateless_uniform([1, batch_size], draw_seed, dtype=weights.dtype)
    drawn = resample.ancestors_at(resample.points("systematic", uniform, n), weights)
    last = tf.nest.map_structure(lambda leaf: leaf[-1], estimate.samples)
    particles = filtering.descend(Particles(last, estimate.state), drawn)
    # Each path is continued as a separate sequence with one particle.
    apart = map_tensors(
      lambda leaf: tf.reshape(leaf, tf.concat([[1, -1], tf.shape(leaf)[2:]], axis=0)), particles
    )
    paths = self._simulate(apart, n * batch_size, num_steps, path_seed, mean)

    def by_sequence(leaf):
      leaf = tf.reshape(leaf, tf.concat([[n, batch_size], tf.shape(leaf)[1:]], axis=0))
      return tf.einsum("nb...->bn...", leaf)

    return tf.nest.map_structure(by_sequence, paths)

  def _simulate(self, past: Particles, num_sequences, num_steps: int, seed, mean: bool) -> Any:
    """Draws the next observations, [num_sequences, num_steps, ...], one particle for each."""
    path = []
    for step in range(num_steps):
      z_seed, x_seed = (seeds.fold_in(seed, step, i) for i in range(2))
      prior = calls.call(self.prior, past.z, past.state)
      rank = tf.nest.flatten(prior.batch_shape)[0].rank
      z = prior.sample({0: [1, num_sequences], 1: 1, 2: []}[rank], seed=z_seed)
      state = state_of_each(past, 1)
      likelihood = calls.call(self.likelihood, z, state)
      x = tf.nest.map_structure(lambda leaf: leaf[0], likelihood.sample(seed=x_seed))
      shown = tf.nest.map_structure(lambda leaf: leaf[0], likelihood.mean()) if mean else x
      path.append(shown)
      if step < num_steps - 1:
        past = Particles(z, self.next_state(state, z, self._as_data(x)))
    return tf.nest.map_structure(lambda *leaves: tf.stack(leaves, axis=1), *path)

  def _as_data(self, x: Any) -> Any:
    """Returns drawn observations in the dtypes of those that the model was built for."""
    if self._specs is None:
      return self._as_tensors(x)
    return tf.nest.map_structure(lambda leaf, spec: tf.cast(leaf, spec.dtype), x, self._specs["x"])


class _Called:
  """Wraps a model's methods for `sequential.estimate`, and calls them as a step calls layers."""

  def __init__(self, model: StateSpaceModel):
    self._model = model
    self.initial_state = model.initial_state
    self.next_state = model.next_state

  def prior(self, z_previous, state):
    return calls.call(self._model.prior, z_previous, state)

  def proposal(self, x, z_previous, state):
    return calls.call(self._model.proposal, x, z_previous, state)

  def likelihood(self, z, state):
    return _Likelihood(self._model, calls.call(self._model.likelihood, z, state))


class _Likelihood(NamedTuple):
  """Wraps a likelihood to check and cast the observations that it is given."""

  model: StateSpaceModel
  distribution: tfd.Distribution

  def log_prob(self, x):
    inputs.note_likelihood(self.model, self.distribution, x)
    return self.distribution.log_prob(batches.cast_for(self.distribution, x))


def _seed(seed: seeds.Seed, purpose: int) -> tf.Tensor:
  return seeds.fold_in(seeds.stateless(seed), purpose)


def _batch_first(tensor: tf.Tensor) -> tf.Tensor:
  """Transposes [T, K, batch_size, ...] to [batch_size, T, K, ...]."""
  return tf.einsum("tkb...->btk...", tensor)
