"""The arms of the paper's ablations: which rows each has and which it leaves out, the ladder, the folder, the Hub."""

from __future__ import annotations

import json
import runpy
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from datasets import Dataset, disable_caching, enable_caching, load_dataset
from hub_server import UPLOAD_WARNING, LocalHub
from huggingface_hub import HfApi
from test_pipeline import ROWS
from tgi_server import LocalTGI
from tiny_models import _llama_tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from srt_hf import Selector, Student, Teacher, load_candidates, recycle, reselect
from srt_hf.ablation import ARMS, LADDER, Every, ablate, choose_arms
from srt_hf.ablation.coherence import Coherence, by_coherence
from srt_hf.ablation.result import check_repo
from srt_hf.errors import ConfigError, DataError, HubError
from srt_hf.handwritten import read
from srt_hf.schema import (
    CANDIDATE,
    CANDIDATES_COLUMNS,
    FLAT_COLUMNS,
    SCORE,
    SCORED_BY,
    SCORED_COLUMNS,
    SCORES_COLUMNS,
    features,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*originals have ifd > 1:UserWarning"),  # random students know no template
    pytest.mark.filterwarnings(UPLOAD_WARNING),
]
ORIGINS = ("original", "instruction", "response", "both")
WITHOUT_COHERENCE = [name for name in ARMS if name != "coherence"]
BY = {**dict.fromkeys(field.name for field in SCORED_BY), "student": "org/student", "template": "vicuna"}


def row(id: str, **given: Any) -> dict[str, Any]:
    """A row by hand. given: origin -> (ifd, r_ifd) or an error code. The loss that `perplexity` compares is the ifd."""
    candidates, scores = [], []
    for origin, value in given.items():
        error = value if isinstance(value, str) else None
        asked = "new" if origin in ("instruction", "both") else "old"
        text = {"instruction": f"{asked} {id}", "input": "", "output": f"{origin} answer {id}"}
        known = {"error": error} if error else {**text, "sample": 0}
        candidates.append({**dict.fromkeys(field.name for field in CANDIDATE), **known, "origin": origin})
        ifd, r_ifd = (None, None) if error else value
        numbers = {"ifd": ifd, "r_ifd": r_ifd, "nll_y_given_x": ifd, "missing": "candidate_error" if error else None}
        scores.append({**dict.fromkeys(field.name for field in SCORE), **numbers})
    original = {name: candidates[0][name] for name in ("instruction", "input", "output")}
    return {"id": id, **original, "candidates": candidates, "scores": scores, "scored_by": BY}


def table(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list(rows, features=features((*CANDIDATES_COLUMNS, *SCORED_COLUMNS)))


GOOD = {"original": (0.5, 0.5), "instruction": (0.6, 0.5), "response": (0.5, 0.4), "both": (0.5, 0.4)}
FAILED = {"instruction": "unparsable", "both": "not_attempted"}


def by_hand() -> list[dict[str, Any]]:
    rows = [
        row("all good", **GOOD),
        row("worse instruction", **{**GOOD, "instruction": (0.4, 0.5)}),
        row("no instruction", **{**GOOD, **FAILED}),
        row("no response", **{**GOOD, "instruction": (0.4, 0.5), "response": "refused"}),
        row("ties", **{**GOOD, "instruction": (0.5, 0.5), "response": (0.5, 0.5)}),
        row("an ifd of one", **{**GOOD, "both": (1.0, 0.4)}),
        row("empty original", **{**GOOD, "original": (None, None)}),
        row("no score", **{**GOOD, "both": (None, None)}),
        row("higher r_ifd", **{**GOOD, "both": (0.7, 0.9)}),
    ]
    rows[6]["candidates"][0]["output"] = " "
    return rows


IDS = [one["id"] for one in by_hand()]
# arm -> id -> origin, and why the other rows are not there.
EXPECTED: dict[str, tuple[dict[str, str], dict[str, int]]] = {
    "full": (
        {"all good": "both", "worse instruction": "response", "no instruction": "response", "empty original": "both"},
        {"ifd_not_under_one": 1, "not_scored": 1, "original_preferred": 1, "response_not_improved": 1, "teacher_failed": 1},
    ),
    "original": ({id: "original" for id in IDS if id != "empty original"}, {"empty_pair": 1}),
    "instruction": ({id: "instruction" for id in IDS if id != "no instruction"}, {"teacher_failed": 1}),
    "response": ({id: "response" for id in IDS if id != "no response"}, {"teacher_failed": 1}),
    "both": ({id: "both" for id in IDS if id != "no instruction"}, {"teacher_failed": 1}),
    "perplexity": ({"empty original": "both"}, {"original_preferred": 6, "response_not_improved": 2}),
    "ifd": (
        {"higher r_ifd": "both"},
        {"original_preferred": 3, "response_not_improved": 2, "ifd_not_under_one": 1, "not_scored": 1, "teacher_failed": 1},
    ),
    "r_ifd": (
        {**{id: "response" for id in IDS if id not in ("no response", "ties", "empty original")}, "empty original": "both"},
        {"original_preferred": 1, "teacher_failed": 1},
    ),
}


@pytest.fixture(scope="module")
def hand_made() -> Any:
    return ablate(table(by_hand()), arms=WITHOUT_COHERENCE)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_arm_has_its_rows_and_says_why_not_the_others(hand_made: Any, name: str) -> None:
    [arm] = [arm for arm in hand_made.arms if arm.name == name]
    origins, left_out = EXPECTED[name]
    assert dict(zip(arm.rows["id"], arm.rows["origin"], strict=True)) == origins
    assert arm.left_out == left_out and len(arm.rows) + sum(left_out.values()) == len(IDS)
    assert arm.rows.column_names == list(FLAT_COLUMNS) and arm.rows.features == features(FLAT_COLUMNS)
    for one in arm.rows:
        asked = "new" if one["origin"] in ("instruction", "both") else "old"
        assert one["instruction"] == f"{asked} {one['id']}" and one["output"] == f"{one['origin']} answer {one['id']}"


def test_an_arm_without_selection_looks_at_no_score(hand_made: Any) -> None:
    [both] = [arm for arm in hand_made.arms if arm.name == "both"]
    scores = dict(zip(both.rows["id"], both.rows["ifd"], strict=True))
    assert scores["an ifd of one"] == 1.0 and scores["no score"] is None


def test_of_several_draws_the_first_that_did_not_fail() -> None:
    several = row("1", original=(0.5, 0.5), instruction="truncated")
    for text in ("second", "third"):
        several["candidates"].append({"origin": "instruction", "instruction": text, "output": text, "error": None})
    assert Every("instruction")(several) == {
        "choice": 2,
        "origin": "instruction",
        "kept": True,
        "reason": "instruction_chosen",
    }


def test_random_follows_the_seed() -> None:
    rows = [row(str(n), **GOOD) for n in range(60)]
    found = []
    for seed in (0, 0, 1):
        [arm] = ablate(table(rows), arms=["random"], seed=seed).arms
        drawn = [Selector(rule="random", seed=seed)(one) for one in rows]
        assert arm.rows["origin"][:] == [one["origin"] for one in drawn if one["kept"]]
        found.append((arm.rows["id"][:], arm.rows["origin"][:]))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("similarities", "expected"),
    [
        ((0.1, 0.2, 0.3, 0.4), ("both", True, "both_chosen")),
        ((0.3, 0.2, 0.4, 0.9), ("response", True, "response_chosen")),
        ((0.1, 0.5, 0.3, 0.4), ("instruction", False, "response_not_improved")),
        ((0.2, 0.2, 0.2, 0.9), ("original", False, "original_preferred")),  # ties
        ((-0.5, -0.4, 0.3, -0.3), ("both", True, "both_chosen")),
        ((None, 0.2, 0.3, 0.4), ("both", True, "both_chosen")),
        ((0.1, 0.2, 0.3, None), ("instruction", False, "not_scored")),
    ],
)
def test_the_highest_coherence_wins_both_stages(similarities: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    found = by_coherence({**row("1", **GOOD), "coherence": list(similarities)})
    assert (found["origin"], found["kept"], found["reason"]) == expected


def test_after_coherence_the_students_own_scores_are_tested() -> None:
    similar = {"coherence": [0.1, 0.2, 0.3, 0.4]}
    assert by_coherence({**row("1", **{**GOOD, "both": (1.2, 0.4)}), **similar})["reason"] == "ifd_not_under_one"
    assert by_coherence({**row("1", **{**GOOD, "both": (0.5, None)}), **similar})["reason"] == "not_scored"


def test_the_ladder_is_the_top_of_full_by_ifd() -> None:
    rows = [row(f"{n:03}", **{**GOOD, "both": (0.1 + n / 300, 0.4)}) for n in range(250)]
    rungs = ablate(table(rows), arms=[name for name in ARMS if name.startswith("top-")])
    sizes = {arm.name: len(arm.rows) for arm in rungs.arms}
    # 1 % is 2.5 rows and 3 % are 7.5: rounded to the even one, as the paper's 2 % of 46,325 are 926.
    assert sizes == dict(zip([f"top-{n}" for n in LADDER], (2, 5, 8, 12, 25, 75, 125, 175, 250), strict=True))
    for arm in rungs.arms:
        assert arm.rows["id"][:] == [f"{n:03}" for n in range(250 - len(arm.rows), 250)]
        assert rungs.report["arms"][arm.name]["in_full"] == 1.0


def test_the_table(hand_made: Any) -> None:
    figures = hand_made.report["arms"]
    assert figures["instruction"]["words_in"] == {"median": 3.0, "mean": 3.125}
    assert figures["full"]["in_full"] == 1.0 and figures["ifd"]["in_full"] == 0.0
    assert figures["r_ifd"]["in_full"] == pytest.approx(3 / 7)  # the same id with another pair is another row
    assert figures["r_ifd"]["ifd"] == 0.5 and figures["both"]["rows"] == 8
    lines = {line.split()[0]: line for line in hand_made.table().splitlines()}
    assert list(lines) == ["arm", *WITHOUT_COHERENCE]
    assert "42.9 %" in lines["r_ifd"] and lines["original"].endswith("1 empty_pair")


def test_the_folder_loads_config_by_config(hand_made: Any, tmp_path: Path) -> None:
    hand_made.save_to_disk(tmp_path / "arms")
    for arm in hand_made.kept:
        assert load_dataset(str(tmp_path / "arms"), arm.name, split="train").to_list() == arm.rows.to_list()
    card = (tmp_path / "arms" / "README.md").read_text()
    header = card.split("---\n")[1]
    configs = [line.split()[-1] for line in header.splitlines() if "config_name" in line]
    assert configs == [*(arm.name for arm in hand_made.kept), "student-scores"]
    assert "| `r_ifd` | 7 |" in card and "`org/student`" in card and str(tmp_path) not in card
    report = json.loads((tmp_path / "arms" / "reports" / "student" / "report.json").read_text())
    assert report["arms"]["both"]["left_out"] == {"teacher_failed": 1} and report["student"]["passes"] == 0
    hand_made.save_to_disk(tmp_path / "arms")  # the same again


def test_the_scores_that_an_ablation_leaves_serve_further_arms(hand_made: Any, hub: LocalHub, tmp_path: Path) -> None:
    rows = table(by_hand())
    reselect(rows).save_to_disk(tmp_path / "made")
    hand_made.save_to_disk(tmp_path / "arms")
    hand_made.push_to_hub("tester/arms")
    for source in (str(tmp_path / "arms"), "tester/arms"):
        scores = load_dataset(source, "student-scores", split="train")
        assert scores.column_names == list(SCORES_COLUMNS) and scores.to_list() == reselect(rows).scores.to_list()
        loaded = load_candidates(str(tmp_path / "made"), scores=source, student="org/student")
        assert loaded.to_list() == rows.to_list()
        [arm] = ablate(loaded, arms=["r_ifd"]).arms
        assert arm.rows.to_list() == next(one for one in hand_made.arms if one.name == "r_ifd").rows.to_list()


def test_the_same_input_gives_the_same_bytes(hand_made: Any, tmp_path: Path) -> None:
    disable_caching()
    try:
        again = ablate(table(by_hand()), arms=WITHOUT_COHERENCE)
    finally:
        enable_caching()
    tables = []
    for name, ablation in (("one", hand_made), ("two", again)):
        ablation.save_to_disk(tmp_path / name)
        files = sorted((tmp_path / name).glob("*/*.parquet"))
        tables.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert tables[0] == tables[1] and len(tables[0]) == len(hand_made.kept) + 1


def test_an_empty_arm_is_a_line_and_no_config(tmp_path: Path) -> None:
    rows = [row(str(n), **{**GOOD, "instruction": "refused", "both": "not_attempted"}) for n in range(3)]
    ablation = ablate(table(rows), arms=["full", "both", "top-1"])
    assert {arm.name: len(arm.rows) for arm in ablation.arms} == {"full": 3, "both": 0, "top-1": 1}
    ablation.save_to_disk(tmp_path / "arms")
    card = (tmp_path / "arms" / "README.md").read_text()
    assert "| `both` | 0 | – | – | – | – | – | – | – | 3 teacher_failed |" in card and "config_name: both" not in card
    assert not (tmp_path / "arms" / "both").exists()
    ablate(table(rows), arms=["both"]).save_to_disk(tmp_path / "none")
    assert "load_dataset(" not in (tmp_path / "none" / "README.md").read_text()
    with pytest.raises(HubError, match="No arm has a row"):
        ablate(table(rows), arms=["both"]).push_to_hub("tester/arms")


def test_an_earlier_result_is_moved_aside_and_a_strange_folder_left_alone(hand_made: Any, tmp_path: Path) -> None:
    hand_made.save_to_disk(tmp_path / "arms")
    with pytest.warns(UserWarning, match=r"arms is now in .*arms\.1"):
        ablate(table(by_hand()), arms=["original"]).save_to_disk(tmp_path / "arms")
    assert len(load_dataset(str(tmp_path / "arms.1"), "both", split="train")) == 8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not a result of this tool"):
        hand_made.save_to_disk(tmp_path / "mine")


# The Hub


def test_one_commit_puts_all_arms_on_the_hub(hub: LocalHub, hand_made: Any) -> None:
    assert hand_made.push_to_hub("tester/arms").startswith(hub.url)
    repo = hub.repos["dataset", "tester/arms"]
    assert len(repo.commits) == 2 and "refs/tags/student-ablation-" in str(list(repo.refs))  # the first is the repo's own
    for arm in hand_made.kept:
        assert load_dataset("tester/arms", arm.name, split="train").to_list() == arm.rows.to_list()
    assert "dataset tester/arms --dataset_config full" in repo.files()["README.md"].decode()


def test_a_push_removes_no_other_arm_unless_told_to(hub: LocalHub, hand_made: Any) -> None:
    few = ablate(table(by_hand()), arms=["both", "full", "original"])
    few.push_to_hub("tester/arms")
    with pytest.raises(HubError, match=r"tester/arms also has original, both, which this push would remove\. .*--arms too"):
        ablate(table(by_hand()), arms=["full", "ifd"]).push_to_hub("tester/arms")
    assert len(hub.repos["dataset", "tester/arms"].commits) == 2
    few.push_to_hub("tester/arms")  # the same again
    hand_made.push_to_hub("tester/arms")  # these and more
    assert b"config_name: both" in hub.repos["dataset", "tester/arms"].files()["README.md"]


def test_what_people_wrote_on_the_card_stays(hub: LocalHub, hand_made: Any) -> None:
    def edited(old: str, new: str) -> str:
        card = hub.repos["dataset", "tester/arms"].files()["README.md"].decode()
        assert card.count(old) == 1
        changed = card.replace(old, new).encode()
        HfApi().upload_file(path_or_fileobj=changed, path_in_repo="README.md", repo_id="tester/arms", repo_type="dataset")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            hand_made.push_to_hub("tester/arms")
        return "".join(str(warning.message) for warning in said if "was edited" in str(warning.message))

    hand_made.push_to_hub("tester/arms")
    assert not edited("<!-- End of yours. -->", "Ours, for the thesis.\n<!-- End of yours. -->")
    assert not edited("## Citation\n", "## Who to ask\n\nAnna.\n\n## Citation\n")
    assert "The card of tester/arms was edited" in edited("## Columns\n", "## Columns\n\nMind the flags.\n")
    card = hub.repos["dataset", "tester/arms"].files()["README.md"].decode()
    earlier = read(card)
    assert earlier.own == "Ours, for the thesis.\n\n## Who to ask\n\nAnna." and not earlier.edited
    assert "Mind the flags" not in card and card.count("## Citation") == 1


def test_the_next_push_replaces_the_arms_and_keeps_the_licence(hub: LocalHub, hand_made: Any) -> None:
    hand_made.push_to_hub("tester/arms")
    card = (
        hub.repos["dataset", "tester/arms"].files()["README.md"].replace(b"pretty_name: arms", b"pretty_name: Arms\nlicense: mit")
    )
    HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="tester/arms", repo_type="dataset")
    ablate(table(by_hand()), arms=["full", "original"]).push_to_hub("tester/arms", overwrite=True)
    files = hub.repos["dataset", "tester/arms"].files()
    assert {name.partition("/")[0] for name in files if name.endswith(".parquet")} == {"full", "original", "student-scores"}
    card = files["README.md"]
    assert b"license: mit" in card and b"pretty_name: Arms" in card and b"top-50" not in card


def test_a_repo_that_holds_something_else_is_left_alone(hub: LocalHub, hand_made: Any) -> None:
    reselect(table(by_hand())).push_to_hub("tester/recycled")
    with pytest.raises(HubError, match=r"holds a recycled dataset, which the arms would replace.*--overwrite"):
        hand_made.push_to_hub("tester/recycled")
    hand_made.push_to_hub("tester/arms")
    with pytest.raises(HubError, match=r"tester/arms holds the arms of student\."):
        check_repo("tester/arms", "org/another", WITHOUT_COHERENCE)
    hand_made.push_to_hub("tester/recycled", overwrite=True)
    assert "candidates" not in {name.partition("/")[0] for name in hub.repos["dataset", "tester/recycled"].files()}


# What cannot be done


def test_wrong_arms() -> None:
    with pytest.raises(ConfigError, match=r"no arm 'best'\. Choose from full, original"):
        ablate(table(by_hand()), arms=["full", "best"])
    with pytest.raises(ConfigError, match=r"No arm is named\."):
        ablate(table(by_hand()), arms=[])
    assert choose_arms(["top-2", "full"]) == ["full", "top-2"]


def test_what_are_no_candidates() -> None:
    with pytest.raises(DataError, match=r"no column candidates\. Load it with srt_hf\.load_candidates"):
        ablate(Dataset.from_list([{"instruction": "a", "output": "b"}]), arms=["full"])
    with pytest.raises(DataError, match="The dataset of candidates is empty"):
        ablate(table(by_hand()).select([]), arms=["full"])
    with pytest.raises(DataError, match=r"lack the column scores, scored_by.*name a student"):
        ablate(table(by_hand()).remove_columns(list(SCORED_COLUMNS)), arms=["full"])


def selective(response: str, n: int, **numbers: Any) -> dict[str, Any]:
    """What selective mode leaves: one reflected response, of the pair that its student preferred."""
    wanted = {**GOOD, **numbers}
    return row(f"{response} {n}", **{name: wanted[name] for name in ("original", "instruction", response)})


def test_selective_candidates_lack_what_most_arms_choose_from() -> None:
    worse = {"instruction": (0.4, 0.5)}
    rows = [*(selective("both", n) for n in range(3)), *(selective("response", n, **worse) for n in range(2))]
    with pytest.raises(DataError) as error:
        ablate(table(rows), arms=["full", "both", "ifd"])
    said = "Of 5 rows 3 lack `response`, 2 lack `both`, which the arms both, ifd need. Candidates of selective mode have one"
    assert str(error.value).startswith(said)
    found = ablate(table(rows), arms=["full", "original", "instruction", "top-50"])
    assert [len(arm.rows) for arm in found.arms] == [5, 5, 5, 2]
    # A student that prefers other pairs than the one they were made for.
    rows[0] = selective("both", 0, **worse)
    with pytest.raises(DataError, match=r"In 1 of 5 rows the pair that this student prefers has no reflected response"):
        ablate(table(rows), arms=["original", "top-50"])
    assert ablate(table(rows), arms=["original"]).report["arms"]["original"]["in_full"] is None


def test_scores_of_a_proxy_serve_no_ablation() -> None:
    rows = by_hand()
    rows[0]["scored_by"] = {**BY, "student": "org/proxy"}
    with pytest.raises(DataError, match=r"scores are of several students: org/proxy, org/student"):
        ablate(table(rows), arms=["full"])


def test_without_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt_hf.ablation.coherence.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package sentence-transformers\. pip install 'srt_hf\[coherence\]'"):
        ablate(table(by_hand()), arms=["full", "coherence"])
    with pytest.warns(UserWarning, match=r"`coherence` is left out.*srt_hf\[coherence\]"):
        assert choose_arms(None) == WITHOUT_COHERENCE


# Embeddings, by a tiny random model


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not find_spec("sentence_transformers"):
        pytest.skip("sentence-transformers is not installed")
    folder = tmp_path_factory.mktemp("embedder")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_llama_tokenizer(), **special)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return str(folder)


def test_coherence_by_real_embeddings(embedder: str) -> None:
    rows = by_hand()
    rows[0]["candidates"][3] |= {"instruction": "the same", "output": "the same"}
    coherence = Coherence(embedder)
    found = coherence.add_to(table(rows))["coherence"][:]
    assert found[0][3] == pytest.approx(1.0) and all(-1 <= value < 1 for value in found[0][:3])
    assert [value is None for value in found[2]] == [False, True, False, True]  # the teacher failed
    assert found[6][0] is None and found[6][1] is not None  # empty
    alone = coherence({"candidates": [rows[1]["candidates"]]})["coherence"][0].as_py()
    assert alone == pytest.approx(found[1], abs=1e-5)
    ablation = ablate(table(rows), arms=["coherence"], coherence_model=embedder)
    [arm] = ablation.arms
    expected = [by_coherence({**one, "coherence": values}) for one, values in zip(rows, found, strict=True)]
    assert arm.left_out == Counter(one["reason"] for one in expected if not one["kept"])
    assert ablation.report["coherence"]["identity"].startswith("xxh3:")


def test_an_embedding_model_that_is_none(embedder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The embedding model .* cannot be loaded: .* Name another with --coherence_model\."):
        ablate(table(by_hand()), arms=["coherence"], coherence_model=str(tmp_path))


# The command


@pytest.fixture
def here(run_script: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return partial(run_script, "ablate.py")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output folder of a run whose student was org/student."""
    folder = tmp_path_factory.mktemp("made") / "earlier"
    reselect(table(by_hand())).save_to_disk(folder)
    return str(folder)


def test_the_command_with_ready_scores_and_training_on_a_rung(
    here: Callable[..., Any], earlier: str, tmp_path: Path, hub: LocalHub
) -> None:
    out = str(tmp_path / "arms")
    (tmp_path / "arms.yaml").write_text(f"arms: [{', '.join(WITHOUT_COHERENCE)}]\n")
    more = ["--config", str(tmp_path / "arms.yaml"), "--repo", "tester/arms", "--private"]
    code, said, _ = here("--candidates", earlier, "--scores", earlier, "--student", "org/student", "--output_dir", out, *more)
    assert code == 0 and "Pushed: " in said and "1 empty_pair" in said and hub.repos["dataset", "tester/arms"].private
    card = (tmp_path / "arms" / "README.md").read_text()
    assert card == hub.repos["dataset", "tester/arms"].files()["README.md"].decode()
    assert "| candidates | `earlier`, 9 rows |" in card and "--candidates earlier --scores earlier" in card
    train = runpy.run_path(str(ROOT / "scripts" / "train_sft.py"))
    for source in (out, "tester/arms"):
        data = train["DataArguments"](dataset_name=source, dataset_config="top-50")
        rows = train["training_rows"](data, SimpleNamespace(seed=0, eval_strategy="no"))
        assert len(rows.train) == 2 and set(rows.train.column_names) == {"prompt", "completion"}
    # Later, one arm by the scores that this run has left.
    again = ["--candidates", earlier, "--scores", "tester/arms", "--student", "org/student", "--arms", "ifd"]
    code, said, _ = here(*again, "--output_dir", str(tmp_path / "ifd"))
    assert code == 0 and (tmp_path / "ifd" / "ifd").is_dir()
    code, said, complaint = here(*again, "--output_dir", str(tmp_path / "none"), "--repo", "tester/arms")
    assert code == 1 and "tester/arms also has full, original, " in complaint and not list((tmp_path / "none").iterdir())


def test_the_student_scores_once(here: Callable[..., Any], student_folder: str, tmp_path: Path) -> None:
    with LocalTGI() as tgi:
        teacher = Teacher(tgi.url, journal=False)
        recycled = recycle(ROWS, teacher=teacher, student=Student(student_folder, template="vicuna"), mode="exhaustive")
    recycled.save_to_disk(tmp_path / "out")
    options = ["--candidates", str(tmp_path / "out"), "--student", student_folder, "--template", "alpaca", "--limit", "8"]
    arms = ["--arms", ",".join(WITHOUT_COHERENCE), "--output_dir", str(tmp_path / "arms")]
    code, said, progress = here(*options, *arms)
    assert code == 0 and progress.count("Student scores all candidates:   0%") == 1, progress
    assert "No --repo was given" in said
    both = load_dataset(str(tmp_path / "arms"), "both", split="train")
    written = {one["id"]: one["candidates"][3]["output"] for one in recycled.candidates.select(range(8))}
    assert dict(zip(both["id"], both["output"], strict=True)) == written and None not in both["ifd"][:]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], 2, "No candidates are named."),
        (["--candidates", "x.jsonl", "--limit", "0"], 2, "--limit is 0."),
        (["--candidates", "{earlier}", "--arms", "full,best"], 2, "There is no arm 'best'. Choose from full, "),
        (["--candidates", "{earlier}", "--arms", "full", "--proxy", "org/small"], 2, "--proxy decides"),
        (["--candidates", "{earlier}", "--private"], 2, "Name it with --repo."),
        (["--candidates", "/no/such/folder", "--arms", "full"], 1, "There is no file or folder /no/such/folder."),
        (["--candidates", "{earlier}", "--arms", "full", "--scores", "{earlier}", "--student", "other"], 1, "other-scores"),
    ],
)
def test_complaints_are_one_line(
    here: Callable[..., Any], earlier: str, tmp_path: Path, arguments: list[str], code: int, complaint: str
) -> None:
    given = [word.format(earlier=earlier) for word in arguments]
    ended, _, said = here(*given, *(["--output_dir", str(tmp_path / "arms")] if given else []))
    line = [line for line in said.splitlines() if line.startswith("error:")]
    assert ended == code and len(line) == 1 and complaint in line[0], said


def test_where_no_arm_has_a_row_the_command_says_so(here: Callable[..., Any], tmp_path: Path) -> None:
    rows = [row(str(n), **{**GOOD, **FAILED}) for n in range(2)]
    reselect(table(rows)).save_to_disk(tmp_path / "earlier")
    options = ["--candidates", str(tmp_path / "earlier"), "--scores", str(tmp_path / "earlier"), "--student", "org/student"]
    code, said, complaint = here(*options, "--arms", "both", "--output_dir", str(tmp_path / "arms"), "--repo", "tester/arms")
    assert code == 1 and "Hub" in complaint  # nobody listens: told before anything is computed
    code, said, complaint = here(*options, "--arms", "both", "--output_dir", str(tmp_path / "arms"))
    assert code == 3 and "2 teacher_failed" in said and "No arm has a row" in complaint
    assert said.endswith("arms: the scores and the report.\n") and "train_sft" not in said
    assert (tmp_path / "arms" / "student-scores").is_dir()
