"""The executor: runs approved plans, and any ONNX graph, on JAX and MPI."""

from .xla import set_flags

# Before anything below can make JAX start.
set_flags()
