#!/usr/bin/env bash
# Ten minutes of one H100-class GPU: step times in float32 and bfloat16, and one run of configs/burgers.py:gpu.
#
#     benchmarks/gpu.sh [OUT]             # a folder for what it finds; results unless given
#
# Needs JAX with its accelerator. What else setup.cfg asks for is taken from ./wheels, where that folder is there, so that a
# machine without a network will do; make it on one that has it, with the same Python:
#
#     pip download --dest=wheels . && rm wheels/{namm_jax,jax,jaxlib,ml_dtypes,numpy,scipy,opt_einsum}-*
#
# It writes OUT/gpu-steps.json and OUT/burgers-gpu-seed0.json. PRESET=tiny and STEPS=tiny try all of it on a CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-results}
preset=${PRESET:-gpu}
run=$(mktemp -d)/burgers-$preset
mkdir -p "$out"
[ -d wheels ] && python -m pip install --quiet --no-index --no-deps wheels/*.whl
export PYTHONPATH=$PWD

python benchmarks/train_step.py --presets="${STEPS:-paper}" --batch=0 --parts=1 --steps_only --dtypes=float32,bfloat16 --json="$out/gpu-steps.json"
python launch/main.py --config="configs/burgers.py:$preset" --workdir="$run" --config.train.parts=1
python benchmarks/results.py "$run" --into="$out"
