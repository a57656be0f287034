"""Rows in and rows out: the (instruction, input, output) triple of any usual layout, ids, and rows as TRL documents them."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from srt_hf.errors import ConfigError, DataError
from srt_hf.prompts import TEMPLATES, user_turn
from srt_hf.schema import FLAT_COLUMNS, ORIGINAL, TRIPLE, of_origin, row_columns

if TYPE_CHECKING:
    from datasets import Dataset

# One column of turns instead of three of text: its name, and the keys of speaker and text.
CHAT_LAYOUTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_SPEAKERS = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

Triple = tuple[str, str, str]


def triple(row: Mapping[str, Any]) -> Triple:
    """(instruction, input, output) of a row: three text columns (`input` may be absent), or one single-turn chat column.

    A null cell is an empty text. Raises DataError where the row has neither layout, a cell is no text (or a batch of them), or
    the chat has more than one turn.

    >>> triple({"instruction": "Add.", "output": "3"})
    ('Add.', '', '3')
    >>> triple({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    ('Hi', '', 'Hello')
    """
    if "instruction" in row and "output" in row:
        return _text(row, "instruction"), _text(row, "input"), _text(row, "output")
    turns = single_turn(row)
    if turns is not None:
        return turns
    layout = next((name for name in CHAT_LAYOUTS if name in row), None)
    if layout is not None:
        raise DataError(
            f"A row's `{layout}` is not one question and one answer.",
            "Filter multi-turn rows out first, and map without batched=True.",
        )
    raise _missing(row, "Rename yours with Dataset.rename_columns")


def check_columns(dataset: Dataset) -> None:
    """Raise DataError unless the dataset has rows and a layout that `triple` reads, with text in it."""
    if not len(dataset):
        raise DataError("The dataset is empty.", "Check the split and the limit.")
    row = dataset[0]
    if not {"instruction", "output"} <= set(row) and not set(CHAT_LAYOUTS) & set(row):
        raise _missing(
            row,
            "Name yours with columns= (--instruction_column, --input_column, --output_column), rename them with rename_columns",
        )
    for name in TRIPLE:
        if name in row and getattr(dataset.features[name], "dtype", None) not in ("string", "large_string", "null"):
            raise DataError(f"The column `{name}` holds {dataset.features[name]}, not text.", "Name the text columns.")


def single_turn(row: Mapping[str, Any]) -> Triple | None:
    """The triple of a chat row with one question and one answer in text (a null text is empty), None for any other.

    A system turn stands before the question, as most chat templates that lack a system role place it.
    """
    for layout, (speaker, text) in CHAT_LAYOUTS.items():
        if layout not in row:
            continue
        chat = row[layout]
        if not isinstance(chat, list) or not all(isinstance(turn, Mapping) for turn in chat):
            return None
        turns = [(_SPEAKERS.get(str(turn.get(speaker))), "" if turn.get(text) is None else turn.get(text)) for turn in chat]
        if not all(isinstance(said, str) for _, said in turns):
            return None  # parts of other kinds than text, such as images
        system = [said for who, said in turns if who == "system"]
        rest = [(who, said) for who, said in turns if who != "system"]
        if [who for who, _ in rest] != ["user", "assistant"] or len(system) > 1:
            return None
        return "\n\n".join([*system, rest[0][1]]), "", rest[1][1]
    return None


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, list):
        raise DataError(
            f"The column `{name}` holds a list, not text.",
            "Where this is a batch, map it without batched=True, or use Reflector.reflect_batch.",
        )
    if not isinstance(value, str):
        raise DataError(
            f"The column `{name}` holds {type(value).__name__}, not text.", f"Rename the text columns to {', '.join(TRIPLE)}."
        )
    return value


def _missing(row: Mapping[str, Any], cure: str) -> DataError:
    absent = [f"`{name}`" for name in ("instruction", "output") if name not in row]
    return DataError(
        f"The dataset has no column{'s' * (len(absent) > 1)} {' and '.join(absent)}; "
        f"it has {', '.join(f'`{name}`' for name in row)}.",
        f"{cure}, or bring `messages` or `conversations`.",
    )


def row_id(values: Triple, occurrence: int = 0) -> str:
    """Tagged hash of the triple and the how-many-th row of this very text it is (0 for the first).

    >>> row_id(("Add.", "", "3"))
    '3031943e11ed91a1-0'
    """
    digest = hashlib.sha256(b"srt_hf/row/1\0" + json.dumps(values).encode()).hexdigest()
    return f"{digest[:16]}-{occurrence}"


def with_ids(dataset: Dataset, column: str | None = None) -> Dataset:
    """The dataset with an `id` for every row: the values of `column`, by default of an `id` column that is there, else `row_id`.

    With column "" ids are made from the text in any case; a column `id` that is there becomes `source_id`.
    Raises DataError where the named values are null or not distinct.
    """
    if column is None:
        column = "id" if "id" in dataset.column_names else ""
    if not column:
        if "id" in dataset.column_names:
            dataset = dataset.rename_column("id", "source_id")
        seen: Counter[Triple] = Counter()
        ids: list[str] = []
        for row in dataset:
            values = triple(row)
            ids.append(row_id(values, seen[values]))
            seen[values] += 1
    elif column not in dataset.column_names:
        raise DataError(f"There is no id column `{column}`; the dataset has {', '.join(dataset.column_names)}.")
    else:
        ids = _given_ids(dataset, column)
    if "id" in dataset.column_names:
        dataset = dataset.remove_columns("id")
    return dataset.add_column("id", ids)


def _given_ids(dataset: Dataset, column: str) -> list[str]:
    values = dataset[column][:]
    ids = [str(value) for value in values]
    repeated = next((id for id, count in Counter(ids).items() if count > 1), None)
    if None not in values and repeated is None:
        return ids
    problem = f"is null in row {values.index(None)} (the first is 0)" if None in values else f"holds {repeated!r} more than once"
    raise DataError(
        f"The id column `{column}` {problem}.",
        "Name another with id_column, or give id_column '' to have ids made from the text.",
    )


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen candidate as one flat row (`schema.FLAT_COLUMNS`), with the original beside it. For `Dataset.map`."""
    candidates, scores = row["candidates"], row["scores"]
    choice = row["choice"]
    first = of_origin(candidates, ORIGINAL)[0]
    values = {
        "id": row["id"],
        "origin": row["origin"],
        "reason": row["reason"],
        **{name: candidates[choice][name] for name in TRIPLE},
        **{f"original_{name}": candidates[first][name] for name in TRIPLE},
        "ifd": scores[choice]["ifd"],
        "r_ifd": scores[choice]["r_ifd"],
        "original_ifd": scores[first]["ifd"],
        "original_r_ifd": scores[first]["r_ifd"],
        "flags": row.get("flags") or [],  # rows that nobody has looked at, too: a null list ends a bare `map`
    }
    return row_columns(row, {name: values[name] for name in FLAT_COLUMNS})


def to_prompt_completion(row: Mapping[str, Any], template: str = "vicuna") -> dict[str, Any]:
    """A row as TRL's prompt/completion. `template` is a student template by name, or "chat" for the conversational form.

    Vicuna's completion begins with a space, as FastChat trains it. For `Dataset.map`; for another template
    give `fn_kwargs={"template": ...}`.

    >>> to_prompt_completion({"instruction": "Add.", "input": "", "output": "3"}, template="none")
    {'prompt': 'Add.\\n', 'completion': '3'}
    """
    instruction, input, output = triple(row)
    if template == "chat":
        return {
            "prompt": [{"role": "user", "content": user_turn(instruction, input)}],
            "completion": [{"role": "assistant", "content": output}],
        }
    check_template(template)
    form = TEMPLATES[template]
    return {"prompt": form.prompt(instruction, input), "completion": form.answer_prefix + output}


def check_template(name: str) -> None:
    """Raises ConfigError where rows cannot be formatted in a template of this name."""
    known = (*TEMPLATES, "chat")
    if name not in known:
        raise ConfigError(f"There is no template {name!r}.", f"Templates: {', '.join(known)}.")


def to_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as TRL's `messages`: one user turn (instruction, newline, input when there is one) and the answer.

    >>> to_messages({"instruction": "Add.", "input": "1 2", "output": "3"})["messages"][0]["content"]
    'Add.\\n1 2'
    """
    instruction, input, output = triple(row)
    return {
        "messages": [
            {"role": "user", "content": user_turn(instruction, input)},
            {"role": "assistant", "content": output},
        ]
    }


def top(dataset: Dataset, by: str = "ifd", *, k: int | None = None, fraction: float | None = None) -> Dataset:
    """The `k` rows, or that `fraction` of all, with the highest value in column `by`: the paper's small-data setting (§5.2).

    The paper takes the top of the selected rows (`recycled.dataset`), all below 1. In rows that no selection has seen, those
    with an ifd above 1, where the instruction does not help, come first.
    Ties go by id, so that the result depends on no order; rows without the number come last. The rows keep their order.
    Raises ConfigError unless exactly one of k and fraction (in (0, 1]) is given, DataError where the column is missing.
    """
    if (k is None) == (fraction is None) or (k is not None and k < 1) or (fraction is not None and not 0 < fraction <= 1):
        raise ConfigError("Give either k (at least 1) or fraction (above 0, at most 1).")
    absent = [name for name in (by, "id") if name not in dataset.column_names]
    if absent:
        raise DataError(f"There is no column {', '.join(absent)}; the dataset has {', '.join(dataset.column_names)}.")
    count = k if k is not None else max(1, round(len(dataset) * (fraction or 0)))
    values, ids = dataset[by][:], dataset["id"][:]
    missing = [value is None or math.isnan(value) for value in values]
    ranked = sorted(range(len(dataset)), key=lambda n: (missing[n], 0.0 if missing[n] else -values[n], ids[n]))
    return dataset.select(sorted(ranked[:count]))
