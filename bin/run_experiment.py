"""Runs an experiment of the paper, run by run; the same command again resumes it.

python bin/run_experiment.py --experiment=fig2_reduced --seeds=0,1,2

Several machines can share the runs, each with a part of its own: --shard=0/2 and --shard=1/2.
"""

import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from dregs_tf.training import flags
from experiments import runs

if __name__ == "__main__":
  flags.run(runs.ExperimentConfig, lambda settings: runs.run(settings, _ROOT), __doc__)
