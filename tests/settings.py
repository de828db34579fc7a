"""Settings of the tests' processes: environment variables of their own, and what is left out."""

import functools
import gc

# Garbage is looked for less often, from the loading of modules on.
gc.set_threshold(50_000, 20, 100)

# XLA compiles small steps in a third of the time: LLVM does not optimize, and operations that XLA
# fuses are written by its older, quicker emitter. XLA's own passes stay, and with them what it
# fuses and rounds.
XLA_FLAGS = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1"
)

# The tests' Tensors are small, and several processes share the cores.
ENVIRONMENT = {
  "XLA_FLAGS": XLA_FLAGS,
  "TF_NUM_INTRAOP_THREADS": "1",
  "TF_NUM_INTEROP_THREADS": "1",
}


def leave_out_what_takes_long() -> None:
  """Looks for no garbage in what is loaded, and records no tracebacks of a graph's operations.

  With stacks as deep as the tests', these take long. Only messages about an operation that failed
  would show them.
  """
  from tensorflow.python.framework import ops  # not in the process that hands out the tests

  gc.freeze()
  ops._create_c_op = functools.partial(ops._create_c_op, extract_traceback=False)
