"""Reflection through `Dataset.map`: what the teacher sees, what the row gets, and when a result comes from the cache."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset, load_from_disk
from tgi_server import LocalTGI, reflect

import srt_hf
from srt_hf import Prompts, Reflector, Teacher
from srt_hf.errors import ConfigError, DataError
from srt_hf.schema import COLUMNS, features

ROWS = Dataset.from_dict({"instruction": ["Add.", "Name a fruit."], "input": ["1 and 2", ""], "output": ["3", "Apple"]})
EXTRA = [{"instruction": "Sum up.", "input": "The text.", "output": "It."}]


def candidates(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {candidate["origin"]: candidate for candidate in row["candidates"]}


def reflected(tgi: LocalTGI, tmp_path: Path, data: Dataset = ROWS, **options: Any) -> Dataset:
    reflector = Reflector(Teacher(tgi.url, journal=tmp_path / "j", **options))
    return data.map(reflector.reflect)


def test_a_row_gains_its_candidates_and_keeps_its_columns(tgi: LocalTGI, tmp_path: Path) -> None:
    rows = reflected(tgi, tmp_path, ROWS.add_column("extra", [1, 2]))
    assert rows.column_names == ["instruction", "input", "output", "extra", "id", "candidates"]
    assert rows.features["candidates"] == features(["candidates"])["candidates"]
    found = candidates(rows[0])
    assert list(found) == ["original", "instruction", "response", "both"]
    assert found["original"] == {**dict.fromkeys(found["original"]), "origin": "original", "sample": 0, **ROWS[0]}
    # instruction: both texts from one reply; response: the original question; both: the new question. New ones stand alone.
    assert found["instruction"]["instruction"] == "Add. 1 and 2 Explain your reasoning step by step."
    assert (found["response"]["instruction"], found["response"]["input"]) == ("Add.", "1 and 2")
    assert found["both"]["instruction"] == found["instruction"]["instruction"]
    assert found["instruction"]["input"] == found["both"]["input"] == ""
    assert found["both"]["output"] not in (None, found["instruction"]["output"])
    for origin in ("instruction", "response", "both"):
        assert found[origin]["teacher"] == "local/teacher@0123abcd" and found[origin]["critique"] == "A short analysis."
        assert found[origin]["finish_reason"] == "stop" and found[origin]["prompt_tokens"] > 0
    assert len(tgi.chats) == 6


def test_srt_hf_reflect_takes_the_teacher_from_the_environment(
    tgi: LocalTGI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reflect = srt_hf.reflect  # taken before the environment says anything
    with pytest.raises(ConfigError, match="SRT_HF_TEACHER"):
        ROWS.map(reflect)
    monkeypatch.setenv("SRT_HF_TEACHER", tgi.url)
    monkeypatch.setenv("SRT_HF_JOURNAL", str(tmp_path / "environment.sqlite"))
    assert ROWS.map(reflect)[0]["candidates"][1]["error"] is None
    assert (tmp_path / "environment.sqlite").is_file()
    assert ROWS.map(srt_hf.reflect).to_list() == ROWS.map(reflect).to_list() and len(tgi.chats) == 6
    monkeypatch.setenv("SRT_HF_TEACHER", "http://127.0.0.1:9")  # another teacher is never answered from the cache
    monkeypatch.setattr("srt_hf.teacher.http._PROBE_PAUSES", (0.0,))
    with pytest.raises(srt_hf.SrtError, match="No teacher answers"):
        ROWS.map(reflect)


def test_datasets_of_other_layouts(tgi: LocalTGI, tmp_path: Path) -> None:
    wizard = Dataset.from_dict({"instruction": ["Add."], "output": ["3"]})
    chat = Dataset.from_dict({"messages": [[{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}]]})
    first, second = (reflected(tgi, tmp_path, data)[0]["candidates"] for data in (wizard, chat))
    assert first == second and first[0]["input"] == ""
    with pytest.raises(DataError, match="no column `output`; it has `instruction`, `answer`"):
        reflected(tgi, tmp_path, Dataset.from_dict({"instruction": ["a"], "answer": ["b"]}))


def test_selective_steps(teacher: Teacher, tgi: LocalTGI) -> None:
    reflector = Reflector(teacher)
    rows = ROWS.map(reflector.reflect_instruction)
    assert [list(candidates(row)) for row in rows] == [["original", "instruction"]] * 2 and len(tgi.chats) == 2
    chosen = rows.add_column("choice", [0, 1]).map(reflector.reflect_response)
    assert [list(candidates(row))[-1] for row in chosen] == ["response", "both"] and len(tgi.chats) == 4
    # The steps ask for exactly what `reflect` asks for, so going over to exhaustive mode buys only what is missing.
    everything = ROWS.map(reflector.reflect)
    assert len(tgi.chats) == 6
    assert chosen[1]["candidates"][-1] == candidates(everything[1])["both"]
    assert chosen[0]["candidates"][-1] == candidates(everything[0])["response"]
    # Without a choice, the original's response is reflected.
    assert [list(candidates(row)) for row in ROWS.map(reflector.reflect_response)] == [["original", "response"]] * 2


def test_in_a_notebook_reflect_batch_does_the_same(teacher: Teacher, tgi: LocalTGI) -> None:
    reflector = Reflector(teacher)

    async def notebook() -> Dataset:  # a loop is running, as in Jupyter
        return ROWS.map(reflector.reflect_batch, batched=True)

    assert asyncio.run(notebook()).to_list() == ROWS.map(reflector.reflect).to_list()
    assert len(tgi.chats) == 6


def test_a_batch_is_refused_with_the_cure(teacher: Teacher) -> None:
    with pytest.raises(DataError, match=r"holds a list, not text.*without batched=True, or use Reflector.reflect_batch"):
        ROWS.map(Reflector(teacher).reflect, batched=True)


def test_a_second_try_is_counted_as_what_it_is() -> None:
    with LocalTGI(answering("no tags")) as tgi:
        teacher = Teacher(tgi.url, journal=False)
        rows = ROWS.map(Reflector(teacher).reflect_response)
        assert len(tgi.chats) == 4
        names = ("prompt_tokens", "completion_tokens")
        tokens = {name: sum(candidates(row)["response"][name] for row in rows) for name in names}
        assert teacher.counts == {"requests": 4, "asked_again": 2, "retries": 0, "from_journal": 0, **tokens}


def test_streaming_datasets_work_with_features(teacher: Teacher) -> None:
    stream = ROWS.to_iterable_dataset()
    everything = features(["instruction", "input", "output", "id", "candidates"])
    rows = list(stream.map(Reflector(teacher).reflect, features=everything))
    assert rows == ROWS.map(Reflector(teacher).reflect).to_list()


def test_empty_cells_are_a_rows_matter(teacher: Teacher, tgi: LocalTGI) -> None:
    data = Dataset.from_dict(
        {"instruction": [None, "  ", "Name a fruit."], "input": [None, "x", None], "output": ["a", "b", None]}
    )
    rows = data.map(Reflector(teacher).reflect)
    for n in (0, 1):
        assert [c["error"] for c in rows[n]["candidates"]] == [None, "empty", "empty", "not_attempted"]
    assert [c["error"] for c in rows[2]["candidates"]] == [None] * 4  # the teacher may well answer what has no answer yet
    assert len(tgi.chats) == 3


Answering = Callable[[dict[str, Any]], tuple[str, str]]


def answering(first: str, then: str | None = None, finish: str = "stop") -> Answering:
    """The same reply to every first request, and another (or the good one) when it is asked again."""

    def answer(body: dict[str, Any]) -> tuple[str, str]:
        asked_again = len(body["messages"]) > 2 or body["max_tokens"] > 2048
        if not asked_again:
            return first, finish
        return (then, finish) if then is not None else reflect({**body, "messages": body["messages"][:2]})

    return answer


@pytest.mark.parametrize(
    ("reply", "finish", "code"),
    [
        ("no tags at all in this one", "stop", "unparsable"),
        ("[Better Answer]\n(the answer, and nothing else)\n[End]", "stop", "placeholder"),
        ("", "stop", "empty"),
        ("[Better Answer]\nThe first half of", "length", "truncated"),
    ],
)
def test_a_bad_reply_is_asked_again_once_and_then_has_its_code(tmp_path: Path, reply: str, finish: str, code: str) -> None:
    for then, error in ((None, None), (reply, code)):
        with LocalTGI(answering(reply, then, finish)) as tgi:
            reflector = Reflector(Teacher(tgi.url, journal=False))
            response = candidates(ROWS.select([1]).map(reflector.reflect_response)[0])["response"]
            assert response["error"] == error and len(tgi.chats) == 2
            assert (response["output"] is None) == (error is not None)
            # Both tries were paid for, and both are counted.
            assert response["completion_tokens"] >= 2 * len(reply.split()) if error else response["completion_tokens"] > 0


def test_fault_09_the_same_request_is_never_sent_again(tmp_path: Path) -> None:
    """The published client asks an unparsable reply again with the same prompt at temperature 0."""
    with LocalTGI(answering("no tags", "no tags either")) as tgi:
        ROWS.map(Reflector(Teacher(tgi.url, journal=False)).reflect)
        bodies = [json.dumps(body, sort_keys=True) for body in tgi.chats]
        assert len(bodies) == len(set(bodies)) == 8
        assert "could not be read" in tgi.chats[-1]["messages"][-1]["content"]


def test_a_refusal_is_final(tmp_path: Path) -> None:
    with LocalTGI(answering("I'm sorry, but I can't help with that.")) as tgi:
        rows = ROWS.map(Reflector(Teacher(tgi.url, journal=False)).reflect)
        assert [c["error"] for c in rows[0]["candidates"]] == [None, "refused", "refused", "not_attempted"]
        assert len(tgi.chats) == 4


def test_fault_04_no_new_instruction_with_an_old_answer(tmp_path: Path) -> None:
    """The published code pairs a new instruction with the old output where the new answer is missing or "N/A"."""
    for reply in ("[New Instruction]\nBetter?\n[End]\n[New Answer]\nN/A\n[End]", "[New Instruction]\nBetter?\n[End]"):
        with LocalTGI(lambda body, reply=reply: (reply, "stop")) as tgi:
            instruction = candidates(ROWS.map(Reflector(Teacher(tgi.url, journal=False)).reflect_instruction)[0])["instruction"]
            assert instruction["error"] and instruction["instruction"] is None and instruction["output"] is None


def test_fault_05_the_teacher_always_sees_the_input(teacher: Teacher, tgi: LocalTGI) -> None:
    ROWS.select([0]).map(Reflector(teacher).reflect)
    assert len(tgi.chats) == 3 and all("1 and 2" in body["messages"][-1]["content"] for body in tgi.chats)


def test_fault_08_one_bad_row_costs_no_other_row(tmp_path: Path) -> None:
    """The published client retries a failed batch whole, and endlessly when the token limit goes negative."""
    long = Dataset.from_dict({"instruction": ["word " * 3000, "Name a fruit."], "output": ["a", "b"]})
    with LocalTGI(max_total_tokens=3000) as tgi:
        rows = long.map(Reflector(Teacher(tgi.url, journal=False)).reflect)
        assert [c["error"] for c in rows[0]["candidates"]] == [None, "too_long", "too_long", "not_attempted"]
        assert [c["error"] for c in rows[1]["candidates"]] == [None] * 4
        assert len(tgi.chats) == 2 + 3


def test_braces_and_tags_in_the_data_are_text(teacher: Teacher, tgi: LocalTGI) -> None:
    odd = Dataset.from_dict(
        {"instruction": ["Fill {input} and {0} into [End]"], "input": ["{output}"], "output": ["{instruction}"]}
    )
    odd.map(Reflector(teacher).reflect)
    shown = tgi.chats[0]["messages"][-1]["content"]
    assert all(text in shown for text in ("Fill {input} and {0} into [End]", "### Input\n{output}", "### Answer\n{instruction}"))


def _many(rows: int, first_error: int) -> Dataset:
    return Dataset.from_dict(
        {
            "instruction": [f"Say {n}." if n < first_error else "poison" for n in range(rows)],
            "output": [str(n) for n in range(rows)],
        }
    )


def _refuse_poison(body: dict[str, Any]) -> tuple[str, str]:
    return ("I'm sorry, but I can't help with that.", "stop") if "poison" in body["messages"][-1]["content"] else reflect(body)


@pytest.mark.parametrize("num_proc", [None, 1, 2])  # datasets 5.2 makes a pool of one for 1, none for None
def test_a_bare_map_survives_a_first_error_after_the_first_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_proc: int | None
) -> None:
    with LocalTGI(_refuse_poison, slots=256) as tgi:
        monkeypatch.setenv("SRT_HF_TEACHER", tgi.url)
        monkeypatch.setenv("SRT_HF_JOURNAL", str(tmp_path / "j"))
        rows = _many(3000, 2500).map(srt_hf.reflect, num_proc=num_proc)
        errors = [row["candidates"][1]["error"] for row in rows]
        assert errors == [None] * 2500 + ["refused"] * 500
        assert rows.features["candidates"].feature == features(["candidates"])["candidates"].feature
        rows.to_parquet(tmp_path / "rows.parquet")
        again = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")
        assert again[2600]["candidates"] == rows[2600]["candidates"]
    multiprocessing.active_children()  # reaps the workers, which would warn at exit


def test_the_cache_answers_what_is_unchanged_and_nothing_else(
    tgi: LocalTGI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset.from_list([*ROWS.to_list(), *EXTRA]).save_to_disk(tmp_path / "data")  # what is only in memory has no cache
    data = load_from_disk(str(tmp_path / "data"))

    def requests(rows: Dataset = data, prompts: Prompts | None = None, **options: Any) -> int:
        before = len(tgi.chats)
        # No journal, so that whatever the cache does not answer shows at the server.
        rows.map(Reflector(Teacher(tgi.url, journal=False, **options), prompts=prompts).reflect)
        return len(tgi.chats) - before

    assert requests() == 9
    assert requests() == 0
    assert requests(temperature=0.7) == 9
    assert requests(prompts=Prompts(system="Be brief.")) == 9
    assert requests(data.select([0, 1])) == 6
    tgi.info["model_sha"] = "another"
    assert requests() == 9
    monkeypatch.setattr("srt_hf.reflection.PARSER_VERSION", "next")
    assert requests() == 9
    assert requests() == 0


def test_a_stopped_run_goes_on_from_the_journal(tmp_path: Path) -> None:
    data = Dataset.from_dict({"instruction": [f"Say {n}." for n in range(40)], "output": ["x"] * 40})
    down = {"after": 50}
    with LocalTGI(fault=lambda n, body: (401, b"{}") if n > down["after"] else None) as tgi:
        reflector = Reflector(Teacher(tgi.url, journal=tmp_path / "j"))
        with pytest.raises(srt_hf.SrtError, match="401"):
            data.map(reflector.reflect)
        saved = len(list(srt_hf.journal.Journal(tmp_path / "j").entries()))
        assert saved == 50
        down["after"] = 10_000
        sent = len(tgi.chats)
        rows = data.map(Reflector(Teacher(tgi.url, journal=tmp_path / "j")).reflect)
        assert len(tgi.chats) - sent == 120 - saved
        assert all(c["error"] is None for row in rows for c in row["candidates"])


def test_own_wording_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    wording = "Improve {output} for {instruction} given {input}. Use [Better Answer] and [End]."
    file.write_text(f"system: ''\nresponse: '{wording}'\n")
    with LocalTGI(lambda body: ("[Better Answer]\nBetter.\n[End]", "stop")) as tgi:
        teacher = Teacher(tgi.url, journal=False)
        ROWS.select([0]).map(Reflector(teacher, prompts=file).reflect_response)
        assert [body["messages"] for body in tgi.chats] == [
            [{"role": "user", "content": "Improve 3 for Add. given 1 and 2. Use [Better Answer] and [End]."}]
        ]
        wrong = {"- a": "mapping", "greeting: hi": "mapping", "response: hi": "lacks {instruction}, {output}", "{": "read"}
        for text, complaint in wrong.items():
            file.write_text(text)
            with pytest.raises(ConfigError, match=complaint):
                Reflector(teacher, prompts=file)


def test_every_candidate_column_has_its_type() -> None:
    assert set(COLUMNS) >= {"id", "candidates", "scores", "scored_by", "choice", "origin", "kept", "reason"}
