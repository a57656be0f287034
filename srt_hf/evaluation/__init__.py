"""How good a student became: the paper's benchmarks, each a module and a subcommand of scripts/evaluate.py.

    questions = load_sets("vicuna_test_set.jsonl")[0].questions
    tuned, base = ({question.id: Answer(generate(question.text)) for question in questions} for generate in (mine, theirs))
    pairs = judge_pairs(srt_hf.Teacher("http://localhost:8080"), questions, tuned, base)
    summary(pairs)["score"]

Names are imported on first use; the two rules of the judge are at hand at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from srt_hf.agreement import krippendorff_alpha as krippendorff_alpha
from srt_hf.evaluation.verdicts import Verdict as Verdict
from srt_hf.evaluation.verdicts import outcome as outcome
from srt_hf.evaluation.verdicts import parse_verdict as parse_verdict

if TYPE_CHECKING:
    from srt_hf.evaluation.answers import Answer as Answer
    from srt_hf.evaluation.cards import model_index as model_index
    from srt_hf.evaluation.cards import write_card as write_card
    from srt_hf.evaluation.figures import interval as interval
    from srt_hf.evaluation.figures import score as score
    from srt_hf.evaluation.figures import sign_test as sign_test
    from srt_hf.evaluation.figures import summary as summary
    from srt_hf.evaluation.pairwise import judge_pairs as judge_pairs
    from srt_hf.evaluation.results import Metric as Metric
    from srt_hf.evaluation.results import Results as Results
    from srt_hf.evaluation.results import compare as compare
    from srt_hf.evaluation.sets import Question as Question
    from srt_hf.evaluation.sets import load_sets as load_sets

_HOME = {
    "Answer": "answers",
    "Metric": "results",
    "Question": "sets",
    "Results": "results",
    "compare": "results",
    "interval": "figures",
    "judge_pairs": "pairwise",
    "load_sets": "sets",
    "model_index": "cards",
    "score": "figures",
    "sign_test": "figures",
    "summary": "figures",
    "write_card": "cards",
}
__all__ = sorted([*_HOME, "Verdict", "krippendorff_alpha", "outcome", "parse_verdict"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'srt_hf.evaluation' has no attribute {name!r}")
    value = getattr(import_module(f"srt_hf.evaluation.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
