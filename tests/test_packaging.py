"""What is declared, in setup.py and elsewhere, against what the sources are and import."""

import ast
import importlib.metadata
import os
import pathlib
import re
import runpy
import subprocess
import sys
import tarfile

import packaging.requirements
import packaging.utils
import packaging.version
import pytest
import setuptools

import dregs_tf

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Modules that are not called like their distribution.
DISTRIBUTIONS = {"absl": "absl-py", "sklearn": "scikit-learn"}

# Declared, and not imported by the sources themselves.
IMPORTED_BY_OTHERS = {
  "importlib-resources": "TensorFlow Datasets, when it downloads",
  "tensorboard": "tf.summary",
}
COMMANDS = {
  "build": "python -m build",
  "mypy": "the type checker",
  "pytest-xdist": "pytest -n",
  "ruff": "the linter",
}


@pytest.fixture(scope="module")
def declared():
  """What setup.py passes to setuptools.setup."""
  with pytest.MonkeyPatch.context() as patch:
    arguments = {}
    patch.setattr(setuptools, "setup", lambda **kwargs: arguments.update(kwargs))
    patch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
  return arguments


def _by_name(lines):
  requirements = [packaging.requirements.Requirement(line) for line in lines]
  by_name = {packaging.utils.canonicalize_name(r.name): r for r in requirements}
  assert len(by_name) == len(requirements)
  return by_name


def _all_requirements(declared):
  return _by_name(declared["install_requires"] + declared["extras_require"]["test"])


def _imported(*folders):
  """The distributions that the sources in some folders import."""
  modules = set()
  for path in (path for folder in folders for path in (ROOT / folder).glob("**/*.py")):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      if isinstance(node, ast.Import):
        modules.update(alias.name.partition(".")[0] for alias in node.names)
      elif isinstance(node, ast.ImportFrom) and node.level == 0:
        modules.add(node.module.partition(".")[0])
  ours = {path.name for path in ROOT.iterdir() if path.is_dir()}
  modules -= ours | set(sys.stdlib_module_names)
  return {
    packaging.utils.canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in modules
  }


def test_what_the_package_imports_is_declared(declared):
  assert _imported("dregs_tf", "bin") == set(_by_name(declared["install_requires"])) - set(
    IMPORTED_BY_OTHERS
  )


@pytest.mark.parametrize(
  "extra, folders",
  [
    ("test", ("tests", "testdata", "tools", ".ci")),
    ("benchmarks", ("benchmarks", "experiments/exported")),
  ],
)
def test_what_else_is_imported_is_declared(declared, extra, folders):
  # TensorFlow declares setuptools; with it this environment was made.
  needless = {*_by_name(declared["install_requires"]), "setuptools"}
  only_here = _imported(*folders) - needless
  assert only_here == set(_by_name(declared["extras_require"][extra])) - set(COMMANDS)


def test_every_requirement_has_a_lower_and_an_upper_bound(declared):
  for name, requirement in _all_requirements(declared).items():
    operators = sorted(specifier.operator for specifier in requirement.specifier)
    assert operators == ["<", ">="], name


def test_what_is_installed_is_within_the_bounds(declared):
  requirements = _all_requirements(declared)
  outside = {
    name: importlib.metadata.version(name)
    for name, requirement in requirements.items()
    if importlib.metadata.version(name) not in requirement.specifier
  }
  assert not outside


def test_the_lower_bounds_are_what_is_tried(declared):
  lines = (ROOT / ".ci" / "oldest-requirements.txt").read_text("utf-8").splitlines()
  tried = _by_name(line for line in lines if line and not line.startswith("#"))
  for name, requirement in _all_requirements(declared).items():
    lower = [s.version for s in requirement.specifier if s.operator == ">="]
    assert [s.version for s in tried[name].specifier] == lower, name
    assert str(tried[name].specifier).startswith("=="), name


def test_version(declared):
  headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
  released = [heading for heading in headings if heading != "Unreleased"]
  version = packaging.version.Version(declared["version"])
  assert declared["version"] == dregs_tf.__version__
  if version.is_devrelease:
    assert "Unreleased" in headings
    assert version > packaging.version.Version(released[0])
  else:
    assert declared["version"] == released[0]
  ordered = [packaging.version.Version(version) for version in released]
  assert ordered == sorted(set(ordered), reverse=True)


def test_every_package_is_found(declared):
  folders = {path.parent for path in (ROOT / "dregs_tf").glob("**/*.py")}
  names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
  assert set(declared["packages"]) == names


def test_source_distribution_holds_the_sources(tmp_path):
  arguments = ["egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
  subprocess.run(
    [sys.executable, "setup.py", "-q", *arguments],
    cwd=ROOT,
    check=True,
    timeout=120,
    capture_output=True,
    env=os.environ | {"PYTHONWARNINGS": "ignore"},
  )
  (archive,) = tmp_path.glob("*.tar.gz")
  with tarfile.open(archive) as file:
    held = {name.partition("/")[2] for name in file.getnames()}
  folders = ["benchmarks", "bin", "dregs_tf", "experiments", "testdata", "tests", "tools"]
  paths = [path for folder in folders for path in (ROOT / folder).glob("**/*") if path.is_file()]
  paths = [path.relative_to(ROOT) for path in paths if "__pycache__" not in path.parts]
  results = pathlib.Path("experiments", "results")
  expected = {path.as_posix() for path in paths if results not in path.parents}
  expected |= {"LICENSE", "BUILD", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "setup.py"}
  assert expected - held == set()
  assert not any(name.startswith(f"{results.as_posix()}/") for name in held)


def test_commands_are_functions(declared):
  for line in declared["entry_points"]["console_scripts"]:
    name, value = line.split(" = ")
    point = importlib.metadata.EntryPoint(name, value, "console_scripts")
    assert point.load().__doc__.rstrip().splitlines()[-1].strip().startswith(f"{name} --")


def test_gpu_extra_is_tensorflow_in_the_same_versions(declared):
  (line,) = declared["extras_require"]["gpu"]
  requirement = packaging.requirements.Requirement(line)
  assert requirement.extras == {"and-cuda"}
  required = _by_name(declared["install_requires"])[requirement.name]
  assert requirement.specifier == required.specifier


def test_import_does_not_load_tensorflow():
  code = "import sys, dregs_tf; dir(dregs_tf); sys.exit('tensorflow' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_license_is_apache():
  text = (ROOT / "LICENSE").read_text("utf-8")
  assert "Apache License" in text
  assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("command", ['pip install -e ".[test]"', "python -m pytest"])
def test_readme_says_what_ci_runs(command):
  # Both install quietly.
  script = (ROOT / ".ci" / "run").read_text("utf-8").replace("pip install --quiet", "pip install")
  assert command in script.splitlines()
  readme = ROOT / "README.md"
  if not readme.exists():
    pytest.skip("there is no README.md")
  assert command in readme.read_text("utf-8").replace("pip install -q", "pip install")
