"""Selection: every outcome of both stages, every reason, and the published rule's faults."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from srt_hf import Selector, select
from srt_hf.errors import ConfigError, DataError
from srt_hf.selection import KEEPS, REASONS, RULES

ORIGINS = ("original", "instruction", "response", "both")


def row(**numbers) -> dict:  # type: ignore[no-untyped-def]
    """A row by hand: origin=(ifd, r_ifd), or an error code, in the order of ORIGINS."""
    candidates, scores = [], []
    for origin in ORIGINS:
        if origin not in numbers:
            continue
        value = numbers[origin]
        error = value if isinstance(value, str) else None
        ifd, r_ifd = (None, None) if error else value
        asked = "new" if origin in ("instruction", "both") else "old"
        candidates.append(
            {"origin": origin, "instruction": None if error else asked, "input": "", "output": "text", "error": error}
        )
        scores.append({"ifd": ifd, "r_ifd": r_ifd, "nll_y_given_x": ifd})
    return {"id": "1", "candidates": candidates, "scores": scores}


def decide(selector: Selector, the_row: dict) -> tuple[str, bool, str]:
    decision = selector(the_row)
    assert the_row["candidates"][decision["choice"]]["origin"] == decision["origin"]
    assert decision["reason"] in REASONS
    return decision["origin"], decision["kept"], decision["reason"]


FULL = {"original": (0.5, 0.5), "instruction": (0.6, 0.5), "response": (0.5, 0.4), "both": (0.5, 0.4)}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (FULL, ("both", True, "both_chosen")),
        ({**FULL, "instruction": (0.4, 0.5)}, ("response", True, "response_chosen")),
        ({**FULL, "both": (0.5, 0.6)}, ("instruction", False, "response_not_improved")),
        ({**FULL, "instruction": (0.4, 0.5), "response": (0.5, 0.6)}, ("original", False, "original_preferred")),
        # Ties keep the incumbent, in both stages.
        ({**FULL, "instruction": (0.5, 0.5), "response": (0.5, 0.5)}, ("original", False, "original_preferred")),
        # The test below one, of both numbers, at its edge.
        ({**FULL, "both": (1.0, 0.4)}, ("both", False, "ifd_not_under_one")),
        ({**FULL, "instruction": (0.6, 1.5), "both": (0.5, 1.0)}, ("both", False, "r_ifd_not_under_one")),
        # A challenger that is absent, errored or without the number loses.
        ({"original": (0.5, 0.5)}, ("original", False, "not_asked")),
        ({**FULL, "instruction": "unparsable", "both": "not_attempted"}, ("response", True, "response_chosen")),
        ({**FULL, "instruction": (None, 0.5)}, ("response", True, "response_chosen")),
        ({"original": (0.5, 0.5), **dict.fromkeys(ORIGINS[1:], "refused")}, ("original", False, "teacher_failed")),
        # An incumbent without the number loses to a scored challenger; if neither has it, it stays.
        ({**FULL, "original": (None, None)}, ("both", True, "both_chosen")),
        ({**FULL, "instruction": (0.6, None)}, ("both", True, "both_chosen")),
        (
            {**FULL, "original": (None, None), "instruction": (None, None), "response": (None, None)},
            ("original", False, "not_scored"),
        ),
        # The new instruction won, but nothing came of its response.
        ({**FULL, "both": "truncated"}, ("instruction", False, "teacher_failed")),
        ({**FULL, "both": (0.5, None)}, ("instruction", False, "not_scored")),
        ({**FULL, "both": (None, 0.4)}, ("both", False, "not_scored")),
    ],
)
def test_the_paper_rule(numbers: dict, expected: tuple) -> None:
    assert decide(select, row(**numbers)) == expected


def test_keep_under_one_takes_any_origin() -> None:
    selector = Selector(keep="under_one")
    assert decide(selector, row(original=(0.5, 0.5))) == ("original", True, "original_chosen")
    assert decide(selector, row(**{**FULL, "both": (0.5, 0.6)})) == ("instruction", True, "instruction_chosen")
    assert decide(selector, row(original=(1.5, 0.5))) == ("original", False, "ifd_not_under_one")


def test_keep_all_takes_every_pair_with_text() -> None:
    selector = Selector(keep="all")
    assert decide(selector, row(original=(1.5, None))) == ("original", True, "original_chosen")
    empty = row(original=(0.5, 0.5))
    empty["candidates"][0]["output"] = " "
    for keep in KEEPS:
        assert decide(Selector(keep=keep), empty) == ("original", False, "empty_pair")


def test_the_ablations_are_the_same_call() -> None:
    numbers = {"original": (0.5, 0.5), "instruction": (0.6, 0.7), "response": (0.7, 0.4), "both": (0.4, 0.9)}
    chosen = {
        "paper": "instruction",
        "ifd": "instruction",
        "r_ifd": "response",
        "perplexity": "original",
        "all": "both",
    }
    for rule, origin in chosen.items():
        assert decide(Selector(rule=rule, keep="all"), row(**numbers))[0] == origin
    assert decide(Selector(stages=("instruction",), keep="all"), row(**FULL))[0] == "instruction"
    assert decide(Selector(stages=("response",), keep="all"), row(**FULL))[0] == "response"
    assert set(chosen) | {"random"} == set(RULES)


def test_random_draws_by_seed_and_id() -> None:
    rows = [{**row(**FULL), "id": str(n)} for n in range(200)]
    draws = [[decide(Selector(rule="random", seed=seed, keep="all"), each)[0] for each in rows] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert all(30 < draws[0].count(origin) < 70 for origin in ORIGINS)


def test_best_of_several_draws() -> None:
    several = row(**FULL)
    for n, asked in enumerate(("newer", "newest")):
        several["candidates"] += [
            {"origin": "instruction", "instruction": asked, "input": "", "output": "text", "error": None},
            {"origin": "both", "instruction": asked, "input": "", "output": "text", "error": None},
        ]
        several["scores"] += [{"ifd": 0.7 + n / 10, "r_ifd": 0.9}, {"ifd": 0.5, "r_ifd": 0.8}]
    choice = select(several)["choice"]
    assert several["candidates"][choice] == {**several["candidates"][-1]}  # the answer to the winner, not the lowest r-IFD


def test_human_candidates_are_never_chosen_by_a_rule() -> None:
    reviewed = row(**FULL)
    reviewed["candidates"].append({"origin": "human", "instruction": "new", "input": "", "output": "better", "error": None})
    reviewed["scores"].append({"ifd": 0.99, "r_ifd": 0.01})
    for rule in RULES:
        assert decide(Selector(rule=rule, keep="all"), reviewed)[0] != "human"


def test_every_combination_has_a_decision() -> None:
    values = [(0.5, 0.5), (1.5, 0.2), (None, 0.5), (0.7, None), (math.nan, math.inf), "unparsable"]
    for first, *rest in itertools.product(values[:-1], values, values, values):
        the_row = row(**dict(zip(ORIGINS, (first, *rest), strict=True)))
        for rule, keep in itertools.product(RULES, KEEPS):
            origin, _kept, reason = decide(Selector(rule=rule, keep=keep), the_row)
            if _kept and keep != "all":
                score = the_row["scores"][ORIGINS.index(origin)]
                assert score["ifd"] < 1 and score["r_ifd"] < 1 and reason.endswith("_chosen")


def test_fault_01_a_failed_score_wins_nothing() -> None:
    """The published code scores a failure 0, which passes `< 1` and wins every argmin."""
    failed = row(**{**FULL, "instruction": (0.4, 0.5), "response": (None, None)})
    assert decide(select, failed) == ("original", False, "not_scored")


def test_fault_12_nan_is_no_measurement() -> None:
    """In the published comparisons a NaN silently counts as "not improved"; here it loses, and as an incumbent it gives way."""
    assert decide(select, row(**{**FULL, "original": (math.nan, 0.5), "instruction": (0.1, 0.5)}))[0] == "both"
    assert decide(select, row(**{**FULL, "instruction": (math.nan, 0.5)}))[0] == "response"
    assert decide(select, row(**{**FULL, "both": (math.nan, 0.4)})) == ("both", False, "not_scored")


def test_the_published_rule_on_the_published_scores(shared: Path) -> None:
    """Every winner and every kept row of the published rule, from the published scores."""
    for line in (shared / "oracle" / "reference_scores.jsonl").read_text().splitlines():
        reference = json.loads(line)
        candidates = [{"origin": origin, **pair, "error": None} for origin, pair in reference["candidates"].items()]
        origin, kept, _ = decide(select, {"id": str(reference["row"]), "candidates": candidates, "scores": candidates})
        assert (origin, kept) == (reference["winner"], reference["published_keeps"])


def test_wrong_arguments_and_rows() -> None:
    with pytest.raises(ConfigError, match=r"no rule 'best'.*paper"):
        Selector(rule="best")
    with pytest.raises(ConfigError, match=r"no keep 'some'.*under_one"):
        Selector(keep="some")
    with pytest.raises(ConfigError, match="stages"):
        Selector(stages=("review",))
    with pytest.raises(DataError, match="no column scores"):
        select({"candidates": []})
    with pytest.raises(DataError, match="2 candidates but 1 scores"):
        select({"candidates": [{}, {}], "scores": [{}]})
    with pytest.raises(DataError, match="origin `original`"):
        select({"candidates": [], "scores": []})
    with pytest.raises(DataError, match="Map it without batched=True"):
        select({name: [values] for name, values in row(**FULL).items()})


@pytest.mark.parametrize(
    ("numbers", "stage", "expected"),
    [
        (FULL, "instruction", 0.1),  # ifd of the two instructions
        (FULL, "all", 0.1),  # and r_ifd of the pair and its response
        ({**FULL, "both": (0.5, 0.47)}, "all", 0.03),
        ({**FULL, "both": (0.98, 0.4)}, "all", 0.02),  # the choice's ifd from 1
        ({**FULL, "both": (0.98, 0.9)}, "all", 0.1),  # not chosen, and what wins is not tested
        ({**FULL, "both": (None, 0.4)}, "all", 0.0),  # the last test lacks a number
        ({**FULL, "instruction": (None, 0.5)}, "instruction", 0.0),
        ({**FULL, "instruction": "refused"}, "instruction", math.inf),  # nothing to compare
        ({"original": (0.5, 0.5)}, "all", math.inf),
    ],
)
def test_the_margin_is_how_close_a_call_it_was(numbers: dict, stage: str, expected: float) -> None:
    assert select.margin(row(**numbers), stage) == pytest.approx(expected)


def test_the_margin_follows_the_selector() -> None:
    edge = {**FULL, "instruction": (0.4, 0.5), "response": (0.99, 0.4)}
    assert select.margin(row(**edge)) == pytest.approx(0.01)
    assert Selector(keep="all").margin(row(**edge)) == pytest.approx(0.1)
    assert Selector(rule="random", keep="all").margin(row(**edge)) == math.inf
    assert Selector(rule="perplexity", keep="all").margin(row(**edge)) == pytest.approx(0.1)
    assert Selector(stages=("response",), keep="all").margin(row(**{**FULL, "instruction": (0.51, 0.5)})) == pytest.approx(0.1)
