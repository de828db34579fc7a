"""Compares the BUILD file with the imports of the sources, and the packages with their order."""

import ast
import graphlib
import pathlib
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "bin", "dregs_tf", "experiments", "testdata", "tests", "tools")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("**/*.py"))

# From the top down: each package may import those below it.
PACKAGES = ["experiments", "training", "diagnostics", "models", "data", "sequential", "estimators"]

# Modules named unlike their distribution; libraries that others import without declaring them.
DISTRIBUTIONS = {"absl": "absl_py", "sklearn": "scikit_learn"}
UNDECLARED = {"@pypi//importlib_resources", "@pypi//tensorboard"}

Target = namedtuple("Target", ["kind", "srcs", "deps"])


def _glob(include, exclude=()):
  found = {path.relative_to(ROOT).as_posix() for name in include for path in ROOT.glob(name)}
  return sorted(found - set(exclude))


@pytest.fixture(scope="module")
def targets():
  """The targets of the BUILD file by label; Starlark is read as the Python that it looks like."""
  found = {}

  def rule(kind):
    def declare(name, srcs=(), deps=(), **_):
      assert name not in found
      found[f":{name}"] = Target(kind, srcs, deps)

    return declare

  ignored = ["exports_files", "licenses", "load", "package"]
  names = dict.fromkeys(ignored, lambda *args, **kwargs: None) | {"glob": _glob}
  names |= {kind: rule(kind) for kind in ("py_binary", "py_library", "py_test")}
  exec((ROOT / "BUILD").read_text("utf-8"), names)
  return found


@pytest.fixture(scope="module")
def label_of(targets):
  """The library or binary that holds each source, by path."""
  return {
    source: label
    for label, target in targets.items()
    for source in target.srcs
    if target.kind != "py_test"
  }


def _module(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in SOURCES}


def _imports(path):
  """The modules that a source imports anywhere in it, whole names where they are the project's."""
  if path == ROOT / "dregs_tf" / "__init__.py":
    return  # It loads the parts of the library when they are first used.
  for node in ast.walk(ast.parse(path.read_text("utf-8"))):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} has a relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
      names = [ast.literal_eval(node.args[0])] if isinstance(node.args[0], ast.Constant) else []
    else:
      continue
    for name in names:
      while name.partition(".")[0] in FOLDERS and name not in MODULES:
        assert "." in name, f"{path} imports {name}, and there is no such module"
        name = name.rpartition(".")[0]
      if name.partition(".")[0] not in sys.stdlib_module_names:
        yield name


def test_every_source_is_in_one_target(targets):
  held = [s for t in targets.values() if t.kind != "py_test" for s in t.srcs]
  assert sorted(held) == [path.relative_to(ROOT).as_posix() for path in SOURCES]


def test_targets_depend_on_what_their_sources_import(targets, label_of):
  for label, target in targets.items():
    needed = set()
    for name in {name for source in target.srcs for name in _imports(ROOT / source)}:
      if name == "dregs_tf":
        needed.add(":dregs_tf")
      elif name in MODULES:
        needed.add(label_of[MODULES[name].relative_to(ROOT).as_posix()])
      else:
        first = name.partition(".")[0]
        needed.add(f"@pypi//{DISTRIBUTIONS.get(first, first)}")
    if target.kind == "py_test":
      needed = {":tests"}
    if label == ":dregs_tf":
      needed = {f":{package}" for package in PACKAGES[1:]}
    assert set(target.deps) - UNDECLARED == needed - {label} - UNDECLARED, label
    assert list(target.deps) == sorted(set(target.deps)), label


def test_every_test_file_has_a_target(targets):
  files = {p.relative_to(ROOT).as_posix() for p in SOURCES if p.name.startswith("test_")}
  assert {f"{label[1:]}.py" for label, t in targets.items() if t.kind == "py_test"} == files


def test_packages_import_only_what_is_below_them(targets):
  for rank, package in enumerate(PACKAGES):
    ours = {dep.removeprefix(":") for dep in targets[f":{package}"].deps if dep[0] == ":"}
    assert ours <= set(PACKAGES[rank + 1 :]), package


def test_the_lowest_estimators_import_no_others():
  lowest = {"catalogue", "gradients", "importance_weights", "objectives", "seeds"}
  for name in lowest:
    ours = {other for other in _imports(ROOT / "dregs_tf" / f"{name}.py") if other in MODULES}
    assert ours <= {f"dregs_tf.{other}" for other in lowest}, name


def test_no_circle_of_modules():
  # A package's __init__ gathers its modules; importing one of them is not importing the others.
  graph = {
    name: [other for other in _imports(path) if other in MODULES]
    for name, path in MODULES.items()
    if path.name != "__init__.py"
  }
  graphlib.TopologicalSorter(graph).prepare()


def test_estimators_know_no_keras_no_devices_and_no_configuration(targets):
  for source in targets[":estimators"].srcs + targets[":sequential"].srcs:
    assert "keras" not in {name.partition(".")[0] for name in _imports(ROOT / source)}, source
    attributes = map(ast.unparse, ast.walk(ast.parse((ROOT / source).read_text("utf-8"))))
    assert "tf.distribute" not in attributes, source


def test_files_and_functions_are_short():
  long = []
  for path in (path for path in SOURCES if path.relative_to(ROOT).parts[0] == "dregs_tf"):
    text = path.read_text("utf-8")
    if len(text.splitlines()) > 450:
      long.append(str(path))
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        if body and node.end_lineno - body[0].lineno >= 60:
          long.append(f"{path}: {node.name}")
  assert not long
  assert len(list((ROOT / "dregs_tf").glob("*.py"))) - 1 <= 14  # but for __init__


@pytest.mark.slow
def test_bazel_loads_it(targets, tmp_path):
  bazel = shutil.which("bazel")
  if bazel is None:
    pytest.skip("there is no bazel; on Debian: apt-get install bazel-bootstrap")
  # In place of rules_python, which a workspace downloads, the rules that older versions contain.
  rules = tmp_path / "rules_python"
  (rules / "python").mkdir(parents=True)
  (rules / "WORKSPACE").touch()
  (rules / "python" / "BUILD").touch()
  kinds = ("py_binary", "py_library", "py_test")
  (rules / "python" / "defs.bzl").write_text("".join(f"{k} = native.{k}\n" for k in kinds))
  workspace = tmp_path / "workspace"
  workspace.mkdir()
  local = f'local_repository(name = "rules_python", path = "{rules}")\n'
  (workspace / "WORKSPACE").write_text(local)
  (workspace / "dregs").symlink_to(ROOT)
  queried = subprocess.run(
    [
      bazel,
      "--batch",
      f"--output_user_root={tmp_path / 'root'}",
      "query",
      "kind(rule, //dregs:all)",
    ],
    cwd=workspace,
    check=True,
    timeout=300,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert set(re.findall(r"^//dregs(:.*)$", queried.stdout, re.M)) == set(targets)
