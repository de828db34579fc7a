"""Prints results of runs as Markdown tables: bounds, log-likelihoods, gradient variances.

python bin/summarize.py --runs='runs/reduced/mnist_generative_*'
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dregs_tf.training import flags
from experiments import results, tables, where

_FORMATS = {"runs": tables.tables, "where": where.table}


def main(settings: tables.SummarizeConfig) -> None:
  """Reads the runs and prints the tables."""
  print(_FORMATS[settings.table](results.grouped(results.read(settings.runs))), end="")


if __name__ == "__main__":
  flags.run(tables.SummarizeConfig, main, __doc__)
