#!/bin/sh
# All that a GPU must show, as calls of under ten minutes each. For somebody who has one for half an hour.
#
#     sh bench/gpu.sh                 # every call, in order; a call that fails is counted, and the next one runs
#     sh bench/gpu.sh speed-half      # one call, by its name
#     sh bench/gpu.sh list            # the names
#     DEVICE=cpu PRESET=tiny SIZE=64 TILE=64 STEPS=2 COMPILE= sh bench/gpu.sh    # try the script itself without a GPU
#
# PYTHON must have the extras test and bench. Results: runs/gpu/*.log and runs/gpu/bench; the table is printed at the end.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
PRESET=${PRESET:-sd15}
SIZE=${SIZE:-512}
TILE=${TILE:-256}
STEPS=${STEPS:-20}
COMPILE=${COMPILE---compile}
OUT=${OUT:-runs/gpu}
LIMIT=${LIMIT:-590}
# What shows most comes first: a loan of 30 minutes has room for about the first eight calls, the rest is for another.
CALLS="tests weights parity speed-half speed-samples speed-training train-controlnet sample table speed-float speed-rest speed-compiled train-unet train-vae train-compiled exports table"
BENCH="$PYTHON -m bench.speed --device $DEVICE --preset $PRESET --size $SIZE --out $OUT/bench"
MODEL=$OUT/bench/$PRESET/filled.safetensors
mkdir -p "$OUT"

train() { # stage, name, more options: half of the steps, then the same command goes on to the end
    stage=$1; name=$2; shift 2
    for steps in $STEPS $((2 * STEPS)); do
        $PYTHON train.py "$stage" --weights "$MODEL" --data "$OUT/phantoms" --size "$SIZE" --device "$DEVICE" --batch 4 \
            --steps "$steps" --save-every "$STEPS" --sample-every 0 --log-every 1 --precision bf16 --out "$OUT/$name" "$@" || return 1
    done
    tail -n 3 "$OUT/$name/log.jsonl"
}

drawn() { # more options: samples, each compared with what its fields give
    $PYTHON sample.py --weights "$OUT/controlnet/model.safetensors" --class malignant --n 2 --steps "$STEPS" --size "$SIZE" \
        --device "$DEVICE" --out "$OUT/samples" --overwrite "$@" && $PYTHON sample.py --verify "$OUT/samples" --device "$DEVICE"
}

call() {
    case $1 in
    weights)
        $BENCH --only start --quick --dtype bfloat16
        test -d "$OUT/phantoms" || $PYTHON -m ldm_us.data phantom --n 24 --size "$SIZE" --seed 3 --out "$OUT/phantoms" ;;
    tests) $PYTHON -m pytest -q -rs tests/test_on_a_gpu.py tests/synthesis/test_drawing.py ;;
    parity) $PYTHON bench/parity.py --preset "$PRESET" --steps 5 --size "$SIZE" --device "$DEVICE" ;;
    speed-float) $BENCH --only networks --dtype float32 ;;
    speed-half) $BENCH --only networks --dtype bfloat16 ;; # their differences are the parity in bf16
    speed-samples) $BENCH --only samples --dtype bfloat16 --sample-steps $((STEPS)) $((5 * STEPS / 2)) ;;
    speed-training) $BENCH --only training --dtype bfloat16 --training-batch 1 4 16 ;;
    speed-rest) $BENCH --only epoch conversion --dtype bfloat16 --epoch-batch 4 --images $((4 * STEPS)) ;;
    speed-compiled)
        test -z "$COMPILE" || $BENCH --only networks samples training --dtype bfloat16 --compile --unet-batch 2 --training-batch 4 \
            --sample-steps $((5 * STEPS / 2)) ;;
    train-unet) train unet unet --ema 0 ;;
    train-controlnet) train controlnet controlnet ;;
    train-vae) train vae vae --batch 1 ;;
    train-compiled) test -z "$COMPILE" || train unet compiled --ema 0 "$COMPILE" ;;
    sample) # by class, by mask and by tiles
        drawn && drawn --mask "$(ls "$OUT"/phantoms/malignant/*_mask.png | head -n 1)" && drawn --tile "$TILE" ;;
    exports)
        for format in compvis diffusers controlnet; do
            $PYTHON -m weights_convert export "$OUT/controlnet/model.safetensors" --format $format --overwrite \
                --out "$OUT/export_$format$(test $format = diffusers || echo .safetensors)" || return 1
        done ;;
    table) $BENCH --table ;;
    *) echo "bench/gpu.sh $1: no such call. Use one of: $CALLS" >&2; exit 2 ;;
    esac
}

if [ "${1:-}" = list ]; then echo "$CALLS" | tr ' ' '\n'; exit 0; fi
if [ "${1:-}" = --inside ]; then call "$2"; exit $?; fi
failed=
for name in ${1:-$CALLS}; do
    echo "== $name"
    timeout "$LIMIT" sh "bench/gpu.sh" --inside "$name" > "$OUT/$name.log" 2>&1
    code=$?
    tail -n 4 "$OUT/$name.log"
    test $code -eq 0 || { failed="$failed $name"; echo "$name ended with code $code: see $OUT/$name.log" >&2; }
done
test -f "$OUT/table.log" && cat "$OUT/table.log"
test -z "$failed" || { echo "failed:$failed" >&2; exit 1; }
