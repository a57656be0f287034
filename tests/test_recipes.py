"""The recipes of scripts/recipes: the very files, with a stand-in for what is not here (Slurm, GPUs, a served teacher)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from tgi_server import LocalTGI

from srt_hf.journal import Journal
from srt_hf.sources import load_rows

RECIPES = ROOT / "scripts" / "recipes"
ROWS = [{"instruction": f"Write about number {n}.", "output": f"The number {n} is far away."} for n in range(5)]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")

# As Slurm does it: a copy of the script runs, with its words and the environment; the array's jobs one after the other, and what
# depends on them only where all have ended well.
SBATCH = f"""#!{sys.executable}
import json, os, pathlib, shutil, subprocess, sys
spool = pathlib.Path(os.environ["SPOOL"])
options, words = [], sys.argv[1:]
while words[0].startswith("--"):
    options.append(words.pop(0))
given = dict(option.lstrip("-").partition("=")[::2] for option in options)
number = str(len(list(spool.glob("*.json"))) + 1)
if "dependency" in given:
    kind, _, before = given["dependency"].partition(":")
    assert kind == "afterok", kind
    codes = json.loads((spool / f"{{before}}.json").read_text())["codes"]
else:
    codes = []
copy = spool / f"slurm_script-{{number}}"
shutil.copy(words[0], copy)
tasks = [None]
if "array" in given:
    first, _, last = given["array"].partition("-")
    tasks = range(int(first), int(last) + 1) if last else map(int, given["array"].split(","))
ended = []
for task in tasks if not any(codes) else []:
    environment = dict(os.environ) if task is None else {{**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}}
    log = open(given["output"].replace("%a", str(task)), "w")
    ended.append(subprocess.run(["bash", str(copy), *words[1:]], stdout=log, stderr=log, env=environment, cwd="/").returncode)
(spool / f"{{number}}.json").write_text(json.dumps({{"options": options, "codes": ended}}))
print(number + ";cluster")
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a user of a cluster."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "spool").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    path = f"{sbatch.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SPOOL": str(tmp_path / "spool"), "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}


def submitted(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "spool").glob("*.json"))]


def slurm_array(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(RECIPES / "slurm_array.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_a_slurm_array_and_its_merge(slurm: dict[str, str], tgi: LocalTGI, student_folder: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    options = ["--dataset", str(rows), "--teacher", tgi.url, "--student", student_folder, "--template", "vicuna", "--keep", "all"]
    run = slurm_array({**slurm, "SHARD": "--gres=gpu:a100:1 --time=8:00:00"}, "2", *options)
    logs = "\n".join(path.read_text() for path in (tmp_path / "out" / "logs").glob("*"))
    assert run.returncode == 0, run.stderr + logs
    array, merged = submitted(tmp_path)
    assert array["codes"] == [0, 0] and merged["codes"] == [0], logs
    assert {"--array=0-1", "--gres=gpu:a100:1", "--time=8:00:00"} <= set(array["options"])
    assert {"--dependency=afterok:1", "--cpus-per-task=4"} <= set(merged["options"])
    assert len(load_rows(str(tmp_path / "out" / "result"))) == 5
    assert len(list(Journal(tmp_path / "out" / "journal.sqlite").entries())) == 10 == len(tgi.chats)


def test_a_merge_waits_for_shards_that_failed(slurm: dict[str, str], tmp_path: Path) -> None:
    """And shards that are run again are an array of their own, with the number of all, after which the merge comes."""
    stub = tmp_path / "bin" / "python"
    stub.write_text('#!/bin/bash\necho "$*" >>"$OUT/calls"\n! [[ "$*" == *"--shard_index 1"* && -z "${MENDED:-}" ]]\n')
    stub.chmod(0o755)
    stubbed = {**slurm, "PYTHON": str(stub)}
    run = slurm_array(stubbed, "3", "--dataset", "org/rows with a blank")
    assert run.returncode == 0, run.stderr
    array, merged = submitted(tmp_path)
    assert array["codes"] == [0, 1, 0] and merged["codes"] == []
    again = {**stubbed, "MENDED": "1", "PUBLISH": "--repo org/made --private"}
    run = slurm_array(again, "again", "1", "3", "--dataset", "org/rows with a blank")
    assert run.returncode == 0, run.stderr
    array, merged = submitted(tmp_path)[2:]
    assert array["codes"] == [0] and merged["codes"] == [0]
    assert {"--array=1", "--gres=gpu:1"} <= set(array["options"]) and "--dependency=afterok:3" in merged["options"]
    calls = (tmp_path / "out" / "calls").read_text().splitlines()
    out = tmp_path / "out"
    expected = f"--num_shards 3 --shard_index 1 --journal {out}/journals/1.sqlite --output_dir {out}/shards/1"
    assert calls[1] == calls[3] == f"{ROOT}/scripts/recycle_and_push.py --dataset org/rows with a blank {expected}"
    shards = " ".join(f"{out}/shards/{n}" for n in range(3))
    rest = f"--journal {out}/journal.sqlite --output_dir {out}/result --repo org/made --private"
    assert calls[4] == f"{ROOT}/scripts/merge.py --shards {shards} {rest}"


@pytest.mark.parametrize("words", [[], ["0"], ["--dataset", "x"], ["1000"]])
def test_a_slurm_array_without_its_number(slurm: dict[str, str], words: list[str]) -> None:
    run = slurm_array(slurm, *words)
    assert run.returncode == 2 and run.stderr == "error: The first word is the number of shards, 1 to 999.\n"
    nowhere = {name: value for name, value in slurm.items() if name != "OUT"}
    assert "OUT names the folder of the run" in slurm_array(nowhere, "2").stderr


SERVER = """
import os, sys, time
sys.path.insert(0, {tests!r})
from tgi_server import LocalTGI
print("devices", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
time.sleep(float(sys.argv[2]))
tgi = LocalTGI()
tgi._port = int(sys.argv[1])
with tgi:
    time.sleep(600)
"""
# What stands for the run: it says what it was given, and ends as it is told.
RUN = """
import os, sys, time
print("run", os.environ["CUDA_VISIBLE_DEVICES"], *sys.argv[1:], flush=True)
try:
    time.sleep(float(os.environ.get("LASTS", 0)))
except KeyboardInterrupt:
    time.sleep(0.5)  # the last replies
    print("interrupted", flush=True)
    sys.exit(130)
sys.exit(int(os.environ.get("CODE", 0)))
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on a machine of four GPUs, with a stand-in server."""
    (tmp_path / "server.py").write_text(SERVER.format(tests=str(ROOT / "tests")))
    (tmp_path / "run.py").write_text(RUN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "bin").mkdir()
    for name, text in (("nvidia-smi", "seq 4"), ("vllm", f'exec {sys.executable} {tmp_path}/server.py "$4" 0')):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    run = f"{sys.executable} {tmp_path}/run.py"
    return {**os.environ, "PATH": path, "TEACHER": "org/teacher", "PORT": port, "LOG": str(tmp_path / "log"), "RUN": run}


def with_teacher(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(RECIPES / "job_with_teacher.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, stdin=subprocess.DEVNULL)


def nobody_answers(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) != 0


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_starts_the_teacher_runs_and_ends_it(job: dict[str, str], code: int) -> None:
    run = with_teacher({**job, "CODE": str(code)}, "--dataset", "org/my rows")
    assert run.returncode == code and "The teacher is ready after" in run.stderr, run.stderr
    url = f"http://127.0.0.1:{job['PORT']}"
    assert run.stdout == f"run 3 {ROOT}/scripts/recycle_and_push.py --teacher {url} --dataset org/my rows\n"
    assert Path(job["LOG"]).read_text() == "devices 0,1,2\n" and nobody_answers(job["PORT"])


@pytest.mark.slow
def test_a_job_with_the_real_run(job: dict[str, str], student_folder: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    server = f"{sys.executable} {tmp_path}/server.py {job['PORT']} 1"
    environment = {**job, "RUN": sys.executable, "SERVER": server, "TEACHER_GPUS": "0", "STUDENT_GPUS": "1"}
    run = with_teacher(
        environment,
        *("--dataset", str(tmp_path / "rows.jsonl"), "--student", student_folder, "--template", "vicuna", "--keep", "all"),
        *("--journal", str(tmp_path / "j"), "--output_dir", str(tmp_path / "out")),
    )
    assert run.returncode == 0 and "Saved to" in run.stdout, run.stderr
    assert len(load_rows(str(tmp_path / "out"))) == 5 and nobody_answers(job["PORT"])


def test_a_job_that_is_ended_from_outside_lets_the_run_end(job: dict[str, str]) -> None:
    command = ["bash", str(RECIPES / "job_with_teacher.sh")]
    environment = {**job, "LASTS": "60"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("run 3")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "interrupted\n", err
    assert nobody_answers(job["PORT"])


def test_what_a_job_cannot_start(job: dict[str, str], tmp_path: Path) -> None:
    ended = with_teacher({**job, "SERVER": "ls /no/such/folder"})
    assert ended.returncode == 1 and "ended before it was ready" in ended.stderr and "/no/such/folder" in ended.stderr
    slow = with_teacher({**job, "SERVER": f"{sys.executable} {tmp_path}/server.py {job['PORT']} 60", "WAIT": "1"})
    assert slow.returncode == 1 and "was not ready after 1 s" in slow.stderr and "devices 0,1,2" in slow.stderr
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/bash\necho one\n")
    few = with_teacher(job)
    assert few.returncode == 2 and "1 GPU is not enough" in few.stderr
    with LocalTGI() as taken:
        port = taken.url.rpartition(":")[2]
        there = with_teacher({**job, "PORT": port, "TEACHER_GPUS": "0", "STUDENT_GPUS": "1"})
    assert there.returncode == 1 and f"Something answers on port {port} already" in there.stderr
    assert "TEACHER names the model" in with_teacher({name: value for name, value in job.items() if name != "TEACHER"}).stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    run = subprocess.run(["shellcheck", *map(str, RECIPES.glob("*.sh"))], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
