"""The repo on the Hub over time: an upload that breaks off, branches and tags, a card that people edit, many rows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hub_server import UPLOAD_WARNING, LocalHub, hub_environment
from huggingface_hub import HfApi
from test_pipeline import MADE, ROWS
from tgi_server import LocalTGI

from srt_hf import Recycled, Selector, Student, Teacher, recycle
from srt_hf.errors import ConfigError, HubError
from srt_hf.hub import about_source

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*originals have ifd > 1:UserWarning"),
    pytest.mark.filterwarnings(UPLOAD_WARNING),
]
REPO = "tester/made"


@pytest.fixture(scope="module")
def recycled(student_folder: str) -> Recycled:
    student = Student(student_folder, template="vicuna")
    with LocalTGI() as tgi:
        return recycle(ROWS, teacher=Teacher(tgi.url, journal=False), student=student, selector=Selector(keep="all"))


def edit(name: str, content: str) -> None:
    """What a person does on the Hub's page."""
    HfApi().upload_file(path_or_fileobj=content.encode(), path_in_repo=name, repo_id=REPO, repo_type="dataset")


def test_an_upload_that_breaks_off_leaves_the_version_before(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub(REPO)
    repo = hub.repos["dataset", REPO]
    before = repo.files()
    hub.fail_next("POST", "/commit/", 500, times=20)
    with pytest.raises(HubError):
        recycled.push_to_hub(REPO, provenance=MADE)
    assert repo.files() == before
    hub._faults.clear()
    hub.fail_next("PUT", "/lfs/", 403, times=20)
    hub.lfs.clear()
    with pytest.raises(HubError):
        recycled.push_to_hub(REPO, provenance=MADE)
    assert repo.files() == before
    hub._faults.clear()
    recycled.push_to_hub(REPO, provenance=MADE)
    assert load_dataset(REPO, split="train").to_list() == recycled.dataset.to_list()


def test_the_answer_to_the_commit_is_lost(hub: LocalHub, recycled: Recycled) -> None:
    hub.fail_next("POST", "/commit/", None, after=True)
    with pytest.raises(HubError, match="nothing is lost"):
        recycled.push_to_hub(REPO)
    commits = len(hub.repos["dataset", REPO].commits)
    recycled.push_to_hub(REPO)  # as the line says
    assert len(hub.repos["dataset", REPO].commits) <= commits + 1
    assert load_dataset(REPO, split="train").to_list() == recycled.dataset.to_list()


def test_every_push_is_tagged_with_student_and_date(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub(REPO)
    recycled.push_to_hub(REPO, provenance=MADE)
    recycled.push_to_hub(REPO, create_pr=True)
    repo = hub.repos["dataset", REPO]
    tags = {ref.removeprefix("refs/tags/"): oid for ref, oid in repo.refs.items() if ref.startswith("refs/tags/")}
    name = f"student0-{recycled.report.made}"
    assert list(tags) == [name, f"{name}-2"] and list(tags.values()) == [commit.oid for commit in repo.commits[1:3]]
    assert len(load_dataset(REPO, revision=name, split="train")) == recycled.report.kept


def test_a_tag_that_fails_is_no_push_that_failed(hub: LocalHub, recycled: Recycled) -> None:
    hub.fail_next("POST", "/tag/", 403, times=5)
    with pytest.warns(UserWarning, match=r"The push is done but has no tag: .*403"):
        assert recycled.push_to_hub(REPO).startswith(hub.url)


def test_a_branch_of_its_own(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub(REPO, revision="trial")
    repo = hub.repos["dataset", REPO]
    assert set(repo.files("main")) == {".gitattributes"} and "README.md" in repo.files("trial")
    recycled.push_to_hub(REPO, revision="trial", provenance=MADE)
    assert len(load_dataset(REPO, revision="trial", split="train")) == recycled.report.kept
    with pytest.raises(ConfigError, match="either --revision or --create_pr"):
        recycled.push_to_hub(REPO, revision="trial", create_pr=True)


def test_what_people_wrote_on_the_card_stays(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub(REPO)
    repo = hub.repos["dataset", REPO]
    card = repo.files()["README.md"].decode()
    card = card.replace("<!-- End of yours. -->", "Read by two people.\n<!-- End of yours. -->")
    edit("README.md", card.replace("pretty_name: made", "pretty_name: Rivers\nlicense: mit"))
    recycled.push_to_hub(REPO, provenance=MADE)  # without a warning
    card = repo.files()["README.md"].decode()
    assert "\nRead by two people.\n" in card and "pretty_name: Rivers" in card and "license: mit" in card
    edit("README.md", card.replace("## Limits", "## My limits"))
    head = repo.head().oid
    with pytest.warns(UserWarning, match=rf"edited where this tool writes it anew.*{head}"):
        recycled.push_to_hub(REPO)
    card = repo.files()["README.md"].decode()
    assert "\nRead by two people.\n" in card and "## Limits" in card


def test_somebody_else_commits_at_the_same_moment(hub: LocalHub, recycled: Recycled, monkeypatch: pytest.MonkeyPatch) -> None:
    recycled.push_to_hub(REPO)
    save = Recycled._save

    def meanwhile(*args: object, **options: object) -> None:
        edit("notes.txt", "mine")
        save(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Recycled, "_save", meanwhile)
    with pytest.raises(HubError, match="changed by somebody else at the same moment"):
        recycled.push_to_hub(REPO, provenance=MADE)


def test_a_report_that_is_none_costs_its_figures_only(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub(REPO)
    edit("reports/older/report.json", '{"mode": 1}')
    with pytest.warns(UserWarning, match=r"report\.json is no report of this tool"):
        recycled.push_to_hub(REPO, provenance=MADE)
    assert "recycled for" not in hub.repos["dataset", REPO].files()["README.md"].decode()
    # A later version may say more; what is known of it is read.
    path = "reports/student0/report.json"
    later = json.loads(hub.repos["dataset", REPO].files()[path]) | {"novelty": 1, "student": {"student": "org/later"}}
    edit("reports/later/report.json", json.dumps(later))
    with pytest.warns(UserWarning, match="no report of this tool"):
        recycled.push_to_hub(REPO, provenance=MADE)
    assert "Selected for `org/later`" in hub.repos["dataset", REPO].files()["README.md"].decode()


def test_another_student_of_the_same_name_is_not_written_over(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub(REPO)
    path = "reports/student0/report.json"
    theirs = json.loads(hub.repos["dataset", REPO].files()[path])
    edit(path, json.dumps(theirs | {"student": {**theirs["student"], "student": "org/student0"}}))
    with pytest.raises(
        HubError, match=r"holds the selection of org/student0, whose configs student0 would write over.*--overwrite"
    ):
        recycled.push_to_hub(REPO)
    recycled.push_to_hub(REPO, overwrite=True)


def test_overwriting_keeps_what_people_wrote(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub(REPO)
    repo = hub.repos["dataset", REPO]
    card = repo.files()["README.md"].decode().replace("<!-- End of yours. -->", "By hand.\n<!-- End of yours. -->")
    edit("README.md", card.replace("pretty_name: made", "pretty_name: made\nlicense: mit"))
    recycled.push_to_hub(REPO, overwrite=True)
    card = repo.files()["README.md"].decode()
    assert "By hand." in card and "license: mit" in card


def test_licence_and_language_come_from_the_source(hub: LocalHub) -> None:
    ROWS.push_to_hub("tester/source")
    assert about_source("tester/source") == {
        "license": None,
        "language": None,
        "revision": hub.repos["dataset", "tester/source"].head().oid,
    }
    card = "---\nlicense: cc-by-nc-4.0\nlanguage:\n- en\n---\n# Rows\n"
    HfApi().upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="tester/source", repo_type="dataset")
    found = about_source("tester/source")
    assert found["license"] == "cc-by-nc-4.0" and found["language"] == ["en"]
    assert about_source("tester/absent") == {}


@pytest.mark.slow
def test_50000_rows_are_pushed_in_the_memory_of_10000(tmp_path: Path) -> None:
    """Decided, looked at, drawn, written and uploaded, four candidates each, from a process of its own."""
    peaks = {}
    with LocalHub() as server:
        for rows in (10_000, 50_000):
            repo, environment = f"tester/rows{rows}", hub_environment(server.url, tmp_path / str(rows))
            command = [sys.executable, str(Path(__file__).with_name("push_many.py")), repo, str(rows)]
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            print(run.stdout)
            peaks[rows] = float(run.stdout.split()[-1])
            pushed = server.repos["dataset", repo].files()
            scores = next(content for name, content in pushed.items() if name.startswith("student-scores/"))
            assert pq.read_metadata(io.BytesIO(scores)).num_rows == rows
            assert {name.rpartition("/")[0] for name in pushed} >= {"candidates", "student", "student-scores", "reports/student"}
    assert peaks[50_000] < 1.25 * peaks[10_000], peaks
