#!/usr/bin/env bash
# Makes the evidence for POA again: trains every run, scores it on CIFAR-10's test images, writes results.csv and draws the figure.
#
#   CIFAR10=FOLDER evidence/poa/run.sh [OUT]
#
# CIFAR10 is the folder of CIFAR-10's binary files (data_batch_1.bin, ..., test_batch.bin, batches.meta.txt); OUT holds the run
# folders (evidence/poa/runs by default). Runs that are there go on where they stopped, finished ones and scores are kept.
# Further variables, with what they are if not set: SEEDS="0 1"; RUNS, which of the runs named below (all); SIZES="32x2 64x3 96x4", the
# smallest, a middle and the intact size; BATCHES="1 2", the training files; OVERRIDES="", recipe keys for every run; DEVICE=cpu;
# OFFSHOOT, the binary; RESULTS, where the table and the figure go. Any of them makes other evidence than README.md's.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-$here/runs}
offshoot=${OFFSHOOT:-$root/target/release/offshoot}
read -ra seeds <<<"${SEEDS:-0 1}"
# Over any number of lines, and without taking [1,2] for a file name.
read -rd '' -a overrides <<<"${OVERRIDES:-}" || true
read -ra batches <<<"${BATCHES:-1 2}"
results=${RESULTS:-$here}
device=${DEVICE:-cpu}
read -ra sizes <<<"${SIZES:-32x2 64x3 96x4}"
all=(elastic "${sizes[@]/#/alone-}" no-same-view no-alpha untrained)
read -ra wanted <<<"${RUNS:-${all[*]}}"
mkdir -p "$out"
out=$(cd "$out" && pwd)

for run in "${wanted[@]}"; do
    if [[ " ${all[*]} " != *" $run "* ]]; then
        echo "no run is called $run; there are ${all[*]}" >&2
        exit 1
    fi
done

say() { printf '%s  %s\n' "$(date -u +%H:%M:%S)" "$*" >&2; }

# The training images and the test images, each in a folder with the names of the classes.
lay_out_data() {
    local part file
    for part in train test; do
        mkdir -p "$out/data/$part"
        cp -n "$CIFAR10/batches.meta.txt" "$out/data/$part/"
    done
    for file in "${batches[@]}"; do cp -n "$CIFAR10/data_batch_$file.bin" "$out/data/train/"; done
    cp -n "$CIFAR10/test_batch.bin" "$out/data/test/"
}

# What a run's recipe says otherwise than recipe.toml.
keys_of() {
    local smallest=${sizes[0]} largest=${sizes[-1]}
    if [[ $1 == alone-* ]]; then
        smallest=${1#alone-} largest=${1#alone-}
    fi
    echo "parent.width=${largest%x*}" "parent.depth=${largest#*x}" "space.min_width=${smallest%x*}" "space.min_depth=${smallest#*x}"
    case $1 in
    no-same-view) echo loss.same_view=false ;;
    no-alpha) echo space.alpha=false ;;
    untrained) echo train.epochs=1 train.steps_per_epoch=1 optim.lr=0 optim.final_lr=0 ;;
    esac
}

train() { # RUN SEED FOLDER
    local folder=$3
    [[ -f $folder/catalog.json ]] && return
    if [[ -d $folder/checkpoints && -n $(ls "$folder/checkpoints") ]]; then
        say "going on with $folder"
        "$offshoot" pretrain --resume "$folder" --device "$device"
        return
    fi
    say "training $folder"
    local -a keys
    read -ra keys <<<"$(keys_of "$1" | xargs)"
    "$offshoot" pretrain "$here/recipe.toml" --overwrite --out "$folder" --device "$device" "seed=$2" \
        "data.path=$out/data/train" "data.test_path=$out/data/test" "${overrides[@]}" "${keys[@]}"
}

score() { # RUN FOLDER
    local metric size
    local -a children=()
    case $1 in
    alone-*) children=(--child "${1#alone-}") ;;
    *) for size in "${sizes[@]}"; do children+=(--child "$size"); done ;;
    esac
    for metric in knn linear; do
        [[ -f $2/test-$metric.json ]] && continue
        say "scoring $2 by $metric"
        "$offshoot" eval "$metric" "$2" --split test "${children[@]}" --device "$device" --json >"$2/test-$metric.part"
        mv "$2/test-$metric.part" "$2/test-$metric.json"
    done
}

# One row for each run, size and metric that is there.
collect() {
    echo run,seed,child,parameters,metric,value,queries,references,steps,recipe,data,machine,offshoot
    local run seed folder recipe steps
    for run in "${all[@]}"; do
        for folder in "$out/$run-seed"*; do
            [[ -f $folder/test-knn.json || -f $folder/test-linear.json ]] || continue
            seed=${folder##*-seed}
            # The resolved recipe, but for what the machine decides.
            recipe=$(grep -vE '^(path|test_path|workers) = ' "$folder/recipe.toml" | sha256sum | cut -c1-12)
            steps=$(tail -n 1 "$folder/metrics.jsonl" | sed -E 's/^\{"step":([0-9]+).*/\1/')
            awk -v run="$run" -v seed="$seed" -v recipe="$recipe" -v steps="$steps" '
                # Both files are printed with one key a line.
                function text(line) { sub(/^ *"[a-z_]+": /, "", line); sub(/,$/, "", line); gsub(/"/, "", line); return line }
                FILENAME ~ /catalog/ && /^      "id": / { child = text($0) }
                FILENAME ~ /catalog/ && /^      "parameters": / { parameters[child] = text($0) }
                FILENAME ~ /catalog/ { next }
                /^    "child": / { child = text($0) }
                /^        "metric": / { metric = text($0) }
                /^        "value": / { value = text($0) }
                /^        "examples": / { queries = text($0) }
                /^          "references": / { references = text($0) }
                /^        "data": / { data = substr(text($0), 1, 12) }
                /^        "machine": / { machine = text($0) }
                /^        "version": / { version = text($0) }
                /^      }/ && (metric == "knn@20" || metric == "linear") {
                    printf "%s,%s,%s,%s,%s,%.4f,%s,%s,%s,%s,%s,\"%s\",%s\n", run, seed, child, parameters[child], metric, value,
                        queries, references, steps, recipe, data, machine, version
                }
                /^      }/ { metric = "" }
            ' "$folder/catalog.json" "$folder"/test-*.json
        done
    done
}

: "${CIFAR10:?set it to the folder of CIFAR-10\'s binary files}"
lay_out_data
# What is compared first, then what explains it.
for group in main rest; do
    for seed in "${seeds[@]}"; do
        for run in "${wanted[@]}"; do
            case $group in
            main) [[ $run == elastic || $run == alone-* ]] || continue ;;
            *) [[ $run == elastic || $run == alone-* ]] && continue ;;
            esac
            train "$run" "$seed" "$out/$run-seed$seed"
            score "$run" "$out/$run-seed$seed"
        done
    done
done
collect >"$results/results.csv.part"
mv "$results/results.csv.part" "$results/results.csv"
say "$(($(wc -l <"$results/results.csv") - 1)) scores are in $results/results.csv"
"$here/figure.sh" "$results/results.csv" "$results"
