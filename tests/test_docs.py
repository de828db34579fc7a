"""Tests that the README and the documentation show what runs, and list what there is."""

import functools
import json
import pathlib
import re

import keras
import numpy as np
import pytest
from sklearn import datasets

from dregs_tf import bounds, diagnostics
from dregs_tf.training import config

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TUTORIALS = sorted(path.name for path in (ROOT / "docs" / "tutorials").glob("*.ipynb"))

# What makes an example take long, and what it is replaced by.
REDUCED = {
  r"\bepochs=\d+": "epochs=1",
  r"\bnum_samples=\d{3,}": "num_samples=40",
  r'\bcompile\("adam"': 'compile("sgd"',  # half as many operations to trace
  r"\boptimizers\.Adam\b": "optimizers.SGD",
  r"\bnum_samples=\[2, 8, 64\]": "num_samples=[2, 8]",
  r"\brange\(100\)": "range(3)",
  r"\bsample\(60, 100\b": "sample(60, 10",
  r"\bsample\(500, 20\b": "sample(50, 5",
}


def read(name: str) -> str:
  return (ROOT / name).read_text("utf-8")


def python_blocks(name: str) -> list[str]:
  return re.findall(r"^```python\n(.*?)^```", read(name), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def small(tmp_path, monkeypatch):
  """Gives a folder to write into, 340 digits and few measurements; XLA, slow to compile, is off."""
  monkeypatch.chdir(tmp_path)
  load = datasets.load_digits

  def load_digits(return_X_y=False):  # noqa: N803
    images, labels = load(return_X_y=True)
    if return_X_y:
      return images[:340], labels[:340]
    digits = load()
    digits.data = images[:340]
    return digits

  monkeypatch.setattr(datasets, "load_digits", load_digits)
  for name in ("compare", "compare_sequences"):
    fewer = functools.partial(getattr(diagnostics, name), num_measurements=30, measure_cost=False)
    monkeypatch.setattr(diagnostics, name, fewer)
  monkeypatch.setattr("keras.src.trainers.trainer.model_supports_jit", lambda model: False)


def run(blocks: list[str], name: str) -> dict:
  """Runs code blocks one after another, with small settings; returns their names."""
  names = {"__name__": name}
  for number, block in enumerate(blocks, start=1):
    for pattern, replacement in REDUCED.items():
      block = re.sub(pattern, replacement, block)
    exec(compile(block, f"{name}, block {number}", "exec"), names)
  return names


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_the_code_of_a_page_runs(page, small):
  run(python_blocks(page), page)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs(name, small):
  notebook = json.loads(read(f"docs/tutorials/{name}"))
  cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  assert all(cell["execution_count"] for cell in cells)  # Its outputs are kept.
  run(["".join(cell["source"]) for cell in cells], name)


def images(count: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 2, (count, 64)).astype("float32")


def test_the_training_step_of_ones_own(small):
  model = run(python_blocks("docs/own_model.md")[:1], "own_model.md")["MyVAE"]()
  model.compile("adam")
  history = model.fit(images(40), batch_size=10, epochs=3, verbose=0).history["bound"]
  assert history[-1] > history[0]
  assert np.isfinite(model.evaluate(images(40), verbose=0))
  # The mean over all examples, whatever their batches.
  model.objective = lambda x: x[:, 0]
  model.make_test_function(force=True)
  bound = model.evaluate(images(40), batch_size=16, verbose=0)
  np.testing.assert_allclose(bound, images(40)[:, 0].mean(), rtol=1e-6)


def test_the_model_of_the_readme_learns_in_mixed_precision(small):
  keras.config.set_dtype_policy("mixed_bfloat16")
  try:
    model = run(python_blocks("README.md")[:1], "README.md")["model"]
    assert model.trunk.compute_dtype == "bfloat16"
    history = model.fit(images(40), batch_size=10, epochs=3, verbose=0).history["bound"]
    assert history[-1] > history[0]
    assert model.log_likelihood(images(3), num_samples=50).dtype == "float32"
    model.save("m.keras")
    loaded = keras.models.load_model("m.keras")
    likelihoods = [m.log_likelihood(images(3), num_samples=50) for m in (model, loaded)]
    np.testing.assert_array_equal(*likelihoods)
  finally:
    keras.config.set_dtype_policy("float32")


def test_the_readme_names_every_bound():
  table = re.search(r"^\| objective \|.*?\n\n", read("README.md"), flags=re.DOTALL | re.MULTILINE)
  assert sorted(re.findall(r"`([a-z_]+)`", table[0])) == sorted(bounds.names())


def test_the_table_of_bounds():
  rows = re.findall(r"^\| `(\w+)`.*\| (yes|no) \|", read("docs/which_objective.md"), re.MULTILINE)
  is_unbiased = {name: bounds.get(name).is_unbiased(num_samples=8) for name in bounds.names()}
  assert {name: answer == "yes" for name, answer in rows} == is_unbiased
  assert [name for name, _ in rows] == list(bounds.names())


def test_every_flag_is_listed():
  rows = re.findall(r"^\| (`--[^|]+) \|", read("docs/flags.md"), flags=re.MULTILINE)
  listed = [name for row in rows for name in re.findall(r"`--(\w+)`", row)]
  assert set(listed) == set(config.TrainConfig.__dataclass_fields__) | {"debug"}


def test_the_map_of_the_code_names_files_that_exist():
  paths = re.findall(r"`((?:dregs_tf|experiments|bin|docs|tests)/[\w./]*)`", read("README.md"))
  assert paths
  assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_and_pictures_exist(page):
  links = re.findall(r"\]\((?!https?:)([^)#]+)", read(page))
  # The site makes a page of every notebook.
  files = [re.sub(r"(tutorials/.*)\.md", r"\1.ipynb", link) for link in links]
  assert [file for file in files if not ((ROOT / page).parent / file).exists()] == []
