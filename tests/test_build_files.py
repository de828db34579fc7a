"""The BUILD files against the sources, and the one direction that dependencies point in."""

import ast
import collections
import pathlib

import pytest

from tools import build_files

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A module may depend on those of its rank and below; the ones that are not here, on whatever keeps
# the ones that are in order.
RANKS = {
  "//dregs_tf:importance_weights": 0,
  "//dregs_tf:gradients": 0,
  "//dregs_tf:bounds": 1,
  "//dregs_tf/models": 2,
  "//dregs_tf/data": 2,
  "//dregs_tf/diagnostics": 2,
  "//dregs_tf:plots": 2,
  "//dregs_tf:runners": 3,
  "//bin": 4,
  "//benchmarks": 5,
  "//tests": 5,
  "//tools": 5,
}

Target = collections.namedtuple("Target", "kind srcs deps data main actual", defaults=[""] * 5)


def _rank(label):
  """The rank of a target: its own, or that of the folder it is in; None if it has none."""
  return RANKS.get(label, RANKS.get(label.partition(":")[0]))


def _parse(root):
  """The targets of all BUILD files under a folder, by label. Starlark's calls are Python's."""
  targets = {}
  for path in root.glob("**/BUILD"):
    folder = path.parent.relative_to(root).as_posix().replace(".", "", path.parent == root)
    for statement in ast.parse(path.read_text("utf-8")).body:
      call = statement.value
      values = {k.arg: k.value for k in call.keywords if k.arg in ("name", *Target._fields)}
      values = {k: ast.literal_eval(v) for k, v in values.items() if not isinstance(v, ast.Call)}
      if "name" not in values:
        assert call.func.id in ("load", "package", "licenses", "exports_files"), path
        continue
      name = values.pop("name")
      for attribute in ("srcs", "deps", "data"):
        listed = values.get(attribute, [])
        assert len(set(listed)) == len(listed), (path, name)
        values[attribute] = [_absolute(item, folder) for item in listed]
      label = _absolute(f":{name}", folder)
      assert label not in targets
      targets[label] = Target(call.func.id, **values)
  return targets


def _absolute(label, folder):
  """//a:a is //a."""
  if label.startswith("@"):
    return label
  if not label.startswith("//"):
    label = f"//{folder}:{label.removeprefix(':')}"
  package, _, name = label.partition(":")
  return package if name == package.rpartition("/")[2] else label


def _reachable(targets, label):
  """All that a target depends on, itself included."""
  found, waiting = set(), [label]
  while waiting:
    label = waiting.pop()
    if label not in found:
      found.add(label)
      waiting += targets[label].deps if label in targets else []
  return found


@pytest.fixture(scope="module")
def targets():
  return _parse(ROOT)


def test_build_files_are_what_the_imports_say():
  written = build_files.build_files(ROOT)
  stale = [p for p, text in written.items() if not _is(ROOT / p, text)]
  assert not stale, "run `python tools/build_files.py`"
  tops = {*build_files.SOURCES, *build_files.DATA}
  present = {
    path.relative_to(ROOT).as_posix() for top in tops for path in ROOT.glob(f"{top}/**/BUILD")
  }
  assert present | {"BUILD"} == set(written)


def _is(path, text):
  return path.exists() and path.read_text("utf-8") == text


def test_every_source_is_in_one_target(targets):
  held = collections.Counter(
    source
    for target in targets.values()
    for source in target.srcs
    if not (target.kind == "py_test" and source == "//tests:pytest_main.py")
  )
  paths = [path for top in build_files.SOURCES for path in (ROOT / top).glob("**/*.py")]
  sources = [path.relative_to(ROOT) for path in paths]
  assert held == dict.fromkeys((f"//{p.parent.as_posix()}:{p.name}" for p in sources), 1)


def test_kinds(targets):
  for label, target in targets.items():
    if target.kind == "alias":
      assert targets[target.actual].kind == "py_binary"
    elif "/tests" in label and label.partition(":")[2].startswith("test_"):
      assert target.kind == "py_test"
      assert target.main.endswith("pytest_main.py")
    elif label.startswith("//bin:"):
      assert target.kind == "py_binary"
      assert f"//:{label.partition(':')[2]}" in targets


def test_every_dependency_exists(targets):
  for label, target in targets.items():
    for dependency in [*target.deps, *target.data]:
      if not dependency.startswith("@pypi//"):
        assert dependency in targets, label
        assert targets[dependency].kind != "py_test"


def test_no_cycles(targets):
  for label, target in targets.items():
    assert all(label not in _reachable(targets, dep) for dep in target.deps), label


def test_dependencies_point_one_way(targets):
  ranked = [label for label in targets if _rank(label) is not None]
  assert {_rank(label) for label in ranked} == set(RANKS.values())
  for label in ranked:
    wrong = [d for d in _reachable(targets, label) if (_rank(d) or 0) > _rank(label)]
    assert not wrong, f"{label} depends on {wrong}"


@pytest.mark.parametrize("name", ["bounds", "gradients", "importance_weights"])
def test_the_estimators_know_neither_keras_nor_models(targets, name):
  known = _reachable(targets, f"//dregs_tf:{name}")
  assert "@pypi//tensorflow" in known
  assert not known & {"@pypi//keras", "@pypi//tf_keras"}
  assert not [label for label in known if label.startswith("//dregs_tf/")]


def test_the_library_does_not_import_its_users(targets):
  for label in targets:
    if label.startswith("//dregs_tf"):
      others = [
        d for d in _reachable(targets, label) if not d.startswith(("//dregs_tf", "@pypi//"))
      ]
      assert not others, label


@pytest.fixture
def project(tmp_path):
  """A made-up project; call it with sources by path to get the targets that are written for it."""

  def write(sources):
    for name, text in sources.items():
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text, "utf-8")
    for name, text in build_files.build_files(tmp_path).items():
      (tmp_path / name).write_text(text, "utf-8")
    return _parse(tmp_path)

  return write


LIBRARY = {
  "dregs_tf/__init__.py": "",
  "dregs_tf/a.py": "",
  "dregs_tf/b.py": "",
  "dregs_tf/part/__init__.py": "",
  "dregs_tf/part/c.py": "",
}


@pytest.mark.parametrize(
  "source,expected",
  [
    ("import os.path, sys\nfrom collections import abc", []),
    ("from dregs_tf import a", ["//dregs_tf:a"]),
    ("from dregs_tf import a as x, b", ["//dregs_tf:a", "//dregs_tf:b"]),
    ("from dregs_tf.a import name", ["//dregs_tf:a"]),
    ("import dregs_tf.a", ["//dregs_tf:a"]),
    ("import dregs_tf", ["//dregs_tf"]),
    ("from dregs_tf import name", ["//dregs_tf"]),
    ("from dregs_tf import part", ["//dregs_tf/part"]),
    ("from dregs_tf.part import name", ["//dregs_tf/part"]),
    ("from dregs_tf.part import c", ["//dregs_tf/part:c"]),
    ("from . import a", ["//dregs_tf:a"]),
    ("from .part.c import name", ["//dregs_tf/part:c"]),
    ("def f():\n  from dregs_tf import a", ["//dregs_tf:a"]),
    ("if TYPE_CHECKING:\n  from dregs_tf import a", ["//dregs_tf:a"]),
    ("import importlib\nimportlib.import_module('dregs_tf.a')", ["//dregs_tf:a"]),
    ("import sklearn.datasets\nfrom absl import app", ["@pypi//absl_py", "@pypi//scikit_learn"]),
    ("import tensorflow as tf\ntf.exp(1)", ["@pypi//tensorflow"]),
    (
      "import tensorflow as tf\ntf.summary.scalar(1)",
      ["@pypi//tensorboard", "@pypi//tensorflow"],
    ),
    (
      "import tensorflow_datasets as tfds",
      ["@pypi//importlib_resources", "@pypi//tensorflow_datasets"],
    ),
    ("'import numpy'", []),
  ],
)
def test_dependencies_of_a_module(project, source, expected):
  targets = project(LIBRARY | {"dregs_tf/user.py": source})
  assert targets["//dregs_tf:user"] == Target("py_library", ["//dregs_tf:user.py"], expected, [])


def test_relative_imports_in_a_package(project):
  source = "from .c import name\nfrom .. import a\nfrom ..b import name"
  targets = project(LIBRARY | {"dregs_tf/part/user.py": source})
  expected = ["//dregs_tf/part:c", "//dregs_tf:a", "//dregs_tf:b"]
  assert targets["//dregs_tf/part:user"].deps == expected


def test_package_that_imports_lazily(project):
  source = (
    "import importlib\n"
    "__all__ = ['a', 'part']\n"
    "def __getattr__(name):\n"
    "  return importlib.import_module(f'dregs_tf.{name}')\n"
  )
  targets = project(LIBRARY | {"dregs_tf/__init__.py": source})
  assert targets["//dregs_tf"].deps == ["//dregs_tf:a", "//dregs_tf/part"]


def test_refuses_what_it_cannot_read(project):
  with pytest.raises(ValueError, match=r"dregs_tf.user.py: cannot tell what import_module\(name\)"):
    project({"dregs_tf/user.py": "import importlib\nimportlib.import_module(name)"})


def test_refuses_a_module_that_is_not_there(project):
  with pytest.raises(ValueError, match=r"tests.helpers.x is imported, and there is no such module"):
    project({"tests/user.py": "from tests.helpers import x"})


def test_program_and_its_test(project):
  targets = project(
    LIBRARY
    | {
      "bin/run.py": "from dregs_tf import a\nif __name__ == '__main__':\n  pass",
      "testdata/numbers.csv": "1",
      "tests/conftest.py": "import dregs_tf.b",
      "tests/pytest_main.py": "",
      "tests/part/test_run.py": (
        "FILES = 'bin/run.py', 'testdata'\n"
        "subprocess.run([sys.executable, '-c', 'import dregs_tf.a'])"
      ),
    }
  )
  assert targets["//bin:run"] == Target("py_binary", ["//bin:run.py"], ["//dregs_tf:a"], [])
  assert targets["//:run"].actual == "//bin:run"
  assert targets["//testdata"].kind == "filegroup"
  assert targets["//tests/part:test_run"] == Target(
    "py_test",
    srcs=["//tests/part:test_run.py", "//tests:pytest_main.py"],
    deps=["//dregs_tf:a", "//tests:conftest", "@pypi//pytest"],
    data=["//bin:run", "//testdata"],
    main="//tests:pytest_main.py",
  )
