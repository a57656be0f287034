"""evaluate.py human against a real Argilla server (tests/argilla_server.py): `make test-review` runs these."""

from __future__ import annotations

import csv
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_evaluate_human import sheet
from test_evaluate_pairwise import Run, answers_file, here, prompts  # noqa: F401

from srt_hf.evaluation.results import Results

if TYPE_CHECKING:
    from argilla_server import LocalArgilla
    from playwright.sync_api import Browser

pytestmark = pytest.mark.review

TEXTS = {n: f"Two and {n} make {n + 2}." for n in range(11)}
OTHERS = {n: f"That is {n + 2}, I think." for n in range(12)}
Study = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def name() -> str:
    return f"study-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def study(argilla: LocalArgilla, prompts: str, tmp_path: Path, here: Run, name: str) -> Study:  # noqa: F811
    """Prepare the study of two files of answers, in Argilla too: folder, options -> what `here` returns."""

    sides = {"--model": (tmp_path / "tuned.jsonl", TEXTS), "--baseline": (tmp_path / "base.jsonl", OTHERS)}
    for path, texts in sides.values():
        answers_file(path, texts)
    files = [word for option, (path, _) in sides.items() for word in (option, path)]

    def prepare(folder: Path, *more: object, dataset: str = name) -> tuple[int, str, str]:
        return here("human", "--prepare", folder, "--test_sets", prompts, *files, *server(argilla, dataset), *more)

    return prepare


def server(argilla: LocalArgilla, dataset: str) -> tuple[str, ...]:
    return ("--argilla_dataset", dataset, f"--argilla_url={argilla.url}", "--argilla_key", argilla.owner_key)


def dataset_id(argilla: LocalArgilla, name: str) -> str:
    [found] = [item["id"] for item in argilla.request("GET", "/me/datasets")["items"] if item["name"] == name]
    return str(found)


def records(argilla: LocalArgilla, name: str) -> dict[str, dict[str, Any]]:
    """What the server holds, by pair."""
    page = argilla.request("GET", f"/datasets/{dataset_id(argilla, name)}/records?limit=1000&include=responses")
    assert len({item["external_id"] for item in page["items"]}) == len(page["items"])
    return {item["external_id"]: item for item in page["items"]}


def answer(argilla: LocalArgilla, name: str) -> dict[tuple[str, str], str]:
    """Three people answer; returns what counts, by (user name, pair)."""
    there = {pair: record["id"] for pair, record in records(argilla, name).items()}
    counted = {("ada", pair): "a" if n % 3 else "b" for n, pair in enumerate(sorted(there))}
    counted |= {("bob", pair): "a" for pair in sorted(there)[:5]} | {("eve", "p001"): "tie", ("eve", "p002"): "b"}
    del counted["ada", "p011"]
    argilla.respond(there["p004"], "bob", {"choice": "b", "comment": "at first"})  # and changes their mind below
    for (who, pair), choice in counted.items():
        argilla.respond(there[pair], who, {"choice": choice})
    argilla.respond(there["p003"], "eve", {"choice": "tie"}, "draft")
    argilla.respond(there["p005"], "eve", {}, "discarded")
    argilla.respond(there["p006"], "eve", {"choice": "b"})
    argilla.respond(there["p006"], "eve", {"choice": "b"}, "discarded")
    return counted


def as_csv(path: Path, argilla: LocalArgilla, votes: dict[tuple[str, str], str]) -> Path:
    users = {who: argilla.request("GET", "/me", key=key)["id"] for who, key in argilla.annotator_keys.items()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["pair", "choice", "annotator"])
        writer.writerows([pair, choice, f"argilla/{users[who]}"] for (who, pair), choice in votes.items())
    return path


def test_votes_count_as_the_same_votes_in_files_do(
    argilla: LocalArgilla,
    study: Study,
    name: str,
    tmp_path: Path,
    here: Run,  # noqa: F811
) -> None:
    code, out, err = study(tmp_path / "study", "--min_submitted", 2)
    assert code == 0 and f"11 pairs sent to {name} on {argilla.url}; 0 were there already." in out, err
    counted = answer(argilla, name)
    (tmp_path / "tuned").mkdir()
    key = ("--key", tmp_path / "study" / "key.json")
    where = ("--output", tmp_path / "r.json", "--card", tmp_path / "tuned")
    code, out, err = here("human", *key, *server(argilla, name), *where)
    assert code == 0, err
    assert "Not counted, of the answers in Argilla: 1 draft, 2 discarded." in out
    assert "Pairs with fewer answers there than asked for: 6." in out
    read = Results.load(tmp_path / "r.json")
    votes = as_csv(tmp_path / "votes.csv", argilla, counted)
    assert here("human", *key, "--answers", votes, "--output", tmp_path / "csv.json")[0] == 0
    same = Results.load(tmp_path / "csv.json")
    for what in ("metrics", "lines", "details", "setup", "model", "subject"):
        assert getattr(read, what) == getattr(same, what), what
    assert read.notes[: len(same.notes)] == same.notes and len(read.notes) == len(same.notes) + 2
    assert read.details["votes"]["p011"] == [] and len(read.details["votes"]["p001"]) == 3
    # One more, who has no account there.
    (tmp_path / "dan.csv").write_text("pair,choice\np011,A\n")
    both = ("--answers", tmp_path / "dan.csv", "--output", tmp_path / "both.json")
    assert here("human", *key, *server(argilla, name), *both)[0] == 0
    together = Results.load(tmp_path / "both.json")
    assert len(together.details["votes"]["p011"]) == 1 and len(together.details["annotators"]) == 4
    # What they said is kept beside the key, and scores the same without a server.
    kept = tmp_path / "study" / "argilla.csv"
    assert "at first" not in kept.read_text() and len(list(csv.DictReader(kept.open(encoding="utf-8-sig")))) == len(counted)
    assert here("human", *key, "--answers", kept, "--output", tmp_path / "kept.json")[0] == 0
    assert Results.load(tmp_path / "kept.json").metrics == read.metrics
    for path in [*tmp_path.rglob("*.json"), tmp_path / "tuned" / "README.md"]:
        text = path.read_text()
        assert argilla.owner_key not in text and argilla.url not in text and "argilla_key" not in text, path


def test_nobody_is_told_whose_answer_is_a(argilla: LocalArgilla, study: Study, name: str, tmp_path: Path) -> None:
    assert study(tmp_path / "study")[0] == 0
    key = json.loads((tmp_path / "study" / "key.json").read_text())
    rows = sheet(tmp_path / "study" / "study.csv")
    there = records(argilla, name)
    id = dataset_id(argilla, name)
    assert sorted(there) == [row["pair"] for row in rows]
    for row in rows:
        record = there[row["pair"]]
        assert set(record["fields"]) == {"question", "answers"} and record["metadata"] == {"study": key["study"]}
        cells = re.findall(r"<td[^>]*>(.*?)</td>", record["fields"]["answers"])
        assert cells == [row["answer_a"], row["answer_b"]] and row["question"] in record["fields"]["question"]
    told = [there, *(argilla.request("GET", f"/datasets/{id}{part}") for part in ("", "/fields", "/questions"))]
    told.append(argilla.request("GET", f"/me/datasets/{id}/metadata-properties"))
    assert not re.search(r"tuned|base|model|prompts/|seed", json.dumps(told), re.I)
    assert {name for row in rows for name in row if row[name] in told[1]["name"]} <= {"choice", "comment"}  # these are empty


def test_sent_again_it_is_whole_and_not_double(argilla: LocalArgilla, study: Study, name: str, tmp_path: Path) -> None:
    argilla.stop_at_bulk(1)  # in its database, and not in the index that its page asks
    code, _, err = study(tmp_path / "study")
    last = err.strip().splitlines()[-1]
    assert code == 1 and last.startswith("error: No Argilla server answers at") and "the same command sends the rest" in last
    argilla.ready().search.on_bulk = None
    files = {path.name: path.read_bytes() for path in (tmp_path / "study").iterdir()}
    code, out, err = study(tmp_path / "study")
    assert code == 0 and "11 were there already" in out, err
    assert len(argilla.search.indices[f"rg.{dataset_id(argilla, name)}"]) == 11
    answer(argilla, name)
    before = records(argilla, name)
    argilla.request("DELETE", f"/datasets/{dataset_id(argilla, name)}/records?ids={before['p007']['id']},{before['p009']['id']}")
    code, out, err = study(tmp_path / "study")
    assert code == 0 and "2 pairs sent" in out and "9 were there already" in out, err
    after = records(argilla, name)
    assert sorted(after) == sorted(before)
    for pair in set(after) - {"p007", "p009"}:
        assert after[pair]["responses"] == before[pair]["responses"] and after[pair]["id"] == before[pair]["id"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "study").iterdir()} == files  # a sheet may have answers in it


def test_complaints_are_one_line_each(argilla: LocalArgilla, study: Study, name: str, tmp_path: Path, here: Run) -> None:  # noqa: F811
    import argilla as rg

    assert study(tmp_path / "one")[0] == 0
    key = json.loads((tmp_path / "one" / "key.json").read_text())

    def refused(code: int, complaint: str, said: tuple[int, str, str]) -> None:
        lines = [line for line in said[2].strip().splitlines() if line.startswith("error")]
        assert said[0] == code and len(lines) == 1 and complaint in lines[0], said
        assert argilla.owner_key not in said[2]

    refused(1, f"is of the study {key['study']}, not of the study", study(tmp_path / "two"))
    other = json.loads((tmp_path / "two" / "key.json").read_text())
    scored = here("human", "--key", tmp_path / "two" / "key.json", *server(argilla, name), "--output", tmp_path / "r.json")
    refused(1, f"is of the study {key['study']}, not of the study {other['study']}. Give the key of that study", scored)
    code, out, err = study(tmp_path / "two", dataset=f"{name}-two")  # what was prepared is not lost
    assert code == 0 and "11 pairs sent" in out, err
    scored = here(
        "human", "--key", tmp_path / "two" / "key.json", *server(argilla, f"{name}-two"), "--output", tmp_path / "r.json"
    )
    refused(1, "No pair has an answer", scored)
    settings = rg.Settings(fields=[rg.TextField("text")], questions=[rg.TextQuestion("note")])
    client = rg.Argilla(argilla.url, argilla.owner_key)
    rg.Dataset(f"{name}-other", argilla.workspace, settings, client=client).create()
    refused(1, "has other fields or questions", study(tmp_path / "three", dataset=f"{name}-other"))
    assert not (tmp_path / "three").exists()  # told before anything was done
    refused(1, "There is no dataset nowhere", here("human", "--key", tmp_path / "one" / "key.json", *server(argilla, "nowhere")))
    refused(1, "does not accept this key", study(tmp_path / "three", "--argilla_key", "wrong"))
    refused(1, "No Argilla server answers", study(tmp_path / "three", "--argilla_url", "http://127.0.0.1:9"))
    answers_file(tmp_path / "tuned.jsonl", {n: f"No {n}." for n in range(11)})
    refused(2, f"two has another study, {other['study']}, already", study(tmp_path / "two", dataset=f"{name}-new"))


EVIL = (
    '<script>window.top.ran = 1</script><img src=x onerror="window.top.ran = 2">\n\n# No heading\n\n* no **bold** `code`\n'
    "    four spaces\n\n[a link](javascript:top.ran=3) | <b>b</b> &amp; $x$ $$y$$ {{ record.id }} ${1}\n</td></table><h1>out"
)


def test_the_page_shows_texts_as_they_are_and_runs_none(
    argilla: LocalArgilla,
    study: Study,
    name: str,
    tmp_path: Path,
    prompts: str,  # noqa: F811
    browser: Browser,
) -> None:
    Path(prompts).write_text(json.dumps({"id": 0, "prompt": f"Judge this:\n{EVIL}"}) + "\n")
    answers_file(tmp_path / "tuned.jsonl", {0: EVIL})
    answers_file(tmp_path / "base.jsonl", {0: OTHERS[0]})
    assert study(tmp_path / "study", "--study_seed", 1)[0] == 0
    page = argilla.visit(browser, dataset_id(argilla, name), "ada")
    cells = [text.replace("\xa0", " ") for text in page.locator("td").all_inner_texts()]
    assert sorted(cells) == sorted([EVIL, OTHERS[0]])
    assert f"Judge this:\n{EVIL}" in page.inner_text("body").replace("\xa0", " ")
    boxes = [cell.bounding_box() for cell in page.locator("td").all()]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]  # side by side
    for label in ("A is better", "B is better", "Tie"):
        assert page.get_by_text(label, exact=True).count() >= 1
    assert page.evaluate("window.ran") is None
    page.screenshot(path=tmp_path / "page.png")
    page.context.close()
