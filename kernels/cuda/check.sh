#!/bin/bash
# Compiles the kernels again and fails on any difference from what is committed, and on any spill of registers.
# Where the compiler cannot be fetched (no network), it says so and succeeds.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=${TRAMONTANE_CUDA_SCRATCH:-${TMPDIR:-/tmp}/tramontane-nvcc-13.0}
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
if ! TRAMONTANE_CUDA_SCRATCH=$scratch "$here/build.sh" "$fresh" 2> "$fresh/log"; then
  if [ ! -x "$scratch/nvidia/cu13/bin/nvcc" ]; then
    tail -n 3 "$fresh/log" >&2
    echo "kernels/cuda: NOT COMPARED: the compiler could not be fetched"
    exit 0
  fi
  cat "$fresh/log" >&2
  exit 1
fi
diff -r "$here/ptx" "$fresh/ptx"
diff "$here/RESOURCES.md" "$fresh/RESOURCES.md"
echo "kernels/cuda: the committed PTX and RESOURCES.md are what the sources give"
