"""Installs dregs_tf: what the package needs, and in which versions it was tried."""

import ast
import pathlib

import setuptools

_ROOT = pathlib.Path(__file__).resolve().parent

# The lower bound is what `.ci/run oldest` installs (.ci/oldest-requirements.txt), the upper one the
# first version that was not tried.
_TENSORFLOW = ">=2.20.0,<2.22"
_INSTALL_REQUIRES = [
  "absl-py>=2.1.0,<3",
  # Not imported here: TensorFlow Datasets imports it when it downloads, without declaring it.
  "importlib_resources>=6.4.0,<8",
  "keras>=3.10.0,<3.16",
  "matplotlib>=3.8.4,<3.12",
  "numpy>=1.26.4,<2.5",
  "scikit-learn>=1.4.2,<1.10",
  "scipy>=1.11.4,<1.18",
  # Not imported here: tf.summary imports it, and it is the command that shows a run's logs.
  "tensorboard>=2.20.0,<2.22",
  f"tensorflow{_TENSORFLOW}",
  "tensorflow-datasets>=4.9.10,<4.10",
  # The extra brings tf_keras, without which TensorFlow Probability cannot be imported.
  "tensorflow-probability[tf]>=0.25.0,<0.26",
  "tqdm>=4.66.6,<5",
]

_TEST_REQUIRES = [
  # Not imported: `python -m build` makes what is distributed.
  "build>=1.2.2,<2",
  "h5py>=3.11.0,<4",
  "hypothesis>=6.100.8,<7",
  "mpmath>=1.3.0,<1.5",
  # Not imported: the type checker. A new version may find more.
  "mypy>=2.4.1,<2.5",
  "packaging>=24.0,<27",
  "pytest>=8.2.2,<10",
  # Not imported: `pytest -n`.
  "pytest-xdist>=3.6.1,<4",
  # Not imported: the linter. A new version may format differently.
  "ruff>=0.17.5,<0.18",
]


# What builds the site of docs/.
_DOCS_REQUIRES = [
  "latex2mathml>=3.81.1,<4",
  "mkdocs>=1.6.1,<2",
  "mkdocstrings[python]>=1.0.8,<2",
  "pymdown-extensions>=13.1,<14",
]


# What `python -m benchmarks.train_step` compares with, where it is there.
_BENCHMARKS_REQUIRES = ["jax>=0.10.2,<0.11", "jaxlib>=0.10.2,<0.11", "torch>=2.13.0,<2.14"]


def _version() -> str:
  """`__version__` of the package, read without importing it."""
  module = ast.parse((_ROOT / "dregs_tf" / "__init__.py").read_text(encoding="utf-8"))
  for statement in module.body:
    if isinstance(statement, ast.Assign) and statement.targets[0].id == "__version__":
      return ast.literal_eval(statement.value)
  raise RuntimeError("dregs_tf/__init__.py has no __version__.")


def _long_description() -> str:
  readme = _ROOT / "README.md"
  return readme.read_text(encoding="utf-8") if readme.exists() else ""


setuptools.setup(
  name="dregs_tf",
  version=_version(),
  description=(
    "Doubly reparameterized gradient estimators for Monte Carlo objectives, "
    "for TensorFlow, Keras and TensorFlow Probability."
  ),
  long_description=_long_description(),
  long_description_content_type="text/markdown",
  project_urls={
    "Paper": "https://arxiv.org/abs/1810.04152",
    "Authors' code": "https://github.com/google-research/google-research/tree/master/dreg_estimators",
  },
  license="Apache-2.0",
  license_files=["LICENSE"],
  packages=setuptools.find_packages(include=["dregs_tf", "dregs_tf.*"]),
  package_data={"dregs_tf": ["py.typed"]},
  entry_points={
    "console_scripts": [
      "dregs-train = dregs_tf.training.commands:train",
      "dregs-eval = dregs_tf.training.commands:evaluate",
      "dregs-compare = dregs_tf.training.commands:compare",
    ]
  },
  python_requires=">=3.11",
  install_requires=_INSTALL_REQUIRES,
  extras_require={
    "benchmarks": _BENCHMARKS_REQUIRES,
    "docs": _DOCS_REQUIRES,
    # The CUDA libraries that TensorFlow uses on Linux.
    "gpu": [f"tensorflow[and-cuda]{_TENSORFLOW}"],
    "test": _TEST_REQUIRES,
  },
  classifiers=[
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX",
    "Programming Language :: Python :: 3",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
