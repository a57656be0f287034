"""What people wrote on a card of this tool: their own part, sections of theirs elsewhere, metadata; whether they changed ours.

The own part stands between two comments, which a rendered card does not show, above everything that strangers wrote. The last
line of a card is a seal, a digest of what the tool wrote.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

_BEGINS = "<!-- Yours: what stands between this line and the next comment stays when srt_hf writes this card anew. -->"
_ENDS = "<!-- End of yours. -->"
_SEAL = re.compile(r"<!-- srt_hf wrote the rest: (\w+) -->\s*\Z")
_HEADER = re.compile(r"\A\s*---\n.*?\n---\n", re.DOTALL)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# Titles of the sections that the tool writes.
_OURS = ("Use it", "Columns", "Limits", "Citation")
_OURS_FOR = "Selected for "


class Earlier(NamedTuple):
    """A card that is there. header: its metadata. own: what people wrote. edited: whether the rest is not, word for word, what
    this tool wrote."""

    header: dict[str, Any]
    own: str
    edited: bool


def read(text: str) -> Earlier:
    """Take a card apart, to write it anew. A header that is no YAML counts as edited, and is not kept."""
    import yaml
    from huggingface_hub import DatasetCard

    if not text.strip():
        return Earlier({}, "", False)
    text = text.replace("\r\n", "\n")  # the Hub's own editor
    sealed = _SEAL.search(text)
    top, own, rest = _split(_SEAL.sub("", text))
    ours, theirs = _sections(top + rest)
    edited = not (sealed and sealed[1] == _digest(ours))
    try:
        header = DatasetCard(text, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        header, edited = {}, True
    if not isinstance(header.get("configs", []), list):
        header, edited = {name: value for name, value in header.items() if name != "configs"}, True
    # A card that is none of ours has no sections of ours to tell apart from theirs.
    parts = [own.strip("\n"), *(theirs if sealed else [])]
    return Earlier(header, "\n\n".join(part for part in parts if part), edited)


def warn_of_edits(earlier: Earlier, repo_id: str, commit: str | None) -> None:
    """Say where the edits of a card stay that is written anew; commit: the one that has them."""
    if earlier.edited:
        warnings.warn(
            f"The card of {repo_id} was edited where this tool writes it anew; those edits stay in the repo's history, at "
            f"{commit}.",
            stacklevel=3,
        )


def own_part(own: str) -> str:
    """People's part as it stands on a card."""
    return f"{_BEGINS}\n{own and own + chr(10)}{_ENDS}"


def seal(text: str) -> str:
    """A finished card with the line by which `read` tells whether it was changed since."""
    top, _, rest = _split(text)
    return f"{text.rstrip()}\n\n<!-- srt_hf wrote the rest: {_digest(_sections(top + rest)[0])} -->\n"


def _split(text: str) -> tuple[str, str, str]:
    """What stands above people's part, the part, and what stands below; looked for above the first heading of a section only,
    since a row's text may hold the same comments."""
    begin = text.find(_BEGINS)
    first_section = re.search(r"^## ", text.partition(_BEGINS)[0], re.MULTILINE)
    end = text.find(_ENDS, begin)
    if begin < 0 or end < 0 or first_section:
        return text, "", ""
    return text[:begin], text[begin + len(_BEGINS) : end], text[end + len(_ENDS) :]


def _sections(text: str) -> tuple[str, list[str]]:
    """The text without sections that are none of the tool's, and these."""
    ours: list[str] = []
    theirs: list[str] = []
    for title, body in _by_heading(text):
        mine = title is None or title in _OURS or title.startswith(_OURS_FOR)
        (ours if mine else theirs).append(body)
    return "".join(ours), [body.strip("\n") for body in theirs]


def _by_heading(text: str) -> Iterator[tuple[str | None, str]]:
    """Title and text of each section of the second level, headings in fenced blocks left alone; None is what comes first."""
    title, lines, fence = None, list[str](), ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence:
            closes = mark and mark[1].startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if closes else fence
        elif mark:
            fence = mark[1]
        elif line.startswith("## "):
            yield title, "".join(lines)
            title, lines = line[3:].strip(), []
        lines.append(line)
    yield title, "".join(lines)


def _digest(text: str) -> str:
    """Of what the tool wrote below the header; blank lines do not count."""
    lines = [line.rstrip() for line in _HEADER.sub("", text).splitlines()]
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()[:16]
