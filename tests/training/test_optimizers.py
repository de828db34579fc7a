"""Tests of --learning_rate_schedule: the rate of each step, and exact resumption."""

import numpy as np
import pytest

from dregs_tf import data
from dregs_tf.training import config, optimizers, runners
from dregs_tf.training.errors import ConfigError
from dregs_tf.training.run_directory import Run


def test_the_rates_of_a_small_data_set():
  """With 11 images in batches of 5, a pass has 2 steps and leaves out one image.

  Stages 0 to 6 take 1, 3, 9, 27, 81, 243 and 729 passes: steps 2, 8, 26, 80, 242, 728 and 2186 are
  the first ones of stages 1 to 7.
  """
  values = {"learning_rate": 0.5, "learning_rate_schedule": "burda", "batch_size": 5}
  optimizer = optimizers.optimizer(config.TrainConfig(**values), num_images=11)
  firsts = [0, 2, 8, 26, 80, 242, 728, 2186]
  lasts = [1, 7, 25, 79, 241, 727, 2185, 10**9]
  # A stage's rate is the one before it times 10^(-1/7) = 0.719685673.
  rates = [0.5, 0.359842837, 0.258973734, 0.186379686, 0.134134790, 0.096534886, 0.069474775, 0.05]
  for first, last, rate in zip(firsts, lasts, rates, strict=True):
    for step in (first, last):
      optimizer.iterations.assign(step)
      np.testing.assert_allclose(optimizer.learning_rate, rate, rtol=1e-6, err_msg=f"step {step}")


def test_a_constant_rate_is_no_schedule():
  optimizer = optimizers.optimizer(config.TrainConfig(learning_rate=0.5), num_images=11)
  optimizer.iterations.assign(10**6)
  assert float(optimizer.learning_rate) == 0.5


def test_another_schedule_is_another_run():
  constant, burda = (config.TrainConfig(learning_rate_schedule=s) for s in ("constant", "burda"))
  assert constant.directory.name == "digits_generative_iwae_dreg_K64_seed0"
  assert burda.directory.name == "digits_generative_iwae_dreg_K64_burda_seed0"
  with pytest.raises(ConfigError, match="--learning_rate_schedule was constant, now burda"):
    burda.check_resumes(constant)
  with pytest.raises(ConfigError, match="--learning_rate_schedule.*constant, burda.*'cosine'"):
    config.TrainConfig(learning_rate_schedule="cosine")


def test_a_run_resumes_on_its_schedule(tmp_path):
  """A pass has 2 steps: the run is resumed at step 1, and the rate falls after step 2."""
  values = {"bound": "rws_dreg", "num_samples": 2, "latent_dim": 2, "jit_compile": False}
  values |= {"learning_rate": 0.01, "learning_rate_schedule": "burda", "batch_size": 600}
  settings = config.TrainConfig(logdir=str(tmp_path), **values)
  Run(tmp_path).write_config(settings)
  assert Run(tmp_path).read_config() == settings
  images = data.load("digits")

  def fit(model, start, end):
    options = {"start_step": start, "num_steps": end - start, "image_shape": images.image_shape}
    model.fit(data.train_batches(images.train, 600, 0, **options), shuffle=False, verbose=0)

  model = runners.build_model(settings, images)
  fit(model, 0, 1)
  Run(tmp_path).save(model, 1)
  resumed = Run(tmp_path).load(1)
  assert float(resumed.optimizer.learning_rate) == pytest.approx(0.01)
  for each in (model, resumed):
    fit(each, 1, 4)
    assert float(each.optimizer.learning_rate) == pytest.approx(0.00719685673)
  for ours, theirs in zip(resumed.get_weights(), model.get_weights(), strict=True):
    np.testing.assert_array_equal(ours, theirs)
