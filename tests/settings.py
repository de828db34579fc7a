"""Environment variables of the tests' own processes; others run as users' do."""

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
