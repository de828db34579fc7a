"""Tests of what `import dregs_tf` shows, and of what every public function says of itself."""

import ast
import pathlib

import pytest

import dregs_tf

PACKAGE = pathlib.Path(dregs_tf.__file__).parent
TREES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.glob("**/*.py"))}


def _public_functions():
  """All functions and methods whose names, and whose classes' names, have no underscore."""
  for path, tree in TREES.items():
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for holder in [tree, *(node for node in classes if not node.name.startswith("_"))]:
      for node in holder.body:
        if isinstance(node, ast.FunctionDef) and _is_public(node.name):
          yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def _is_public(name):
  return not name.startswith("_") or name in ("__init__", "__call__")


@pytest.mark.parametrize("name", dregs_tf.__all__)
def test_every_name_is_there_and_on_the_map(name):
  value = getattr(dregs_tf, name)
  assert value.__name__.rpartition(".")[2] == name
  assert f"\n  {name} " in dregs_tf.__doc__
  assert name in dir(dregs_tf)


def test_type_checkers_see_the_names_that_are_there():
  (block,) = (
    node
    for node in TREES[PACKAGE / "__init__.py"].body
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
  )
  seen = [alias.name for node in block.body for alias in node.names]
  assert sorted(seen) == sorted(dregs_tf.__all__)
  assert (PACKAGE / "py.typed").exists()


def test_no_other_name():
  with pytest.raises(AttributeError, match="no attribute 'boundz'"):
    _ = dregs_tf.boundz


def test_docstrings_of_public_functions_open_with_a_verb():
  """A verb is taken to end in s, and a noun in the plural to be followed by one of these words."""
  after_nouns = {"and", "are", "for", "from", "in", "of", "that", "to", "which", "with"}
  functions = [(place, node) for place, node in _public_functions() if not node.decorator_list]
  docstrings = {place: ast.get_docstring(node) for place, node in functions}
  opening = {place: text.split()[:2] for place, text in docstrings.items() if text}
  others = [
    f"{place}: {' '.join(words)}"
    for place, words in opening.items()
    if not words[0].strip(",").endswith("s") or words[-1] in after_nouns
  ]
  assert len(others) <= len(opening) / 10, others


def test_public_parameters_are_annotated():
  bare = []
  for place, node in _public_functions():
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    given += [each for each in (node.args.vararg, node.args.kwarg) if each]
    bare += [
      f"{place}({each.arg})"
      for each in given
      if each.annotation is None and each.arg not in ("self", "cls")
    ]
  assert not bare
