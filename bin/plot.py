"""Draws the paper's figures from runs: what they have in metrics.csv, averaged over seeds.

python bin/plot.py --runs='runs/reduced/mnist_generative_*' --figure=pairs --output=fig2.png
"""

from absl import flags

from dregs_tf import cli, experiment_plots, experiment_results

_DEFAULTS = experiment_plots.PlotConfig(output=".png")

flags.DEFINE_list(
  "runs", [], "Directories of runs; *, ? and [] stand for what they do in a shell: quote them."
)
flags.DEFINE_list(
  "figure",
  list(_DEFAULTS.figure),
  "pairs: gradient variance above test bound, as in Figs. 2, 5 and 7; variance: the upper row; "
  "bounds: the test bound, a panel for each K; alpha: the test bound less that of IWAE-DReG; "
  "bounds,alpha: both, as in Figs. 3, 4 and 6; adapted_alpha: how alpha moves.",
)
flags.DEFINE_string(
  "trajectory",
  None,
  "For pairs and variance: show the variances that the runs of this bound have followed with "
  "--track_variance, not those of each run's own gradient.",
)
flags.DEFINE_float(
  "cut",
  _DEFAULTS.cut,
  "The test bound's axis is cut to what curves go through after this part of their steps.",
)
flags.DEFINE_string("output", None, "The PNG file to write.")


def main():
  """Checks the flags, reads the runs and draws."""
  settings = cli.from_flags(experiment_plots.PlotConfig)
  groups = experiment_results.grouped(experiment_results.read(settings.runs))
  experiment_plots.plot(settings, groups)
  print(f"Wrote {settings.output}.")


if __name__ == "__main__":
  cli.run(main)
