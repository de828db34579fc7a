"""Writes the BUILD files from the imports of the sources; --check only says which are out of date.

    python tools/build_files.py [--check]

A module is a target with the name of its file, a package's __init__.py one with the name of its
folder. Dependencies are what a file imports anywhere in it, inside functions too; a test's also
what the programs import that it passes to another Python as strings.
"""

import argparse
import ast
import contextlib
import pathlib
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Folders of sources, and folders that sources read.
SOURCES = ("benchmarks", "bin", "dregs_tf", "testdata", "tests", "tools")
DATA = ("experiments", "testdata")

# Modules that are not called like their distribution.
DISTRIBUTIONS = {"absl": "absl_py", "sklearn": "scikit_learn"}

# What libraries import without declaring it: what the sources use -> the distribution it needs.
UNDECLARED = {"tensorflow.summary": "tensorboard", "tensorflow_datasets": "importlib_resources"}

_HEADER = """\
# Build rules of {what}; tools/build_files.py writes them from the imports.
# @pypi is the hub that a workspace's pip.parse makes of what setup.py requires.

{loads}package(default_visibility = ["{visibility}"])

licenses(["notice"])  # Apache License 2.0
"""
_VISIBILITY = defaultdict(lambda: "//:__subpackages__", dregs_tf="//visibility:public")
_MAIN = ("tests", "pytest_main.py")


def main() -> None:
  """Writes the files, or compares them with what would be written."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--check", action="store_true", help="write nothing")
  check = parser.parse_args().check
  changed = 0
  for path, text in build_files(ROOT).items():
    old = (ROOT / path).read_text("utf-8") if (ROOT / path).exists() else None
    if old != text:
      changed += 1
      print(f"{path} {'is out of date' if check else 'written'}")
      if not check:
        (ROOT / path).write_text(text, "utf-8")
  sys.exit(1 if check and changed else 0)


def build_files(root: pathlib.Path) -> dict[str, str]:
  """The text of each BUILD file of the project in the folder `root`, by its path in there."""
  project = _Project(root)
  rules = defaultdict(list)
  for path in project.trees:
    rules[path.parent].append(_python_rule(project, path))
  for name in DATA:
    if project.has_data(name):
      files = 'glob(["**"], exclude = ["BUILD"])'
      rules[pathlib.Path(name)].append(_rule("filegroup", name, srcs=files))
  texts = {"BUILD": _top_level(project)}
  for folder, members in sorted(rules.items()):
    loaded = sorted(set(re.findall(r"^(py_\w+)\(", "".join(members), re.MULTILINE)))
    names = ", ".join(f'"{kind}"' for kind in loaded)
    header = _HEADER.format(
      what=f"{folder.as_posix()}/",
      loads=f'load("@rules_python//python:defs.bzl", {names})\n\n' if loaded else "",
      visibility=_VISIBILITY[folder.parts[0]],
    )
    texts[f"{folder.as_posix()}/BUILD"] = "\n".join([header, *members])
  return texts


def _top_level(project: "_Project") -> str:
  header = _HEADER.format(what="the project", loads="", visibility="//visibility:public")
  names = ("LICENSE", "README.md", "pyproject.toml")
  exported = ", ".join(f'"{name}"' for name in names if (project.root / name).exists())
  programs = [p.stem for p in project.trees if p.parts[0] == "bin" and project.is_program(p)]
  aliases = [_rule("alias", name, actual=f"//bin:{name}") for name in programs]
  return "\n".join([header, f"exports_files([{exported}])\n", *aliases])


class _Project:
  """The sources in a folder: `trees` holds them parsed, by path."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    paths = sorted(path for folder in SOURCES for path in (root / folder).glob("**/*.py"))
    self.trees = {
      path.relative_to(root): ast.parse(path.read_text("utf-8"), str(path)) for path in paths
    }
    self.modules = {_module_name(path): path for path in self.trees}

  def is_program(self, path: pathlib.Path) -> bool:
    """Whether it is run, not imported."""
    tests = [node.test for node in self.trees[path].body if isinstance(node, ast.If)]
    guarded = "__name__ == '__main__'" in map(ast.unparse, tests)
    return guarded and path.parts[0] not in ("dregs_tf", "tests")

  def has_data(self, folder: str) -> bool:
    """Whether there is such a folder, with files in it."""
    return any(
      path.is_file() and path.name != "BUILD" for path in (self.root / folder).glob("**/*")
    )


def _module_name(path: pathlib.Path) -> str:
  return ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts)


def _python_rule(project: _Project, path: pathlib.Path) -> str:
  tree = project.trees[path]
  deps = _targets(project, imports(path, tree)) - {_label(path)}
  name = path.parent.name if path.name == "__init__.py" else path.stem
  if not path.name.startswith("test_"):
    kind = "py_binary" if project.is_program(path) else "py_library"
    return _rule(kind, name, srcs=[path.name], deps=_written(deps, path))
  for code in _programs_in_strings(tree):
    deps |= _targets(project, imports(path, code)) - {_label(path)}
  conftests = [folder / "conftest.py" for folder in path.parents]
  deps |= {_label(conftest) for conftest in conftests if conftest in project.trees}
  folder, main = _MAIN
  main = main if path.parent == pathlib.Path(folder) else f"//{folder}:{main}"
  return _rule(
    "py_test",
    name,
    size="large" if "mark.slow" in ast.unparse(tree) else None,
    srcs=sorted([path.name, main], key=_label_order),
    args=[f"$(location {path.name})"],
    data=_data(project, path),
    main=main,
    deps=_written(deps | {"@pypi//pytest"}, path),
  )


def _programs_in_strings(tree: ast.Module) -> Iterator[ast.Module]:
  """What a test that starts Python, by sys.executable, may tell it to run."""
  attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
  if "sys.executable" not in attributes:
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
      with contextlib.suppress(SyntaxError):
        yield ast.parse(textwrap.dedent(node.value))


def _data(project: _Project, path: pathlib.Path) -> list[str]:
  """The programs and the folders of data that the strings of a test name."""
  constants = (node for node in ast.walk(project.trees[path]) if isinstance(node, ast.Constant))
  words = {word for node in constants for word in re.findall(r"[\w.]+", str(node.value))}
  programs = [p for p in project.trees if p.name in words and project.is_program(p)]
  folders = [name for name in DATA if name in words and project.has_data(name)]
  return [_label(p) for p in programs] + [f"//{name}" for name in folders]


def imports(path: pathlib.Path, tree: ast.Module) -> Iterator[str]:
  """The dotted names that a source imports; `from a import b` is a.b, whether a module or not."""
  for node in ast.walk(tree):
    match node:
      case ast.Import(names=names):
        yield from (alias.name for alias in names)
      case ast.ImportFrom(module=module, names=names, level=level):
        above = [*path.parent.parts[: len(path.parent.parts) - level + 1]] if level else []
        parts = above + ([module] if module else [])
        yield from (".".join([*parts, alias.name]) for alias in names)
      case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=name)]):
        yield name
      case ast.Call(func=ast.Attribute(attr="import_module"), args=[name]):
        yield from _lazy_imports(path, tree, name)
      case ast.Attribute(value=ast.Name(id="tf"), attr="summary"):
        yield "tensorflow.summary"


def _lazy_imports(path: pathlib.Path, tree: ast.Module, name: ast.expr) -> Iterator[str]:
  """Of import_module(f"package.{name}") in that package's __init__.py: what its __all__ lists."""
  package = _module_name(path)
  written = ast.unparse(name)
  if not (path.name == "__init__.py" and re.fullmatch(rf"f'{package}\.{{\w+}}'", written)):
    raise ValueError(f"{path}: cannot tell what import_module({written}) imports.")
  for node in tree.body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
      yield from (f"{package}.{member}" for member in ast.literal_eval(node.value))


def _targets(project: _Project, names: Iterable[str]) -> set[str]:
  """The targets that imported names need; the standard library needs none."""
  labels = set()
  for name in names:
    parts = name.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    module = next((prefix for prefix in prefixes if prefix in project.modules), None)
    if module:
      labels.add(_label(project.modules[module]))
    elif parts[0] in SOURCES:
      raise ValueError(f"{name} is imported, and there is no such module.")
    elif parts[0] not in sys.stdlib_module_names:
      needed = [DISTRIBUTIONS.get(parts[0], parts[0])]
      needed += [UNDECLARED[prefix] for prefix in prefixes if prefix in UNDECLARED]
      labels.update(f"@pypi//{distribution}" for distribution in needed)
  return labels


def _label(path: pathlib.Path) -> str:
  """The target of a source."""
  folder = path.parent.as_posix()
  return f"//{folder}" if path.name == "__init__.py" else f"//{folder}:{path.stem}"


def _written(labels: Iterable[str], path: pathlib.Path) -> list[str]:
  """Labels as the BUILD file next to `path` has them, in buildifier's order."""
  folder = f"//{path.parent.as_posix()}"
  short = [f":{path.parent.name}" if label == folder else label for label in labels]
  short = [
    label.removeprefix(folder) if label.startswith(f"{folder}:") else label for label in short
  ]
  return sorted(short, key=_label_order)


def _label_order(label: str) -> tuple[int, str]:
  """Buildifier's: this folder's, this project's, others'."""
  return (label.startswith("//") + 2 * label.startswith("@"), label.replace(":", "!"))


def _rule(kind: str, name: str, **attributes) -> str:
  """A target as buildifier formats it, without the attributes that are empty."""
  given = {key: value for key, value in ({"name": name} | attributes).items() if value}
  lines = "".join(f"    {key} = {_starlark(value)},\n" for key, value in given.items())
  return f"{kind}(\n{lines})\n"


def _starlark(value: str | list[str]) -> str:
  if isinstance(value, str):
    return value if value.startswith("glob(") else f'"{value}"'
  if len(value) == 1:
    return f'["{value[0]}"]'
  return "[\n" + "".join(f'        "{item}",\n' for item in value) + "    ]"


if __name__ == "__main__":
  main()
