#!/usr/bin/env bash
# One machine of several GPUs: a teacher's server on some of them, the run with its student on another, and an end of both.
#
#   TEACHER=Qwen/Qwen3-32B scripts/recipes/job_with_teacher.sh --dataset org/rows --student Qwen/Qwen3-8B --repo org/srecycled
#
# The words are options of recycle_and_push.py, but for --teacher. The exit code is that command's. From outside:
#   TEACHER       the teacher's model (required)
#   TEACHER_GPUS, STUDENT_GPUS  their devices, with commas  [all but the last one; the last one]
#   SERVER        command that serves it on $PORT  [vllm serve …, or text-generation-launcher … where there is no vLLM]
#   PORT          [8080]    WAIT  seconds for it to be ready  [1800]    LOG  its output  [teacher.log]
#   RUN           what runs the script             [python]
#
# As a job on Hugging Face, in an image that has the server (four GPUs: three for the teacher, and vLLM wants a number of them
# that divides its heads, so two):
#   hf jobs run --flavor a100x4 --secrets HF_TOKEN --timeout 12h vllm/vllm-openai:latest bash -c '
#       git clone https://github.com/ORG/REPO srt && cd srt && pip install uv &&
#       TEACHER=Qwen/Qwen3-32B TEACHER_GPUS=0,1 STUDENT_GPUS=2 RUN="uv run --no-project --with ./ python" \
#       bash scripts/recipes/job_with_teacher.sh --dataset org/rows --student Qwen/Qwen3-8B --repo org/srecycled'
set -euo pipefail
set -m # each command in the background is a group of its own: it ends as one, and heeds an interrupt

: "${TEACHER:?TEACHER names the model that reflects.}"
port=${PORT:-8080} wait=${WAIT:-1800} log=${LOG:-teacher.log}
url=http://127.0.0.1:$port
root=$(cd "$(dirname "$0")/../.." && pwd)
read -ra run <<<"${RUN:-python}"

if [ -z "${TEACHER_GPUS:-}" ] || [ -z "${STUDENT_GPUS:-}" ]; then
    count=$(nvidia-smi -L | wc -l)
    if [ "$count" -lt 2 ]; then
        echo "error: $count GPU is not enough for a server beside the student. Name them with TEACHER_GPUS and STUDENT_GPUS." >&2
        exit 2
    fi
    TEACHER_GPUS=$(seq -s, 0 $((count - 2)))
    STUDENT_GPUS=$((count - 1))
fi
commas=${TEACHER_GPUS//[^,]/}
of_teacher=$((${#commas} + 1))

if [ -n "${SERVER:-}" ]; then
    read -ra server <<<"$SERVER"
elif command -v vllm >/dev/null; then
    server=(vllm serve "$TEACHER" --port "$port" --tensor-parallel-size "$of_teacher")
elif command -v text-generation-launcher >/dev/null; then
    server=(text-generation-launcher --model-id "$TEACHER" --port "$port" --num-shard "$of_teacher")
else
    echo "error: There is neither vllm nor text-generation-launcher here. Give the command of another server as SERVER." >&2
    exit 2
fi

ready() { # by no proxy
    python3 -c 'import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=5)
connection.request("GET", "/health")
sys.exit(connection.getresponse().status != 200)' "$port" 2>/dev/null
}
alive() { kill -0 "$1" 2>/dev/null; }

# shellcheck disable=SC2317,SC2329 # the trap below calls it
stop_server() {
    kill -TERM -- "-$serving" 2>/dev/null || true
    for _ in $(seq 60); do
        alive "$serving" || return 0
        sleep 0.5
    done
    kill -KILL -- "-$serving" 2>/dev/null || true
}

if ready; then
    echo "error: Something answers on port $port already. Give another PORT." >&2
    exit 1
fi
CUDA_VISIBLE_DEVICES=$TEACHER_GPUS PORT=$port "${server[@]}" >"$log" 2>&1 </dev/null &
serving=$!
trap stop_server EXIT
trap 'exit 143' INT TERM

until ready; do
    if ! alive "$serving"; then
        echo "error: The teacher's server ended before it was ready. The end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    if [ "$SECONDS" -ge "$wait" ]; then
        echo "error: The teacher's server was not ready after $wait s. The end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    sleep 1
done
echo "The teacher is ready after $SECONDS s." >&2

CUDA_VISIBLE_DEVICES=$STUDENT_GPUS "${run[@]}" "$root/scripts/recycle_and_push.py" --teacher "$url" "$@" &
working=$!
# An end from outside is an interrupt for the run, which then waits for the replies that are paid for.
interrupted=
trap 'interrupted=1; kill -INT -- "-$working" 2>/dev/null || true' INT TERM
code=0
wait "$working" || code=$?
while [ -n "$interrupted" ]; do # the signal ended the wait, not the run
    interrupted='' code=0
    wait "$working" || code=$?
done
exit "$code"
