"""Results as a file, beside those of an earlier run, and on a model card that belongs to people."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from srt_hf.errors import ConfigError, DataError
from srt_hf.evaluation.cards import check_card
from srt_hf.evaluation.results import Metric, OutputArguments, Results, compare, model_index, write_card


def results(
    score: float | None = 1.25, benchmark: str = "pairwise", judge: str = "j", name: str = "tuned", subject: str = ""
) -> Results:
    return Results(
        benchmark,
        {"name": name, "revision": "abc"},
        {"judge": {"name": judge, "revision": None}, "sets": {"vicuna": {"prompts": 80, "digest": "sha256:1"}}},
        [Metric("vicuna", "winning score", score, (1.1, 1.4) if score else None), Metric("vicuna", "median words", 40)],
        ["set", "score"],
        [["vicuna", "–" if score is None else f"{score}"]],
        ["tuned against base."],
        {"left_out": {}},
        subject,
        command="python scripts/evaluate.py pairwise",
        created="2026-01-02T03:04:05+00:00",
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results().save(path)
    assert Results.load(path) == results()
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]  # no half of a file
    for other in ("[]", "{}", "no json", '{"srt_hf_evaluation": 99}', '{"srt_hf_evaluation": 1, "metrics": [], "more": 1}'):
        path.write_text(other)
        with pytest.raises(DataError, match="holds no results of evaluate"):
            Results.load(path)


def test_two_runs_side_by_side() -> None:
    later = results(1.5, name="tuned-2")
    table = compare(results(), later)
    assert "vicuna  winning score  1.25 (1.1 to 1.4)  1.5 (1.1 to 1.4)  +0.25" in table and "later: tuned-2" in table
    assert "–" in compare(results(None), later)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (results(benchmark="human"), "of human, these of pairwise"),
        (results(judge="k"), r"differ in judge\.name \(k there, j here\)\."),
    ],
)
def test_what_is_not_comparable_is_refused_by_name(other: Results, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        compare(other, results())


def test_a_set_more_is_another_setup(tmp_path: Path) -> None:
    more = results()
    more.setup["sets"]["koala"] = {"prompts": 180, "digest": "sha256:2"}
    more.save(tmp_path / "earlier.json")
    output = OutputArguments(str(tmp_path / "new" / "results.json"), str(tmp_path / "earlier.json"))
    with pytest.raises(DataError, match=r"sets\.koala\.prompts \(180 there, nothing here\)"):
        output.check("pairwise", results().setup)  # before anything is paid for
    with pytest.raises(ConfigError, match="cannot be written"):
        OutputArguments(str(tmp_path)).check("pairwise", {})


def test_results_may_replace_those_that_they_are_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    results(1.0).save(path)
    output = OutputArguments(str(path), compare=str(path))
    output.check("pairwise", results().setup)
    output.finish(results())
    assert "+0.25" in capsys.readouterr().out and Results.load(path) == results()
    assert output.beside("pairwise", "pairs.jsonl") == tmp_path / "results.pairs.jsonl"
    assert OutputArguments().path("mt-bench") == Path("mt-bench.json")


def test_metadata_as_the_hub_reads_it() -> None:
    index = model_index(results(None))
    assert [one.metric_name for one in index] == ["median words"]  # what could not be had is no number
    [score, _] = model_index(results())
    assert (score.dataset_type, score.metric_value) == ("vicuna", 1.25)
    data = ModelCardData(model_name="tuned", eval_results=model_index(results()))
    card = ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n# x")
    assert len(ModelCard(str(card)).data.eval_results) == 2


PEOPLE = """---
# a comment of mine
license: apache-2.0
model-index:
- name: mine
  results:
  - task: {type: text-generation}
    dataset: {name: GSM8K, type: gsm8k}
    metrics:
    - {type: exact_match, value: 12.5}
# another comment
tags: [ sft,   odd-spacing ]
---

# My model

Text of mine, with | a pipe and --- dashes.
---
The end, without a newline"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_people_wrote_stays_byte_for_byte(end: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    before = PEOPLE.replace("\n", end)
    path.write_bytes(before.encode())
    assert write_card(tmp_path, results()) == path
    text = path.read_bytes().decode()
    for part in (
        "---\n# a comment of mine\nlicense: apache-2.0\n",
        "# another comment\ntags: [ sft,   odd-spacing ]\n---\n\n# My model\n",
    ):
        assert part.replace("\n", end) in text
    assert before.split("# My model")[1] in text and text.count("\n") == text.count(end)
    loaded = {one.metric_type: one.metric_value for one in ModelCard(text).data.eval_results or []}
    assert loaded == {"exact_match": 12.5, "srt_hf_pairwise_winning_score": 1.25, "srt_hf_pairwise_median_words": 40}
    # Again: what this benchmark said before goes, another's stays.
    write_card(tmp_path, results(1.75))
    write_card(tmp_path, results(1.1, benchmark="human"))
    once = path.read_bytes()
    write_card(tmp_path, results(1.1, benchmark="human"))
    assert path.read_bytes() == once
    text = once.decode()
    assert text.count("## Evaluation: pairwise") == 1 and "| vicuna | 1.75 |" in text and "1.25" not in text
    loaded = {one.metric_type: one.metric_value for one in ModelCard(text).data.eval_results or []}
    assert loaded["srt_hf_pairwise_winning_score"] == 1.75 and loaded["srt_hf_human_winning_score"] == 1.1 and len(loaded) == 5
    assert before.split("# My model")[1] in text


@pytest.mark.parametrize("there", [None, "", "# Only text\n", "---\nlicense: mit\n---\n# Text\n", "---\n---\nText"])
def test_cards_without_an_index_or_at_all(there: str | None, tmp_path: Path) -> None:
    if there is not None:
        (tmp_path / "README.md").write_text(there)
    check_card(tmp_path)
    text = write_card(tmp_path, results()).read_text()
    card = ModelCard(text)
    assert len(card.data.eval_results or []) == 2 and "| vicuna | 1.25 |" in card.text
    assert "license: mit" in text or "license" not in (there or "")
    assert "# Only text" in card.text or "Only" not in (there or "")


def test_cards_that_cannot_be_read_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        check_card(tmp_path / "nowhere")
    for broken, complaint in (
        ("---\na: [\n---\n", "is no YAML"),
        ("---\nmodel-index: 3\n---\n", "is no list of models"),
        ("---\nmodel-index:\n- name: x\n---\n", "is no list of models"),
        ("---\njust words\n---\n", "is no list of models"),
        ("---\n{model-index: [], license: mit}\n---\n", "cannot be told from what stands around it"),
        ("---\nmodel-index:\n- name: x\n# mine\n  results: []\n---\n", "cannot be told from what stands around it"),
    ):
        (tmp_path / "README.md").write_text(broken)
        with pytest.raises(DataError, match=complaint):
            check_card(tmp_path)  # before anything is paid for
        with pytest.raises(DataError, match=complaint):
            write_card(tmp_path, results())
        assert (tmp_path / "README.md").read_text() == broken


def test_names_of_strangers_are_words_on_a_card(tmp_path: Path) -> None:
    bad = results()
    bad.lines = [["<script>|x", "[a](javascript:b)"]]
    bad.notes = ["a <!-- b\n# c"]
    bad.model["name"] = "`x` | <img>"
    text = write_card(tmp_path, bad).read_text()
    assert "<script>" not in text and "\n# c" not in text and "\\[a\\](" in text and "`'x' / <img>`" in text
    write_card(tmp_path, bad)
    assert text == (tmp_path / "README.md").read_text()


def test_another_test_set_or_baseline_takes_no_table_away(tmp_path: Path) -> None:
    subjects = ("vicuna against base", "koala against base", "vicuna against <b> --> other")
    for score, subject in zip((1.1, 1.2, 1.3), subjects, strict=True):
        write_card(tmp_path, results(score, subject=subject))
    write_card(tmp_path, results(1.5, subject=subjects[0]))
    text = (tmp_path / "README.md").read_text()
    assert [text.count(f"| vicuna | {score} |") for score in (1.1, 1.2, 1.3, 1.5)] == [0, 1, 1, 1]
    assert "## Evaluation: pairwise, koala against base" in text and "<b>" not in text.split("---", 2)[2]
    for comment in text.split("<!--")[1:]:
        assert comment.partition("-->")[0].strip().startswith(("srt_hf wrote this: pairwise", "End of srt_hf's pairwise"))
    found = {one.metric_name: one.metric_value for one in ModelCard(text).data.eval_results or [] if "score" in one.metric_name}
    assert found == {f"winning score ({subject})": value for subject, value in zip(subjects, (1.5, 1.2, 1.3), strict=True)}


def test_files_of_runs_with_dots_in_their_names_are_several() -> None:
    names = {str(OutputArguments(output=f"llama-3.{n}").beside("pairwise", "pairs.jsonl")) for n in (1, 2)}
    assert names == {"llama-3.1.pairs.jsonl", "llama-3.2.pairs.jsonl"}
    assert str(OutputArguments(output="a/run.json").beside("pairwise", "pairs.jsonl")) == "a/run.pairs.jsonl"
