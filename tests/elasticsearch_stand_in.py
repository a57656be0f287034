"""Elasticsearch on loopback as far as argilla-server asks it (argilla_server/search_engine/commons.py and elasticsearch.py, 2.8):
indices in memory, `_bulk`, `_update`, `_search`.

What it does not do: mappings (any document is taken, where a strict index would refuse an unknown field); text analysis (a text
matches where all words of the query, or its "quoted phrases", stand in it, without prefixes, `-`, `|` or `*`); scores (every hit
has 1.0, or a number of its own for each user where argilla shuffles); similarity search; refresh (what is written is there at
once). A query that it does not know is answered 400, never with the wrong records.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Document = dict[str, Any]
Answer = tuple[int, dict[str, Any]]


class Unknown(Exception):
    """A query or a call that the stand-in cannot answer."""


class ElasticsearchStandIn:
    """`with ElasticsearchStandIn() as search:` argilla-server finds it at `search.url`.

    indices: name -> id -> document. bulks: how many `_bulk` calls have come. on_bulk: called with that number before a `_bulk` is
    done, from another thread; where it raises a ConnectionError, the call is neither done nor answered.
    """

    def __init__(self) -> None:
        self.indices: dict[str, dict[str, Document]] = {}
        self.bulks = 0
        self.on_bulk: Callable[[int], None] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> ElasticsearchStandIn:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """One call: its path without the query string, its body as it came -> status and JSON."""
        if path == "/_bulk":
            self.bulks += 1
            if self.on_bulk:
                self.on_bulk(self.bulks)
        index, _, call = path.strip("/").partition("/")
        with self._lock:
            try:
                return self._respond(method, index, call, body)
            except Unknown as error:
                return 400, _error("parsing_exception", str(error), 400)

    def _respond(self, method: str, index: str, call: str, body: bytes) -> Answer:
        if not index:
            return 200, {"name": "stand-in", "version": {"number": "8.7.0"}, "tagline": "You Know, for Search"}
        if index == "_bulk":
            return 200, {"errors": False, "items": list(self._bulk(body))}
        if method == "PUT" and not call:
            if index in self.indices:
                return 400, _error("resource_already_exists_exception", index, 400)
            self.indices[index] = {}
            return 200, {"acknowledged": True, "index": index}
        if index not in self.indices:
            return 404, _error("index_not_found_exception", index, 404)
        if method == "DELETE" and not call:
            del self.indices[index]
            return 200, {"acknowledged": True}
        return self._respond_in(index, method, call, json.loads(body or b"{}"))

    def _respond_in(self, name: str, method: str, call: str, body: dict[str, Any]) -> Answer:
        call, _, key = call.partition("/")
        documents = self.indices[name]
        if call == "_search":
            return 200, search(documents, body)
        if call == "_update":
            if key not in documents:
                return 404, _error("document_missing_exception", key, 404)
            update(documents[key], body)
            return 200, {"_id": key, "result": "updated"}
        if call in ("", "_mapping", "_refresh"):  # HEAD index: it exists
            return 200, {"acknowledged": True}
        raise Unknown(f"{method} {call}")

    def _bulk(self, body: bytes) -> Iterator[dict[str, Any]]:
        lines = iter(body.splitlines())
        for line in lines:
            ((action, about),) = json.loads(line).items()
            documents = self.indices.setdefault(about["_index"], {})
            if action == "index":
                documents[about["_id"]] = json.loads(next(lines))
            elif action == "delete":
                documents.pop(about["_id"], None)
            else:
                raise Unknown(f"_bulk {action}")
            yield {action: {"_index": about["_index"], "_id": about["_id"], "status": 200}}


def update(document: Document, body: dict[str, Any]) -> None:
    """Change a document in place: by a partial `doc`, or by one of argilla's three scripts."""
    if "doc" in body:
        _merge(document, body["doc"])
        return
    script = body["script"]
    if isinstance(script, str) and (found := re.fullmatch(r'ctx\._source\["suggestions"\]\.remove\("(.*)"\)', script)):
        document.get("suggestions", {}).pop(found[1], None)
    elif isinstance(script, dict) and "ctx._source.responses" in script["source"]:
        given = script["params"]["response"]
        others = [response for response in document.get("responses") or [] if response["id"] != given["id"]]
        document["responses"] = [*others, given] if "responses.add(" in script["source"] else others
    else:
        raise Unknown(f"script {script}")


def search(documents: dict[str, Document], body: dict[str, Any]) -> dict[str, Any]:
    """The answer to `_search`: hits in the order asked for, or aggregations over all that match."""
    query, seed = body.get("query") or {"match_all": {}}, None
    if "knn" in body:
        raise Unknown("knn")
    if "function_score" in query:
        seed = query["function_score"]["functions"][0]["random_score"]["seed"]
        query = query["function_score"]["query"]
    found = [(key, document) for key, document in documents.items() if matches(query, document)]
    answer: dict[str, Any] = {"took": 1, "timed_out": False}
    for name, aggregation in (body.get("aggregations") or body.get("aggs") or {}).items():
        ((kind, about),) = aggregation.items()
        answer.setdefault("aggregations", {})[name] = aggregate(kind, about, [document for _, document in found])
    scores = {key: _draw(seed, key) if seed else 1.0 for key, _ in found}
    found.sort(key=lambda item: -scores[item[0]])
    for by in reversed(body.get("sort") or []):
        _sort(found, by)
    start = body.get("from") or 0
    hits = [{"_id": key, "_score": scores[key]} for key, _ in found[start : start + body.get("size", 10)]]
    answer["hits"] = {"total": {"value": len(found), "relation": "eq"}, "hits": hits}
    return answer


def matches(query: dict[str, Any], document: Document) -> bool:
    """Whether a document answers a query of the kinds that argilla builds."""
    ((kind, about),) = query.items()
    if kind == "match_all":
        return True
    if kind == "bool":
        return _matches_bool(about, document)
    if kind == "nested":
        path = about["path"]
        return any(matches(about["query"], {path: one}) for one in values(document, path))
    if kind == "ids":
        return document["id"] in about["values"]
    if kind == "exists":
        return any(True for _ in values(document, about["field"]))
    if kind == "simple_query_string":
        return _matches_text(about, document)
    if kind in ("term", "terms", "range"):
        ((field, wanted),) = about.items()
        return any(_matches_value(kind, wanted, value) for value in values(document, field))
    raise Unknown(f"query {kind}")


def _matches_bool(about: dict[str, Any], document: Document) -> bool:
    def count(part: str) -> tuple[int, int]:
        asked = about.get(part) or []
        asked = asked if isinstance(asked, list) else [asked]
        return sum(matches(query, document) for query in asked), len(asked)

    must, of_must = count("must")
    filtered, of_filter = count("filter")
    should, of_should = count("should")
    enough = about.get("minimum_should_match", 0 if of_must or of_filter else min(of_should, 1))
    return must == of_must and filtered == of_filter and not count("must_not")[0] and should >= enough


def _matches_value(kind: str, wanted: Any, value: Any) -> bool:
    if kind == "range":
        return wanted.get("gte", value) <= value <= wanted.get("lte", value)
    return value in wanted if kind == "terms" else value == wanted


def _matches_text(about: dict[str, Any], document: Document) -> bool:
    texts = [_words(str(text)) for pattern in about["fields"] for text in values(document, pattern)]
    asked = [_words(phrase or word) for phrase, word in re.findall(r'"([^"]+)"|(\S+)', about["query"])]
    return all(any(f" {words} " in f" {text} " for text in texts) for words in asked if words)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def values(document: Any, path: str) -> Iterator[Any]:
    """What stands at a dotted path, whose parts may hold `*`; each element of a list is a value of its own."""
    if isinstance(document, list):
        for one in document:
            yield from values(one, path)
    elif not path:
        if document is not None:
            yield document
    elif isinstance(document, dict):
        name, _, rest = path.partition(".")
        for key in fnmatch.filter(document, name) if "*" in name else [name] if name in document else []:
            yield from values(document[key], rest)


def aggregate(kind: str, about: dict[str, Any], documents: list[Document]) -> dict[str, Any]:
    """value_count, terms or stats of one field; a value that a document holds twice counts once, as in a keyword's doc values."""
    found = [value for document in documents for value in dict.fromkeys(values(document, about["field"]))]
    if kind == "value_count":
        return {"value": len(found)}
    if kind == "terms":
        ranked = sorted(Counter(found).items(), key=lambda item: (-item[1], item[0]))
        return {"buckets": [{"key": key, "doc_count": count} for key, count in ranked[: about["size"]]]}
    if kind == "stats":
        return {"count": len(found), "min": min(found, default=None), "max": max(found, default=None)}
    raise Unknown(f"aggregation {kind}")


def _sort(found: list[tuple[str, Document]], by: dict[str, Any]) -> None:
    """Sort in place by one field; whoever has no value comes last either way."""
    ((field, order),) = by.items()
    nested = order.get("nested", {}) if isinstance(order, dict) else {}
    downwards = (order["order"] if isinstance(order, dict) else order) == "desc"

    def value(item: tuple[str, Document]) -> Any:
        document = item[1]
        if path := nested.get("path"):
            kept = [one for one in values(document, path) if matches(nested.get("filter", {"match_all": {}}), {path: one})]
            document = {path: kept}
        held = list(values(document, field))
        return sum(held) / len(held) if held and not isinstance(held[0], str) else held[0] if held else None

    keyed = [(value(item), item) for item in found]
    ranked = sorted((pair for pair in keyed if pair[0] is not None), key=lambda pair: pair[0], reverse=downwards)
    found[:] = [item for _, item in ranked] + [item for held, item in keyed if held is None]


def _draw(seed: str, key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:4], "big") / 2**32


def _merge(into: Document, new: Document) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _error(kind: str, reason: str, status: int) -> dict[str, Any]:
    return {"error": {"type": kind, "reason": reason, "root_cause": [{"type": kind, "reason": reason}]}, "status": status}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a test has ended the server
            super().handle_error(request, client_address)


def _handler(stand_in: ElasticsearchStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # one packet an answer

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = stand_in.answer(self.command, urlsplit(self.path).path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("X-Elastic-Product", "Elasticsearch")  # the client refuses a server without it
            self.send_header("Content-Type", "application/vnd.elasticsearch+json;compatible-with=8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_GET = do_PUT = do_POST = do_DELETE = _do  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler
