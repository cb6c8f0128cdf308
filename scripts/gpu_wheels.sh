#!/usr/bin/env bash
# Makes the folder of wheels for a GPU machine that can fetch nothing:
#   scripts/gpu_wheels.sh FOLDER, then WHEELS=FOLDER scripts/gpu_check.sh there.
# It holds what an image with jax, flax, optax, orbax, torch and transformers
# lacks, for Python 3.12 on x86-64, and stays under 50 MB: fa4-jax is left out
# (its compiled part alone has 92 MB), and xprof, which only tokamax imports.
set -euo pipefail
folder=$(realpath -m "${1:?a folder for the wheels}")
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
locked=(
  ml-collections grain array-record portpicker qwix
  tokamax einshape immutabledict pydantic pydantic-core annotated-types
  tensorflow-datasets tensorflow-metadata googleapis-common-protos
  simple-parsing typing-inspection docstring-parser dm-tree toml termcolor importlib-resources
  tensorboardx
)
pins=(trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19)
for name in "${locked[@]}"; do
  pins+=("$(grep -oE "^$name==[^ ;]+" requirements-gpu.txt)")
done
platforms=()
for n in 2_17 2_24 2_26 2_27 2_28; do
  platforms+=(--platform "manylinux_${n}_x86_64")
done
mkdir -p "$folder"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps \
  --python-version 3.12 --implementation cp --only-binary=:all: \
  "${platforms[@]}" --platform manylinux2014_x86_64 \
  --dest "$folder" "${pins[@]}"
# It has no wheel of its own, and is plain Python.
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps \
  --wheel-dir "$folder" "$(grep -oE '^promise==[^ ;]+' requirements-gpu.txt)"
size=$(du -sm "$folder" | cut -f1)
echo "$folder: $(ls "$folder" | wc -l) wheels, $size MB"
[ "$size" -lt 50 ]
