#!/usr/bin/env bash
# A run in shards on a Slurm cluster: an array of jobs, each with a part of the rows, and a job that merges what they made.
#
#   OUT=/shared/srecycled-rows scripts/recipes/slurm_array.sh 8 --dataset org/rows --teacher @/shared/teachers.txt \
#       --student meta-llama/Llama-2-7b-hf --mode exhaustive
#
# The first word is the number of shards; the rest are options of recycle_and_push.py, the same for all of them. From outside:
#   OUT      folder that all nodes see: shards/, journals/, logs/, then journal.sqlite and result/ (required)
#   SHARD    options of sbatch for the array      [--gres=gpu:1 --cpus-per-task=8]
#   MERGE    options of sbatch for the merge job  [--cpus-per-task=4]
#   PUBLISH  options of merge.py, such as --repo org/srecycled-rows --private
#   PYTHON   the interpreter                      [python]
#
# Where shards failed, no merge takes place. They are run again, and merged with the others, by
#   OUT=/shared/srecycled-rows scripts/recipes/slurm_array.sh again 3,5 8 THE SAME OPTIONS
# and pay for no reply twice.
set -euo pipefail

: "${OUT:?OUT names the folder of the run, which all nodes must see.}"
python=${PYTHON:-python}
# sbatch runs a copy of this file: where the project is, it is told.
export ROOT=${ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}

submit() {
    local indices=$1 count=$2 array
    shift
    local -a shard merge
    read -ra shard <<<"${SHARD:---gres=gpu:1 --cpus-per-task=8}"
    read -ra merge <<<"${MERGE:---cpus-per-task=4}"
    mkdir -p "$OUT/logs"
    array=$(sbatch --parsable --export=ALL --job-name=srt_hf --array="$indices" --output="$OUT/logs/shard-%a.log" \
        "${shard[@]}" "$0" shard "$@")
    sbatch --parsable --export=ALL --job-name=srt_hf-merge --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes \
        --output="$OUT/logs/merge.log" "${merge[@]}" "$0" merge "$count"
}

run_shard() {
    local count=$1 index=${SLURM_ARRAY_TASK_ID:?This is for a job of an array: sbatch --array=…}
    shift
    mkdir -p "$OUT/journals"
    # A journal for each: SQLite needs locks that network file systems seldom have, and so only one node opens each file.
    exec "$python" "$ROOT/scripts/recycle_and_push.py" "$@" --num_shards "$count" --shard_index "$index" \
        --journal "$OUT/journals/$index.sqlite" --output_dir "$OUT/shards/$index"
}

merge_all() {
    local index
    local -a shards=() journals=() publish
    for ((index = 0; index < $1; index++)); do
        shards+=("$OUT/shards/$index")
        if [ -e "$OUT/journals/$index.sqlite" ]; then journals+=("$OUT/journals/$index.sqlite"); fi
    done
    if [ ${#journals[@]} -gt 0 ]; then journals=(--journals "${journals[@]}"); fi
    read -ra publish <<<"${PUBLISH:-}"
    exec "$python" "$ROOT/scripts/merge.py" --shards "${shards[@]}" "${journals[@]}" --journal "$OUT/journal.sqlite" \
        --output_dir "$OUT/result" "${publish[@]}"
}

case ${1:-} in
shard)
    shift
    run_shard "$@"
    ;;
merge)
    shift
    merge_all "$@"
    ;;
again)
    shift
    submit "$@"
    ;;
[1-9] | [1-9][0-9] | [1-9][0-9][0-9]) submit "0-$(($1 - 1))" "$@" ;;
*)
    echo "error: The first word is the number of shards, 1 to 999." >&2
    exit 2
    ;;
esac
