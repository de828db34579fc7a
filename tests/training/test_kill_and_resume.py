"""A short form of tools/kill_and_resume.py: a run that was killed ends as if it never was."""

import io
import shutil
import zipfile

import h5py
import numpy as np
import pytest

from dregs_tf.training.run_directory import Run
from tests.processes import Forked
from tests.training.train_processes import train
from tools import kill_and_resume

# All that a run can follow, so that its averages have to be resumed.
FLAGS = (
  "--bound=dreg_alpha",
  "--alpha=auto",
  "--track_variance=rws",
  "--gradient_statistics",
  "--follow_test",
  "--missing_fraction=0.25",
  "--nojit_compile",
  "--num_samples=3",
  "--latent_dim=2",
  "--max_steps=100",
  "--summarize_every=40",
  "--checkpoint_every=15",
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """The numbers of the runs that differ, and the directory of the run that was not killed."""
  folder = tmp_path_factory.mktemp("runs")

  def start(directory, flags):
    return Forked(train, *flags, f"--logdir={directory}")

  Forked(int).finish()  # Starts what runs are forked from, which is not a part of their time.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(kill_and_resume, "_start", start)
    return kill_and_resume.compare(folder, runs=1, kills=2, seed=3, flags=FLAGS), folder / "whole"


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_numbers(compared):
  differing, _ = compared
  assert differing == []


@pytest.mark.parametrize("name", ["metrics.csv", "result.json"])
def test_another_byte_is_found(name, compared, tmp_path):
  _, whole = compared
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  with open(tmp_path / name, "a") as file:
    file.write(" ")
  assert kill_and_resume.different_files(whole, tmp_path) == [name]


def test_another_bit_of_a_variable_is_found(compared, tmp_path):
  _, whole = compared
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  _, path = Run(tmp_path).checkpoints()[-1]
  with zipfile.ZipFile(path) as archive:
    weights = io.BytesIO(archive.read("model.weights.h5"))
  with h5py.File(weights, "r+") as file:
    variable = file["optimizer/vars/2"]
    variable[...] = np.nextafter(variable[...], np.float32(1))
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("model.weights.h5", weights.getvalue())
  assert kill_and_resume.different_files(whole, tmp_path) == ["the last checkpoint"]
