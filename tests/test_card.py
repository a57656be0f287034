"""The dataset card: its golden file, what the Hub reads of it, several students, and what people wrote on it."""

from __future__ import annotations

from conftest import ROOT

from srt_hf.card import CardData, block, config_names, default_student, inline, render
from srt_hf.handwritten import read
from srt_hf.report import Provenance, Report


def example_card() -> CardData:
    """A card of invented figures, the golden file's."""
    spread = {"n": 2, "mean": 0.8, "p5": 0.5, "p25": 0.7, "p50": 0.81, "p75": 0.9, "p95": 0.97}
    report = Report("selective", "paper", "reflected", rows=5, kept=2)
    report.reasons = {"response_chosen": 1, "both_chosen": 1, "original_preferred": 2, "teacher_failed": 1}
    report.candidates = {"instruction": {"usable": 4, "refused": 1}, "response": {"usable": 3}, "both": {"usable": 2}}
    report.tokens = {"prompt": 4321, "completion": 2345, "replies": 10}
    report.missing = {"candidate_error": 1, "too_long": 1}
    report.teacher = {"name": "org/teacher-70b@0123abcd"}
    report.student = {
        "student": "org/student-7b",
        "revision": "4567cdef",
        "template": "vicuna",
        "max_length": 2048,
        "dtype": "float32",
    }
    report.scores = {name: dict.fromkeys(("original", "original_of_kept", "chosen"), spread) for name in ("ifd", "r_ifd")}
    words = {**spread, "p5": 10.0, "p50": 65.0, "p95": 300.0}
    report.lengths = dict.fromkeys(("original", "original_of_kept", "chosen"), words)
    report.versions = {"python": "3.11.7", "srt_hf": "0.1.0"}
    example = {
        "id": "demo-1",
        "instruction": "Name three rivers in Africa and the seas that they reach.",
        "input": "",
        "output": "The Nile reaches the Mediterranean. ```not a fence```",
        "origin": "both",
        "reason": "both_chosen",
        "ifd": 0.71,
        "r_ifd": 0.52,
        "original_instruction": "Name rivers.",
        "original_input": "<script>alert('|')</script>",
        "original_output": "Nile.",
        "original_ifd": 0.9,
        "original_r_ifd": None,
    }
    command = "python scripts/recycle_and_push.py --dataset org/rows --repo org/srecycled-rows"
    report.provenance = Provenance("org/rows", True, command)
    report.examples = [example]
    report.flags = {"near_duplicate": 1}
    report.plots = [{"name": "scores", "title": "Scores before and after", "words": "Medians: IFD 0.90 to 0.71 (invented)."}]
    report.made = "2026-01-31"
    return CardData("srecycled-rows", "org/srecycled-rows", [report])


def test_the_card_is_the_golden_file() -> None:
    """After a wanted change: python tests/test_card.py writes the file anew."""
    assert render(example_card()) == (ROOT / "cards" / "example_dataset_card.md").read_text(encoding="utf-8")


def test_the_cards_header_is_what_the_hub_reads() -> None:
    from huggingface_hub import DatasetCard

    data = DatasetCard(render(example_card())).data.to_dict()
    assert [config["config_name"] for config in data["configs"]] == ["candidates", "student-7b-scores", "student-7b", "default"]
    assert data["configs"][-1]["data_files"] == [{"split": "train", "path": "student-7b/*.parquet"}]
    assert data["source_datasets"] == ["org/rows"] and "srt-hf" in data["tags"]
    assert "license" not in data and "language" not in data  # nobody told, so nothing is invented
    other = {"config_name": "older-student", "data_files": [{"split": "train", "path": "older-student/*.parquet"}]}
    card = example_card()
    card.header = {"configs": [other, {"config_name": "default", "data_files": "older-student/*.parquet"}]}
    names = [config["config_name"] for config in DatasetCard(render(card)).data.to_dict()["configs"]]
    assert names == ["candidates", "student-7b-scores", "student-7b", "older-student", "default"]
    # The default is the older student's, and the card says so by naming this one's config.
    assert 'load_dataset("org/srecycled-rows", "student-7b", split="train")' in render(card)
    assert "(also `default`)" not in render(card) and "(also `default`)" in render(example_card())
    assert config_names("org/candidates")[1] == "candidates-student" and config_names("/a/b/default/")[1] == "default-student"


def test_a_strangers_text_cannot_leave_its_place() -> None:
    assert inline("a`|b\n# c") == "`a'/b # c`"
    assert block("```\n# heading\n````").startswith("`````text\n")
    assert len(block("x" * 100_000)) < 4_100
    card = example_card()
    card.runs[0].teacher["name"] = "evil`\n# Owned | <b>"
    assert "\n# Owned" not in render(card)


def test_what_people_wrote_stays() -> None:
    first = render(example_card())
    assert read(first) == read(first.replace("\n", "\r\n"))
    assert read(first).own == "" and not read(first).edited
    written = first.replace("<!-- End of yours. -->", "## Checked\n\nBy *three* people.\n\n<!-- End of yours. -->")
    written = written.replace(
        "pretty_name: srecycled-rows", "pretty_name: Rivers\nlicense: cc-by-nc-4.0\nextra_gated_prompt: Ask"
    )
    written = written.replace("- synthetic", "- synthetic\n- rivers")
    found = read(written)
    assert found.own == "## Checked\n\nBy *three* people." and not found.edited
    card = example_card()
    card.header, card.own = found.header, found.own
    again = render(card)
    assert "## Checked\n\nBy *three* people.\n" in again
    kept = {"pretty_name": "Rivers", "license": "cc-by-nc-4.0", "extra_gated_prompt": "Ask"}
    assert kept.items() <= read(again).header.items() and read(again).header["tags"][-1] == "rivers"
    assert "not known to this tool" not in again
    card.header, card.own = read(again).header, read(again).own
    assert render(card) == again and not read(again).edited


def test_names_of_configs() -> None:
    assert config_names("org/Llama-scores") == ("candidates", "Llama-scores-student", "Llama-scores-student-scores")
    assert config_names("学生")[1] == "unnamed" and config_names("reports")[1] == "reports-student"


def test_other_edits_are_noticed() -> None:
    first = render(example_card())
    assert read(first.replace("Name rivers.", "Name any river.")).edited
    assert read("---\nconfigs: x\n---\n# Mine\n") == ({}, "", True)
    assert read("---\ntags: [srt-hf]\n---\n# Mine\n").edited and read("---\n: [\n---\n").edited
    assert read("") == ({}, "", False)


def test_sections_of_their_own_stay_too() -> None:
    first = render(example_card())
    added = first.replace("## Limits", "## Our notes\n\n```\n## no heading\n```\n\nChecked.\n\n## Limits")
    found = read(added)
    assert found.own == "## Our notes\n\n```\n## no heading\n```\n\nChecked." and not found.edited
    card = example_card()
    card.own = found.own
    again = render(card)
    assert read(again) == (found.header, found.own, False) and again.count("## Our notes") == 1


def test_a_stranger_cannot_write_into_the_peoples_part() -> None:
    card = example_card()
    mark = render(card).partition("<!-- Yours")[2].partition("-->")[0]
    card.runs[0].examples[0]["output"] = f"<!-- Yours{mark}-->\nOwned\n<!-- End of yours. -->"
    assert read(render(card)).own == ""
    # Nor where people have deleted the marks.
    bare = render(card).replace(f"<!-- Yours{mark}-->\n<!-- End of yours. -->\n", "", 1)
    assert read(bare).own == "" and "Owned" in bare


def test_a_card_of_two_students() -> None:
    card = example_card()
    second = example_card().runs[0]
    second.student = {**second.student, "student": "org/other-1b"}
    second.mode, second.kept, second.flags = "candidates", 3, {}
    card.runs = [*card.runs, second]
    text = render(card)
    assert text.index("## Selected for `org/student-7b`") < text.index("## Selected for `org/other-1b`")
    assert "recycled for 2 students" in text and "no doubles" in text
    assert 'load_dataset("org/srecycled-rows", split="train")  # the pairs kept for org/student-7b' in text
    assert 'load_dataset("org/srecycled-rows", "other-1b", split="train")  # the pairs kept for org/other-1b' in text
    names = [config["config_name"] for config in read(text).header["configs"]]
    assert names == ["candidates", "student-7b-scores", "student-7b", "other-1b-scores", "other-1b", "default"]
    assert default_student(read(text).header) == "student-7b" and default_student({}) is None


if __name__ == "__main__":
    (ROOT / "cards" / "example_dataset_card.md").write_text(render(example_card()), encoding="utf-8")
