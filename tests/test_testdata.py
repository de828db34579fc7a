"""Tests that the fixtures are what their script makes, and that a run takes them."""

import pathlib
import runpy

import numpy as np
import pytest

from dregs_tf import data
from dregs_tf.training import config, runners

FOLDER = pathlib.Path(__file__).parents[1] / "testdata"


@pytest.mark.parametrize("name", ["stripes.npz", "chardata.mat"])
def test_fixtures_are_what_their_script_makes(name, tmp_path):
  script = runpy.run_path(str(FOLDER / "make_testdata.py"))
  script["main"].__globals__["FOLDER"] = tmp_path
  script["main"]()
  for split in ("train", "valid", "test"):
    made = getattr(data.load(str(tmp_path / name)), split)
    np.testing.assert_array_equal(made, getattr(data.load(str(FOLDER / name)), split))


def test_rectangles_come_out_upright():
  """Every image is a rectangle of rows times columns: transposed or shifted ones would not be."""
  images = data.load(str(FOLDER / "chardata.mat"))
  assert images.image_shape == (28, 28)
  for image in images.test.reshape(-1, 28, 28) > 0:
    np.testing.assert_array_equal(image, np.outer(image.any(axis=1), image.any(axis=0)))
  script = runpy.run_path(str(FOLDER / "make_testdata.py"))
  random = np.random.default_rng(0)
  script["stripes"](random, 120)
  expected = script["rectangles"](random, 80)[60:].reshape(20, 784)
  np.testing.assert_allclose(images.test, expected, rtol=1e-6)


def test_a_run_on_a_file(tmp_path):
  settings = config.TrainConfig(
    dataset=str(FOLDER / "stripes.npz"),
    task="structured",
    num_samples=3,
    num_backward_samples=2,
    latent_dim=2,
    batch_size=8,
    max_steps=3,
    jit_compile=False,
    logdir=str(tmp_path),
  )
  assert np.isfinite(runners.train(settings)["test_bound"])
