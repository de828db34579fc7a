"""A small nonlinear model of sequences with given noise, and estimators written out by hand."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import sequential

tfd = tfp.distributions

VALUES = (0.7, 0.5, 0.0, 0.5, 0.2, 0.6)


class GivenNoise(tfd.Normal):
  """A Normal whose samples are loc + scale * noise, for noise [num_particles, batch_size]."""

  def __init__(self, loc, scale, noise):
    super().__init__(loc, scale)
    self._noise = noise

  @classmethod
  def _parameter_properties(cls, dtype, num_classes=None):
    return tfd.Normal._parameter_properties(dtype, num_classes)

  def _sample_n(self, n, seed=None):
    # A joint distribution asks for fewer to find out shapes.
    if self.batch_shape.rank == 1:
      return self.loc + self.scale * self._noise[:n]
    return (self.loc + self.scale * self._noise[: self.batch_shape[0]])[tf.newaxis]


class Observed:
  """The density of the first part of an observation; the others are noise."""

  def __init__(self, distribution):
    self._distribution = distribution

  def log_prob(self, x):
    return self._distribution.log_prob(x[..., 0])


class Nonlinear:
  """A model with a state, whose parameters all parts share.

  An observation x [batch_size, 1 + num_particles] is a number, and the noise that the latents are
  drawn with. The parameters are scalars, or of shape [num_particles, batch_size].
  """

  def __init__(self, parameters):
    self.parameters = parameters

  def initial_state(self, batch_size):
    return 0.8 * self.parameters[4] + tf.zeros([batch_size], tf.float64)

  def prior(self, z_previous, state):
    a, *_ = self.parameters
    if z_previous is None:
      return tfd.Normal(a + 0.3 * state, 1.0 + 0 * state)
    return tfd.Normal(tf.sin(z_previous * a) + 0.3 * state, 0.8 + 0 * state)

  def proposal(self, x, z_previous, state):
    _, b, c, d, _, f = self.parameters
    noise = tf.transpose(x[:, 1:])
    if z_previous is None:
      loc = b * x[:, 0] + f * state
      return GivenNoise(loc, tf.nn.softplus(c + 0 * loc), noise)
    loc = b * x[:, 0] + tf.tanh(z_previous * d) + f * tf.sin(state)
    return GivenNoise(loc, tf.nn.softplus(c + 0.2 * z_previous * b), noise)

  def likelihood(self, z, state):
    _, _, _, d, e, _ = self.parameters
    return Observed(tfd.Normal(z * d + tf.sin(state * e) + 0.5 * tf.sin(z), 1.0 + 0 * z))

  def next_state(self, state, z, x):
    _, b, _, _, e, _ = self.parameters
    return tf.tanh(state * e + 0.5 * z * b + x[:, 0])


class Stateless(Nonlinear):
  """The same without a state."""

  def initial_state(self, batch_size):
    return None

  def next_state(self, state, z, x):
    return None

  def prior(self, z_previous, state):
    return super().prior(z_previous, tf.constant(0.1, tf.float64))

  def proposal(self, x, z_previous, state):
    return super().proposal(x, z_previous, tf.constant(0.1, tf.float64))

  def likelihood(self, z, state):
    return super().likelihood(z, tf.constant(0.1, tf.float64))


def variables():
  return [tf.Variable(value, dtype=tf.float64) for value in VALUES]


def observations(batch_size, num_steps, num_particles, seed=0):
  rng = np.random.default_rng(seed)
  return tf.constant(rng.normal(size=[batch_size, num_steps, 1 + num_particles]))


def upstream(batch_size):
  """Counts every example differently, so that none hides another."""
  return tf.range(1, batch_size + 1, dtype=tf.float64) / 2


def gradient_of(bound, model, x, num_particles, **options):
  """The estimate, and the gradient of its weighted sum, a vector."""
  with tf.GradientTape() as tape:
    tape.watch(model.parameters)
    estimate = sequential.estimate(bound, model, x, num_particles, seed=1, **options)
  gradient = tape.gradient(
    estimate.objective,
    model.parameters,
    upstream(x.shape[0]),
    unconnected_gradients="zero",
  )
  return estimate, np.array(gradient)


def literal_gradient(
  make, values, x, num_particles, ancestors, begins, squared="own", weights=None
):
  """A gradient of FIVO, block by block, with a copy of the parameters for each of their roles.

  make: makes a model of parameters. ancestors: [T, num_particles, batch_size]. begins: the steps at
  which a block begins. squared: "own", the block's own latents have the squared weight;
  "everything", the past has, too; "nothing", and the scores are left in.
  """
  shape = [num_particles, x.shape[0]]
  weights = upstream(x.shape[0]) if weights is None else weights

  def copies():
    return [tf.fill(shape, tf.constant(value, tf.float64)) for value in values]

  def descend(leaf):
    rows = tf.gather(tf.transpose(leaf), tf.transpose(ancestors[t]), batch_dims=1)
    return tf.transpose(rows)

  roles = [{role: copies() for role in ("own", "model", "carry")} for _ in begins]
  blocks = []
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(roles)
    z, states = None, None
    for t in range(x.shape[1]):
      if t in begins:
        role = roles[len(blocks)]
        models = {name: make(parameters) for name, parameters in role.items()}
        models["density"] = models["own"] if squared == "nothing" else make(copies())
        blocks.append(tf.zeros(shape, tf.float64))
        if t > 0:
          z = descend(z)
          past = states["carry"]
          states = {name: None if past is None else descend(past) for name in models}
      if t == 0:
        states = {name: model.initial_state(x.shape[0]) for name, model in models.items()}
      q = models["own"].proposal(x[:, t], z, states["own"])
      new = q.loc + q.scale * tf.transpose(x[:, t, 1:])
      log_q = models["density"].proposal(x[:, t], z, states["density"]).log_prob(new)
      log_p = models["model"].prior(z, states["model"]).log_prob(new)
      log_p += models["model"].likelihood(new, states["model"]).log_prob(x[:, t])
      blocks[-1] += log_p - log_q
      states = {name: m.next_state(states[name], new, x[:, t]) for name, m in models.items()}
      z = new
  total = np.zeros(len(values))
  for j, log_weights in enumerate(blocks):
    u = tf.nn.softmax(log_weights, axis=0)
    for i, parameters in enumerate(roles[: j + 1]):
      for name, copies_of_role in parameters.items():
        is_squared = squared == "everything" and name != "model"
        found = tape.gradient(
          log_weights,
          copies_of_role,
          u * weights * (u if is_squared else 1.0),
          unconnected_gradients="zero",
        )
        is_own = squared == "own" and name == "own" and i == j
        total += [np.sum(part * (u if is_own else 1.0)) for part in found]
  return total
