"""Tests of `diagnostics.compare_sequences`: fivo_dreg has fivo's mean and less noise."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from dregs_tf import diagnostics, models

tfd = tfp.distributions


class Shifted(models.StateSpaceModel):
  """z_t ~ N(a z_{t-1}, 1), x_t ~ N(z_t, 1), and a proposal with two parameters near its optimum."""

  def __init__(self):
    super().__init__()
    self.a = self.add_weight(shape=(), initializer="ones")
    self.shift = self.add_weight(shape=(2,), initializer="zeros")

  def prior(self, z_previous, state):
    return tfd.Normal(0.0 if z_previous is None else 0.5 * self.a * z_previous, 1.0)

  def proposal(self, x, z_previous, state):
    past = 0.0 if z_previous is None else 0.5 * z_previous
    loc = (past + x) / 2 + 0.2 + self.shift[0]
    return tfd.Normal(loc, 0.7 * tf.exp(self.shift[1] + 0 * loc))

  def likelihood(self, z, state):
    return tfd.Normal(z, 1.0)


def test_dreg_has_less_noise_and_no_bias():
  """Of 300 measurements; the seed is fixed, and p is above 0.001 in 998 of 1000 of them."""
  x = np.random.default_rng(0).normal(size=[3, 2]).astype(np.float32)
  model = Shifted()
  batch, options = (np.array([2, 1, 2]), x), {"num_measurements": 300, "measure_cost": True}
  found = diagnostics.compare_sequences(model, batch, ["fivo_dreg"], [6], **options)
  fivo, dreg = found.rows
  assert all(row.milliseconds > 0 for row in found.rows)
  assert [fivo.bound, dreg.bound, dreg.reference] == ["fivo", "fivo_dreg", "fivo"]
  assert found.num_coordinates == 2
  assert dreg.variance < fivo.variance / 2
  assert dreg.p_value > 0.001
  assert math.isfinite(dreg.snr)
  assert "take fivo_dreg" in found.recommendation


def test_bad_arguments_are_refused():
  model, x = Shifted(), np.zeros([3, 2], np.float32)
  with pytest.raises(ValueError, match=r"bound .*got 'rws'"):
    diagnostics.compare_sequences(model, x, ["rws"])
  with pytest.raises(TypeError, match="StateSpaceModel"):
    diagnostics.compare_sequences(models.VAE(np.full(2, 0.5)), x)
  with pytest.raises(ValueError, match="num_measurements"):
    diagnostics.compare_sequences(model, x, num_measurements=3)
