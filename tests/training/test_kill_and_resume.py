"""A short form of tools/kill_and_resume.py: a run that was killed ends as if it never was."""

import pytest

from tests import binaries
from tools import kill_and_resume

FLAGS = (
  "--bound=jvi_dreg",
  "--gradient_statistics",
  "--nojit_compile",
  "--num_samples=3",
  "--latent_dim=2",
  "--max_steps=150",
  "--summarize_every=40",
  "--checkpoint_every=15",
)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_numbers(tmp_path):
  assert kill_and_resume.compare(tmp_path, runs=1, kills=2, seed=3, flags=FLAGS) == []


def test_another_run_is_found_to_differ(tmp_path):
  """The comparison can fail."""
  for name, seed in (("one", 0), ("other", 1)):
    own = ["--max_steps=3", f"--seed={seed}", f"--logdir={tmp_path / name}"]
    assert binaries.run("train.py", *FLAGS, "--nogradient_statistics", *own) == 0
  differing = kill_and_resume.different_files(tmp_path / "one", tmp_path / "other")
  assert differing == ["metrics.csv", "result.json", "the last checkpoint"]
