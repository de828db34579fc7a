"""Sets up a run's devices: the `tf.distribute` strategy of the flags, and agreement of workers.

A worker is a process; each has one or more devices, and there is a replica of the model on each
device. The chief is the worker that writes files.
"""

import contextlib
import functools
import json
import os
import re
import zlib

import tensorflow as tf

from dregs_tf.training import config
from dregs_tf.training.errors import ConfigError, WorkerLost

_EXAMPLE = (
  '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)

# The errors by which TensorFlow reports that another process of a cluster is gone.
_LOST = (
  tf.errors.AbortedError,
  tf.errors.CancelledError,
  tf.errors.DeadlineExceededError,
  tf.errors.FailedPreconditionError,
  tf.errors.InternalError,
  tf.errors.UnavailableError,
)


class Devices:
  """Holds a strategy, and the place of this process in it."""

  def __init__(self, strategy: tf.distribute.Strategy, worker: int = 0, num_workers: int = 1):
    self.strategy = strategy
    self.worker = worker
    self.num_workers = num_workers

  @property
  def is_chief(self) -> bool:
    """Returns whether this process writes the run's files."""
    return self.worker == 0

  @property
  def num_replicas(self) -> int:
    """Returns the number of the model's replicas, on all workers together."""
    return self.strategy.num_replicas_in_sync

  def describe(self) -> str:
    """Describes the devices in one line."""
    per_worker = self.num_replicas // self.num_workers
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if self.num_workers > 1:
      role = ", which writes the files" if self.is_chief else ""
      return (
        f"Devices: {self.num_workers} workers with {per_worker} x {kind}, strategy multi_worker; "
        f"this is worker {self.worker}{role}."
      )
    if isinstance(self.strategy, tf.distribute.MirroredStrategy):
      return f"Devices: {per_worker} x {kind}, strategy mirrored."
    return f"Device: {kind}."

  def distribute(self, batches: tf.data.Dataset, batch_size: int):
    """Splits each batch into consecutive parts for the replicas, in their order.

    Args:
      batches: a Dataset of batches that is the same on every worker.
      batch_size: the size of every batch but the last, which may be smaller.
    """
    if self.num_replicas == 1:
      return batches
    size = -(-batch_size // self.num_replicas)
    per_worker = self.num_replicas // self.num_workers
    first = self.worker * per_worker

    @tf.autograph.experimental.do_not_convert
    def parts_of_worker(*batch):
      batch = batch if len(batch) > 1 else batch[0]
      parts = [
        tf.data.Dataset.from_tensors(
          tf.nest.map_structure(lambda x, r=r: x[r * size : (r + 1) * size], batch)
        )
        for r in range(first, first + per_worker)
      ]
      return functools.reduce(lambda a, b: a.concatenate(b), parts)

    parts = batches.flat_map(parts_of_worker)
    if batches.cardinality() == tf.data.INFINITE_CARDINALITY:
      parts = parts.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    parts = parts.prefetch(per_worker)
    if not tf.config.list_physical_devices("GPU"):
      # Deleting an iterator of several CPU devices waits up to a minute for the tuning thread.
      options = tf.data.Options()
      options.autotune.enabled = False
      parts = parts.with_options(options)
    return self.strategy.distribute_datasets_from_function(lambda _: parts)

  def sum_over_workers(self, value: int) -> int:
    """Returns the sum of the workers' values. All workers must call it."""
    return value if self.num_workers == 1 else int(self._sum(tf.constant(value, tf.int64)))

  @functools.cached_property
  def _sum(self):
    per_worker = self.num_replicas // self.num_workers

    @tf.function(autograph=False)
    def total(value):
      def on_replica(value):
        context = tf.distribute.get_replica_context()
        is_first = tf.equal(context.replica_id_in_sync_group % per_worker, 0)
        return context.all_reduce("SUM", tf.where(is_first, value, tf.zeros_like(value)))

      totals = self.strategy.run(on_replica, args=(value,))
      return self.strategy.experimental_local_results(totals)[0]

    return total

  def any_worker(self, value: bool) -> bool:
    """Returns whether `value` is true on any worker. All workers must call it."""
    return self.sum_over_workers(int(value)) > 0

  def from_chief(self, value: int) -> int:
    """Returns the chief's value. All workers must call it, and wait for each other."""
    return self.sum_over_workers(value if self.is_chief else 0)

  def check_same_flags(self, settings: config.TrainConfig) -> None:
    """Raises a ConfigError if a worker's flags differ from the chief's; directories may differ."""
    text = json.dumps(settings.without_paths(), sort_keys=True)
    checksum = zlib.crc32(text.encode())
    if self.any_worker(self.from_chief(checksum) != checksum):
      raise ConfigError("The workers were given different flags: give the same to all of them.")

  @contextlib.contextmanager
  def watching(self):
    """Turns TensorFlow's errors about another worker into a WorkerLost that tells the remedy."""
    try:
      yield
    except _LOST as error:
      if self.num_workers == 1:
        raise
      raise WorkerLost(
        f"Worker {self.worker} stops, as another worker stopped or cannot be reached "
        f"({_reason(error)}). Start the same command on every worker again to resume "
        "from the newest checkpoint."
      ) from error


def _reason(error: tf.errors.OpError) -> str:
  """Returns TensorFlow's name of the error, and the worker that its message names, if any."""
  named = re.search(r"/job:\w+(/replica:\d+)?/task:\d+", str(error.message))
  return type(error).__name__ + (f", {named[0]}" if named else "")


def start(settings: config.TrainConfig) -> Devices:
  """Returns the devices of `--distribute` and `--num_devices`; call it before using TensorFlow.

  Raises:
    ConfigError: if there are no such devices, TF_CONFIG is wrong, or the number of replicas does
      not fit the flags.
  """
  gpus = tf.config.list_physical_devices("GPU")
  with contextlib.suppress(RuntimeError):  # It is too late if the process has used them before.
    for gpu in gpus:
      tf.config.experimental.set_memory_growth(gpu, True)
  if settings.distribute == "mirrored":
    devices = Devices(tf.distribute.MirroredStrategy(_local_devices(settings.num_devices, gpus)))
  elif settings.distribute == "multi_worker":
    worker, num_workers = _place_in_cluster()
    devices = Devices(_multi_worker_strategy(), worker, num_workers)
  else:
    devices = Devices(tf.distribute.get_strategy())
  if settings.batch_size % devices.num_replicas:
    raise ConfigError(
      f"--batch_size is that of all devices together: it must be a multiple of their number, "
      f"{devices.num_replicas}, got {settings.batch_size}."
    )
  if settings.num_backward_samples == "auto" and devices.num_replicas > 1:
    raise ConfigError(
      f"--num_backward_samples=auto needs one device, got --distribute={settings.distribute} on "
      f"{devices.num_replicas}: give a number of samples, or use one device."
    )
  return devices


def _local_devices(number: int | None, gpus: list) -> list[str]:
  """Returns the names of GPUs or, if there are none, of that many logical CPU devices."""
  if gpus:
    if number is not None and number > len(gpus):
      raise ConfigError(f"--num_devices must be at most {len(gpus)}, the GPUs here, got {number}.")
    return [f"GPU:{i}" for i in range(number or len(gpus))]
  if number is None:
    raise ConfigError(
      "--distribute=mirrored found no GPU: give --num_devices to use that many logical CPU devices."
    )
  (cpu,) = tf.config.list_physical_devices("CPU")
  try:
    logical = [tf.config.LogicalDeviceConfiguration()] * number
    tf.config.set_logical_device_configuration(cpu, logical)
  except RuntimeError as error:
    if len(tf.config.list_logical_devices("CPU")) < number:
      raise ConfigError(
        f"--num_devices={number} needs logical CPU devices, and TensorFlow is in use already: "
        "train in a new process."
      ) from error
  return [f"CPU:{i}" for i in range(number)]


def _multi_worker_strategy() -> tf.distribute.Strategy:
  try:
    return tf.distribute.MultiWorkerMirroredStrategy()
  except (tf.errors.OpError, RuntimeError, ValueError) as error:
    raise ConfigError(
      f"--distribute=multi_worker could not join the cluster that TF_CONFIG names: {error}"
    ) from error


def _place_in_cluster() -> tuple[int, int]:
  """Reads (number of this worker, number of workers) from TF_CONFIG; the chief has number 0."""
  text = os.environ.get("TF_CONFIG")
  if not text:
    raise ConfigError(
      f"--distribute=multi_worker needs the environment variable TF_CONFIG, such as {_EXAMPLE}."
    )
  try:
    given = json.loads(text)
    cluster, task = given["cluster"], given["task"]
    addresses = {job: list(cluster.get(job, [])) for job in ("chief", "worker")}
    job, index = task["type"], int(task["index"])
    if set(cluster) - set(addresses) or job not in addresses:
      raise ValueError("tasks must be of type worker or chief")
    if not 0 <= index < len(addresses[job]):
      raise ValueError(f"there is no {job} number {index}")
    if len(addresses["chief"]) > 1:
      raise ValueError("there is more than one chief")
    if not all(":" in address for task in addresses.values() for address in task):
      raise ValueError("an address is not HOST:PORT")
  except KeyError as error:
    raise ConfigError(f"TF_CONFIG lacks {error}; it should be like {_EXAMPLE}.") from error
  except (AttributeError, TypeError, ValueError) as error:
    raise ConfigError(f"TF_CONFIG is wrong ({error}); it should be like {_EXAMPLE}.") from error
  num_chiefs = len(addresses["chief"])
  return index + (num_chiefs if job == "worker" else 0), num_chiefs + len(addresses["worker"])
