"""Argilla: signing in, a dataset of questions to people, records out, answers back. The only code that speaks to its server.

Argilla's page (2.8) puts the text of a plain field, and the JSON of a custom one, into its own document as it is, scripts
included. Only Markdown fields are sanitised there. So everything that strangers wrote goes into Markdown fields, as the HTML that
`escaped` makes of it.
"""

from __future__ import annotations

import html
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count as counting
from itertools import islice
from json import JSONDecodeError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from srt_hf.cli import option
from srt_hf.errors import AnnotationError, ConfigError

if TYPE_CHECKING:
    from argilla import Argilla, Dataset, Record, Settings

_BATCH, _PAGE, _PAGE_OF_IDS = 250, 500, 100  # records a request that sends, reads, or removes
_LINE_END = re.compile(r"\r\n?|\n")
_ANSWERED = "submitted"


@dataclass
class ArgillaArguments:
    """The Argilla server"""

    argilla_dataset: str | None = option(None, "name of the dataset in Argilla")
    argilla_workspace: str | None = option(None, "workspace of it [the only one there is]")
    argilla_url: str | None = option(None, "address of the server [ARGILLA_API_URL]")
    argilla_key: str | None = option(None, "API key; better in ARGILLA_API_KEY, since a command line can be read by others")

    def make(self) -> Place:
        """Where the questions are. Raises ConfigError."""
        if not self.argilla_dataset:
            raise ConfigError("No dataset in Argilla is named.", "Name it with --argilla_dataset.")
        return Place(self.argilla_dataset, self.argilla_url, self.argilla_key, self.argilla_workspace)


class Answer(NamedTuple):
    """What one person answered to one record. user: their id on the server. status: "submitted", "draft" or "discarded".
    values: question -> text, label or number; a question left empty is not in it."""

    user: str
    status: str
    values: Mapping[str, Any]


class Answered(NamedTuple):
    """A record as it is on the server. key: its name there. complete: whether it has as many submitted answers as the dataset
    asks for. added, changed: when, the latter also by an answer that completed it."""

    id: str
    metadata: Mapping[str, Any]
    answers: Sequence[Answer]
    complete: bool
    key: str
    added: datetime
    changed: datetime

    @property
    def submitted(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == _ANSWERED]


@dataclass(frozen=True)
class Place:
    """A dataset on an Argilla server.

    dataset: its name. api_url, api_key: None is ARGILLA_API_URL and ARGILLA_API_KEY. workspace: None is the only one that this
    user has.
    """

    dataset: str
    api_url: str | None = None
    api_key: str | None = None
    workspace: str | None = None

    @property
    def url(self) -> str:
        return self.api_url or os.environ.get("ARGILLA_API_URL") or "http://localhost:6900"

    def find(self) -> Dataset:
        """The dataset. Raises ConfigError or AnnotationError: no such server, key, workspace or dataset."""
        client = self._connect()
        with _argilla_errors(self.url):
            found = self._existing(client, self._workspace(client))
        if found is None:
            raise AnnotationError(f"There is no dataset {self.dataset} on {self.url}.", "Name the one that was pushed.")
        return found

    def open(self, make: Callable[[], Settings]) -> Dataset:
        """The dataset with the settings that `make` returns, made where there is none.

        Raises as `find` does, and where a dataset of that name asks or shows other things.
        """
        client, settings = self._connect(), make()
        with _argilla_errors(self.url):
            import argilla

            workspace = self._workspace(client)
            found = self._existing(client, workspace)
            if found is not None and found._model.status == "draft":  # its making was killed half-way, and nobody can answer it
                found.delete()
                found = None
            if found is None:
                return argilla.Dataset(self.dataset, workspace, settings, client=client).create()
            self._check(found, settings)
            return found

    def _connect(self) -> Argilla:
        try:
            import argilla
        except ImportError as error:
            raise ConfigError("Argilla's client is not installed.", "pip install 'srt_hf[review]'") from error
        key = self.api_key or os.environ.get("ARGILLA_API_KEY")
        if not key:
            raise ConfigError("There is no key for Argilla.", "Set ARGILLA_API_KEY to the one on your page in Argilla.")
        with _argilla_errors(self.url):
            return argilla.Argilla(self.url, key)

    def _workspace(self, client: Argilla) -> str:
        names = [workspace.name for workspace in client.workspaces]
        if self.workspace in names or (self.workspace is None and len(names) == 1):
            return self.workspace or names[0]
        what = f"There is no workspace {self.workspace}" if self.workspace else "The workspace is not named"
        there = f"Choose from {', '.join(names)}." if names else "Make one in Argilla first."
        raise AnnotationError(f"{what} on {self.url}.", there)

    def _existing(self, client: Argilla, workspace: str) -> Dataset | None:
        with warnings.catch_warnings():  # where there is none
            warnings.simplefilter("ignore")
            return client.datasets(self.dataset, workspace=workspace)

    def _check(self, found: Dataset, wanted: Settings) -> None:
        if _shape(found.settings) != _shape(wanted):
            raise AnnotationError(
                f"The dataset {self.dataset} on {self.url} has other fields or questions.", "Name another with --argilla_dataset."
            )
        there, asked = found.settings.distribution.min_submitted, wanted.distribution.min_submitted
        if there != asked:
            warnings.warn(f"{self.dataset} exists and asks for {there} answers to a record, not {asked}.", stacklevel=4)


def _shape(settings: Settings) -> list[Any]:
    """What is shown and asked, without the words around it."""
    fields = sorted((field["name"], field["settings"]["type"]) for field in settings.fields.serialize())
    questions = [
        (
            question["name"],
            question["settings"]["type"],
            str([value["value"] for value in question["settings"].get("options") or []]),
        )
        for question in settings.questions.serialize()
    ]
    return [fields, sorted(questions), sorted(item.name for item in settings.metadata)]


def unsure(there: Iterable[Answered]) -> set[str]:
    """Ids of the records that were added or changed last. A server that died may have stored but not indexed them: then they are
    in no reviewer's queue until they are sent again."""
    records = list(there)
    last = (sorted(records, key=when)[-_BATCH:] for when in (lambda record: record.added, lambda record: record.changed))
    return {record.id for records in last for record in records}


def remove(dataset: Dataset, records: Sequence[Answered], url: str) -> None:
    """Take records away, and with them whatever was answered. Raises AnnotationError."""
    for first in range(0, len(records), _PAGE_OF_IDS):
        with _argilla_errors(url):
            some = [
                SimpleNamespace(id=record.key) for record in records[first : first + _PAGE_OF_IDS]
            ]  # no more is asked of them
            dataset._client.api.records.delete_many(dataset.id, cast(Any, some))


def send(dataset: Dataset, records: Iterable[Record], count: int, url: str) -> None:
    """Add so many records, or bring those up to date whose ids are there; answers stay as they are. Shows a progress bar. Raises
    AnnotationError where the server fails; what was sent so far stays."""
    from tqdm import tqdm

    rest = iter(records)
    with (
        _argilla_errors(url, "What was sent so far is there; the same command sends the rest."),
        tqdm(total=count, desc="Sending records", unit="record", disable=not count) as bar,
    ):
        while batch := list(islice(rest, _BATCH)):
            for record in batch:
                record.dataset = dataset
            # Not `dataset.records.log`: it takes the answers that come back apart, and fails on some (argilla 2.8).
            dataset._client.api.records.bulk_upsert(dataset.id, [record.api_model() for record in batch])
            bar.update(len(batch))


def read(dataset: Dataset, url: str) -> Iterator[Answered]:
    """The records with everybody's answers, in the order in which they were added. Raises AnnotationError."""
    # Not `dataset.records`: it loses answers without values.
    records = dataset._client.api.records
    for first in counting(0, _PAGE):
        with _argilla_errors(url):
            page = records.list(dataset.id, offset=first, limit=_PAGE, with_suggestions=False)
        for record in page:
            metadata = {entry.name: entry.value for entry in record.metadata}
            answers = [_answer(given) for given in record.responses]
            yield Answered(
                str(record.external_id),
                metadata,
                answers,
                record.status == "completed",
                str(record.id),
                record.inserted_at,
                record.updated_at,
            )
        if len(page) < _PAGE:
            return


def _answer(given: Any) -> Answer:
    values = {question: answer["value"] for question, answer in (given.values or {}).items()}
    return Answer(str(given.user_id), str(getattr(given.status, "value", given.status)), values)


def progress(dataset: Dataset, url: str) -> dict[str, Any]:
    """Counts of records, total, completed and pending, and per user name the counts of submitted, drafts and discarded."""
    with _argilla_errors(url):
        found = dataset.progress(with_users_distribution=True)
    users = {
        name: {status: counts["completed"][status] + counts["pending"][status] for status in ("submitted", "draft", "discarded")}
        for name, counts in found["users"].items()
    }
    return {**{name: found[name] for name in ("total", "completed", "pending")}, "users": users}


def escaped(text: str | None) -> str:
    """A stranger's text for a Markdown field: HTML that shows it letter by letter and means nothing else.

    In one line, because an empty line would end the HTML block and begin Markdown.

    >>> escaped("<b>a</b>\\n\\n# b")
    '&lt;b&gt;a&lt;/b&gt;<br><br># b'
    """
    return _LINE_END.sub("<br>", html.escape(text or ""))


@contextmanager
def _argilla_errors(url: str, kept: str = "") -> Iterator[None]:
    """The border where the client's errors become AnnotationError; kept: what has not been lost."""
    import httpx  # the client's own
    from argilla._exceptions import ArgillaAPIError, ArgillaCredentialsError, ArgillaError, ForbiddenError

    try:
        yield
    except ArgillaCredentialsError as error:
        raise AnnotationError(f"{url} does not accept this key.", "Set ARGILLA_API_KEY to the one on your page there.") from error
    except ForbiddenError as error:
        raise AnnotationError(f"This user may not do that on {url}.", "Use the key of an owner or admin.") from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise AnnotationError(f"No Argilla server answers at {url} ({type(error).__name__}).", kept or None) from error
    except ArgillaError as error:
        if isinstance(error, ArgillaAPIError) and error.status_code == 404:
            raise AnnotationError(f"{url} is no Argilla server, or what was asked for is gone from it.", kept or None) from error
        said = " ".join(str(error.__cause__ or error).split())[:300]
        raise AnnotationError(f"Argilla at {url} failed: {said}", kept or None) from error
    except JSONDecodeError as error:  # of an answer
        raise AnnotationError(f"{url} is no Argilla server.", kept or None) from error
