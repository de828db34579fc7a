"""Defines the Keras model that every latent-variable model derives from: three distributions."""

import functools
import inspect
import random
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, seeds
from dregs_tf.models import (
  batches,
  building,
  calls,
  compile_config,
  contracts,
  freezing,
  generation,
  inputs,
  metrics,
  posterior,
  replicas,
  steps,
)
from dregs_tf.models import kl_weight as kl
from dregs_tf.models import missing as missing_data
from dregs_tf.models.backward_samples import AUTO, ChooseBackwardSamples
from dregs_tf.models.conditional import draws_for_whole_batch
from dregs_tf.models.followers import Followers

tfd = tfp.distributions


class LatentVariableModel(
  building.BuiltFromData,
  inputs.CheckedInputs,
  metrics.ReportingModel,
  generation.GenerativeModel,
  posterior.PosteriorModel,
  missing_data.IncompleteData,
):
  """A model p(x, z | context) with a proposal q(z | x, context), trained with a Monte Carlo bound.

  A subclass defines three methods that return tfp distributions; `compile`, `fit`, `evaluate`,
  `save` and the callbacks are Keras' own. The variables live in Keras layers that the subclass
  holds as attributes.

  - `prior(context)`: p(z | context), batch shape [] or [batch_size].
  - `proposal(x, context)`: q(z | x, context), batch shape [batch_size]; reparameterized if the
    bound has a path, or a `StratifiedMixture`.
  - `likelihood(z, context)`: p(x | z, context) for z of shape [num_samples, batch_size, ...], batch
    shape [num_samples, batch_size].

  A batch is observations x, a pair (context, x) or (context, x, sample_weight); with observations
  alone, context is None. Observations and contexts are Tensors or structures of them (dicts, or, in
  a pair, tuples), each [batch_size, ...]. The methods receive floats in the model's dtype (float32
  if its layers compute in less), integers and booleans unchanged, so indices stay exact. The
  likelihood's log_prob receives observations in its own dtype, unless that would round floats to
  integers. The distributions must be of float32 or better, even under mixed precision.

  Observations outside [0, 1] are refused before a step learns from them if the likelihood, or their
  part of a joint one, is Bernoulli. A subclass may override this with the class attribute
  `binary_observations`: True, False or a structure that says it of each part of an observation.

  Sample weights weigh the examples: a step's gradient is that of the sum of weight times bound,
  divided by the batch size, and the metrics are weighted means.

  Layers behave as in any Keras model. In `fit` they are in training mode, everywhere else in
  inference mode; a method that takes an argument `training` is given it. The noise of layers and of
  `keras.random` in a step is a function of `compile`'s seed and the step's number. Regularizers and
  `add_loss` are part of the objective and reported as `regularization`, apart from the bound.
  BatchNormalization in a likelihood uses the statistics of all samples of the batch: in training
  the samples are then not independent, as the bounds and the second reparameterization assume.
  Layers that draw noise, keep statistics or add losses are refused in two places: in a likelihood
  or prior with `num_backward_samples`, since it is evaluated twice; and inside the proposal's
  distribution, as in the functions of a joint distribution, since samples and densities would not
  agree.
  """

  # Set by `compile`.
  followers: Followers | None = None
  prior_gradient = "direct"
  _calls_checked = False

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self.autocast = False  # A call rounds no more than `fit` does: layers cast for themselves.
    self._thaw = freezing.freeze([])

  @property
  def model_layers(self) -> Sequence[keras.layers.Layer]:
    """Returns the layers of p(x, z | context), for `compile(freeze_model=True)`.

    Raises:
      TypeError: if a subclass does not define them.
    """
    raise TypeError(f"{type(self).__name__} must define model_layers to be frozen.")

  def prior(self, context: Any) -> tfd.Distribution:
    """Returns p(z | context), of batch shape [] or [batch_size]."""
    raise TypeError(f"{type(self).__name__} must define prior(context).")

  def proposal(self, x: Any, context: Any) -> tfd.Distribution:
    """Returns q(z | x, context), of batch shape [batch_size]."""
    raise TypeError(f"{type(self).__name__} must define proposal(x, context).")

  def likelihood(self, z: Any, context: Any) -> tfd.Distribution:
    """Returns p(x | z, context), of batch shape [num_samples, batch_size] as z has."""
    raise TypeError(f"{type(self).__name__} must define likelihood(z, context).")

  def stopped_proposal(self, proposal: tfd.Distribution):
    """Returns the proposal with its parameters stopped, or None for `dregs_tf.stop_parameters`.

    Override it where the proposal's parameters are out of reach, for instance to return
    `dregs_tf.PathOnly(proposal)`.
    """
    del proposal

  def target_log_prob(
    self, x: Any, z: Any, context: Any = None, kl_weight: float | tf.Tensor = 1
  ) -> tf.Tensor:
    """Computes log p(x | z, context) + kl_weight log p(z | context), [num_samples, batch_size].

    With a kl_weight of 1 this is log p(x, z | context), in nats.
    """
    context = self._as_tensors(context)
    log_likelihood = self.conditional_log_prob(x, z, context)
    prior = calls.call(self.prior, context)
    name = type(self).__name__
    contracts.check_latents(name, prior, z)
    return contracts.sum_of_log_probs(name, log_likelihood, prior.log_prob(z), kl_weight)

  def conditional_log_prob(self, x: Any, z: Any, context: Any = None) -> tf.Tensor:
    """Computes log p(x | z, context) in nats, [num_samples, batch_size]."""
    x, context = self._as_tensors(x), self._as_tensors(context)
    likelihood = calls.call(self.likelihood, z, context)
    inputs.note_likelihood(self, likelihood, x)
    x = batches.cast_for(likelihood, x)
    if self.missing is None:
      return likelihood.log_prob(x)
    return missing_data.log_prob(type(self).__name__, likelihood, x)

  def estimate(
    self,
    x: Any,
    context: Any = None,
    *,
    bound: bounds.Bound | str,
    num_samples: int,
    seed: seeds.Seed = None,
    part: seeds.Part | None = None,
    training: bool | None = None,
    kl_weight: float | tf.Tensor = 1,
    prior_gradient: str = "direct",
    **options: Any,
  ) -> bounds.Estimate:
    """Estimates the bound of observations x [batch_size, ...], and its gradient: `bounds.estimate`.

    Args:
      x: observations.
      context: contexts, for a conditional model.
      bound: a Bound or its name, as in `bounds.estimate`.
      num_samples: K.
      seed: as in `bounds.estimate`; the same on every replica.
      part: on a replica, which part of a global batch x is.
      training: whether the layers are in training mode. None: the mode of the surrounding step, or
        inference mode outside of `fit`.
      kl_weight: beta of log-weights log p(x | z) + beta (log p(z) - log q(z | x)), a number or a
        scalar Tensor; values other than 1 need a bound whose gradient stays unbiased with them.
      prior_gradient: "direct" or "dreg", as `compile` takes it.
      **options: `num_backward_samples`.
    """
    x, context = self._as_tensors(x), self._as_tensors(context)
    steps.check_prior_gradient(self, prior_gradient)

    def target_log_prob(z):
      calls.note_samples(z)
      if prior_gradient == "dreg":
        return self.conditional_log_prob(x, z, context)
      return self.target_log_prob(x, z, context, **kl.arguments(kl_weight))

    with calls.mode(self, training):
      if prior_gradient == "dreg":
        options["prior"] = calls.call(self.prior, context)
      proposal = calls.propose(self, x, context)
      with seeds.noise_of(part, seed, shared=draws_for_whole_batch(proposal)) as seed:
        return bounds.estimate(
          bound,
          target_log_prob,
          proposal,
          num_samples,
          seed=seed,
          stopped_proposal=self.stopped_proposal(proposal),
          proposal_weight=kl_weight,
          **options,
        )

  def compile(
    self,
    optimizer: keras.optimizers.Optimizer | str = "adam",
    bound: bounds.Bound | str = "iwae_dreg",
    num_samples: int = 64,
    seed: int | None = None,
    num_backward_samples: int | str | None = None,
    gradient_statistics: bool = False,
    track_variance: Sequence[bounds.Bound | str] = (),
    adapt_alpha: bool = False,
    freeze_model: bool = False,
    kl_weight: Any = 1.0,
    missing: str | None = None,
    prior_gradient: str = "direct",
    **kwargs: Any,
  ) -> None:
    """Sets how the model is trained, as Keras' `compile` does.

    Args:
      optimizer: a Keras optimizer or its name. The authors used
        `keras.optimizers.Adam(3e-4, epsilon=1e-8)`.
      bound: a `bounds.Bound`, or a name that `bounds.get` takes. Factors of iwae_cv that are not
        given are trained, by an Adam of their own, to minimize the variance of the gradient (see
        `dregs_tf/models/adaptive_factors.py`); the logs report them as `factor_a` and so on.
      num_samples: K, the number of samples of each example.
      seed: the noise of a step is a function of the seed and of the step's number. None draws a
        seed, as Keras layers do: `keras.utils.set_random_seed` fixes it.
      num_backward_samples: M, at most K; None for K; "auto" to choose it at the end of each epoch,
        a power of two or K (see `BackwardSamples`). The bound uses all K samples; its gradient uses
        M of them, the heaviest always and the rest at random: cheaper, and still unbiased.
      gradient_statistics: whether to follow the variance of the gradients of the proposal's and of
        the model's parameters during training (moving averages, decay 0.99), and, with the callback
        `GradientSNR`, their signal-to-noise ratio.
      track_variance: bounds whose estimators of the proposal's gradient are followed in the same
        way, on the same samples, without training on them.
      adapt_alpha: whether to adapt alpha during training, starting from the bound's alpha
        (dreg_alpha only; see `dregs_tf/models/adaptive_alpha.py`). The optimizer must be an Adam
        that does not clip or accumulate.
      freeze_model: whether to train the proposal alone; the model must define `model_layers`.
      kl_weight: beta of log-weights log p(x | z) + beta (log p(z) - log q(z | x)) in training, for
        KL annealing or a beta-VAE: a number, a scalar Variable, or a Keras schedule of the number
        of updates. The logs report it as `kl_weight`. `evaluate` and `log_likelihood` bound
        log p(x), whatever the weight.
      missing: "nan" treats NaN features of observations as not observed: bounds and
        log-likelihoods are those of the observed features, and the likelihood must factorize over
        features (see `impute`, `proposal_input`). With None, NaN is an error.
      prior_gradient: how the parameters of p(z | context) are trained: "direct", by their score, or
        "dreg", reparameterized twice as the proposal's are: unbiased, usually with less variance
        (`diagnostics.compare` with gradient_of="prior" measures it). See `bounds.estimate`.
      **kwargs: arguments of Keras' `compile`: jit_compile, steps_per_execution, run_eagerly.

    Raises:
      ValueError: if a bound is unknown or needs more samples, or if options cannot be combined.
    """
    if seed is not None:
      seeds.stateless(seed)  # Raises if it is none.
    bound, *tracked = (bounds.as_bound(b) for b in (bound, *track_variance))
    for each in (bound, *tracked):
      bounds.check_num_samples(num_samples, each)
    is_chosen = num_backward_samples == AUTO
    if not is_chosen:
      bounds.check_num_backward_samples(num_backward_samples, num_samples)  # type: ignore[arg-type]
    elif self.distribute_strategy.num_replicas_in_sync > 1:
      raise ValueError("num_backward_samples='auto' is for one replica: give a number of samples.")
    kl_weight = kl.KLWeight(kl_weight)
    missing_data.check_argument(missing)
    if not kl_weight.is_one:
      for each in (bound, *tracked):
        bounds.check_weight(kl_weight.at(tf.constant(0)), each, num_samples, "kl_weight")
    optimizer = keras.optimizers.get(optimizer)
    followers = Followers(
      bound,
      optimizer,
      gradient_statistics=gradient_statistics,
      track_variance=tracked,
      adapt_alpha=adapt_alpha,
      choose_backward_samples=num_samples if is_chosen else None,
    )
    self._check_side_by_side(followers.side_by_side_argument, num_backward_samples)
    steps.check_prior_gradient(self, prior_gradient)
    super().compile(optimizer=optimizer, **kwargs)
    self._forget_graphs()
    self.bound = bound
    self.num_samples = int(num_samples)
    self.num_backward_samples = num_samples if is_chosen else num_backward_samples
    self.kl_weight = kl_weight
    self.missing = missing
    self.prior_gradient = prior_gradient
    self.seed = random.randint(1, int(1e9)) if seed is None else seed
    self._calls_checked = False
    self._compile_arguments = {
      "optimizer": self.optimizer,
      "seed": self.seed,
      "freeze_model": freeze_model,
      **kwargs,
    }
    self._thaw()
    self._thaw = freezing.freeze(self.model_layers if freeze_model else [])
    self.followers = followers
    self._build_followers()

  def get_compile_config(self) -> dict:
    """Returns the arguments of `compile`, for saving."""
    if not self.compiled:
      return {}
    return compile_config.to_config(self)

  def compile_from_config(self, config: dict) -> None:
    """Compiles a loaded model as it was when it was saved."""
    self.compile(**compile_config.from_config(config))
    if self.built:
      self.optimizer.build(self.trainable_variables)

  @property
  def follower_layers(self) -> list[keras.layers.Layer]:
    """Returns the layers that hold the followers' variables.

    Keras saves whatever it finds under a model's attributes, including properties, but lists only
    attributes that were set under `weights`. So these variables are saved, but are not weights.
    """
    return self.followers.layers if self.followers else []

  def _check_side_by_side(self, argument: str | None, num_backward_samples) -> None:
    """Raises if the gradients of several bounds, which `argument` needs, cannot be computed."""
    if argument is None:
      return
    if num_backward_samples is not None:
      raise ValueError(f"{argument} takes all samples: drop num_backward_samples.")
    if tf.as_dtype(self.compute_dtype) == tf.float16:
      raise ValueError(f"{argument} needs more range than float16 has: use mixed_bfloat16.")

  def call(self, inputs: Any):
    """Returns the expected observation at a sampled z, as `reconstruct` does: the forward pass."""
    context, x, _ = batches.split(inputs, self.float_dtype)
    return self.reconstruct(x, context)

  def make_train_function(self, force: bool = False):
    """Creates the followers' variables as well, and makes the step anew if their M is another."""
    self._build_followers()
    choice = self.followers.backward_samples if self.followers else None
    if choice is not None and choice.number != self.num_backward_samples:
      self.num_backward_samples, force = choice.number, True
    return super().make_train_function(force)

  @functools.wraps(keras.Model.fit)
  def fit(self, *args: Any, **kwargs: Any):
    if self.followers is not None and self.followers.backward_samples is not None:
      call = inspect.signature(super().fit).bind(*args, **kwargs)
      # It comes before callbacks that save the model, so that they save the new M.
      given = call.arguments.get("callbacks") or []
      given = given if isinstance(given, (list, tuple)) else [given]
      call.arguments["callbacks"] = [ChooseBackwardSamples(), *given]
      args, kwargs = call.args, call.kwargs
    return super().fit(*args, **kwargs)

  def _build_followers(self) -> None:
    """Creates the followers' variables, if the model is compiled and built."""
    if self.followers is not None and self.built:
      with self.distribute_strategy.scope():
        self.followers.build(self.trainable_variables)

  def train_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Takes one step of Keras' `fit`: an update with a gradient of the batch's mean bound."""
    batch = batches.split(data, self.float_dtype)
    context, x, _ = batch
    self._build_for(x, context)
    noise = (steps.TRAIN, steps.number(self))
    part = replicas.part_of_batch(x)
    if not self._calls_checked:
      calls.check(self, x, context)
      self._calls_checked = True
    with calls.averaged_statistics(self, part, batches.size(x)):
      result = self._replica_gradients(batch, noise, part)
    logs = self._update_metrics(batch, result.values)
    variables = self.trainable_variables
    self.followers.build(variables)
    logs |= self.followers.update(
      result.bound,
      result.others,
      groups=lambda: steps.variable_groups(self, x, context),
      scale=-self.optimizer.scale_loss(tf.ones([])),
    )
    if self.followers.backward_samples is not None:
      weight = steps.kl_weight(self)
      _, coefficients = self.bound.value_and_coefficients(result.values.log_weights, weight)
      self.followers.backward_samples.update(coefficients, noise[1])
      logs["num_backward_samples"] = tf.identity(self.followers.backward_samples.in_use)
    if not self.kl_weight.is_one:
      logs["kl_weight"] = tf.convert_to_tensor(steps.kl_weight(self))
    self.optimizer.apply(result.total(), variables)
    return metrics.as_logs(logs)

  def gradient_step(self, data: Any, numbers: tf.Tensor) -> dict[str, tf.Tensor]:
    """Computes the gradients that `GradientSNR` measures, flat, without any update.

    Args:
      data: a batch; on a replica, its part.
      numbers: an int32 vector from which the seed of the noise is derived.

    Returns:
      Gradients of the bounds' means over the whole batch by name, each a vector.
    """
    batch = batches.split(data, self.float_dtype)
    noise = (steps.MEASURE, *tf.unstack(numbers))
    result = self._replica_gradients(batch, noise, replicas.part_of_batch(batch.x))
    return self.followers.vectors(
      result.bound,
      result.others,
      groups=steps.variable_groups(self, batch.x, batch.context),
      scale=-self.optimizer.scale_loss(tf.ones([])),
    )

  def step_options(self, training: bool) -> dict:
    """Returns the options of `estimate` in a step; an evaluation bounds log p(x | context)."""
    if not training:
      return {}
    options: dict[str, Any] = {"num_backward_samples": self.num_backward_samples}
    options["kl_weight"] = steps.kl_weight(self)
    if self.prior_gradient != "direct":
      options["prior_gradient"] = self.prior_gradient
    return options
