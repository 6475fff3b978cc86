#!/usr/bin/env bash
# What only a GPU can show, in under 10 minutes on one data-centre GPU:
#
#     benchmarks/gpu.sh FOLDER [cuda|cpu]
#
# Run it from the project's folder in an environment with this project and requirements-dev.txt. It runs the tests marked
# `gpu`, the tiny lineage with GPU jobs and its features, correlations and verdicts again on the CPU, and the benchmarks
# of encoding, dumping and SAE training (beside SAELens and dictionary-learning if benchmarks/requirements.txt is
# installed). Figures are written to FOLDER as JSON. Without a GPU it says "not run" and ends with status 0.
# `cpu` goes through the same steps, smaller, on the CPU: a check of this script, not of a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?"usage: benchmarks/gpu.sh FOLDER [cuda|cpu]"}")
device=${2:-cuda}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
export PYTHONPATH=$PWD/workflow/scripts

"$python" -c "import torch" 2>/dev/null || { echo "error: $python has no torch; set PYTHON to this project's Python"; exit 2; }
if [ "$device" = cuda ] && ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "not run: no GPU that torch can use"
    exit 0
fi
mkdir -p "$out"
sizes=()
[ "$device" = cuda ] || sizes=(--tokens 64 --d-in 64 --d-sae 512 --repeats 1)

echo "== tests on the $device"
selected=tests/gpu
if [ "$device" = cuda ]; then
    "$python" -m pytest -q -m gpu -rs "$selected" --junitxml="$out/tests.xml"
else
    "$python" -m pytest -q -m "not gpu" "$selected" --junitxml="$out/tests.xml"
fi

echo "== the tiny lineage, then the same from the features on without a GPU"
runs=$out/lineage
rm -rf "$runs"
"$python" -m benchmarks.tiny_lineage "$runs"
if [ "$device" = cuda ]; then
    grep -l "computing on the GPU" "$runs"/first/results/tiny/logs/features/*.log >/dev/null ||
        { echo "the lineage's jobs did not use the GPU"; exit 1; }
fi
"$python" -m benchmarks.same_verdicts "$runs/first/results/tiny" "$runs/second/results/tiny" --json "$out/verdicts.json"

echo "== encoding"
"$python" -m benchmarks.encoding --device "$device" "${sizes[@]}" --json "$out/encoding.json"

echo "== dumping"
"$python" -m benchmarks.dumping --device "$device" "${sizes[@]:0:2}" --json "$out/dumping.json"

echo "== SAE training"
if [ "$device" = cpu ]; then
    echo "not run: takes minutes on a CPU; see benchmarks/sae_training.py"
elif "$python" -c "import sae_lens, dictionary_learning" 2>/dev/null; then
    "$python" -m benchmarks.sae_training --device cuda --steps 50 --relu-steps 100 --json "$out/sae_training.json"
else
    echo "not run: SAELens and dictionary-learning are not installed (benchmarks/requirements.txt)"
fi
[ "$device" = cuda ] && echo "done: figures in $out" || echo "done on the CPU: no statement on GPUs"
