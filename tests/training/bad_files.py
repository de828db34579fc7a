"""A folder with a finished run, and files and runs that are bad in every way."""

import json
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import scipy.io

from dregs_tf.training import config, runners
from tests.eager import functions_run_eagerly

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}

SMALL = ("--max_steps=2", "--num_samples=2", "--latent_dim=2", "--batch_size=4", "--nojit_compile")

LONGER = (*SMALL, "--max_steps=6", "--checkpoint_every=2")


def gray(*shape):
  return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def assert_one_line(binary, text, words):
  lines = text.splitlines()
  assert len(lines) == 1, text
  assert lines[0].startswith(f"{binary}.py: error: ")
  for word in words:
    assert word in lines[0], f"{word!r} is not in {lines[0]!r}"


# --- files and runs to give ---------------------------------------------------------------------


class Bomb:
  """An object whose unpickling would be noticed."""

  def __reduce__(self):
    return pytest.fail, ("a pickle was loaded",)


def make(place: pathlib.Path) -> pathlib.Path:
  """Fills a folder with a finished run, and files and runs that are bad in every way."""
  good = gray(40, 4, 4)
  np.savez(place / "good.npz", train=good)
  (place / "folder.npz").mkdir()
  (place / "empty.npz").touch()
  for name in ("junk.npz", "junk.mat", "file"):
    (place / name).write_bytes(b"junk" * 50)
  (place / "images.csv").write_text("0,1\n")
  (place / "cut.npz").write_bytes((place / "good.npz").read_bytes()[:-100])
  (place / "pickle.npz").write_bytes(pickle.dumps([1.0, 2.0]))
  np.savez(place / "objects.npz", train=np.array([Bomb()], object))
  np.savez(place / "bright.npz", train=good * 255)
  np.savez(place / "nan.npz", train=np.where(good > 0.5, np.nan, good))
  np.savez(place / "int.npz", train=(good * 255).astype(int))
  np.savez(place / "key.npz", x_train=good)
  np.savez(place / "rank.npz", train=good[0, 0])
  np.savez(place / "oblong.npz", train=gray(40, 7))
  np.savez(place / "sizes.npz", train=good, test=gray(3, 9))
  np.savez(place / "few.npz", train=good[:2])
  np.savez(place / "flat.npz", train=good[:, :1])
  scipy.io.savemat(place / "key.mat", {"images": gray(4, 5)})
  scipy.io.savemat(place / "rows.mat", {"data": gray(5, 4), "testdata": gray(5, 4)})

  settings = {"dataset": str(place / "good.npz"), "max_steps": 4, "checkpoint_every": 2}
  settings |= {"num_samples": 2, "latent_dim": 2, "batch_size": 4, "jit_compile": False}
  with functions_run_eagerly():
    runners.train(config.TrainConfig(logdir=str(place / "run"), **settings))

  def copy(name):
    return shutil.copytree(place / "run", place / name)

  shutil.rmtree(copy("no_checkpoint") / "checkpoints")
  (copy("half_config") / "config.json").write_text('{"bound": ')
  (copy("list_config") / "config.json").write_text("[1]")
  (copy("wrong_config") / "config.json").write_text('{"bound": "svi"}')
  (copy("newer_config") / "config.json").write_text('{"flag_to_come": 1}')
  directory = copy("no_data")
  settings = json.loads((directory / "config.json").read_text())
  settings["dataset"] = str(place / "gone.npz")
  (directory / "config.json").write_text(json.dumps(settings))
  for path in (copy("damaged") / "checkpoints").iterdir():
    path.write_bytes(path.read_bytes()[:500])
  (copy("csv_word") / "metrics.csv").write_text("step,train_bound\nfour,-3\n")
  (copy("csv_bytes") / "metrics.csv").write_bytes(b"\xff\x00\xfe" * 9)
  (copy("csv_folder") / "metrics.csv").unlink()
  (place / "csv_folder" / "metrics.csv").mkdir()
  return place
