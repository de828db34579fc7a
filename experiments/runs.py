"""Plans the runs of experiments, and runs them one after another."""

import contextlib
import dataclasses
import glob
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from typing import NamedTuple

from dregs_tf.training import config, flags
from dregs_tf.training.errors import ConfigError, Interrupted
from dregs_tf.training.flags import flag
from dregs_tf.training.run_directory import Run
from experiments.definitions import EXPERIMENTS, num_evaluated

# --- the runs of an experiment -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Holds the flags of `bin/run_experiment.py`."""

  experiment: str | None = flag(
    None, str, "The experiment to run; see experiments/README.md.", tuple(EXPERIMENTS)
  )
  seeds: Sequence[str] = flag(("0", "1", "2"), list, "Seeds; each gives a run of every variation.")
  only: Sequence[str] = flag(
    (), list, "Only the runs with these names; * matches anything, as in *_iwae_*_seed0."
  )
  shard: str = flag("0/1", str, "I/N: this is process I of N, from 0, and takes every N-th run.")
  output_dir: str | None = flag(
    None, str, "Holds a directory for each run; by default a folder in runs/, such as runs/reduced."
  )
  data_dir: str | None = flag(
    None, str, "Folder of prepared TensorFlow Datasets; $TFDS_DATA_DIR or a download by default."
  )
  train_flags: str = flag(
    "", str, "More flags of bin/train.py, for every run: '--max_steps=100 --latent_dim=8'."
  )
  evaluate: bool = flag(
    False, bool, "Also estimate each run's test log-likelihood with bin/eval.py."
  )
  dry_run: bool = flag(False, bool, "Only print the commands that remain to be run.")

  def __post_init__(self):
    if self.experiment not in EXPERIMENTS:
      raise ConfigError(
        f"--experiment must be one of {', '.join(EXPERIMENTS)}, got {self.experiment!r}."
      )
    given = ",".join(self.seeds)
    if not (self.seeds and all(re.fullmatch("[0-9]+", seed) for seed in self.seeds)):
      raise ConfigError(f"--seeds must be whole numbers with commas between them, got {given!r}.")
    if len(set(map(int, self.seeds))) < len(self.seeds):
      raise ConfigError(f"--seeds names a seed twice, got {given}.")
    match = re.fullmatch("([0-9]+)/([0-9]+)", self.shard)
    if not match or int(match[1]) >= int(match[2]):
      raise ConfigError(
        "--shard must be I/N: N processes share the runs, and this is number I, from 0 to N - 1; "
        f"got {self.shard!r}."
      )

  @property
  def directory(self) -> str:
    """Returns the folder of the runs."""
    return self.output_dir or f"runs/{EXPERIMENTS[self.experiment].folder}"

  def seen_from(self, root: pathlib.Path) -> "ExperimentConfig":
    """Returns the same for a process that works in `root`, with relative paths made absolute.

    Raises:
      ConfigError: if --train_flags cannot be split into flags.
    """
    if pathlib.Path.cwd() == root:
      return dataclasses.replace(self, output_dir=self.directory)
    data_dir = os.path.abspath(self.data_dir) if self.data_dir else None
    given = shlex.join(map(_with_absolute_path, _split(self.train_flags)))
    return dataclasses.replace(
      self, output_dir=os.path.abspath(self.directory), data_dir=data_dir, train_flags=given
    )


def _split(train_flags: str) -> list[str]:
  """Splits --train_flags into arguments, each `--name=value`."""
  try:
    words = shlex.split(train_flags)
  except ValueError as error:
    raise ConfigError(f"--train_flags={train_flags!r}: {error}.") from error
  arguments = []
  for word in words:
    if arguments and not word.startswith("-") and "=" not in arguments[-1]:
      arguments[-1] += f"={word}"
    else:
      arguments.append(word)
  return arguments


def _with_absolute_path(argument: str) -> str:
  """Makes the path absolute in a flag whose value is a path."""
  name, _, value = argument.partition("=")
  is_path = name.lstrip("-") in ("data_dir", "init_from", "flagfile")
  is_path = is_path or (name.lstrip("-") == "dataset" and os.path.exists(value))
  if value and is_path and "://" not in value:
    return f"{name}={os.path.abspath(value)}"
  return argument


class PlannedRun(NamedTuple):
  """Describes a run of `bin/train.py`: its arguments, and the configuration that they give."""

  arguments: list[str]
  settings: config.TrainConfig

  @property
  def name(self) -> str:
    """Returns the name of its directory."""
    return self.settings.directory.name

  def is_done(self) -> bool:
    """Returns whether its directory holds this run, with these settings, to its last step."""
    try:
      saved = self._run.read_config()
      if saved is None:
        return False
      self.settings.check_resumes(saved)
    except ConfigError:
      return False  # bin/train.py will report what is wrong.
    return self._reached(self._run.read_result)

  def is_evaluated(self) -> bool:
    """Returns whether `bin/eval.py` has measured the log-likelihood at its last step."""
    num_samples = num_evaluated(self.settings)
    return self._reached(lambda: self._run.read_evaluation(num_samples=num_samples))

  @property
  def _run(self) -> Run:
    return Run(self.settings.directory)

  def _reached(self, read: Callable[[], dict | None]) -> bool:
    try:
      found = read()
      return found is not None and found["step"] >= self.settings.max_steps
    except (OSError, TypeError, ValueError, KeyError):
      return False


def all_runs(settings: ExperimentConfig) -> list[PlannedRun]:
  """Returns the runs of an experiment that --only selects, of all shards, seed by seed.

  The current directory must be the one that experiments/ is in: flagfiles include each other from
  there.

  Raises:
    ConfigError: if a flag of a run is wrong, or no run is selected.
  """
  experiment = EXPERIMENTS[settings.experiment]
  given = _split(settings.train_flags)
  taken = {"logdir", "seed"}.union(*experiment.variations)
  for name in sorted(taken & _flags_in(given)):
    raise ConfigError(f"--train_flags must leave --{name} to the experiment, which sets it.")
  data_dir = [f"--data_dir={settings.data_dir}"] if settings.data_dir else []
  runs = []
  for seed in settings.seeds:
    for variation in experiment.variations:
      own = [f"--{name}={value}" for name, value in (variation | {"seed": seed}).items()]
      arguments = [f"--flagfile=experiments/{experiment.flags}.flags", *given, *own, *data_dir]
      name = parsed([*arguments, "--logdir="]).directory.name
      arguments.append(f"--logdir={os.path.join(settings.directory, name)}")
      runs.append(PlannedRun(arguments, parsed(arguments)))
  patterns = settings.only or ["*"]
  selected = [run for run in runs if any(fnmatch(run.name, pattern) for pattern in patterns)]
  if not selected:
    names = ", ".join(run.name for run in runs)
    raise ConfigError(f"--only={','.join(settings.only)} selects none of {names}.")
  return selected


def parsed(arguments: list[str]) -> config.TrainConfig:
  """Returns the configuration that `bin/train.py` makes from these arguments; reads flagfiles.

  Raises:
    ConfigError: if one is wrong.
  """
  return flags.configuration(config.TrainConfig, _parse(arguments))


def _flags_in(arguments: list[str]) -> set[str]:
  """Returns the names of the flags that these arguments set."""
  values = _parse(arguments)
  return {name for name in values if values[name].present}


def _parse(arguments: list[str]):
  try:
    return flags.parse(config.TrainConfig, arguments)
  except ConfigError as error:
    raise ConfigError(f"--train_flags: {error}") from error


# --- running them --------------------------------------------------------------------------------


def run(settings: ExperimentConfig, root: pathlib.Path) -> None:
  """Runs a shard of an experiment, a process of `bin/train.py` for each run.

  Finished runs are skipped; an interrupted one is resumed, as bin/train.py does.

  Args:
    settings: the flags.
    root: the folder that bin/ and experiments/ are in.

  Raises:
    ConfigError: if a flag is wrong, before anything is run.
    ChildProcessError: if runs failed; it names them, after the others have run.
    Interrupted: after SIGTERM or Ctrl-C, which also stopped the current run.
  """
  # The printed commands must be run in `root`.
  change_directory = [] if pathlib.Path.cwd() == root else [f"cd {shlex.quote(str(root))}"]
  settings = settings.seen_from(root)
  with contextlib.chdir(root):
    runs = all_runs(settings)
    shard, num_shards = map(int, settings.shard.split("/"))
    runs = runs[shard::num_shards]
    if not runs:
      _say(f"There is no run for --shard={settings.shard}.")
      return
    if settings.dry_run:
      commands = [command for each in runs for command in _commands(each, settings)]
      lines = [shlex.join(["python", *command]) for command in commands]
      _say("\n".join([*change_directory, *lines]))
      return
    failed = _run_each(runs, settings)
    _say("\n".join([*change_directory, _what_next(runs, settings)]))
    if failed:
      raise ChildProcessError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}.")


def _commands(each: PlannedRun, settings: ExperimentConfig) -> Iterator[list[str]]:
  """Yields the remaining commands of a run, without `python`."""
  if not each.is_done():
    yield ["bin/train.py", *each.arguments]
  if settings.evaluate and not each.is_evaluated():
    data_dir = [f"--data_dir={settings.data_dir}"] if settings.data_dir else []
    samples = f"--num_samples={num_evaluated(each.settings)}"
    logdir = each.settings.directory
    yield ["bin/eval.py", f"--logdir={logdir}", samples, "--split=test", *data_dir]


def _run_each(runs: list[PlannedRun], settings: ExperimentConfig) -> list[str]:
  """Runs the runs; returns the names of those that failed, and how."""
  failed = []
  with _Children() as children:
    for i, each in enumerate(runs):
      commands = list(_commands(each, settings))
      _say(f"[{i + 1}/{len(runs)}] {each.name}{'' if commands else ': done before'}")
      for command in commands:
        if status := children.call([sys.executable, *command]):
          failed.append(f"{each.name} ({command[0]}: {status})")
          break
  return failed


class _Children:
  """Runs one process after another, and passes SIGTERM and Ctrl-C on to the current one."""

  def __enter__(self):
    self._asked = []
    self._before = {
      number: signal.signal(number, lambda number, frame: self._asked.append(number))
      for number in (signal.SIGTERM, signal.SIGINT)
    }
    return self

  def __exit__(self, *error):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def call(self, command: list[str]) -> str | None:
    """Runs a command to its end; returns how it failed, if it did.

    Raises:
      Interrupted: if this process was asked to stop.
    """
    passed_on = 0
    if not self._asked:
      # A separate process group; otherwise Ctrl-C would reach it twice, which stops it at once.
      child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
      while child.returncode is None:
        for number in self._asked[passed_on:]:
          child.send_signal(number)
          passed_on += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
          child.wait(timeout=0.2)
    if self._asked:
      name = signal.Signals(self._asked[0]).name
      raise Interrupted(f"Stopped by {name}. Run the same command again to resume.")
    if child.returncode < 0:
      return f"killed by {signal.Signals(-child.returncode).name}"
    return f"exit status {child.returncode}" if child.returncode else None


def _what_next(runs: list[PlannedRun], settings: ExperimentConfig) -> str:
  """Returns the commands that show the results of the runs."""
  problems = dict.fromkeys(
    re.sub(rf"_{each.settings.bound}_.*?(K[\d-]+)_seed.*", r"_*_\1_*", each.name) for each in runs
  )
  directory = glob.escape(settings.directory)
  globs = ",".join(os.path.join(directory, problem) for problem in problems)
  figure = EXPERIMENTS[settings.experiment].figure
  picture = os.path.join(settings.directory, f"{settings.experiment}.png")
  plot = ["python", "bin/plot.py", f"--runs={globs}", f"--figure={figure}", f"--output={picture}"]
  return (
    f"Draw:      {shlex.join(plot)}\n"
    f"Table:     {shlex.join(['python', 'bin/summarize.py', f'--runs={globs}'])}"
  )


def _say(text: str) -> None:
  print(text, flush=True)
