"""What the text of the chosen pairs shows by itself: doubles, words of the teacher about its own work, refusals, open slots,
another language. Each is a flag in the row's column `flags` (schema.FLAGS), and no row is left out for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from srt_hf.parsing.wording import is_placeholder, is_refusal, strip_editing_voice
from srt_hf.schema import FLAGS, ORIGINAL, TRIPLE, of_origin, row_columns

if TYPE_CHECKING:
    from datasets import Dataset
    from py3langid.langid import LanguageIdentifier

# Near duplicates: the share of common word triples, estimated, from which on two pairs count as one, and the estimate's size.
SIMILARITY = 0.8
_PERMUTATIONS = 128
_SHINGLE = 3

_TAGS = re.compile(r"\[(?:New|Better) (?:Instruction|Answer)(?: End)?\]|\[End\]", re.IGNORECASE)
# "[Your Name]" and "[Company Name]" are slots; an index d[your_key], a citation [1] and a tag <b> are not.
_SLOT = re.compile(
    r"(?<![\w\])])[\[<](?:(?:your|insert|enter|add|fill in) [^\]>\n=;(]{1,60}"
    r"|(?:[\w'’/]+ ){0,3}(?:name|title|address|date|number|email))[\]>]"
    r"|<no ?(?:in|out)put>|\blorem ipsum dolor\b|\bTODO: ",
    re.IGNORECASE,
)
_NO_INPUT = re.compile(r"\s*(?:no input|none|n/?a)\.?\s*", re.IGNORECASE)

# A language is told from at most so many characters. Its writing tells it apart from ten letters on; within one writing it takes
# more letters, and a probability.
_READ = 1_000
_WRITTEN = 10
_LEGIBLE = 40
_SURE = 0.9
# Letters of a writing that few languages share. Kana stands before the Chinese characters that go with it.
_WRITINGS = {
    "kana": re.compile(r"[\u3040-\u30ff]"),
    "hangul": re.compile(r"[\uac00-\ud7af]"),
    "han": re.compile(r"[\u4e00-\u9fff]"),
    "cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "arabic": re.compile(r"[\u0600-\u06ff]"),
    "devanagari": re.compile(r"[\u0900-\u097f]"),
    "greek": re.compile(r"[\u0370-\u03ff]"),
    "hebrew": re.compile(r"[\u0590-\u05ff]"),
    "thai": re.compile(r"[\u0e00-\u0e7f]"),
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f]"),
}
_MOSTLY = 0.3  # a writing with so much of the letters is the text's; a Japanese text is half Chinese characters
_UNSPACED = ("kana", "han", "thai")
_CHARACTERS = 5  # a shingle where words are not spaced apart


def flag(rows: Dataset) -> Dataset:
    """Decided rows with the column `flags`: what the text of each row's choice shows (schema.FLAGS, in that order).

    Doubles are looked for among the kept rows, in their order; the first of them has no flag.
    """
    rows = rows.map(_flags_of_text, desc="Looking at the texts")
    doubles = _doubles(rows)
    return rows.map(_AddDoubles(doubles), with_indices=True, desc="Marking doubles") if doubles else rows


def _flags_of_text(row: Mapping[str, Any]) -> dict[str, Any]:
    candidates = row["candidates"]
    chosen, first = candidates[row["choice"]], candidates[of_origin(candidates, ORIGINAL)[0]]
    output = chosen["output"] or ""
    texts = [chosen[name] or "" for name in TRIPLE]
    found = {
        "boilerplate": any(strip_editing_voice(text) != text.strip() or _TAGS.search(text) for text in texts),
        "refusal": is_refusal(output),
        "placeholder": is_placeholder(output, none_is_text=True)
        or any(_SLOT.search(text) for text in texts)
        or bool(_NO_INPUT.fullmatch(chosen["input"] or "")),
        "other_language": chosen is not first and _changed_language(first, chosen),
    }
    return row_columns(row, {"flags": [name for name in FLAGS if found.get(name)]})


def _changed_language(first: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Whether instruction or output is, as far as both can be told, in another language than the original's."""
    for name in ("instruction", "output"):
        before, after = (language(candidate[name] or "") for candidate in (first, chosen))
        same_writing = before[0] == after[0] or not before[0] or not after[0]
        if not same_writing or (before[1] and after[1] and before[1] != after[1]):
            return True
    return False


def language(text: str) -> tuple[str | None, str | None]:
    """The writing of a text (as in `_WRITINGS`) and the ISO 639-1 code of its language, None for what cannot be told.

    >>> language("The river rises in the mountains and flows through three countries.")
    ('latin', 'en')
    >>> language("x = 3"), language("请写一个关于河流的故事。")
    ((None, None), ('han', None))
    """
    head = text[:_READ]
    counts = {name: len(letters.findall(head)) for name, letters in _WRITINGS.items()}
    total = sum(counts.values())
    if total < _WRITTEN:
        return None, None
    writing = next((name for name, count in counts.items() if count >= _MOSTLY * total), None)
    if total < _LEGIBLE:
        return writing, None
    code, sureness = _identifier().classify(head)
    return writing, code if sureness >= _SURE else None


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class _AddDoubles:
    """For `map(with_indices=True)`: a row's flags with what is known of its doubles."""

    def __init__(self, doubles: Mapping[int, str]) -> None:
        self._doubles = doubles

    def __call__(self, row: Mapping[str, Any], n: int) -> dict[str, Any]:
        found = {*row["flags"], self._doubles.get(n)}
        return row_columns(row, {"flags": [name for name in FLAGS if name in found]})


def _doubles(rows: Dataset) -> dict[int, str]:
    """Places of the kept rows that an earlier kept one equals (`duplicate`) or resembles (`near_duplicate`)."""
    from datasketch import MinHash, MinHashLSH
    from xxhash import xxh3_128_digest, xxh32_intdigest

    index = MinHashLSH(SIMILARITY, num_perm=_PERMUTATIONS)
    empty = MinHash(_PERMUTATIONS, hashfunc=xxh32_intdigest)  # its permutations serve all
    seen: set[bytes] = set()
    found = {}
    for n, texts in _chosen(rows):
        digest = xxh3_128_digest("\x1f".join(texts).encode())
        if digest in seen:
            found[n] = "duplicate"
            continue
        seen.add(digest)
        sketch = empty.copy()
        sketch.update_batch(shingle.encode() for shingle in _shingles(" ".join(texts)))
        if index.query(sketch):
            found[n] = "near_duplicate"
        index.insert(n, sketch)
    return found


def _shingles(text: str) -> list[str]:
    """Every three words in a row; every five characters, where the writing sets no spaces between words."""
    pieces = text.replace(" ", "") if language(text)[0] in _UNSPACED else text.split()
    size, joint = (_CHARACTERS, "") if isinstance(pieces, str) else (_SHINGLE, " ")
    return [joint.join(pieces[at : at + size]) for at in range(max(1, len(pieces) - size + 1))]


def _chosen(rows: Dataset) -> Iterator[tuple[int, list[str]]]:
    """Place and texts of each kept row's choice, in lower case and with single spaces."""
    for n, row in enumerate(rows.select_columns(["candidates", "choice", "kept"])):
        if row["kept"]:
            chosen = row["candidates"][row["choice"]]
            yield n, [" ".join((chosen[name] or "").lower().split()) for name in TRIPLE]
