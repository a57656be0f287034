"""Against a real Argilla server (tests/argilla_server.py): what review stands on. `make test-review` runs these.

argilla is imported by the tests alone: other environments collect this file too.
"""

from __future__ import annotations

import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hub_server import UPLOAD_WARNING, LocalHub
from test_review import recycled  # noqa: F401

if TYPE_CHECKING:
    from argilla_server import LocalArgilla
    from playwright.sync_api import Browser

pytestmark = pytest.mark.review


@pytest.fixture
def client(argilla: LocalArgilla) -> Any:
    import argilla as rg

    return rg.Argilla(api_url=argilla.url, api_key=argilla.owner_key)


def make_dataset(client: Any, workspace: str) -> Any:
    import argilla as rg

    settings = rg.Settings(
        fields=[
            rg.TextField("text", use_markdown=True),
            rg.CustomField("pair", template="<p>{{record.fields.pair.new}}</p>", advanced_mode=False, required=False),
        ],
        questions=[
            rg.LabelQuestion("decision", labels={"accept": "Accept", "original": "Keep the original", "drop": "Drop"}),
            rg.TextQuestion("corrected", required=False),
            rg.RatingQuestion("rating", values=[1, 2, 3, 4, 5], required=False),
        ],
        metadata=[rg.IntegerMetadataProperty("n"), rg.FloatMetadataProperty("ifd"), rg.TermsMetadataProperty("reason")],
        distribution=rg.TaskDistribution(min_submitted=2),
    )
    name = f"smoke-{uuid.uuid4().hex}"
    return rg.Dataset(name=name, workspace=workspace, settings=settings, client=client).create()


def make_records(ids: range, text: str = "text", **more: Any) -> list[Any]:
    import argilla as rg

    return [
        rg.Record(
            id=f"row-{n}",
            fields={"text": f"{text} number {n}", "pair": {"old": "a", "new": "b"}},
            metadata={"n": n, "ifd": n / 8, "reason": "tie" if n % 3 else "won"},
            suggestions=[rg.Suggestion("decision", "accept", score=0.25, agent="a/student")],
            **more,
        )
        for n in ids
    ]


def log(client: Any, dataset: Any, records: list[Any], batch: int = 500) -> None:
    """Create and update records: not by `dataset.records.log`, which fails where a record has an answer without values."""
    for record in records:
        record.dataset = dataset
    models = [record.api_model() for record in records]
    for start in range(0, len(records), batch):
        client.api.records.bulk_upsert(dataset.id, models[start : start + batch])


def read(client: Any, dataset: Any) -> dict[str, Any]:
    """What the server holds, by row id: not by `dataset.records`, which loses answers without values."""
    return {record.external_id: record for record in client.api.records.list(dataset.id, limit=1000, with_responses=True)}


def answers(record: Any, argilla: LocalArgilla) -> dict[str, tuple[str, dict[str, Any]]]:
    names = {argilla.request("GET", "/me", key=key)["id"]: name for name, key in argilla.annotator_keys.items()}
    return {
        names[str(one.user_id)]: (one.status.value, {name: value["value"] for name, value in (one.values or {}).items()})
        for one in record.responses
    }


def test_three_users_answer_and_a_second_log_leaves_their_answers_alone(argilla: LocalArgilla, client: Any) -> None:
    dataset = make_dataset(client, argilla.workspace)
    log(client, dataset, make_records(range(300)))
    before = read(client, dataset)
    assert len(before) == 300

    first, second, third = (before[f"row-{n}"].id for n in range(3))
    argilla.respond(first, "ada", {"decision": "accept", "rating": 4})
    argilla.respond(first, "bob", {"decision": "original", "corrected": " as written\n\n"})
    argilla.respond(first, "eve", {}, "discarded")
    argilla.respond(second, "ada", {"corrected": "half of"}, "draft")
    argilla.respond(second, "bob", {"decision": "drop"})
    argilla.respond(second, "bob", {"decision": "accept"})
    with pytest.raises(ValueError, match="missing response value for required question"):
        argilla.respond(third, "ada", {"rating": 3})
    log(client, dataset, make_records(range(2), text="other") + make_records(range(300, 302)))

    after = read(client, dataset)
    assert len(after) == 302
    assert {name: record.id for name, record in before.items()}.items() <= {name: one.id for name, one in after.items()}.items()
    assert after["row-0"].fields["text"] == "other number 0"
    assert (after["row-0"].status, after["row-1"].status) == ("completed", "pending")
    assert answers(after["row-0"], argilla) == {
        "ada": ("submitted", {"decision": "accept", "rating": 4}),
        "bob": ("submitted", {"decision": "original", "corrected": " as written\n\n"}),
        "eve": ("discarded", {}),
    }
    assert answers(after["row-1"], argilla) == {
        "ada": ("draft", {"corrected": "half of"}),
        "bob": ("submitted", {"decision": "accept"}),
    }
    assert not after["row-2"].responses


def test_search_finds_what_reviewers_ask_for(argilla: LocalArgilla, client: Any) -> None:
    import argilla as rg

    dataset = make_dataset(client, argilla.workspace)
    log(client, dataset, make_records(range(30)))
    argilla.respond(read(client, dataset)["row-7"].id, "ada", {"decision": "drop"})
    argilla.respond(read(client, dataset)["row-8"].id, "bob", {}, "discarded")

    def found(*filters: tuple[str, str, object], query: str | None = None) -> list[str]:
        asked = rg.Query(query=query, filter=rg.Filter(list(filters)) if filters else None)
        return sorted(record.id for record in dataset.records(asked, with_responses=False))

    assert found(query="number 17") == ["row-17"]
    assert found(("metadata.n", ">=", 10), ("metadata.n", "<=", 12)) == ["row-10", "row-11", "row-12"]
    assert found(("metadata.reason", "==", "won"), ("metadata.ifd", "<=", 0.75)) == ["row-0", "row-3", "row-6"]
    assert found(("response.status", "==", "submitted")) == ["row-7"]
    assert found(("response.status", "in", ["submitted", "discarded"])) == ["row-7", "row-8"]
    assert len(found(("status", "==", "pending"))) == 30

    pending = [{"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}]
    for by, first in (
        ({"entity": "metadata", "metadata_property": "ifd"}, "row-29"),
        ({"entity": "record", "property": "inserted_at"}, None),
    ):
        query = {"query": {}, "filters": {"and": pending}, "sort": [{"scope": by, "order": "desc"}]}
        page = argilla.request("POST", f"/me/datasets/{dataset.id}/records/search", query, key=argilla.annotator_keys["ada"])
        assert page["total"] == 29
        assert first in (None, page["items"][0]["record"]["external_id"])
    progress = argilla.request("GET", f"/me/datasets/{dataset.id}/metrics", key=argilla.annotator_keys["ada"])
    assert (progress["responses"]["submitted"], progress["responses"]["pending"]) == (1, 29)


def test_a_server_that_dies_in_the_middle_comes_back_with_what_it_had(argilla: LocalArgilla, client: Any) -> None:
    import httpx

    dataset = make_dataset(client, argilla.workspace)
    argilla.stop_at_bulk(2)
    with pytest.raises(httpx.TransportError):
        log(client, dataset, make_records(range(60)), batch=20)
    argilla.start()
    held = read(client, dataset)
    assert len(held) == 40  # the second batch is in the database, though nobody was told
    assert len(argilla.search.indices[f"rg.{dataset.id}"]) == 20
    log(client, dataset, make_records(range(60)), batch=20)
    assert sorted(read(client, dataset)) == sorted(f"row-{n}" for n in range(60))
    assert len(argilla.search.indices[f"rg.{dataset.id}"]) == 60


def test_the_web_page_is_there(argilla: LocalArgilla) -> None:
    with urllib.request.urlopen(argilla.url, timeout=60) as page:
        assert b"Argilla" in page.read()


# The review itself -------------------------------------------------------------------------------------------------------------


def made(count: int, pairs: Any = None) -> Any:
    """A run of so many rows; every third's student prefers the original. pairs: row's place -> another response."""
    from datasets import Dataset

    from srt_hf import Recycled, select
    from srt_hf.report import Report, measure
    from srt_hf.schema import CANDIDATE, SCORE

    nothing, unscored = ({field.name: None for field in struct} for struct in (CANDIDATE, SCORE))
    rows = []
    for n in range(count):
        texts = [("original", f"Say {n}.", f"{n}"), ("response", f"Say {n}.", (pairs or {}).get(n, f"It is {n}.\n\n<b>{n}</b>"))]
        candidates = [
            {
                **nothing,
                "origin": origin,
                "instruction": said,
                "input": "",
                "output": output,
                "critique": "Too short.",
                "sample": 0,
            }
            for origin, said, output in texts
        ]
        numbers = [(0.8, 0.8), (0.7, 0.9 if n % 3 == 0 else 0.5 + n / count / 10)]
        scores = [{**unscored, "ifd": ifd, "r_ifd": r_ifd} for ifd, r_ifd in numbers]
        row = {"id": f"row-{n}", "instruction": texts[0][1], "input": "", "output": texts[0][2]}
        row |= {"candidates": candidates, "scores": scores, "scored_by": {"student": "org/student", "template": "vicuna"}}
        rows.append({**row, **select(row), "flags": []})
    report = Report("exhaustive", "paper", "reflected", student={"student": "org/student", "template": "vicuna"})
    return Recycled(Dataset.from_list(rows), measure(report, rows))


@pytest.fixture
def place(argilla: LocalArgilla) -> Any:
    from srt_hf.review import Place

    return Place(f"review-{uuid.uuid4().hex[:8]}", argilla.url, argilla.owner_key)


def ids(client: Any, place: Any) -> dict[str, Any]:
    """Row id -> the record's id on the server."""
    return {name: record.id for name, record in read(client, client.datasets(place.dataset, workspace="reviews")).items()}


PREFILLED = {"instruction": "Say 1.", "response": "It is 1.\n\n<b>1</b>"}


def test_push_answers_pull_and_push_again(argilla: LocalArgilla, client: Any, place: Any) -> None:
    from srt_hf import review

    run = made(30)
    pushed = review.push(run, place, review.Picking(limit=20), min_submitted=3)
    assert pushed == (20, 0, 0, 0)
    record = ids(client, place)
    for user, decision in (("ada", "recycled"), ("bob", "recycled"), ("eve", "drop")):
        argilla.respond(record["row-0"], user, {"decision": decision, "rating": 3, "comment": "so"})
    corrected = {"decision": "recycled", **PREFILLED, "response": "It is 1, by a person.\n"}  # the page's editor ends the line
    for user in ("ada", "bob"):
        argilla.respond(record["row-1"], user, corrected)
    argilla.respond(record["row-2"], "ada", {"decision": "original"})
    argilla.respond(record["row-2"], "bob", {"decision": "drop"})
    argilla.respond(record["row-3"], "ada", {"decision": "drop"}, "draft")
    argilla.respond(record["row-4"], "bob", {}, "discarded")
    argilla.respond(record["row-5"], "eve", {"decision": "drop"})
    argilla.respond(record["row-5"], "eve", {"decision": "original"})  # a changed mind
    done = review.status(place)
    assert (done["total"], done["completed"]) == (20, 1)
    assert done["users"]["ada"] == {"submitted": 3, "draft": 1, "discarded": 0} and done["users"]["bob"]["discarded"] == 1

    reviewed = review.pull(run, place)
    statuses = dict(zip(reviewed.rows["id"], reviewed.rows["review_status"], strict=True))
    assert {name: status for name, status in statuses.items() if status != "unreviewed"} == {
        "row-0": "accepted", "row-1": "edited", "row-2": "tie", "row-5": "original"
    }  # fmt: skip
    flat = {row["id"]: row for row in reviewed.dataset}
    assert flat["row-1"]["output"] == "It is 1, by a person." and flat["row-1"]["origin"] == "human"
    assert flat["row-2"]["output"] == "2" and flat["row-0"]["rating"] == 3 and flat["row-0"]["reviewers"] == 3
    found = reviewed.report.review
    assert (found["reviewers"], found["drafts"], found["discarded"], found["fewer_answers_than_asked"]) == (3, 1, 1, 3)
    assert len(reviewed.answers) == 10 and "so" in str(reviewed.answers)

    # More rows, some with other words by now: what is answered stays as the reviewers saw it, and what was answered stays too.
    other = made(30, {1: "other words", 10: "other words"})
    assert review.push(other, place, min_submitted=3) == (10, 1, 18, 1)
    assert review.push(other, place, min_submitted=3) == (0, 0, 29, 1)
    held = read(client, client.datasets(place.dataset, workspace="reviews"))
    assert len(held) == 30 and {name for name in record if held[name].id != record[name]} == {"row-10"}  # a new record
    with pytest.raises(Exception, match="not found"):  # a page that was open with the old words
        argilla.respond(record["row-10"], "eve", {"decision": "recycled", **PREFILLED})
    assert "by a person" not in held["row-1"].fields["pair"] and "other" not in held["row-1"].fields["pair"]
    assert "other" in held["row-10"].fields["pair"] and answers(held["row-1"], argilla)["ada"] == ("submitted", corrected)
    with pytest.warns(UserWarning, match="1 rows were answered when they had other words"):
        again = review.pull(other, place)
    assert dict(zip(again.rows["id"], again.rows["review_status"], strict=True))["row-1"] == "unreviewed"
    assert review.pull(run, place).rows.to_list() == reviewed.rows.to_list()


def test_five_thousand_records_and_a_server_that_dies(argilla: LocalArgilla, client: Any, place: Any) -> None:
    from srt_hf import review
    from srt_hf.errors import AnnotationError

    run = made(5000)
    argilla.stop_at_bulk(8)
    with pytest.raises(AnnotationError, match=r"No Argilla server answers .* the same command sends the rest"):
        review.push(run, place)
    argilla.ready()
    there = ids(client, place)
    for n in range(300):  # reviewers do not wait for the rest
        argilla.respond(there[f"row-{n}"], "ada", {"decision": "recycled"})
    pushed = review.push(run, place)
    assert pushed == (3000, 0, 2000, 0)
    dataset = client.datasets(place.dataset, workspace="reviews")
    assert len(argilla.search.indices[f"rg.{dataset.id}"]) == 5000  # what was stored but not indexed is in the queue now
    record = {
        found.external_id: found.id
        for first in range(0, 5000, 1000)
        for found in client.api.records.list(dataset.id, first, 1000)
    }
    assert len(record) == 5000
    argilla.respond(record["row-4999"], "eve", {"decision": "drop"})
    reviewed = review.pull(run, place)
    assert reviewed.report.review["statuses"] == {"accepted": 300, "dropped": 1, "unreviewed": 4699}
    assert reviewed.rows[4999]["kept"] is False and reviewed.rows[4998]["reason"] == run.rows[4998]["reason"]


def test_a_dataset_that_was_half_made_is_made_anew(argilla: LocalArgilla, client: Any, place: Any) -> None:
    from srt_hf import review

    workspace = client.workspaces("reviews")
    half = argilla.request("POST", "/datasets", {"name": place.dataset, "workspace_id": str(workspace.id)})
    field = {"name": "pair", "title": "Pair", "required": True, "settings": {"type": "text", "use_markdown": True}}
    argilla.request("POST", f"/datasets/{half['id']}/fields", field)
    assert review.push(made(3), place) == (3, 0, 0, 0)
    found = client.datasets(place.dataset, workspace="reviews")
    assert str(found.id) != half["id"] and found._model.status == "ready"


@pytest.mark.filterwarnings("ignore:.*originals have ifd > 1:UserWarning")
@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_the_commands(
    argilla: LocalArgilla,
    client: Any,
    place: Any,
    hub: LocalHub,
    recycled: Any,  # noqa: F811
    run_script: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from datasets import load_dataset

    recycled.push_to_hub("tester/made")
    monkeypatch.setenv("ARGILLA_API_URL", argilla.url)
    monkeypatch.setenv("ARGILLA_API_KEY", argilla.owner_key)
    monkeypatch.chdir(tmp_path)
    named, source = ("--argilla_dataset", place.dataset), ("--source", "tester/made")
    code, out, err = run_script("review.py", "push", *source, *named, "--closest", "--limit", 5)
    assert code == 0 and "5 records added, 0 updated, 0 were there already." in out and argilla.url in out, err
    code, out, err = run_script("review.py", "push", *source, *named, "--share", 0.5, "--seed", 1)
    assert code == 0 and "were there already." in out, err
    code, out, err = run_script("review.py", "pull", *source, *named, "--repo", "tester/made")
    assert code == 1 and "Nobody has decided any of these rows" in err and not (tmp_path / "reviewed").exists()
    record = ids(client, place)
    first, second = sorted(record)[:2]
    argilla.respond(record[first], "ada", {"decision": "recycled", "response": "By a person."})
    argilla.respond(record[second], "bob", {"decision": "drop"})
    code, out, err = run_script("review.py", "status", *named)
    assert code == 0 and f"2 of {len(record)} records have all the answers" in out and "ada" in out, err
    code, out, err = run_script("review.py", "pull", *source, *named, "--repo", "tester/made", "--only_reviewed")
    assert code == 0 and "Saved to reviewed" in out and "Pushed: http" in out, err
    assert argilla.owner_key not in out + err
    (row,) = load_dataset("tester/made", "reviewed", split="train")
    assert (row["id"], row["output"], row["review_status"]) == (first, "By a person.", "edited")
    assert row["corrections"] == [{"instruction": row["instruction"], "output": "By a person."}]
    assert len((tmp_path / "reviewed" / "answers.jsonl").read_text().splitlines()) == 2


def test_what_is_wrong_is_one_line(argilla: LocalArgilla, client: Any, place: Any) -> None:
    from dataclasses import replace

    from srt_hf import review
    from srt_hf.errors import AnnotationError

    run = made(3)
    make_dataset(client, argilla.workspace)
    taken = next(dataset.name for dataset in client.datasets if dataset.name.startswith("smoke"))
    wrong = [
        (replace(place, api_key="nobody"), "does not accept this key"),
        (replace(place, api_url="127.0.0.1"), "No Argilla server answers at 127.0.0.1"),
        (replace(place, api_url=f"{argilla.url}/no/such/path"), "is no Argilla server"),
        (replace(place, workspace="elsewhere"), "There is no workspace elsewhere .* Choose from reviews"),
        (replace(place, dataset=taken), "has other fields or questions. Name another"),
        (replace(place, api_key=argilla.annotator_keys["ada"]), "may not do that"),
    ]
    for there, complaint in wrong:
        with pytest.raises(AnnotationError, match=complaint) as error:
            review.push(run, there)
        assert "\n" not in str(error.value) and "nobody" not in str(error.value)
    with pytest.raises(AnnotationError, match="There is no dataset review-"):
        review.pull(run, place)
    review.push(run, place)
    with pytest.warns(UserWarning, match="asks for 1 answers to a record, not 2"):
        review.push(run, place, min_submitted=2)
    stranger = made(3)
    stranger.report.student = {"student": "org/another"}
    for act in (review.push, review.pull):
        with pytest.raises(AnnotationError, match="the review of org/student's choice, not of org/another's"):
            act(stranger, place)


HOSTILE = """<img src=x onerror="window.top.ran = 1"> <script>window.top.ran = 2</script> <b>bold</b>

# Heading $x^2$ **strong** `code`

    indented </td></table></div> <style>body { display: none }</style> $& $' #TEMPLATE# {{record}}"""


def test_the_page_shows_what_strangers_wrote_and_runs_none_of_it(
    argilla: LocalArgilla, client: Any, place: Any, browser: Browser
) -> None:
    from srt_hf import review

    run = made(1, {0: HOSTILE})
    run.rows = run.rows.map(lambda row: {"candidates": [{**one, "critique": HOSTILE} for one in row["candidates"]]})
    review.push(run, place)
    dataset = client.datasets(place.dataset, workspace="reviews")
    page = argilla.visit(browser, dataset.id, "ada")
    shown = page.locator(".markdown-render")
    for text in (
        '<img src=x onerror="window.top.ran = 1">',
        "# Heading $x^2$ **strong** `code`",
        "    indented </td></table></div>",
    ):
        assert text in shown.nth(0).inner_text() and text in shown.nth(1).inner_text()
    assert shown.locator("img, script, style, b:text-is('bold'), h1, .katex").count() == 0
    page.get_by_text("Guidelines").first.click()
    page.wait_for_selector("text=What you are asked")
    assert page.evaluate("window.ran") is None
    page.locator("label", has_text="Accept the recycled pair").click()
    page.get_by_text("Submit", exact=True).click()
    page.wait_for_timeout(1000)
    (answer,) = review.pull(run, place).answers  # what was there already is no correction
    assert answer["status"] == "submitted" and answer["values"]["response"] == HOSTILE
    assert review.pull(run, place).report.review["statuses"]["accepted"] == 1
    assert page.evaluate("window.ran") is None
    page.context.close()
