"""Prints what runs have come to as Markdown tables: bounds, log-likelihoods, gradient variances.

python bin/summarize.py --runs='runs/reduced/mnist_generative_*'
"""

from absl import flags

from dregs_tf import cli, experiment_results

_RUNS = flags.DEFINE_list(
  "runs", [], "Directories of runs; *, ? and [] stand for what they do in a shell: quote them."
)


def main():
  """Reads the runs and prints the tables."""
  groups = experiment_results.grouped(experiment_results.read(_RUNS.value))
  print(experiment_results.tables(groups), end="")


if __name__ == "__main__":
  cli.run(main)
