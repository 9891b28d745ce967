#!/bin/bash
# Compiles the kernels to PTX and writes the table of their resources. Needs no GPU and no CUDA installation:
# NVIDIA's compiler comes from PyPI into a scratch folder.
#
#   kernels/cuda/build.sh [OUT]     OUT: where ptx/ and RESOURCES.md are written; this folder by default
#   TRAMONTANE_CUDA_SCRATCH         where the compiler is kept; a folder in the temporary directory by default
#
# The PTX is for compute capability 8.0, which drivers compile for everything from Ampere to Blackwell. The compiler
# marks it as PTX 9.0, which only drivers of CUDA 13 accept; nothing in it is newer than 7.4 (CUDA 11.4), so that is
# what we write, and the assembler checks it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
scratch=${TRAMONTANE_CUDA_SCRATCH:-${TMPDIR:-/tmp}/tramontane-nvcc-13.0}
cuda=$scratch/nvidia/cu13

if [ ! -x "$cuda/bin/nvcc" ]; then
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$scratch" \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
fi

compile() {
  local ptx=$out/ptx/${1%.cu}.ptx
  "$cuda/bin/nvcc" -arch=compute_80 -std=c++17 -O3 -ptx -o "$ptx" "$1"
  # Names of what is local to a file hold a hash of the path that it was compiled in.
  sed -i -e 's/^\.version .*/.version 7.4/' -e '/^\/\//d' -e 's/[ \t]*$//' \
    -e 's/_INTERNAL_[0-9a-f]\{8\}_/_INTERNAL_00000000_/g' "$ptx"
}

mkdir -p "$out/ptx"
cd "$here"
jobs=()
for source in *.cu; do
  compile "$source" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
python3 resources.py "$cuda/bin/ptxas" "$out"/ptx/*.ptx > "$out/RESOURCES.md"
