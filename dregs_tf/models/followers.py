"""Follows gradients during training: tracked bounds, moments, and options that adapt."""

from collections.abc import Callable, Iterable, Sequence

import keras
import tensorflow as tf

from dregs_tf import bounds, catalogue, side_by_side
from dregs_tf.models.adaptive_alpha import AdaptiveAlpha
from dregs_tf.models.adaptive_factors import AdaptiveFactors
from dregs_tf.models.backward_samples import BackwardSamples
from dregs_tf.models.gradient_moments import GradientMoments

# The moving averages' name for the gradient that is trained on; no bound has this name.
_TRAINED = "trained="

# The two estimators that alpha mixes, under names that no tracked bound has.
_ENDS = {"alpha=0": "iwae_dreg", "alpha=1": "rws_dreg"}


class Followers:
  """Holds the extras of `compile`: tracked bounds, moments of gradients, options that adapt.

  A step asks `estimators` which bounds to differentiate, names their gradients with `by_name`,
  and passes them to `update`, which returns logs.

  Args:
    bound: the bound that is trained on; factors that it lacks are trained along with the model.
    optimizer: the optimizer that trains on it.
    gradient_statistics: whether to follow the gradient that is trained on.
    track_variance: further bounds whose gradients of the proposal to follow.
    adapt_alpha: whether to adapt alpha of the bound dreg_alpha.
    choose_backward_samples: K, if the number of samples of the backward pass is chosen.

  Raises:
    ValueError: if a bound is tracked twice, if there is no alpha to adapt or no Adam that it can
      follow, or if a tracked bound lacks factors that nothing trains.
  """

  def __init__(
    self,
    bound: bounds.Bound,
    optimizer: keras.optimizers.Optimizer,
    *,
    gradient_statistics: bool = False,
    track_variance: Sequence[bounds.Bound] = (),
    adapt_alpha: bool = False,
    choose_backward_samples: int | None = None,
  ):
    if adapt_alpha and (bound.name != "dreg_alpha" or tf.is_tensor(dict(bound.options)["alpha"])):
      raise ValueError(f"adapt_alpha needs the bound dreg_alpha with a number alpha, got {bound}.")
    self.tracked = {each.name: each for each in track_variance}
    if len(self.tracked) < len(track_variance):
      tracked = ", ".join(each.name for each in track_variance)
      raise ValueError(f"track_variance names a bound twice, got {tracked}.")
    for each in track_variance:
      if missing := _trained_options(each) if each != bound else {}:
        raise ValueError(
          f"track_variance: {each.name} needs {', '.join(missing)}, which are trained only for the "
          f"bound itself, got bound {bound.name}."
        )
    self.gradient_statistics = gradient_statistics
    names = [_TRAINED] * gradient_statistics + list(self.tracked)
    self.moments = GradientMoments(names) if names else None
    self.adaptive_alpha = None
    if adapt_alpha:
      self.adaptive_alpha = AdaptiveAlpha(dict(bound.options)["alpha"], optimizer)
    starts = _trained_options(bound)
    self.adaptive_factors = AdaptiveFactors(starts) if starts else None
    self.backward_samples = None
    if choose_backward_samples:
      self.backward_samples = BackwardSamples(choose_backward_samples)
    self._bound = bound
    self._followed: list[int] | None = None  # The ids of the variables whose gradients it follows.

  @property
  def layers(self) -> list:
    """Returns the Keras layers that hold the variables."""
    layers = (
      self.moments,
      self.adaptive_alpha,
      self.adaptive_factors,
      self.backward_samples,
    )
    return [layer for layer in layers if layer is not None]

  @property
  def variables(self) -> list[keras.Variable]:
    """Returns all variables, once they are built."""
    return [variable for layer in self.layers for variable in layer.variables]

  @property
  def side_by_side_argument(self) -> str | None:
    """Returns the argument of `compile` that needs gradients of several bounds, or None."""
    if self.adaptive_alpha is not None:
      return "adapt_alpha"
    if self.adaptive_factors is not None:
      return f"bound={self._bound.name}, without {', '.join(self.adaptive_factors.factors)},"
    return "track_variance" if self.tracked else None

  @property
  def moving_options(self) -> dict[str, tf.Tensor]:
    """Returns the options of the bound that training adapts, with their current values."""
    if self.adaptive_alpha is not None:
      return {"alpha": tf.convert_to_tensor(self.adaptive_alpha.alpha)}
    if self.adaptive_factors is not None:
      factors = self.adaptive_factors.factors
      return {name: tf.convert_to_tensor(factor) for name, factor in factors.items()}
    return {}

  def build(self, variables: Sequence) -> None:
    """Creates the variables for gradients of these variables, unless they exist.

    Raises:
      ValueError: if they exist for other variables.
    """
    ids = [id(variable) for variable in variables]
    if self._followed is None:
      self._followed = ids
    elif ids != self._followed and (self.moments or self.adaptive_alpha):
      raise ValueError(
        "gradient_statistics, track_variance and adapt_alpha follow the gradients of "
        f"{len(self._followed)} trainable variables, got {len(ids)} or others: call compile again "
        "after changing `trainable`."
      )
    for layer in self.layers:
      if not layer.built:
        layer.build([tuple(variable.shape) for variable in variables])

  def estimators(self) -> list[bounds.Bound]:
    """Returns the bounds to differentiate in this step; the first is the one to train on."""
    return [self._trained(), *self._others().values()]

  def by_name(self, result: side_by_side.Gradients) -> dict[str, list]:
    """Returns the gradients of all `estimators()` but the first by name, each one per variable."""
    gradients = dict(zip(self._others(), result.proposal[1:], strict=True))
    for name in self._beside():
      gradients[name] = side_by_side.add_where_both(gradients[name], result.model)
    return gradients

  def update(
    self,
    gradients: side_by_side.Gradients,
    others: dict[str, list],
    groups: Callable,
    scale: tf.Tensor,
  ) -> dict:
    """Updates statistics and options with the gradients of a step.

    Args:
      gradients: the gradients that are trained on, of each variable or None.
      others: the gradients of the other bounds, as `by_name` returns them.
      groups: a function without arguments that returns the places of the variables of "proposal"
        and of "model"; called only if needed.
      scale: the factor of the gradients, relative to ascent on the mean bound.

    Returns:
      Logs: the adaptive options, as they were in the step, and the variance of each gradient that
      is followed.
    """
    logs, others = {}, dict(others)
    for name, value in self.moving_options.items():
      logs["alpha" if name == "alpha" else f"factor_{name}"] = tf.identity(value)
    beside = {name: _unscaled(others.pop(name), scale) for name in self._beside()}
    if self.adaptive_alpha is not None:
      self.adaptive_alpha.update(*(beside[name] for name in _ENDS))
    if self.adaptive_factors is not None:
      raised = dict(zip(self.adaptive_factors.factors, beside.values(), strict=True))
      self.adaptive_factors.update(_unscaled(gradients, scale), raised)
    if self.moments is not None:
      logs |= self._update_moments({_TRAINED: gradients} | others, groups(), scale)
    return logs

  def vectors(
    self,
    gradients: side_by_side.Gradients,
    others: dict[str, list],
    groups: dict[str, list[int]],
    scale: tf.Tensor,
  ) -> dict:
    """Returns the gradients that are followed by their names in logs, each a float32 vector.

    Args:
      gradients: as `update` takes them, as are the others.
      others: the gradients of the other bounds.
      groups: the places of the variables of "proposal" and of "model".
      scale: the factor of the gradients.
    """
    by_name, vectors = {_TRAINED: gradients} | others, {}
    for report, (name, places) in self.reports(groups).items():
      parts = [tf.convert_to_tensor(g) for i in places if (g := by_name[name][i]) is not None]
      vectors[report] = tf.concat([tf.reshape(tf.cast(g, tf.float32), [-1]) for g in parts], axis=0)
    return dict(zip(vectors, _unscaled(vectors.values(), scale), strict=True))

  def reports(self, groups: dict) -> dict[str, tuple]:
    """Returns for each name in the logs a gradient's name and the places of its variables."""
    reports = {name: (name, groups.get("proposal")) for name in self.tracked}
    if self.gradient_statistics:
      reports |= {group: (_TRAINED, places) for group, places in groups.items()}
    return reports

  def _update_moments(self, by_name, groups, scale) -> dict[str, tf.Tensor]:
    everywhere = {place for places in groups.values() for place in places}
    kept = {
      name: [g if i in everywhere else None for i, g in enumerate(by_name[name])]
      for name in self.moments.names
    }
    self.moments.update({name: _unscaled(each, scale) for name, each in kept.items()})
    return {
      f"{report}_gradient_variance": self.moments.variance(name, places)
      for report, (name, places) in self.reports(groups).items()
    }

  def _trained(self) -> bounds.Bound:
    return _with(self._bound, self.moving_options)

  def _others(self) -> dict[str, bounds.Bound]:
    # If the bound that is trained on is also tracked, its options adapt there as well.
    trained = self._trained()
    tracked = {name: trained if b == self._bound else b for name, b in self.tracked.items()}
    return tracked | self._beside()

  def _beside(self) -> dict[str, bounds.Bound]:
    """Returns the bounds whose gradients adapt the options, by names that no tracked bound has."""
    if self.adaptive_alpha is not None:
      return {name: bounds.get(end) for name, end in _ENDS.items()}
    options = self.moving_options
    return {
      f"{name}+1": _with(self._bound, options | {name: value + 1})
      for name, value in options.items()
    }


def _trained_options(bound: bounds.Bound) -> dict[str, float]:
  return catalogue.trained_options(bound.name, dict(bound.options))


def _with(bound: bounds.Bound, options: dict[str, tf.Tensor]) -> bounds.Bound:
  """Returns the bound with some options replaced."""
  return bounds.get(bound.name, **dict(bound.options) | options) if options else bound


def _unscaled(gradients: Iterable, scale: tf.Tensor) -> list:
  """Returns gradients of the mean bound, summed over replicas, given this replica's scaled ones."""
  gradients = list(gradients)
  present = [tf.convert_to_tensor(g) for g in gradients if g is not None]
  present = [g / tf.cast(scale, g.dtype) for g in present]
  replica = tf.distribute.get_replica_context()
  if replica is not None and replica.num_replicas_in_sync > 1:
    present = replica.all_reduce("SUM", present)
  rest = iter(present)
  return [None if g is None else next(rest) for g in gradients]
