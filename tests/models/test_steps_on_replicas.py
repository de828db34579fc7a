"""Tests of losses, statistics, noise, weights and calls on two replicas, in another process."""

import json

import numpy as np
import pytest

from tests import settings
from tests.models import on_replicas
from tests.processes import Forked

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results():
  """What `on_replicas` finds; XLA compiles as in the tests' own process."""
  status, out, err = Forked(on_replicas.main, XLA_FLAGS=settings.XLA_FLAGS).finish(300)
  assert status == 0, err[-3000:]
  return json.loads(out.splitlines()[-1])


def test_losses_and_weights_are_those_of_one_device(results):
  found = results["losses_and_weights"]
  for name in ("plain", "tracked"):
    for one, two in zip(*(found[f"{name}/{number}"] for number in (1, 2)), strict=True):
      np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6, err_msg=name)


def test_replicas_agree_on_statistics_and_draw_noise_of_their_own(results):
  found = results["statistics_and_noise"]
  x = np.random.RandomState(0).binomial(1, 0.4, (9, 6))
  mean = np.zeros(6)
  for batch in (x[:4], x[4:8]):
    mean = 0.75 * mean + 0.25 * batch.mean(axis=0)
  np.testing.assert_allclose(found["jit"]["mean"], [mean] * 2, rtol=1e-5)
  mean = 0.75 * mean + 0.25 * x[8]
  np.testing.assert_allclose(found["graph"]["mean"], [mean] * 2, rtol=1e-5)
  for name in ("graph", "jit"):
    first, second = found[name]["decoder"]
    assert first == second
    assert np.all(np.isfinite(first))
    assert np.any(np.array(first) != 1)
    first, second = found[name]["seeds"]
    assert first != second
    assert np.isfinite(found[name]["bound"])
  assert found["graph"] == found["again"]


def test_autograph_does_not_convert_a_step_on_replicas(results):
  """It would convert the whole library, which takes longer than to trace it."""
  assert "ENABLED" not in results["statistics_and_noise"]["autograph"]


def test_methods_are_called_once_a_step_on_each_replica(results):
  for name in ("prior", "proposal", "likelihood"):
    assert results["calls"][f"{name}_calls"] == [4.0], "two steps on two replicas"


def test_variables_that_keras_does_not_track_are_refused(results):
  assert "does not hold: location:0 [3], scale:0 [3]. They" in results["variables_held"]


def test_a_model_of_ones_own_is_built_and_its_replicas_draw_different_noise(results):
  drawn = results["noise"]["drawn"]
  # Two steps on two replicas, half of the batch of 8 on each.
  assert [size for size, _ in drawn] == [4] * 4
  assert len({total for _, total in drawn}) == 4
  assert np.isfinite(results["noise"]["variance"][0])
