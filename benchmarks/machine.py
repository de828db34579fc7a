"""Says which machine a benchmark runs on: its processor, cores and instruction sets."""

import os
import pathlib

# Instruction sets that decide how fast matrix products are, as Linux names them.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe(cpuinfo: str = "/proc/cpuinfo") -> str:
  """Describes the machine in one line, as far as Linux tells."""
  path = pathlib.Path(cpuinfo)
  lines = path.read_text().splitlines() if path.exists() else []
  fields = [tuple(map(str.strip, line.partition(":")[::2])) for line in lines]
  known = dict(reversed(fields))  # Of the first processor.
  flags = known.get("flags", known.get("Features", "")).split()
  instructions = ", ".join(name for name in _INSTRUCTIONS if name in flags)
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  name = known.get("model name", "unknown processor")
  return f"Machine: {name}, {cores} cores, {instructions or 'unknown instruction sets'}."
