"""Shows progress, writes CSV files and names colors, in the same way for the whole library."""

import csv
import os
import sys
from collections.abc import Mapping, Sequence

# Okabe and Ito's colors, which color-blind readers can distinguish, and a gray.
COLORS = {
  "blue": "#0072B2",
  "vermilion": "#D55E00",
  "green": "#009E73",
  "purple": "#CC79A7",
  "orange": "#E69F00",
  "sky": "#56B4E9",
  "black": "#000000",
  "gray": "#777777",
}
SOLID, DASHED, DASH_DOTTED, DOTTED = "-", (0, (5, 2)), "-.", (0, (1, 1.5))

# All combinations of a color and dashes; the first ones differ in their color.
STYLES = tuple(
  (color, dashes) for dashes in (SOLID, DASHED, DASH_DOTTED, DOTTED) for color in COLORS.values()
)


class Progress:
  """Shows how far a loop has come: a bar in a terminal, lines of text elsewhere."""

  def __init__(self, total: int, unit: str, initial: int = 0, enabled: bool = True):
    """Starts a bar that counts from `initial` to `total`, if standard error is a terminal."""
    import tqdm

    self._bar = tqdm.tqdm(
      total=total,
      initial=initial,
      unit=f" {unit}",
      disable=not (enabled and sys.stderr.isatty()),
    )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def update(self, count: int = 1) -> None:
    """Advances the bar."""
    self._bar.update(count)

  def write(self, line: str) -> None:
    """Writes a line to standard error, above the bar if there is one."""
    if self._bar.disable:
      print(line, file=sys.stderr, flush=True)
    else:
      self._bar.write(line, file=sys.stderr)

  def write_without_bar(self, line: str) -> None:
    """Writes a line to standard error if there is no bar that shows the same."""
    if self._bar.disable:
      self.write(line)

  def close(self) -> None:
    """Closes the bar, and leaves it on the screen."""
    self._bar.close()


def write_csv(
  path: str | os.PathLike,
  rows: Sequence[Mapping],
  columns: Sequence[str] | None = None,
  *,
  digits: int | None = None,
  append: bool = False,
) -> None:
  """Writes rows as CSV; they are on disk when this returns.

  Args:
    path: the file.
    rows: values by column.
    columns: the columns, in their order; None for those of the first row.
    digits: significant digits of floats; None for all.
    append: whether to keep the file's content. An empty or new file gets a header.
  """
  columns = list(rows[0]) if columns is None else columns
  with open(path, "a" if append else "w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    if not file.tell():
      writer.writerow(columns)
    for row in rows:
      writer.writerow([_cell(row[column], digits) for column in columns])
    file.flush()
    os.fsync(file.fileno())


def _cell(value, digits: int | None):
  return f"{value:.{digits}g}" if digits and isinstance(value, float) else value
