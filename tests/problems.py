"""Bounds with their options, and models with their proposals, that several tests go through."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, catalogue
from tests import oracles, rows

tfd = tfp.distributions

# The paper's bounds and every order of the jackknife that is checked: (name, options). The others
# are in `tests/rows.py`.
BEYOND = {name for name, _ in rows.ROWS}
PAPER = [name for name in bounds.names() if name not in BEYOND]
VARIANTS = [(name, {}) for name in PAPER if name not in ("dreg_alpha", "jvi", "jvi_dreg")]
VARIANTS += [("dreg_alpha", {"alpha": alpha}) for alpha in (0.0, 0.3, 0.5, 0.9, 1.0)]
VARIANTS += [(name, {"order": order}) for name in ("jvi", "jvi_dreg") for order in range(5)]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]
# One of each, for what is slow to trace or compile.
FEW = [v for v in VARIANTS if v[1].get("order", 1) in (1, 2) and v[1].get("alpha", 0.3) == 0.3]
FEW_IDS = ["-".join([name, *map(str, options.values())]) for name, options in FEW]
# One of each way that an estimate is put together; the rows differ in numbers alone.
KINDS = [v for v in FEW if v[0] in ("iwae", "iwae_dreg", "rws", "dreg_alpha", "jvi_dreg")]
every_variant = pytest.mark.parametrize("name,options", VARIANTS, ids=IDS)
few_variants = pytest.mark.parametrize("name,options", FEW, ids=FEW_IDS)


def every_bound():
  """Every bound with its default options, but for 2 groups and factors that are not trained."""
  options = {"groups": 2, "a": 0.3, "b": 0.6, "g": 0.2, "d": -0.4}
  return [
    bounds.get(name, **{key: options[key] for key in options if key in row.options})
    for name, row in catalogue.BOUNDS.items()
  ]


def random_log_weights(num_samples, batch_size, seed=0, scale=1.5):
  return np.random.default_rng(seed).normal(size=[num_samples, batch_size]) * scale - 3.0


def standard():
  """A target and a proposal of batch shape [3], for what happens before any arithmetic."""
  return (lambda z: -tf.square(z - 1.0)), tfd.Normal(tf.zeros([3]), 1.0)


def independent(distribution, event_shape):
  return tfd.Independent(distribution, reinterpreted_batch_ndims=len(event_shape))


def shared_problem(event_shape, dtype=tf.float64, observations=None, parameters=None):
  """A Gaussian model and proposal of latents `event_shape`; p and q share weight and raw_scale."""
  rng = np.random.default_rng(1)
  x = observations
  if x is None:
    x = tf.constant(rng.normal(size=[3, *event_shape]), dtype)
  if parameters is None:
    parameters = [tf.Variable(rng.normal(size=event_shape), dtype=dtype) for _ in range(3)]

  def target(parameters, z):
    weight, raw_scale, _ = parameters
    prior = tfd.Normal(weight, 1.5 + 0 * weight)
    likelihood = tfd.Normal(tf.tanh(z * weight) + z, tf.nn.softplus(raw_scale))
    return independent(prior, event_shape).log_prob(z) + independent(
      likelihood, event_shape
    ).log_prob(x)

  def proposal(parameters):
    weight, raw_scale, bias = parameters
    return independent(
      tfd.Normal(x * weight + bias, tf.nn.softplus(raw_scale + 0.5) + 0 * x), event_shape
    )

  return oracles.Problem(parameters, target, proposal)


def joint_problem(kind):
  """Two independent latents of shapes [] and [2], as a JointDistribution, with shared variables."""
  rng = np.random.default_rng(2)
  x = tf.constant(rng.normal(size=[3, 2]))
  parameters = [tf.Variable(rng.normal(size=shape)) for shape in ([], [2], [2])]

  def parts(z):
    return (z["one"], z["two"]) if kind == "named" else z

  def target(parameters, z):
    one, two = parts(z)
    scalar, vector, _ = parameters
    mean = tf.sin(two * vector) + one[..., None]
    return (
      tfd.Normal(scalar, 1.25).log_prob(one)
      + independent(tfd.Normal(vector, tf.exp(scalar)), [2]).log_prob(two)
      + independent(tfd.Normal(mean, tf.constant(0.75, tf.float64)), [2]).log_prob(x)
    )

  def proposal(parameters):
    scalar, vector, raw_scale = parameters
    one = tfd.Normal(tf.reduce_sum(x * vector, -1), tf.exp(scalar))
    two = independent(tfd.Normal(x * raw_scale, tf.nn.softplus(raw_scale) + 0 * x), [2])
    if kind == "named":
      return tfd.JointDistributionNamed({"one": one, "two": two})
    return tfd.JointDistributionSequential([one, two])

  return oracles.Problem(parameters, target, proposal)


def hierarchy_problem():
  """q(z1) q(z2 | z1) and p(z1) p(z2 | z1) p(x | z2), of latents [2] and [4], sharing variables."""
  rng = np.random.default_rng(3)
  x = tf.constant(rng.normal(size=[3, 2]))
  parameters = [tf.Variable(0.5 * rng.normal(size=shape)) for shape in ([2, 4], [2], [2, 4])]
  one = tf.constant(1.0, tf.float64)

  def target(parameters, z):
    matrix, shift, _ = parameters
    z1, z2 = z
    return (
      independent(tfd.Normal(shift, one), [2]).log_prob(z1)
      + independent(tfd.Normal(tf.tanh(z1 @ matrix), 1.5 * one), [4]).log_prob(z2)
      + independent(tfd.Normal(z2 @ tf.transpose(matrix), 0.5 * one), [2]).log_prob(x)
    )

  def proposal(parameters):
    matrix, shift, scale = parameters
    return tfd.JointDistributionSequential(
      [
        independent(tfd.Normal(x * shift, tf.exp(shift) + 0 * x), [2]),
        lambda z1: independent(
          tfd.Normal(tf.sin(z1 @ matrix) + z1 @ scale, tf.nn.softplus(z1 @ scale)), [4]
        ),
      ]
    )

  return oracles.Problem(parameters, target, proposal)


def all_operations(graph):
  """The operations of a function's graph and of every function that it calls, recursively."""
  for op in graph.get_operations():
    yield op
    for attribute in op.node_def.attr.values():
      if attribute.func.name:
        yield from all_operations(graph.get_function(attribute.func.name).graph)
