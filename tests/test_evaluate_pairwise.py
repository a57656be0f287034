"""evaluate.py pairwise: real servers on loopback, a scripted judge, models in this process, kills, and every complaint."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SECRET
from serving import transformers_serve
from tgi_server import STALL, LocalTGI
from tiny_models import CHAT_TEMPLATE, make_llama

from srt_hf.evaluation.results import Results
from srt_hf.evaluation.verdicts import REMINDER

SCRIPT = str(ROOT / "scripts" / "evaluate.py")
_ANSWERS = re.compile(r"\[Assistant ([12]) \w+\]\n(.*?)\n\[End of assistant", re.S)

Run = Callable[..., "tuple[int, str, str]"]


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """The two answers that a judge is shown."""
    found = dict(_ANSWERS.findall(body["messages"][1]["content"]))
    return found["1"], found["2"]


def by_length(body: dict[str, Any]) -> tuple[str, str]:
    """A judge of one mind: the longer answer is better."""
    first, second = (min(10, 1 + len(answer.split())) for answer in shown(body))
    return f"{first} {second}\nThe longer one says more.", "stop"


def long_answer(body: dict[str, Any]) -> tuple[str, str]:
    return f"<think>Hm.</think>To {body['messages'][-1]['content']} I say a lot.", "stop"


def short_answer(body: dict[str, Any]) -> tuple[str, str]:
    return "No.", "stop"


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": n, "prompt": f"Question {n}?"}) + "\n" for n in range(12)))
    return str(path)


@pytest.fixture
def here(run_script: Run) -> Run:
    return partial(run_script, "evaluate.py")


def options(folder: Path, prompts: str, model: str, baseline: str, judge: str) -> list[str]:
    return [
        *("pairwise", "--test_sets", prompts, "--model", model, "--baseline", baseline, "--judge", judge),
        *("--journal", str(folder / "journal.sqlite"), "--output", str(folder / "results.json")),
    ]


def answers_file(path: Path, answers: dict[int, str]) -> str:
    path.write_text("".join(json.dumps({"id": f"prompts/{n}", "answer": text}) + "\n" for n, text in answers.items()))
    return str(path)


def pairs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.pairs.jsonl").read_text().splitlines()]


def test_served_models_and_judge(prompts: str, tmp_path: Path, here: Run) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    with (
        LocalTGI(long_answer, model_id="org/tuned") as model,
        LocalTGI(short_answer, model_id="org/base") as base,
        LocalTGI(by_length, model_id="org/judge") as judge,
    ):
        command = options(tmp_path, prompts, model.url, base.url, judge.url)
        code, out, err = here(*command, "--card", folder)
        assert code == 0, err
        assert (len(model.chats), len(base.chats), len(judge.chats)) == (12, 12, 24)
        assert {body["max_tokens"] for body in model.chats} == {1024}
        code, again, err = here(*command, "--compare", tmp_path / "results.json")
        assert code == 0 and (len(model.chats), len(base.chats), len(judge.chats)) == (12, 12, 24), "asked twice"
    line = next(line for line in out.splitlines() if line.startswith("prompts"))
    assert line.split()[:7] == ["prompts", "12", "of", "12", "12", "0", "0"] and "2.000" in line
    assert line.count("12 of 12") == 3  # judged; the longer answer won; it was the model's
    assert "org/tuned against org/base, judged by org/judge" in out
    assert "winning score" in again and "+0" in again
    results = Results.load(tmp_path / "results.json")
    judged_by, asked = results.setup["judge"], {"temperature": 0.0, "top_p": None, "seed": None, "extra_body": None}
    assert judged_by == {"name": "org/judge", "revision": "0123abcd", "max_tokens": 1024, **asked}
    assert results.setup["sets"]["prompts"]["prompts"] == 12 and results.setup["prompt_version"] == 1
    assert results.details["places"] == {"first": 12, "second": 12, "even": 0}
    first = pairs(tmp_path)[0]
    assert first["model_answer"] == "To Question 0? I say a lot." and first["outcome"] == "win"  # without the thoughts
    assert [verdict["scores"] for verdict in first["verdicts"]] == [[8, 2], [8, 2]]
    card = (folder / "README.md").read_text()
    assert first["model"] == "org/tuned" and first["baseline"] == "org/base"
    assert "## Evaluation: pairwise, prompts against org/base" in card
    assert "| prompts | 12 of 12 | 12 | 0 | 0 | 2.000 |" in card and "type: srt_hf_pairwise_winning_score" in card
    everything = "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".md"))
    assert SECRET not in everything and str(tmp_path) not in everything


def test_several_sets_and_all_of_them(tmp_path: Path, here: Run) -> None:
    """The paper's five sets overlap: a question that two of them ask is judged for both, and asked once."""
    (tmp_path / "one.jsonl").write_text('{"text": "Same?", "question_id": 1}\n{"text": "Other?", "question_id": 2}\n')
    (tmp_path / "two.jsonl").write_text('{"conversations": "Same?"}\n')
    (tmp_path / "base.jsonl").write_text(
        '{"prompt": "Same?", "answer": "No."}\n{"prompt": "Other?", "answer": "Not so, not at all ever no."}\n'
    )
    sets = f"{tmp_path / 'one.jsonl'},{tmp_path / 'two.jsonl'}"
    model = lambda body: ("Yes, yes." if "Same" in body["messages"][-1]["content"] else "Yes.", "stop")  # noqa: E731
    with LocalTGI(model, model_id="tuned") as tuned, LocalTGI(by_length, model_id="judge") as judge:
        code, out, err = here(*options(tmp_path, sets, tuned.url, str(tmp_path / "base.jsonl"), judge.url))
        assert code == 0 and len(tuned.chats) == 2 and len(judge.chats) == 4, err
    lines = {line.split()[0]: line.split()[1:8] for line in out.splitlines() if line.startswith(("one", "two", "all"))}
    assert lines["one"] == ["2", "of", "2", "1", "0", "1", "1.000"] and lines["two"] == ["1", "of", "1", "1", "0", "0", "2.000"]
    assert lines["all"] == ["3", "of", "3", "2", "0", "1", "1.333"]
    values = {
        metric.dataset: metric.value for metric in Results.load(tmp_path / "results.json").metrics if "score" in metric.name
    }
    assert values == {"one": 1.0, "two": 2.0, "all": pytest.approx(4 / 3)}


def test_the_same_from_python(tmp_path: Path) -> None:
    from srt_hf import Teacher, evaluation

    questions = [evaluation.Question("a", "One?"), evaluation.Question("b", "Two?")]
    model = {question.id: evaluation.Answer("Yes, I think so.") for question in questions}
    with LocalTGI(by_length) as judge:
        teacher = Teacher(judge.url, journal=tmp_path / "j")
        found = evaluation.judge_pairs(teacher, questions, model, {"a": evaluation.Answer("No.")})
    assert [pair["outcome"] for pair in found] == ["win", "missing"] and evaluation.summary(found)["score"] == 2.0
    assert set(dir(evaluation)) == set(evaluation.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evaluation.nothing  # noqa: B018


def test_a_kill_costs_no_request_twice(prompts: str, tmp_path: Path) -> None:
    """The process is killed while requests hang, first of the model, then of the judge; what was answered is not asked again."""
    answered: Counter[str] = Counter()

    def counted(answer: Callable[[dict[str, Any]], tuple[str, str]]) -> Callable[[dict[str, Any]], tuple[str, str]]:
        def reply(body: dict[str, Any]) -> tuple[str, str]:
            answered[json.dumps(body["messages"])] += 1
            return answer(body)

        return reply

    with (
        LocalTGI(counted(long_answer), model_id="org/tuned") as model,
        LocalTGI(counted(by_length), model_id="org/judge") as judge,
    ):
        baseline = answers_file(tmp_path / "base.jsonl", dict.fromkeys(range(12), "No."))
        command = [sys.executable, SCRIPT, *options(tmp_path, prompts, model.url, baseline, judge.url)]
        for server, before in ((model, 5), (judge, 9)):
            server.fault = lambda n, body, before=before: STALL if n > before else None  # type: ignore[misc]
            run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while sum(status == 200 for status in server.statuses) < before + 1 + (server is judge):  # /info is one, too
                assert run.poll() is None
                time.sleep(0.05)
            time.sleep(0.5)  # until the replies are in the journal
            run.send_signal(signal.SIGKILL)
            run.wait()
            server.fault = None
        assert 5 + 9 <= sum(answered.values()) < 12 + 24
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)  # type: ignore[assignment]
        assert run.returncode == 0, run.stderr
    assert len(answered) == 12 + 24 and set(answered.values()) == {1}


def test_unparsable_verdicts_are_asked_once_more_then_counted_apart(prompts: str, tmp_path: Path, here: Run) -> None:
    def moody(body: dict[str, Any]) -> tuple[str, str]:
        again = body["messages"][-1]["content"] == REMINDER
        if "Question 0?" in body["messages"][1]["content"]:
            return "I would rather not say.", "stop"
        if "Question 1?" in body["messages"][1]["content"] and not again:
            return "Both have their merits.", "stop"
        return by_length(body)

    model = answers_file(tmp_path / "tuned.jsonl", {n: "yes indeed " * (n + 1) for n in range(11)})
    baseline = answers_file(tmp_path / "base.jsonl", dict.fromkeys(range(1, 12), "no no no no") | {0: "no"})
    with LocalTGI(moody, model_id="org/judge") as judge:
        code, out, err = here(*options(tmp_path, prompts, model, baseline, judge.url))
        assert code == 0, err
        assert len(judge.chats) == 2 * 11 + 2 + 2
        assert all(len(body["messages"]) == 4 for body in judge.chats if body["messages"][-1]["content"] == REMINDER)
    by_id = {pair["id"]: pair for pair in pairs(tmp_path)}
    assert by_id["prompts/0"]["outcome"] == "unparsable" and by_id["prompts/11"]["outcome"] == "missing"
    assert by_id["prompts/1"]["outcome"] == "tie" and by_id["prompts/1"]["verdicts"][0]["asked_again"]
    assert "10 of 12" in out and "1 unparsable, 1 missing" in out and "4 verdicts had to be asked for again" in out
    summary = Results.load(tmp_path / "results.json").details["sets"]["prompts"]
    assert summary["win"] + summary["tie"] + summary["lose"] == summary["judged"] == 10
    assert summary["score"] == 1 + (summary["win"] - summary["lose"]) / 10


@pytest.mark.filterwarnings("ignore:.* rejected the request")
def test_cut_failed_and_too_long_answers_are_counted(prompts: str, tmp_path: Path, here: Run) -> None:
    def cut(body: dict[str, Any]) -> tuple[str, str]:
        return "words " * 3000, "length"

    def full(n: int, body: dict[str, Any]) -> tuple[int, bytes] | None:
        text = body["messages"][-1]["content"]
        return (422, b'{"error": "`inputs` is bad", "error_type": "validation"}') if "Question 3?" in text else None

    baseline = answers_file(tmp_path / "base.jsonl", dict.fromkeys(range(12), "no"))
    with LocalTGI(cut, fault=full) as model, LocalTGI(by_length, model_id="judge", max_total_tokens=2500) as judge:
        code, out, err = here(*options(tmp_path, prompts, model.url, baseline, judge.url), "--judge_max_tokens", 64)
    assert code == 0, err
    assert "11 of 12" in out and "1 no answer" in out and "Cut by the token limit: 11 answers of the model" in out
    assert "11 pairs had an answer too long for the judge" in out  # 18,000 characters, of which it has room for 5,000
    assert Results.load(tmp_path / "results.json").details["errors"] == {"rejected": 1}


def test_both_orders_of_a_pair_show_the_same_cut(prompts: str, tmp_path: Path, here: Run) -> None:
    """The judge's window has room for the whole answers in one order only, as where its prompts differ by a token."""

    def full(n: int, body: dict[str, Any]) -> tuple[int, bytes] | None:
        whole = {len(answer) for answer in shown(body)} == {2, 9000}
        refused = whole and shown(body)[0] == "no"  # the swapped order
        error = b'{"error": "`inputs` tokens + `max_new_tokens` must be <= 99", "error_type": "validation"}'
        return (422, error) if refused else None

    model = answers_file(tmp_path / "tuned.jsonl", dict.fromkeys(range(12), "words " * 1500))
    baseline = answers_file(tmp_path / "base.jsonl", dict.fromkeys(range(12), "no"))
    with LocalTGI(by_length, model_id="judge", fault=full) as judge:
        code, out, err = here(*options(tmp_path, prompts, model, baseline, judge.url))
    assert code == 0 and "12 of 12" in out and "12 pairs had an answer too long for the judge" in out, err
    taken = [tuple(map(len, shown(body))) for body in judge.chats]
    assert sum(min(pair) == 2 and max(pair) < 6000 for pair in taken) == 24


def test_a_file_of_pairs_has_the_names_of_both(prompts: str, tmp_path: Path, here: Run) -> None:
    model = answers_file(tmp_path / "tuned.jsonl", dict.fromkeys(range(12), "yes yes"))
    baseline = answers_file(tmp_path / "base.jsonl", dict.fromkeys(range(12), "no"))
    with LocalTGI(by_length, model_id="judge") as judge:
        assert here(*options(tmp_path, prompts, model, baseline, judge.url))[0] == 0
        both = str(tmp_path / "results.pairs.jsonl")
        code, out, err = here(*options(tmp_path, prompts, both, both, judge.url), "--output", tmp_path / "again.json")
    assert code == 0 and "tuned against base, judged by judge" in out and len(judge.chats) == 24, err
    assert "sampling" not in Results.load(tmp_path / "again.json").setup


def test_answers_that_exist_by_a_judge_that_is_recorded(prompts: str, tmp_path: Path, here: Run) -> None:
    """No network at all; both files are one, with two models."""
    rows = [{"prompt": f"Question {n}?", "Answer1": "a b", "Answer2": "a"} for n in range(12)]
    (tmp_path / "wrap.json").write_text(json.dumps({"Meta_Info": {}, "data": rows}))
    replies = [{"id": f"prompts/{n}", "step": step, "reply": "9 5"} for n in range(12) for step in ("judge", "judge-swapped")]
    (tmp_path / "replies.jsonl").write_text("\n".join(map(json.dumps, replies)))
    files = str(tmp_path / "wrap.json")
    code, out, err = here(*options(tmp_path, prompts, files, files, f"replay:{tmp_path / 'replies.jsonl'}"))
    assert code == 0, err
    assert "12 of 12" in out and "24 favoured the answer shown first, 0 the second" in out  # and so every pair is a tie
    assert {pair["outcome"] for pair in pairs(tmp_path)} == {"tie"}


def test_models_in_this_process(prompts: str, tmp_path: Path, here: Run) -> None:
    """A chat model against one without a chat template; what is in the journal loads no model."""
    make_llama(tmp_path / "tuned", seed=1, chat_template=CHAT_TEMPLATE)
    make_llama(tmp_path / "base", seed=2)
    both = (str(tmp_path / "tuned"), str(tmp_path / "base"))
    more = ("--max_tokens", 8, "--batch_size", 5, "--baseline_template", "alpaca")
    with LocalTGI(by_length, model_id="judge") as judge:
        code, _, err = here(*options(tmp_path, prompts, *both, judge.url), *more)
        assert code == 0, err
        first = [(pair["model_answer"], pair["baseline_answer"]) for pair in pairs(tmp_path)]
        for folder in both:
            (Path(folder) / "model.safetensors").rename(tmp_path / f"{Path(folder).name}.away")
        code, _, err = here(*options(tmp_path, prompts, *both, judge.url), *more)
        assert code == 1 and "cannot be loaded" in err, "other content is another model"
        for folder in both:
            (tmp_path / f"{Path(folder).name}.away").rename(Path(folder) / "model.safetensors")
        code, _, err = here(*options(tmp_path, prompts, *both, judge.url), *more)
        assert code == 0 and len(judge.chats) == len({json.dumps(body) for body in judge.chats}), err
    assert first == [(pair["model_answer"], pair["baseline_answer"]) for pair in pairs(tmp_path)] and len(set(first)) > 1
    results = Results.load(tmp_path / "results.json")
    assert results.model["name"] == "tuned" and results.model["revision"].startswith("xxh3:")
    assert results.setup["baseline"]["template"] == "alpaca" and results.details["cut"]["model"] > 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`transformers serve` on a tiny model: (URL, model folder)."""
    folder = make_llama(tmp_path_factory.mktemp("served"), chat_template=CHAT_TEMPLATE)
    with transformers_serve(folder, tmp_path_factory.mktemp("log") / "serve.log") as url:
        yield url, str(folder)


def test_a_model_behind_transformers_serve_against_its_base(served: tuple[str, str], prompts: str, tmp_path: Path) -> None:
    url, folder = served
    base = str(make_llama(tmp_path / "base", seed=3, chat_template=CHAT_TEMPLATE))
    with LocalTGI(by_length, model_id="judge") as judge:
        run = subprocess.run(
            [
                *(sys.executable, SCRIPT, *options(tmp_path, prompts, url, base, judge.url)),
                *("--model_name", folder, "--max_tokens", "6"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    assert "12 of 12" in run.stdout and {pair["outcome"] for pair in pairs(tmp_path)} <= {"win", "tie", "lose"}
    text = (tmp_path / "results.json").read_text()
    assert Path(folder).name in Results.load(tmp_path / "results.json").model["name"] and folder not in text


def test_a_judge_that_never_answers_loses_nothing(prompts: str, tmp_path: Path, here: Run) -> None:
    baseline = answers_file(tmp_path / "base.jsonl", dict.fromkeys(range(12), "no"))
    with LocalTGI(long_answer) as model, LocalTGI(by_length, model_id="judge", fault=lambda n, body: STALL) as judge:
        command = options(tmp_path, prompts, model.url, baseline, judge.url)
        code, _, err = here(*command, "--timeout", 0.5, "--outage", 1)
        assert code == 1 and err.count("error:") == 1 and "Start the server of the --judge" in err and "Traceback" not in err
        judge.fault = None
        code, out, err = here(*command)
        assert code == 0 and "12 of 12" in out and len(model.chats) == 12, err


def test_nobody_is_paid_while_another_cannot_be_reached(prompts: str, tmp_path: Path, here: Run) -> None:
    nobody = "http://127.0.0.1:9"
    with LocalTGI(long_answer) as model, LocalTGI(by_length, key="sesame") as locked:
        code, _, err = here(*options(tmp_path, prompts, model.url, model.url, nobody))
        assert code == 1 and "No judge answers at http://127.0.0.1:9" in err and "Start the server of the --judge" in err
        code, _, err = here(*options(tmp_path, prompts, model.url, model.url, locked.url))
        assert code == 1 and "Put the key of the --judge into SRT_HF_JUDGE_KEY" in err
        code, _, err = here(*options(tmp_path, prompts, model.url, nobody, model.url))
        assert code == 1 and "Start the server of the --baseline" in err
        code, _, err = here(*options(tmp_path, prompts, locked.url, model.url, model.url))
        assert code == 1 and "SRT_HF_MODEL_KEY" in err
        assert not model.chats and all(line.count("\n") == 0 for line in err.strip().splitlines())


def test_keys_go_to_their_own_server(prompts: str, tmp_path: Path, here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in ("MODEL", "BASELINE", "JUDGE"):
        monkeypatch.setenv(f"SRT_HF_{side}_KEY", f"key-of-{side}")
    with (
        LocalTGI(long_answer, model_id="a", key="key-of-MODEL") as model,
        LocalTGI(short_answer, model_id="b", key="key-of-BASELINE") as base,
        LocalTGI(by_length, model_id="c", key="key-of-JUDGE") as judge,
    ):
        code, out, err = here(*options(tmp_path, prompts, model.url, base.url, judge.url))
    assert code == 0 and "12 of 12" in out, err
    assert "key-of" not in (tmp_path / "results.json").read_text() + (tmp_path / "results.pairs.jsonl").read_text()


def test_a_wrong_key_is_told_by_its_own_name(prompts: str, tmp_path: Path, here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = answers_file(tmp_path / "base.jsonl", dict.fromkeys(range(12), "no"))
    with LocalTGI(long_answer) as server:
        for side in ("JUDGE", "MODEL"):
            monkeypatch.setenv(f"SRT_HF_{side}_KEY", "two\nlines")
            code, _, err = here(*options(tmp_path, prompts, server.url, baseline, server.url))
            complaint = f"The {side.lower()}'s key holds characters that no header takes. Check SRT_HF_{side}_KEY."
            assert code == 2 and complaint in err and "teacher" not in err.lower()
        assert not server.chats


@pytest.mark.parametrize(
    ("changed", "code", "complaint"),
    [
        ({"--test_sets": "UNKNOWN"}, 1, "unknown layout: its fields are 'question'"),
        ({"--test_sets": ""}, 2, "No test set is named"),
        ({"--model": ""}, 2, "No model is named with --model."),
        ({"--baseline": "no such/model here"}, 2, "--baseline 'no such/model here' is no model."),
        ({"--model": "ftp://host"}, 2, "--model 'ftp://host' is no model."),
        ({"--model": "UNKNOWN"}, 1, "The file of answers"),
        ({"--template": "chatml"}, 2, "There is no template 'chatml'"),
        ({"--max_tokens": "0"}, 2, "--max_tokens is 0"),
        ({"--judge_max_tokens": "0"}, 2, "--judge_max_tokens is 0"),
        ({"--judge": "no judge"}, 2, "'no judge' is no judge."),
        ({"--judge": ""}, 2, "No judge is named with --judge."),
        (
            {"--baseline": "http://me:secret@host"},
            2,
            "The baseline's address holds a user name or password. Give the key apart (SRT_HF_BASELINE_KEY).",
        ),
        ({"--template": "chat", "--baseline": "MODEL"}, 2, "has no chat template"),
        ({"--template": "alpaca", "--dtype": "float7"}, 2, "--dtype is 'float7'"),
        ({"--judge_extra_body": "[1]"}, 2, "--judge_extra_body is no JSON object"),
        ({"--compare": "UNKNOWN"}, 1, "holds no results of evaluate.py"),
        ({"--compare": "nowhere.json"}, 1, "nowhere.json cannot be read"),
        ({"--card": "nowhere"}, 2, "--card nowhere is no folder"),
        ({"--judges": "x"}, 2, "There is no option --judges"),
    ],
)
def test_bad_input_is_one_clear_line(
    changed: dict[str, str], code: int, complaint: str, prompts: str, tmp_path: Path, here: Run
) -> None:
    (tmp_path / "unknown.jsonl").write_text('{"question": "a?"}')
    changed = {name: value.replace("UNKNOWN", str(tmp_path / "unknown.jsonl")) for name, value in changed.items()}
    with LocalTGI(by_length) as judge:
        baseline = answers_file(tmp_path / "base.jsonl", dict.fromkeys(range(12), "no"))
        model = str(make_llama(tmp_path / "m")) if "--template" in changed else judge.url
        changed = {name: value.replace("MODEL", model) for name, value in changed.items()}
        found, _, err = here(
            *options(tmp_path, prompts, model, baseline, judge.url), *(word for one in changed.items() for word in one)
        )
        assert not judge.chats
    assert found == code and complaint in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "results.json").exists()


def test_the_dispatcher(here: Run) -> None:
    names = ("pairwise", "human", "openllm", "alpaca-eval", "mt-bench")
    code, out, _ = here("--help")
    listed = [line.split()[0] for line in out.splitlines() if line.split()[:1] and line.split()[0] in names]
    assert code == 0 and listed == list(names)
    code, _, err = here("mt_bench")
    assert code == 2 and err == f"error: There is no subcommand mt_bench: it is one of {', '.join(names)}. See --help.\n"
    assert here()[0] == 2
    code, out, _ = here("pairwise", "--help")
    assert code == 0 and "usage: python scripts/evaluate.py pairwise [options]" in out and "--judge" in out


def test_a_config_file_may_hold_the_options(prompts: str, tmp_path: Path, here: Run) -> None:
    model = answers_file(tmp_path / "a.jsonl", dict.fromkeys(range(12), "yes yes"))
    with LocalTGI(by_length) as judge:
        (tmp_path / "run.yaml").write_text(f"test_sets: {prompts}\nmodel: {model}\nbaseline: {model}\njudge: {judge.url}\n")
        os.environ.pop("SRT_HF_JOURNAL", None)
        output = ("--output", tmp_path / "results.json", "--journal", tmp_path / "j")
        code, out, err = here("pairwise", "--config", tmp_path / "run.yaml", *output)
    assert code == 0 and "12 of 12" in out, err
