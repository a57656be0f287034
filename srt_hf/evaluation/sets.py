"""Test sets of prompts, in the layouts that the paper's five are published in. JSONL, or one JSON list.

| set | prompts | a row |
|---|--:|---|
| `vicuna` | 80 | {"question_id": 1, "text": "…", "category": "generic"} (lm-sys/vicuna-blog-eval) |
| `koala` | 180 | {"id": "koala_1", "prompt": "…"} (arnav-gudibande/koala-test-set) |
| `wizardlm` | 218 | {"idx": 1, "Skill": "Math", "Difficulty": …, "Instruction": "…"} (nlpxucan/WizardLM) |
| `self-instruct` | 252 | {"id": "…", "instruction": "…", "instances": [{"input": "…", "output": "…"}]} (yizhongw/self-instruct) |
| `lima` | 300 | {"conversations": "…"} (tianyi-lab/Cherry_LLM), {"conversations": ["…"], "source": "…"} (GAIR/lima) |

Besides these, your own prompts: {"id": …, "instruction": "…", "input": "…"}, of which only `instruction` is needed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_hf.errors import ConfigError, DataError
from srt_hf.evaluation.files import digest, read_rows
from srt_hf.prompts import user_turn

__all__ = ["Question", "TestSet", "digest", "load_set", "load_sets"]

# Layout -> the field that holds the prompt, the field of its ids, how many prompts were published. The first that fits is taken.
_LAYOUTS = {
    "wizardlm": ("Instruction", "idx", 218),
    "lima": ("conversations", "id", 300),
    "self-instruct": ("instruction", "id", 252),  # without instances: your own
    "koala": ("prompt", "id", 180),
    "vicuna": ("text", "question_id", 80),
}
_KNOWN = (
    "Known are those of Vicuna (text), Koala (prompt), WizardLM (Instruction), Self-Instruct (instruction, instances), LIMA "
    "(conversations), and rows of instruction and input."
)


@dataclass(frozen=True)
class Question:
    """What a model is asked. id: distinct over all sets of a run. earlier: (user's turn, its answer) of the conversation so far,
    oldest first (MT-Bench's second turn)."""

    id: str
    instruction: str
    input: str = ""
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """The user's turn: instruction and, on a line of its own, the input.

        >>> Question("sum", "Add.", "1 and 2").text
        'Add.\\n1 and 2'
        """
        return user_turn(self.instruction, self.input)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages, the question last; no system prompt."""
        turns = [(role, text) for turn in self.earlier for role, text in zip(("user", "assistant"), turn, strict=True)]
        return [{"role": role, "content": text} for role, text in [*turns, ("user", self.text)]]


@dataclass(frozen=True)
class TestSet:
    """One set of prompts. Its questions' ids begin with its name and a slash."""

    __test__ = False  # no test case, whatever pytest makes of the name
    name: str
    questions: list[Question]

    @property
    def digest(self) -> str:
        """Of what is asked, in this order: two files with the same prompts have the same."""
        return digest([[question.instruction, question.input] for question in self.questions])


def load_sets(files: str) -> list[TestSet]:
    """The test sets in `files`, paths with commas between them. Raises ConfigError or DataError, which name what is wrong."""
    paths = [Path(name.strip()) for name in files.split(",") if name.strip()]
    if not paths:
        raise ConfigError("No test set is named.", "Give the file of its prompts with --test_sets, several with commas.")
    sets = [load_set(path) for path in paths]
    names = Counter(one.name for one in sets)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"Two test sets are both {twice[0]}.", "Give each once.")
    return sets


def load_set(path: Path) -> TestSet:
    """Read one file of prompts. A published set has its own name, any other its file's stem: half of Koala is not Koala."""
    rows = read_rows(path)
    layout = _layout(rows[0])
    if layout is None:
        raise DataError(f"The test set {path} has an unknown layout: its fields are {_names(rows[0])}.", _KNOWN)
    name = layout if len(rows) == _LAYOUTS[layout][2] else path.stem
    questions = [_question(row, number, layout, name, path) for number, row in enumerate(rows, start=1)]
    if len({question.id for question in questions}) < len(questions):
        questions = [
            Question(f"{name}/{number}", question.instruction, question.input)
            for number, question in enumerate(questions, start=1)
        ]
    return TestSet(name, questions)


def _layout(row: dict[str, Any]) -> str | None:
    return next((name for name, (field, *_) in _LAYOUTS.items() if field in row), None)


def _question(row: dict[str, Any], number: int, layout: str, name: str, path: Path) -> Question:
    field, id_field, _ = _LAYOUTS[layout]
    prompt = row.get(field)
    if isinstance(prompt, list):  # LIMA's own: the user's turn, and none of the answer in the test split
        prompt = prompt[0] if prompt else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"Row {number} of the test set {path} has no text in {field!r}.", "Mend the row, or leave it out.")
    own = row[id_field] if isinstance(row.get(id_field), (str, int)) else number
    return Question(f"{name}/{own}", prompt, _input(row, number, path))


def _input(row: dict[str, Any], number: int, path: Path) -> str:
    instances = row.get("instances")
    holder = instances[0] if isinstance(instances, list) and len(instances) == 1 else row if instances is None else None
    text = (holder.get("input") or "") if isinstance(holder, dict) else None
    if not isinstance(text, str):
        raise DataError(f"Row {number} of the test set {path} has not one instance with a text as input.")
    return text


def _names(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, list(row)[:8])) or "none"
