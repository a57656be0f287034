"""The engine ray: row for row what the local engine makes, whatever dies in the middle, and one clear line where it cannot."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from hub_server import UPLOAD_WARNING, LocalHub
from push_many import rows as invented
from test_pipeline import ROWS
from test_teacher_drills import saved
from tgi_server import LocalTGI
from tiny_models import make_llama

ray = pytest.importorskip("ray")

from srt_hf import Recycled, Reflector, Student, Teacher, recycle, select  # noqa: E402
from srt_hf.cluster import actors, blocks, connection, environment  # noqa: E402
from srt_hf.errors import ClusterError, ConfigError, StudentError, TeacherUnreachable  # noqa: E402
from srt_hf.schema import TRIPLE  # noqa: E402
from srt_hf.scoring import Scoring  # noqa: E402

# Random students know no template; Ray leaves files and sockets to the end of the process.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*originals have ifd > 1:UserWarning"),
    pytest.mark.filterwarnings(UPLOAD_WARNING),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Data's, of its own settings
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MODES = ("exhaustive", "selective")
SCORE = "ray::MapWorker(Map(Score))"


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of two nodes, with room for one student each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 rows, so that a few hundred rows are many."""
    monkeypatch.setattr("srt_hf.scoring.BATCH", 16)
    monkeypatch.setattr("srt_hf.cluster.engine.BATCH", 16)


def texts(count: int) -> Dataset:
    return Dataset.from_list([{name: row[name] for name in TRIPLE} for row in invented(count)])


def run(url: str, folder: str, journal: Path, data: Dataset = ROWS, **more: Any) -> Recycled:
    return recycle(data, teacher=Teacher(url, journal=journal), student=Student(folder, template="vicuna"), **more)


def same(one: Recycled, other: Recycled) -> bool:
    """Rows with every score to the last bit, columns in order, and all that the report says but times."""
    reports = [{**result.report.to_dict(), "seconds": None} for result in (one, other)]
    columns = one.rows.column_names == other.rows.column_names and one.rows.features == other.rows.features
    return columns and one.rows[:] == other.rows[:] and reports[0] == reports[1]


def processes(title: str) -> list[int]:
    """Those with such a title that descend from this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if title in path.read_bytes().decode(errors="replace") and os.getpid() in ancestors(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def meanwhile(when: Callable[[], bool], act: Callable[[], Any]) -> threading.Thread:
    """`act` as soon as it is time, while a run goes on; join it to see that it was."""

    def wait() -> None:
        until = time.monotonic() + 120
        while not when() and time.monotonic() < until:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def written(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each block was on the disk."""
    times: list[float] = []
    write = blocks.Blocks.write

    def noted(self: blocks.Blocks, *arguments: Any) -> None:
        write(self, *arguments)
        times.append(time.monotonic())

    monkeypatch.setattr(blocks.Blocks, "write", noted)
    return times


def test_a_block_is_what_was_packed(tmp_path: Path) -> None:
    data = texts(5).add_column("id", list("abcde"))
    kept = blocks.Blocks(tmp_path, 2)
    kept.keep(data)
    assert pickle.loads(pickle.dumps(kept)).read(2) == [data[4]]
    assert kept.missing("all", 5) == [0, 1, 2]
    by = dict.fromkeys(("student", "revision", "template", "max_length", "dtype"))
    for n in (2, 0, 1):
        rows = [{"candidates": [], "scores": [], "scored_by": by, "choice": int(n)} for _ in kept.read(n)]
        kept.write("all", n, blocks.pack(rows, rows[0]))
        (tmp_path / "all" / ".00000007.parquet.1").write_bytes(b"half of it")  # of a process that was killed
    assert kept.missing("all", 5) == [] and kept.read(1, "all")[0]["scored_by"] == by
    joined = kept.join(data, "all")
    assert joined["choice"] == [0, 0, 1, 1, 2] and joined["id"] == list("abcde")
    assert joined.column_names == [*data.column_names, "candidates", "scores", "scored_by", "choice"]


def test_another_process_that_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, replace = texts(3).add_column("id", list("abc")), os.replace

    def too_late(fresh: Path, target: Path) -> None:
        shutil.copytree(fresh, target)
        replace(fresh, target)  # is not empty

    monkeypatch.setattr(blocks.os, "replace", too_late)
    blocks.Blocks(tmp_path, 2).keep(data)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"] and len(blocks.Blocks(tmp_path, 2).read(1)) == 1


def test_what_a_process_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if environment._READ.fullmatch(name)]:
        monkeypatch.delenv(name)
    for name, value in (("HF_TOKEN", "hf_driver"), ("HF_ENDPOINT", "http://hub"), ("HF_HUB_CACHE", "/driver"), ("USER", "me")):
        monkeypatch.setenv(name, value)
    own, others = environment.of_driver(), environment.for_other_nodes()
    assert others == {"HF_TOKEN": "hf_driver", "HF_ENDPOINT": "http://hub"}
    assert own.items() > others.items() and own["HF_HUB_CACHE"] == "/driver" and own["HF_HOME"] and "USER" not in own
    there = {"HF_TOKEN": "hf_node", "HF_HUB_OFFLINE": "1", "HF_HOME": "/node", "HOME": "/root"}
    monkeypatch.setattr(environment.os, "environ", dict(there))
    environment.take_over(others)
    assert environment.os.environ == {"HF_HOME": "/node", "HOME": "/root", **others}
    monkeypatch.setattr(environment.os, "environ", dict(there))
    environment.take_over(own)
    assert environment.os.environ == {"HOME": "/root", **own}


def test_a_student_that_is_another_one_elsewhere(student_folder: str, tmp_path: Path) -> None:
    scoring = Scoring(Student(student_folder, template="vicuna"), select)
    by = scoring.student.scored_by()
    row = {**ROWS[0], "id": "a", "candidates": [], "scores": [], "scored_by": by}
    row = {"block": 0, "content": blocks.pack([row], ["id", *TRIPLE, "candidates"]), "error": b""}
    for known, words in (
        ({**by, "revision": "xxh3:0"}, rf"is another one on .*: revision {by['revision']} and not xxh3:0. Put the same files"),
        ({**by, "dtype": "bfloat16"}, "dtype float32 and not bfloat16"),
    ):
        score = actors.Score(pickle.dumps(scoring), [known], "all", dict(os.environ), actors.version())
        with pytest.raises(ClusterError, match=words):
            raise pickle.loads(score(row)["error"])
    absent = Scoring(Student(str(tmp_path / "nowhere"), template="vicuna"), select)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "config.json").write_text("{}")
    pickled = pickle.dumps(absent)
    shutil.rmtree(tmp_path / "nowhere")
    with pytest.raises(ClusterError, match=r"nowhere is no folder on .* in the cluster. Put the student there too"):
        raise pickle.loads(actors.Score(pickled, [by], "all", dict(os.environ), actors.version())(row)["error"])
    with pytest.raises(ClusterError, match=r"has srt_hf .*, and the driver 0\.0"):
        raise pickle.loads(actors.Score(pickled, [by], "all", dict(os.environ), "0.0")(row)["error"])


def test_a_head_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(connection, "_LOOK", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        watch = connection.HeadWatch()
        watch.start()
        time.sleep(0.1)
        assert watch.is_alive() and not caplog.text
    watch.join(timeout=30)
    assert f"The Ray cluster's head at {address} is gone. What is saved stays; the same command goes on" in caplog.text


@pytest.mark.parametrize(
    "have, device, wanted, found",
    [
        ([{"CPU": 8}], None, None, (1, {"num_cpus": 8})),
        ([{"CPU": 8}, {"CPU": 4}, {}], None, None, (3, {"num_cpus": 4})),
        ([{"CPU": 8}, {"CPU": 4}], None, 5, (5, {"num_cpus": 2})),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 1}], None, None, (3, {"num_gpus": 1, "num_cpus": 0})),
        ([{"CPU": 8, "GPU": 2}], "cpu", None, (1, {"num_cpus": 8})),
        ([{"CPU": 8, "GPU": 2}], "cuda", 1, (1, {"num_gpus": 1, "num_cpus": 0})),
    ],
)
def test_places(monkeypatch: pytest.MonkeyPatch, have: list[Any], device: str | None, wanted: int | None, found: Any) -> None:
    monkeypatch.setattr(connection, "alive", lambda: dict(enumerate(have)))
    assert connection.places(device, wanted) == found


@pytest.mark.parametrize(
    "have, device, wanted, words",
    [
        ([{"CPU": 8}], "cuda:0", None, "The student needs a GPU, and no node of the Ray cluster has one"),
        ([{"CPU": 1}, {"CPU": 1}], None, 3, r"The Ray cluster has room for 2 students, not for 3\. .*--students"),
        ([{"GPU": 1}], None, 2, "room for 1 students, not for 2"),
    ],
)
def test_no_places(monkeypatch: pytest.MonkeyPatch, have: list[Any], device: str | None, wanted: int | None, words: str) -> None:
    monkeypatch.setattr(connection, "alive", lambda: dict(enumerate(have)))
    with pytest.raises(ConfigError, match=words):
        connection.places(device, wanted)


def test_wrong_addresses_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for address, error, words in (
        (f"127.0.0.1:{port}", ClusterError, rf"No Ray cluster answers at 127.0.0.1:{port}: .*refused.*--ray_address"),
        ("ray://127.0.0.1:10001", ConfigError, "leads into a cluster from outside.*ray job submit"),
        ("gpu-head", ConfigError, "'gpu-head' is no address of a Ray cluster. Give HOST:PORT"),
        ("auto", ClusterError, "The Ray cluster at auto cannot be used: Could not find any running Ray instance"),
    ):
        if address == "auto" and ray._private.services.find_gcs_addresses():
            continue  # somebody else's cluster runs on this machine
        with pytest.raises(error, match=words) as raised:
            connection.connect(address)
        assert "\n" not in str(raised.value)


def test_what_the_engines_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"teacher": "replay:nothing", "student": "nobody"}
    for more, words in (
        ({"engine": "spark"}, "There is no engine 'spark'. Choose from local, ray"),
        ({"ray_address": "auto"}, "are about the engine ray"),
        ({"engine": "ray", "students": 0}, "students=0 is nobody"),
    ):
        with pytest.raises(ConfigError, match=words):
            recycle(ROWS, **asked, **more)
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Ray. Install it: pip install 'srt_hf\[ray\]'"):
        connection.connect(None)


@pytest.mark.slow
def test_another_version_of_ray_is_one_line(nodes: Any) -> None:
    from ray._private import ray_constants

    client = ray._raylet.GcsClient(address=nodes.address)  # what a cluster says of itself
    metadata = {"ray_version": "1.0.0", "python_version": "3.7.1"}
    client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(metadata).encode(), True, ray_constants.KV_NAMESPACE_CLUSTER)
    with pytest.raises(ClusterError, match=r"Version mismatch: .*Ray: 1\.0\.0 Python: 3\.7\.1 .*Run the command in") as raised:
        connection.connect(nodes.address)
    assert "\n" not in str(raised.value) and not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_row_for_row_the_local_engine(
    nodes: Any, mode: str, student_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,111 rows, real ones where they are at hand, on two nodes; students score while replies still arrive. In exhaustive mode
    a student's process dies on the way, and then a node."""
    real = Path(__file__).parents[2] / "shared" / "data" / "alpaca_cherry_5_percent.json"
    data = Dataset.from_json(str(real)) if real.exists() else texts(3111)
    asked: list[float] = []
    with LocalTGI(remember=False) as tgi:
        local = run(tgi.url, student_folder, tmp_path / "local", data, mode=mode)
        sent = tgi.counts()["requests"]
        tgi.fault = lambda n, body: asked.append(time.monotonic())
        times = written(monkeypatch)
        deaths = dying(nodes, times) if mode == "exhaustive" else []
        found = run(tgi.url, student_folder, tmp_path / "ray", data, mode=mode, engine="ray", ray_address=nodes.address)
        assert tgi.counts()["requests"] == 2 * sent and not any(death.is_alive() for death in deaths)
    assert len(found.rows) == 3111 and local.rows[:] == found.rows[:] and local.report.reasons == found.report.reasons
    assert deaths or same(local, found)  # what is done again is counted again
    first = times[: -(-3111 // 128)]  # of selective mode, the blocks of its first stream
    assert sum(at < asked[-1] for at in first) > len(first) / 4


def dying(nodes: Any, times: list[float]) -> list[threading.Thread]:
    """A student's process dies after the fourth block, and the node that is not the head's after the eighth."""
    other = next(node for node in nodes.list_all_nodes() if node is not nodes.head_node)
    return [
        meanwhile(lambda: len(times) >= 4, lambda: os.kill(processes(SCORE)[0], signal.SIGKILL)),
        meanwhile(lambda: len(times) >= 8, lambda: nodes.remove_node(other, allow_graceful=False)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("title", [SCORE, "ray::MapWorker(Map(Ask))", "ray::Teaching"])
def test_an_actor_dies(title: str, nodes: Any, small_blocks: None, student_folder: str, tmp_path: Path, monkeypatch: Any) -> None:
    data, slots, times = texts(400), 8, written(monkeypatch)
    with LocalTGI() as tgi:
        local = run(tgi.url, student_folder, tmp_path / "local", data, mode="exhaustive")
        sent = len(tgi.chats)
    killed: list[int] = []

    def kill() -> None:
        killed.append(processes(title)[0])
        os.kill(killed[0], signal.SIGKILL)

    with LocalTGI(slots=slots, delay=0.03) as tgi:
        death = meanwhile(lambda: len(times) >= 5, kill)
        found = run(tgi.url, student_folder, tmp_path / "ray", data, mode="exhaustive", engine="ray", ray_address=nodes.address)
        death.join()
        lost = len(tgi.chats) - sent
    assert killed and saved(tmp_path / "ray") == sent
    # A teacher's process that dies has requests at the server, as a local run that is killed.
    assert lost <= 2 * slots if title == "ray::Teaching" else lost == 0
    assert local.rows[:] == found.rows[:] and local.report.reasons == found.report.reasons


@pytest.mark.slow
def test_the_command(
    nodes: Any, hub: LocalHub, run_script: Callable[..., tuple[int, str, str]], tmp_path: Path, student_folder: str
) -> None:
    """With the journal where it lies by default, as the driver's environment has it and the cluster's has not."""
    texts(40).to_json(tmp_path / "rows.jsonl")
    with LocalTGI() as tgi:
        asked = ("--dataset", tmp_path / "rows.jsonl", "--teacher", tgi.url, "--student", student_folder, "--template", "vicuna")
        asked += ("--mode", "exhaustive", "--keep", "all")
        on_ray = ("--engine", "ray", "--ray_address", nodes.address, "--repo", "tester/ray", "--output_dir", tmp_path / "ray")
        code, out, err = run_script("recycle_and_push.py", *asked, *on_ray)
        assert code == 0 and "Pushed" in out and "students on CPUs (2)" in err, out + err
        calls = len(tgi.chats)
        code, out, err = run_script("recycle_and_push.py", *asked, "--repo", "tester/local", "--output_dir", tmp_path / "local")
        assert code == 0 and len(tgi.chats) == calls > 0, err
        code, _, err = run_script("recycle_and_push.py", *asked, *on_ray, "--device", "cuda", "--output_dir", tmp_path / "gpu")
        assert code == 2 and "The student needs a GPU, and no node of the Ray cluster has one" in err
    for config in ("default", "candidates"):
        one, other = (load_dataset(f"tester/{name}", config, split="train") for name in ("ray", "local"))
        assert one.to_list() == other.to_list() and len(one) == 40


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["selective"])
def test_a_node_dies(mode: str, nodes: Any, small_blocks: None, student_folder: str, tmp_path: Path, monkeypatch: Any) -> None:
    data, times = texts(400), written(monkeypatch)
    with LocalTGI() as tgi:
        local = run(tgi.url, student_folder, tmp_path / "local", data, mode=mode)
        sent = len(tgi.chats)
    other = next(node for node in nodes.list_all_nodes() if node is not nodes.head_node)
    with LocalTGI(slots=8, delay=0.02) as tgi:
        death = meanwhile(lambda: len(times) >= 5, lambda: nodes.remove_node(other, allow_graceful=False))
        found = run(tgi.url, student_folder, tmp_path / "ray", data, mode=mode, engine="ray", ray_address=nodes.address)
        death.join()
        assert len(tgi.chats) == sent
    assert saved(tmp_path / "ray") == sent and local.rows[:] == found.rows[:]


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_the_driver_dies_and_goes_on(end: int, student_folder: str, tmp_path: Path) -> None:
    """Killed it loses what was at the server; interrupted it waits for that. What the students did is done."""
    data, slots = texts(700), 16
    data.to_json(tmp_path / "rows.jsonl")
    asked = {
        "rows": str(tmp_path / "rows.jsonl"),
        "journal": str(tmp_path / "j"),
        "student": student_folder,
        "mode": "exhaustive",
    }

    def start(url: str) -> subprocess.Popen[str]:
        options = json.dumps({**asked, "teacher": url, "out": str(tmp_path / "out.parquet"), "students": 1})
        command = [sys.executable, str(Path(__file__).with_name("ray_run.py")), options]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    with LocalTGI(slots=slots, delay=0.02) as tgi:
        process = start(tgi.url)
        cache = Path(os.environ["HF_HOME"]) / "datasets" / "srt_hf-ray"
        before = set(cache.glob("*/all/*.parquet"))
        while not (done := set(cache.glob("*/all/*.parquet")) - before) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(end)
        _, told = process.communicate(timeout=60)
        assert process.returncode == (130 if end == signal.SIGINT else -signal.SIGKILL), told
        asked_last = -1  # what the driver has started notices its death some seconds later
        while tgi.busy or asked_last != len(tgi.chats):
            asked_last = len(tgi.chats)
            time.sleep(5)
        lost = len(tgi.chats) - saved(tmp_path / "j")
        assert lost <= (0 if end == signal.SIGINT else 2 * slots), told
        tgi.delay, kept = 0.0, {path: path.stat().st_mtime for path in done}
        process = start(tgi.url)
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
        assert len(tgi.chats) == saved(tmp_path / "j") + lost
        local = run(tgi.url, student_folder, tmp_path / "j", data, mode="exhaustive")
        assert len(tgi.chats) == saved(tmp_path / "j") + lost
    assert (
        kept == {path: path.stat().st_mtime for path in done}
        and local.rows[:] == Dataset.from_parquet(str(tmp_path / "out.parquet"))[:]
    )


@pytest.mark.slow
def test_errors_come_out_as_themselves(nodes: Any, small_blocks: None, tmp_path: Path, student_folder: str) -> None:
    on_ray: dict[str, Any] = {"engine": "ray", "ray_address": nodes.address, "mode": "exhaustive"}
    broken = make_llama(tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with LocalTGI() as tgi:
        with pytest.raises(StudentError, match=r"The student .*broken cannot be loaded"):
            run(tgi.url, str(broken), tmp_path / "j", **on_ray)
        assert not tgi.chats
    tgi = LocalTGI(slots=4, delay=0.05).__enter__()
    teacher = Teacher(tgi.url, journal=tmp_path / "j", outage=2.0)
    with pytest.raises(ConfigError, match="The student needs a GPU, and no node of the Ray cluster has one"):
        recycle(ROWS, teacher=teacher, student=Student(student_folder, device="cuda"), **on_ray)
    death = meanwhile(lambda: len(tgi.chats) > 20, tgi.__exit__)
    with pytest.raises(TeacherUnreachable, match=r"No reply from .* for 2 s"):
        recycle(texts(100), teacher=teacher, student=student_folder, **on_ray)
    death.join()
    assert saved(tmp_path / "j") >= 20


@pytest.mark.slow
def test_proxy_retry_and_structured(nodes: Any, small_blocks: None, tmp_path: Path, student_folder: str) -> None:
    small = str(make_llama(tmp_path / "small", seed=1))
    options: dict[str, Any] = {"proxy": small, "margin": 0.02, "structured": True, "retry": ["unparsable"], "mode": "selective"}
    with LocalTGI() as tgi:
        local = run(tgi.url, student_folder, tmp_path / "local", **options)
        found = run(tgi.url, student_folder, tmp_path / "ray", engine="ray", ray_address=nodes.address, **options)
    assert found.report.proxy["rows"] and same(local, found)


@pytest.mark.slow
def test_a_student_in_16_bits_is_compared_there(nodes: Any, tmp_path: Path, student_folder: str) -> None:
    with LocalTGI() as tgi:
        teacher, student = Teacher(tgi.url, journal=tmp_path / "j"), Student(student_folder, template="vicuna", dtype="bfloat16")
        local = recycle(ROWS, teacher=teacher, student=student)
        found = recycle(ROWS, teacher=teacher, student=student, engine="ray", ray_address=nodes.address)
    assert found.report.rounding == local.report.rounding and found.report.rounding["nll"] > 0
    assert local.rows[:] == found.rows[:]


@pytest.mark.slow
def test_200000_rows_in_the_memory_of_40000(tmp_path: Path, student_folder: str) -> None:
    peaks = {}
    with LocalTGI(remember=False) as tgi:
        for rows in (40_000, 200_000):
            arguments = map(str, (tgi.url, student_folder, tmp_path / str(rows), rows))
            command = [sys.executable, str(Path(__file__).with_name("ray_many.py")), *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            print(done.stdout)
            peaks[rows] = float(done.stdout.split()[-1])
    assert peaks[200_000] < 1.25 * peaks[40_000], peaks


def test_reflectors_are_not_shared(tmp_path: Path) -> None:
    """What the teacher's actor gets is a pickled Reflector: configuration, and a journal at the same path."""
    with LocalTGI() as tgi:
        one = Reflector(Teacher(tgi.url, journal=tmp_path / "j"))
        other = pickle.loads(pickle.dumps(one))
    assert other.teacher.journal.path == one.teacher.journal.path
