#!/usr/bin/env bash
# Trains every problem at preset quick with three seeds, on one machine, one run after the other.
#
#     benchmarks/sweep.sh [FOLDER]        # of the runs; runs/sweep unless given
#
# Some sixteen hours on two cores. Stop it at any time: the same command goes on where it stopped, a run in the middle of its
# training, and a result that is committed is not made again. After each run its numbers are put into results/, all tables
# are written anew, and both are committed. A run that fails is named at the end, and begun again by the next call. Settings from
# outside: SEEDS, PROBLEMS, PRESET.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:-runs/sweep}
preset=${PRESET:-quick}
failed=
problems='burgers kolmogorov divergence periodic total_brightness count decaying_flow heat reaction_diffusion'
for seed in ${SEEDS:-0 1 2}; do
  for problem in ${PROBLEMS:-$problems}; do
    run=$runs/$problem-$preset/seed$seed
    [ -e "$run/committed" ] && continue
    python launch/main.py --config="configs/$problem.py:$preset" --workdir="$run" --config.seed="$seed" || case $? in
      1) failed+=" $run" && continue ;;
      *) exit $? ;;
    esac
    python benchmarks/results.py "$run" --readme
    git add README.md docs results
    git diff --cached --quiet -- README.md docs results || git commit --quiet --message="Results: $problem, preset $preset, seed $seed" -- README.md docs results
    touch "$run/committed"
  done
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
