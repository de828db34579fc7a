"""Tests of a stranger's bound, distribution, callback and data, without touching the package."""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import bounds, diagnostics, models

tfd = tfp.distributions


class Tilted(tfd.Distribution):
  """A density that TFP lacks: loc + scale sinh(e + tilt) for a normal e; skewed, support R."""

  def __init__(self, loc, scale, tilt, name="Tilted"):
    parameters = dict(locals())
    self.loc, self.scale, self.tilt = loc, scale, tilt
    super().__init__(
      dtype=loc.dtype,
      reparameterization_type=tfd.FULLY_REPARAMETERIZED,
      validate_args=False,
      allow_nan_stats=True,
      parameters=parameters,
      name=name,
    )

  @classmethod
  def _parameter_properties(cls, dtype, num_classes=None):
    return dict.fromkeys(("loc", "scale", "tilt"), tfp.util.ParameterProperties())

  def _event_shape(self):
    return tf.TensorShape([])

  def _sample_n(self, n, seed=None):
    shape = tf.concat([[n], tf.shape(self.loc)], axis=0)
    noise = tf.random.stateless_normal(shape, tfp.random.sanitize_seed(seed), dtype=self.dtype)
    return self.loc + self.scale * tf.sinh(noise + self.tilt)

  def _log_prob(self, value):
    stretched = (value - self.loc) / self.scale
    noise = tf.asinh(stretched) - self.tilt
    slope = 0.5 * tf.math.log1p(stretched**2)
    return (
      tfd.Normal(tf.zeros([], self.dtype), 1.0).log_prob(noise) - tf.math.log(self.scale) - slope
    )


def between(log_weights):
  """A bound between the ELBO and L_K, of a stranger's own."""
  l_k = tf.reduce_logsumexp(log_weights, axis=0) - np.log(log_weights.shape[0])
  return 0.3 * tf.reduce_mean(log_weights, axis=0) + 0.7 * l_k


class Mine(models.LatentVariableModel):
  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.encoder = keras.layers.Dense(3 * 2)
    self.decoder = keras.layers.Dense(5)

  def prior(self, context):
    return tfd.Independent(tfd.Normal(tf.zeros(2), 1.0), 1)

  def proposal(self, x, context):
    loc, raw, tilt = tf.split(self.encoder(x), 3, axis=-1)
    return tfd.Independent(Tilted(loc, tf.nn.softplus(raw), tilt), 1)

  def likelihood(self, z, context):
    return tfd.Independent(tfd.Normal(self.decoder(z), 0.5), 1)


class Recorder(keras.callbacks.Callback):
  def __init__(self):
    super().__init__()
    self.values = []

  def on_epoch_end(self, epoch, logs=None):
    self.values.append(
      (logs["bound"], logs["val_bound"], float(self.model.bound.value([[0.0]])[0]))
    )


def my_data(seed, num_batches):
  def generate():
    random = np.random.default_rng(seed)
    for _ in range(num_batches):
      z = random.normal(size=(7, 2)).astype("float32")
      yield z @ np.float32([[1, 0, 2, 1, -1], [0, 1, 1, -2, 0]]) + 0.1

  return tf.data.Dataset.from_generator(
    generate, output_signature=tf.TensorSpec([None, 5], tf.float32)
  )


def test_a_strangers_parts_fit_together():
  keras.utils.set_random_seed(0)
  model, recorder = Mine(), Recorder()
  bound = bounds.from_function(between, name="between")
  model.compile(keras.optimizers.Adam(0.02), bound=bound, num_samples=6, seed=1, jit_compile=False)
  model.fit(
    my_data(0, 30), validation_data=my_data(1, 3), epochs=3, callbacks=[recorder], verbose=0
  )
  trained, valid, at_zero = zip(*recorder.values, strict=True)
  assert trained[-1] > trained[0] + 1 and valid[-1] > valid[0]
  np.testing.assert_allclose(at_zero, 0, atol=1e-6)
  x = next(iter(my_data(2, 1)))
  result = diagnostics.compare(
    model, x, [bound, "iwae_dreg"], num_samples=6, num_measurements=60, measure_cost=False
  )
  assert [row.unbiased for row in result.rows] == [True] * 4
  assert not any(row.is_biased for row in result.rows)
  assert np.isfinite(model.log_likelihood(x, 50)).all()


def test_the_strangers_gradient_is_the_surrogates():
  """On the same samples, in float64: u on the model, u - F_ii on the path."""
  x = tf.constant(np.random.default_rng(0).normal(size=[3]))
  loc = tf.Variable(x * 0.3)
  tilt = tf.Variable(0.2, dtype=tf.float64)
  one = tf.constant(1.0, tf.float64)

  def log_joint(z):
    return tfd.Normal(0 * one, one).log_prob(z) + tfd.Normal(z, one).log_prob(x)

  with tf.GradientTape(persistent=True) as tape:
    proposal = Tilted(loc, one, tilt + 0 * x)
    mine = bounds.from_function(between, "between")
    estimate = bounds.estimate(mine, log_joint, proposal, 5, seed=3)
    z = estimate.samples
    hat = Tilted(tf.stop_gradient(loc), one, tf.stop_gradient(tilt) + 0 * x)
    log_w = log_joint(z) - hat.log_prob(z)
    w = tf.stop_gradient(tf.nn.softmax(log_w, axis=0))
    literal = tf.reduce_sum((0.3 / 5 + 0.7 * w**2) * log_w, axis=0)
  for variable in (loc, tilt):
    actual, expected = (tape.gradient(t, variable) for t in (estimate.objective, literal))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
