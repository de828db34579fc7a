"""Tests of what an evaluation reports of its trust, and of runs on images with missing pixels."""

import dataclasses

import numpy as np
import pytest

from dregs_tf import data
from dregs_tf.importance_weights import Diagnostics
from dregs_tf.training import config, trust
from dregs_tf.training.errors import ConfigError


def test_figures_of_images_are_summed_up():
  figures = Diagnostics(
    value=np.array([-3.0, -1.0, -5.0]),
    standard_error=np.array([0.3, 0.0, 0.4]),
    effective_sample_size=np.array([2.0, 9.0, 4.0]),
    pareto_k=np.array([0.7, np.nan, 0.9]),
    upper=np.array([-2.0, -1.0, -3.0]),
  )
  assert trust.summary(figures) == pytest.approx(
    {
      "num_images": 3,
      "log_likelihood": -3,
      "standard_error": 2 / np.sqrt(3),
      "sampling_error": 0.5 / 3,
      "upper": -2,
      "effective_sample_size": 4,
      "untrusted": 2 / 3,
    }
  )
  row = {"image": 2, "log_likelihood": -5, "standard_error": 0.4, "effective_sample_size": 4}
  assert trust.rows(figures)[2] == row | {"pareto_k": 0.9, "upper": -3}


@pytest.mark.parametrize(
  "fields", [{"missing_fraction": 1.0}, {"missing_fraction": -0.1}, {"missing_fraction": "a"}]
)
def test_wrong_fractions_are_refused(fields):
  with pytest.raises(ConfigError, match=f"--missing_fraction .*got {fields['missing_fraction']!r}"):
    config.TrainConfig(**fields)
  with pytest.raises(ConfigError, match=r"--missing_fraction.*--task=structured"):
    config.TrainConfig(missing_fraction=0.5, task="structured")


def test_pixels_are_missing_at_random_and_for_good():
  images = data.load("digits")
  incomplete = data.with_missing(images, 0.3, seed=1)
  masks = [np.isnan(getattr(incomplete, split)) for split in ("train", "valid", "test")]
  # 0.3 of 16,000 pixels, within 5 standard errors of 0.0036.
  assert all(abs(mask.mean() - 0.3) < 0.02 for mask in masks)
  assert np.any(masks[1][:200] != masks[2][:200])
  np.testing.assert_array_equal(np.isnan(data.with_missing(images, 0.3, seed=1).train), masks[0])
  assert np.any(np.isnan(data.with_missing(images, 0.3, seed=2).train) != masks[0])
  kept = ~masks[0]
  np.testing.assert_array_equal(incomplete.train[kept], images.train[kept])
  expected = [images.train[kept[:, i], i].mean(dtype=np.float64) for i in range(64)]
  np.testing.assert_allclose(incomplete.mean, expected, rtol=1e-6)
  with pytest.raises(data.DataError, match=r"fraction .*1\.5"):
    data.with_missing(images, 1.5, seed=1)
  # The pixels that are there are what they are in whole images, in training and evaluation.
  shape = {"image_shape": images.image_shape}
  for make in (
    lambda images: data.eval_batches(images.valid, 7, **shape),
    lambda images: data.train_batches(images.train, 7, seed=3, **shape),
  ):
    whole, part = (next(iter(make(each))).numpy() for each in (images, incomplete))
    assert 0 < np.isnan(part).mean() < 1
    np.testing.assert_array_equal(np.where(np.isnan(part), whole, part), whole)
  nowhere = dataclasses.replace(images, train=np.full_like(images.train, np.nan))
  np.testing.assert_array_equal(nowhere.mean, np.full(64, 0.5, np.float32))
