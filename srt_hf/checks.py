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

_TAGS = re.compile(r"\[(?:New|Better) (?:Instruction|Answer)\]|\[End\]", re.IGNORECASE)
# "[Your Name]" is a slot, "[Name]" in a regular expression or a citation "[1]" is not.
_SLOT = re.compile(r"[\[{<](?:your|insert|enter|add|fill in)\b[^\]}>\n]{1,60}[\]}>]", re.IGNORECASE)

# A language is told from at most so many characters, and not from fewer than so many, or less surely than this.
_READ = 1_000
_LEGIBLE = 60
_SURE = 0.99


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
        "placeholder": is_placeholder(output, none_is_text=True) or any(_SLOT.search(text) for text in texts),
        "other_language": chosen is not first and _changed_language(first, chosen),
    }
    return row_columns(row, {"flags": [name for name in FLAGS if found.get(name)]})


def _changed_language(first: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Whether instruction or output is, as far as both can be told, in another language than the original's."""
    pairs = [(language(first[name] or ""), language(chosen[name] or "")) for name in ("instruction", "output")]
    return any(before and after and before != after for before, after in pairs)


def language(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, None where the text is too short to tell, or mixed.

    >>> language("The river rises in the mountains and flows through three countries to the sea.")
    'en'
    >>> language("x = 3") is None
    True
    """
    letters = sum(char.isalpha() for char in text[:_READ])
    if letters < _LEGIBLE:
        return None
    code, sureness = _identifier().classify(text[:_READ])
    return code if sureness >= _SURE else None


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
    for n, words in _chosen_words(rows):
        digest = xxh3_128_digest(" ".join(words).encode())
        if digest in seen:
            found[n] = "duplicate"
            continue
        seen.add(digest)
        sketch = empty.copy()
        sketch.update_batch([" ".join(words[at : at + _SHINGLE]).encode() for at in range(max(1, len(words) - _SHINGLE + 1))])
        if index.query(sketch):
            found[n] = "near_duplicate"
        index.insert(n, sketch)
    return found


def _chosen_words(rows: Dataset) -> Iterator[tuple[int, list[str]]]:
    """Place and words, in lower case, of each kept row's choice."""
    for n, row in enumerate(rows.select_columns(["candidates", "choice", "kept"])):
        if row["kept"]:
            chosen = row["candidates"][row["choice"]]
            yield n, " ".join(chosen[name] or "" for name in TRIPLE).lower().split()
