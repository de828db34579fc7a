"""Reports a comparison of estimators: its table, its recommendation, its files."""

import dataclasses
import html
import itertools
import math
import os
from collections.abc import Sequence

from dregs_tf import output
from dregs_tf.diagnostics import plot

# An estimator is called biased if p is below this. The rate of false alarms is the largest one in
# simulations (see `measure.compare`).
_SIGNIFICANCE = 1e-3
_FALSE_ALARMS = "at most 2 in 1,000"

# If a bias larger than this part of the gradient may be hidden, the recommendation says how to
# resolve it.
_RELEVANT_BIAS = 0.1

# Estimators are called equally good if their SNRs differ by less than this part.
_SAME = 0.02

# A biased estimator is mentioned if its SNR times its cosine is at least this multiple of the best
# SNR.
_MUCH_HIGHER = 1.5


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds the measurements of one estimator at one K.

  g is the gradient of the batch's mean bound in P parameters: those that the proposal depends on,
  through the proposal's samples and its score, or those of the prior, through its density. The
  contribution of noise to the squared norm of a mean is subtracted; a negative result is set to 0.

  - bound: its name, with options that differ from their defaults; for a prior, the name of the
    value, with ": direct" or ": dreg".
  - num_samples: K.
  - reference: the unbiased estimator of the same bound's gradient, on the same samples: the total
    derivative, or vimco or elbo_loo where the proposal has no path.
  - unbiased: whether it is unbiased by construction, on the conditions that `compare` names.
  - norm: the norm of the mean gradient, |E g|.
  - variance: the mean variance of the P coordinates.
  - snr: the authors' signal-to-noise ratio: SNR^2 = |E g|^2 / P / variance. NaN without variance.
  - snr_error: the standard error of snr.
  - cosine: the cosine between E g and E reference; NaN if one of them is not resolved: its squared
    norm is less than twice (an upper estimate of) its standard error.
  - bias: |E g - E reference| / |E reference|; NaN where E reference is not resolved.
  - bias_limit: the upper limit of `bias` with 95 % confidence, for |E reference| as measured.
  - t_statistic, p_value: the test that there is no bias in any direction, see `compare`.
  - max_t: the paired t-statistic farthest from 0 over all coordinates. Among P of them, some are
    large without bias.
  - milliseconds: the median time of a training step's gradient; NaN if not measured. For images it
    is that of the reference: estimators of the proposal's gradient of a bound differ in two factors
    of each sample, not in work. It is the only number here that a seed does not reproduce.

  A reference has a cosine of 1, biases and t-statistics of 0, and a p-value of 1.
  """

  bound: str
  num_samples: int
  reference: str
  unbiased: bool
  norm: float
  variance: float
  snr: float
  snr_error: float
  cosine: float
  bias: float
  bias_limit: float
  t_statistic: float
  p_value: float
  max_t: float
  milliseconds: float

  @property
  def is_reference(self) -> bool:
    """Returns whether the other estimators of its bound are compared with it."""
    return self.bound == self.reference

  @property
  def is_biased(self) -> bool:
    """Returns whether a bias was found: p is below 0.001."""
    return self.p_value < _SIGNIFICANCE


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Holds the results of `compare`: a row for each K and estimator."""

  rows: tuple[Row, ...]
  num_measurements: int
  num_coordinates: int
  batch_size: int
  gradient_of: str = "proposal"

  @property
  def recommendation(self) -> str:
    """Recommends an estimator for each bound in a few sentences, with the reasons.

    The rule: of the estimators that are unbiased by construction and show no bias, take the one
    with the highest SNR at the largest K, and report a smaller K if another one is best there.
    Biased estimators are mentioned if their SNR along the unbiased mean, SNR times cosine, is at
    least 1.5 times as high.

    Of a prior's two gradients, both unbiased, the one with the lower variance is recommended.
    """
    if self.gradient_of == "prior":
      pairs = zip(self.rows[::2], self.rows[1::2], strict=True)
      return "\n".join(itertools.starmap(_recommend_for_prior, pairs))
    lines = []
    for reference in dict.fromkeys(row.reference for row in self.rows):
      rows = [row for row in self.rows if row.reference == reference]
      taken = None
      for k in sorted({row.num_samples for row in rows}, reverse=True):
        at_k = [row for row in rows if row.num_samples == k]
        best = _best(at_k)
        if taken is None:
          lines += [self._recommend(best, at_k), *_biased_but_less_noisy(best, at_k)]
          lines += [_contradicted(row) for row in at_k if row.unbiased and row.is_biased]
        elif taken not in (best.bound, *_as_good(best, at_k)):
          lines.append(self._recommend(best, at_k))
        taken = taken or best.bound
    return "\n".join(lines)

  def table(self) -> str:
    """Formats the rows as aligned text, between lines that describe them."""
    lines = self._cells()
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
      "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
      for cells in lines
    ]
    return "\n".join([f"{self._about()}:", *text, _about_p()])

  def _repr_html_(self) -> str:
    """Shows the table and the recommendation in a notebook."""
    headings, *lines = [[html.escape(cell) for cell in cells] for cells in self._cells()]
    rows = [f"<tr><th>{'</th><th>'.join(headings)}</th></tr>"]
    rows += [f"<tr><td>{'</td><td>'.join(cells)}</td></tr>" for cells in lines]
    sentences = html.escape(f"{_about_p()}\n{self.recommendation}").replace("\n", "<br>")
    caption = f"<caption>{html.escape(self._about())}</caption>"
    return f"<table>{caption}{''.join(rows)}</table><p>{sentences}</p>"

  def to_csv(self, path: str | os.PathLike) -> None:
    """Writes the rows, a column for each field of `Row`."""
    columns = [field.name for field in dataclasses.fields(Row)]
    output.write_csv(path, [dataclasses.asdict(row) for row in self.rows], columns, digits=6)

  def plot(self, path: str | os.PathLike) -> None:
    """Writes a PNG: SNR, variance and bias of each estimator, against K if there are several."""
    plot.figure(path, self._about(), self.rows)

  def _cells(self) -> list[list[str]]:
    """Returns the cells of the table, the headings first."""
    timed = not all(math.isnan(row.milliseconds) for row in self.rows)
    headings = ["bound", "K", "norm", "variance", "SNR", "cosine", "bias", "p", "max |t|"]
    lines = [headings + ["ms"] * timed]
    for row in self.rows:
      cells = [row.bound, str(row.num_samples), f"{row.norm:.3g}", f"{row.variance:.3g}", _snr(row)]
      if row.is_reference:
        cells += ["", "reference", "", ""]
      else:
        cosine = "-" if math.isnan(row.cosine) else f"{row.cosine:.2f}"
        cells += [cosine, _bias(row), f"{row.p_value:.1g}", f"{abs(row.max_t):.1f}"]
      lines.append(cells + [f"{row.milliseconds:.1f}"] * timed)
    return lines

  def _about(self) -> str:
    return (
      f"{self.num_measurements} measurements on {self.batch_size} examples, "
      f"{self.num_coordinates:,} parameters of the {self.gradient_of}"
    )

  def _recommend(self, best: Row, rows: Sequence[Row]) -> str:
    """Says which estimator to take at a K, and why."""
    more = f"increase num_measurements to {4 * self.num_measurements}"
    start = f"{_target(best)}, K = {best.num_samples}: "
    if not best.snr > 2 * best.snr_error:
      return f"{start}no signal is resolved ({best.bound}: SNR {_snr(best)}); {more}."
    text = f"{start}take {best.bound}. Its SNR is {_snr(best)}, "
    if best.is_reference:
      others = " of the unbiased estimators" if len(rows) > 1 else ""
      return f"{text}the highest{others}."
    reference = next(row for row in rows if row.is_reference)
    text += f"{_ratio(best.snr, reference.snr)} that of {reference.bound} ({_snr(reference)})"
    if equals := _as_good(best, rows):
      text += f", and as high as that of {', '.join(equals)}"
    text += f". No significant bias (p = {best.p_value:.2g}"
    if math.isnan(best.bias_limit):
      return f"{text}), but {reference.bound}'s mean is not resolved; {more}."
    text += f"; 95 % upper limit: {_percent(best.bias_limit)} of the gradient)."
    if best.bias_limit > _RELEVANT_BIAS:
      needed = self.num_measurements * (best.bias_limit / _RELEVANT_BIAS) ** 2
      needed = int(float(f"{needed:.1g}"))
      text += f" About {needed} measurements would resolve {_percent(_RELEVANT_BIAS)}."
    return text


def _about_p() -> str:
  """Explains the column p, and how often it misleads."""
  return (
    f"p: test of no bias. Below {_SIGNIFICANCE}, a bias was found (false alarms: {_FALSE_ALARMS})."
  )


def _without_bias(rows: Sequence[Row]) -> list[Row]:
  """Returns the rows that are unbiased by construction and in which no bias was found."""
  return [row for row in rows if row.unbiased and not row.is_biased]


def _best(rows: Sequence[Row]) -> Row:
  """Returns the row with the highest SNR among those without bias, which include a reference."""
  return max(_without_bias(rows), key=lambda row: -1 if math.isnan(row.snr) else row.snr)


def _as_good(best: Row, rows: Sequence[Row]) -> list[str]:
  """Names the other estimators without bias whose SNR is about the same."""
  others = [row for row in _without_bias(rows) if row is not best]
  return [row.bound for row in others if row.snr >= (1 - _SAME) * best.snr]


def _biased_but_less_noisy(best: Row, rows: Sequence[Row]) -> list[str]:
  """Mentions the biased estimators that have much more signal along the unbiased mean."""
  promising = [r for r in rows if not r.unbiased and r.snr * r.cosine >= _MUCH_HIGHER * best.snr]
  promising.sort(key=lambda row: row.snr * row.cosine, reverse=True)
  if not promising:
    return []
  first, *others = promising
  size = f"by {_percent(first.bias)} of the gradient (p = {first.p_value:.1g})"
  if not first.is_biased:
    size = f"by less than {_percent(first.bias_limit)} of the gradient here"
  text = (
    f"{first.bound} is biased for {_target(first)} {size}, but its mean points in a similar "
    f"direction (cosine {first.cosine:.2f}) and its SNR is {_ratio(first.snr, best.snr)} that of "
    f"{best.bound}, so it may train better."
  )
  if others:
    names = ", ".join(f"{row.bound} (cosine {row.cosine:.2f})" for row in others)
    text += f" The same holds for {names}."
  return [text]


def _contradicted(row: Row) -> str:
  """Names possible causes of a bias in an estimator that is unbiased by construction."""
  return (
    f"{row.bound} is unbiased by construction, but a bias was found (p = {row.p_value:.1g}). If it "
    f"is not chance ({_FALSE_ALARMS}), log p(x, z) is not continuous in z, a parameter moves the "
    "support of the proposal, or the derivatives of its samples are wrong."
  )


def _recommend_for_prior(direct: Row, dreg: Row) -> str:
  """Says whether the second reparameterization of a prior pays at a K."""
  start = f"{_target(direct)}, K = {direct.num_samples}: "
  if dreg.is_biased:
    return start + _contradicted(dreg)
  ratio = f"{_ratio(dreg.variance, direct.variance)} that of the direct gradient"
  if dreg.variance < (1 - _SAME) * direct.variance:
    return f'{start}take prior_gradient="dreg". Its variance is {ratio}.'
  return f'{start}keep prior_gradient="direct": dreg does not pay here. Its variance is {ratio}.'


def _target(row: Row) -> str:
  """Names the bound in a sentence."""
  name, _, options = row.reference.removesuffix(": direct").partition("(")
  known = {"iwae": "L_K", "vimco": "L_K", "elbo": "ELBO", "elbo_loo": "ELBO", "jvi": "JVI"}
  name = known.get(name, name.removesuffix("_total"))
  return f"{name} ({options}" if options else name


def _ratio(one: float, other: float) -> str:
  return f"{one / other:.2g} times" if other > 0 else "many times"


def _percent(part: float) -> str:
  return f"{float(f'{100 * part:.2g}'):g} %"


def _snr(row: Row) -> str:
  return "-" if math.isnan(row.snr) else f"{row.snr:.3g} +- {row.snr_error:.1g}"


def _bias(row: Row) -> str:
  """Formats the size of the bias, or its limit."""
  if math.isnan(row.bias):
    return "found" if row.is_biased else "not found"
  return _percent(row.bias) if row.is_biased else f"< {_percent(row.bias_limit)}"
