"""Hooks of mkdocs: formulas become MathML, notebooks become pages; nothing runs in the browser."""

import html
import json
import re

from latex2mathml import converter
from mkdocs.structure.files import File

# What pymdownx.arithmatex makes of $...$ and $$...$$.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_page_content(content: str, **_) -> str:
  """Replaces every formula of a page by MathML."""

  def convert(match: re.Match) -> str:
    display = "block" if match[1] == "div" else "inline"
    return converter.convert(html.unescape(match[2]).strip(), display=display)

  return _FORMULA.sub(convert, content)


def on_files(files, config, **_):
  """Adds a page for every notebook, with the outputs that the notebook holds."""
  for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
    cells = json.loads(notebook.content_string)["cells"]
    page = "\n\n".join(part for cell in cells for part in _markdown_of(cell))
    page += f"\n\n[Download this notebook]({notebook.name}.ipynb)\n"
    uri = notebook.src_uri.removesuffix(".ipynb") + ".md"
    files.append(File.generated(config, uri, content=page))
  return files


def _markdown_of(cell: dict):
  """Yields the source of a cell and its outputs, as Markdown."""
  source = "".join(cell["source"])
  if cell["cell_type"] == "markdown":
    yield source
    return
  yield f"```python\n{source}\n```"
  for output in cell["outputs"]:
    data = output.get("data", {})
    if "image/png" in data:
      yield f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
    elif "text/html" in data:
      yield "".join(data["text/html"])
    else:
      text = "".join(output.get("text") or data.get("text/plain", ""))
      yield f"```text\n{text.rstrip()}\n```"
