"""Runs an experiment of the paper, its runs one after another; the same command goes on with it.

python bin/run_experiment.py --experiment=fig2_reduced --seeds=0,1,2

Several machines share the runs: each is told which part is its own, --shard=0/2 and --shard=1/2.
"""

import pathlib

from absl import flags

from dregs_tf import cli, experiments

_DEFAULTS = experiments.ExperimentConfig(experiment=next(iter(experiments.EXPERIMENTS)))

flags.DEFINE_enum(
  "experiment", None, list(experiments.EXPERIMENTS), "Which runs; experiments/README.md has a list."
)
flags.DEFINE_list("seeds", list(_DEFAULTS.seeds), "Each is a trial of every variation.")
flags.DEFINE_list(
  "only", [], "Only the runs with these names; * stands for anything, as in *_iwae_*_seed0."
)
flags.DEFINE_string(
  "shard", _DEFAULTS.shard, "I/N: of N processes this is number I, and takes every N-th run."
)
flags.DEFINE_string(
  "output_dir", None, "Holds a directory for each run; runs/paper or runs/reduced unless given."
)
flags.DEFINE_string(
  "data_dir", None, "Folder of prepared TensorFlow Datasets; else $TFDS_DATA_DIR or a download."
)
flags.DEFINE_string(
  "train_flags", "", "More flags of bin/train.py, for every run: '--max_steps=100 --latent_dim=8'."
)
flags.DEFINE_boolean(
  "evaluate", False, "Measure each run's test log-likelihood too: bin/eval.py, 5000 samples."
)
flags.DEFINE_boolean("dry_run", False, "Only print the commands that are left to run.")


def main():
  """Checks the flags, then runs."""
  settings = cli.from_flags(experiments.ExperimentConfig)
  experiments.run(settings, pathlib.Path(__file__).resolve().parents[1])


if __name__ == "__main__":
  cli.run(main)
