"""Tests that what the README shows runs as it stands."""

import pathlib
import re

import keras
import numpy as np

from dregs_tf import bounds
from dregs_tf.training import config

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def digits(count: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 2, (count, 64)).astype("float32")


def run(example: str) -> dict:
  names = {"__name__": "readme"}
  exec(compile(example, "README.md", "exec"), names)
  return names


def test_own_keras_model():
  names = run(EXAMPLES[0])
  model = names["MyVAE"]()
  model.compile("adam")
  history = model.fit(digits(40), batch_size=10, epochs=3, verbose=0).history["bound"]
  assert history[-1] > history[0]
  assert np.isfinite(model.evaluate(digits(40), verbose=0))
  # The mean over all examples, whatever their batches.
  model.objective = lambda x: x[:, 0]
  model.make_test_function(force=True)
  bound = model.evaluate(digits(40), batch_size=16, verbose=0)
  np.testing.assert_allclose(bound, digits(40)[:, 0].mean(), rtol=1e-6)


def test_own_latent_variable_model_in_mixed_precision():
  keras.config.set_dtype_policy("mixed_bfloat16")
  try:
    model = run(EXAMPLES[1])["model"]
    assert model.trunk.compute_dtype == "bfloat16"
    history = model.fit(digits(40), batch_size=10, epochs=3, verbose=0).history["bound"]
    assert history[-1] > history[0]
    assert np.isfinite(model.evaluate(digits(10), verbose=0)[0])
    assert model.log_likelihood(digits(3), num_samples=50).dtype == "float32"
  finally:
    keras.config.set_dtype_policy("float32")


def test_own_latent_variable_model(tmp_path):
  model = run(EXAMPLES[1])["model"]
  history = model.fit(digits(40), batch_size=10, epochs=3, verbose=0).history["bound"]
  assert history[-1] > history[0]
  assert model.log_likelihood(digits(3), num_samples=50).shape == (3,)
  assert model.sample(16).shape == (16, 64)
  assert model.reconstruct(digits(3)).shape == (3, 64)
  model.save(tmp_path / "m.keras")
  loaded = keras.models.load_model(tmp_path / "m.keras")
  likelihoods = [m.log_likelihood(digits(3), num_samples=50) for m in (model, loaded)]
  np.testing.assert_array_equal(*likelihoods)


def test_comparison_of_estimators(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shorter = EXAMPLES[2].replace("epochs=10", "epochs=1").replace("num_samples=64", "num_samples=4")
  names = run(EXAMPLES[1] + shorter)
  assert {row.bound for row in names["result"].rows} >= {"iwae", "iwae_dreg", "jvi", "jvi_dreg"}
  assert (tmp_path / "comparison.png").exists()


def test_the_table_of_bounds_is_complete():
  table = re.findall(r"^\| `(\w+)`", README, flags=re.MULTILINE)
  assert tuple(table) == bounds.names()


def test_every_flag_is_listed():
  rows = re.findall(r"^\| (`--[^|]+) \|", README, flags=re.MULTILINE)
  listed = [name for row in rows for name in re.findall(r"`--(\w+)`", row)]
  assert set(listed) == set(config.TrainConfig.__dataclass_fields__) | {"debug"}
