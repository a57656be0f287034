"""What the texts show: each flag by an example and by what is near to it and is none."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from srt_hf.checks import flag, language
from srt_hf.schema import FLAGS, features

ENGLISH = "Describe how the river rises in the mountains, crosses three countries and reaches the sea after a long way."
GERMAN = "Beschreibe, wie der Fluss in den Bergen entspringt, drei Länder durchquert und nach langem Weg das Meer erreicht."
PLAIN = {"instruction": "Name a river.", "input": "", "output": "The Nile."}


def flagged(*pairs: dict[str, str], original: dict[str, str] | None = None, kept: bool = True) -> list[list[str]]:
    """Flags of rows whose choice is the pair, a reflection of `original`."""
    rows = []
    for n, pair in enumerate(pairs):
        first = {"origin": "original", **(original or {**PLAIN, "output": f"Original {n}."})}
        chosen = {"origin": "both", **PLAIN, **pair}
        rows.append({"id": str(n), "candidates": [first, chosen], "choice": 1, "kept": kept})
    found = flag(Dataset.from_list(rows))
    assert found.features["flags"] == features(["flags"])["flags"]
    return found["flags"][:]


@pytest.mark.parametrize(
    ("pair", "flags"),
    [
        ({}, []),
        ({"output": "Here is the improved answer:\nThe Nile."}, ["boilerplate"]),
        ({"output": "The Nile. [End]"}, ["boilerplate"]),
        ({"instruction": "[New Instruction] Name a river."}, ["boilerplate"]),
        ({"output": "Here is the list:\n1. The Nile"}, []),
        ({"output": "I'm sorry, but I can't help with that request."}, ["refusal"]),
        ({"output": "I'm sorry to hear that. Try the Nile."}, []),
        ({"output": "Dear [Your Name],\nthe Nile."}, ["placeholder"]),
        ({"output": "<insert your answer here>"}, ["placeholder"]),
        ({"output": "[Company Name] thanks [Recipient's Name]."}, ["placeholder"]),
        ({"input": "No Input"}, ["placeholder"]),
        ({"input": "<noinput>"}, ["placeholder"]),
        ({"output": "See [1], x[0], <b>the Nile</b> and {name}."}, []),
        ({"output": "value = d[your_key]; {'add': 1}; List<Name> names;"}, []),
        ({"output": "I'm sorry, but I can't help with that request. [End]"}, ["boilerplate", "refusal"]),
    ],
)
def test_flags_of_a_text(pair: dict[str, str], flags: list[str]) -> None:
    assert flagged(pair) == [flags]


def test_another_language() -> None:
    english = {"instruction": ENGLISH, "input": "", "output": ENGLISH}
    assert flagged({"instruction": GERMAN, "output": GERMAN}, original=english) == [["other_language"]]
    assert flagged({"instruction": ENGLISH, "output": GERMAN}, original=english) == [["other_language"]]
    assert flagged({"instruction": ENGLISH, "output": ENGLISH + " And back."}, original=english) == [[]]
    assert flagged({"instruction": ENGLISH, "output": "Der Nil."}, original=english) == [[]]  # too short to tell
    chinese, japanese = "请写一个关于河流的短篇故事，不少于三百字。", "日本で一番長い川の名前を教えてください。"
    assert flagged({"instruction": chinese}, original=english) == [["other_language"]]  # by its writing, short as it is
    assert flagged({"instruction": japanese}, original={**PLAIN, "instruction": chinese}) == [["other_language"]]
    assert flagged({"output": "The Nile (Нил, 尼罗河)."}, original=english) == [[]]
    assert language(GERMAN) == ("latin", "de") and language("1 + 2 = 3; " * 20) == (None, None)


def test_doubles_among_kept_rows() -> None:
    words = " ".join(f"word{n}" for n in range(100))
    texts = [words, "Something else entirely, of other words.", words.upper() + "  ", words + " and a little more", "Short."]
    pairs = [{"output": text} for text in texts]
    assert flagged(*pairs) == [[], [], ["duplicate"], ["near_duplicate"], []]
    assert flagged(*pairs, kept=False) == [[]] * 5


def test_near_doubles_without_spaces() -> None:
    text = "".join(chr(0x4E00 + 7 * n) for n in range(200))
    assert flagged({"output": text}, {"output": text[:-3]}, {"output": text[::-1]}) == [[], ["near_duplicate"], []]


def test_the_same_words_in_other_fields_are_no_double() -> None:
    assert flagged({"instruction": "a b c", "output": "d e f"}, {"instruction": "a b", "output": "c d e f"})[1] != ["duplicate"]


def test_doubles_come_beside_what_the_text_shows() -> None:
    pair = {"output": "Dear [Your Name], this letter says enough words to be told apart from others."}
    assert flagged(pair, pair) == [["placeholder"], ["duplicate", "placeholder"]]


def test_every_flag_is_explained_and_found() -> None:
    assert list(FLAGS) == ["duplicate", "near_duplicate", "boilerplate", "refusal", "placeholder", "other_language"]


def test_null_texts() -> None:
    row: dict[str, Any] = {"origin": "original", "instruction": None, "input": None, "output": None}
    rows = Dataset.from_list(
        [{"candidates": [row], "choice": 0, "kept": False}], features=features(["candidates", "choice", "kept"])
    )
    assert flag(rows)["flags"][:] == [[]]
