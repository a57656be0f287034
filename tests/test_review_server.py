"""Against a real Argilla server (tests/argilla_server.py): what review stands on. `make test-review` runs these.

argilla is imported by the tests alone: other environments collect this file too.
"""

from __future__ import annotations

import urllib.request
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from argilla_server import LocalArgilla

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
