"""Draws the paper's figures from the metrics.csv of runs, averaged over seeds.

python bin/plot.py --runs='runs/reduced/mnist_generative_*' --figure=pairs --output=fig2.png
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dregs_tf.training import flags
from experiments import figures, results


def main(settings: figures.PlotConfig) -> None:
  """Reads the runs and draws."""
  figures.plot(settings, results.grouped(results.read(settings.runs)))
  print(f"Wrote {settings.output}.")


if __name__ == "__main__":
  flags.run(figures.PlotConfig, main, __doc__)
