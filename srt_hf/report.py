"""The figures of a run: counts, reasons, tokens, scores before and after, times, versions. Everything the card says is here."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from srt_hf.errors import DataError
from srt_hf.schema import BOTH, FLAGS, INSTRUCTION, ORIGINAL, RESPONSE, of_origin

_PACKAGES = ("srt_hf", "datasets", "huggingface_hub", "transformers", "torch")
_QUANTILES = (5, 25, 50, 75, 95)
NOT_ONE_TURN = "not one question and one answer"  # what is left out of a source of chats (`Report.left_out`)


class Prices(NamedTuple):
    """What a million tokens cost, in any currency: `prompt` tokens in, `completion` tokens out."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(frozen=True)
class Provenance:
    """What only the person who made a dataset can say of it; None is unknown and stays unknown.

    source: a Hub id (`source_is_hub`) or any other name of the rows' origin; revision: of the Hub's, a commit. command: what was
    typed to make the dataset. license, language: as the Hub's card headers have them. candidates, scores: where those came from
    that existed already.
    """

    source: str = "a dataset"
    source_is_hub: bool = False
    command: str | None = None
    license: str | list[str] | None = None
    language: str | list[str] | None = None
    revision: str | None = None
    candidates: str | None = None
    scores: str | None = None


@dataclass
class Report:
    """One run in numbers. Every field is JSON; a number that was not measured is None, never 0.

    left_out: what rows of the source are -> how many of them were not taken in.
    candidates: origin -> error code or "usable" -> rows. reasons: reason -> rows. missing: why scores are missing -> candidates.
    scores: "ifd" and "r_ifd" -> "original" (all rows), "original_of_kept", "chosen" (kept rows) -> mean and percentiles.
    lengths: the same three -> mean and percentiles of the output's length in words.
    shortened: reflections whose teacher saw the original answer without its middle, for want of room.
    tokens: prompt, completion (what the teacher reported, all tries; None where it reported nothing) and replies
        (reflections that were answered). cost: of these tokens, None where no price is known.
    proxy: of a run with one, who it is, the rows it decided, the passes that saved the student, and of a sample that the student
        scored too, the decisions it changed. rounding: of a run in 16 bits, how far it is from float32 on a sample
        (scoring.check_rounding). seconds: stage -> wall time.
        In the result of several shards (srt_hf.shards), counts and seconds are of all of them together.
    shard: of one shard's run, which it is and of what (shards.Shard); {} for a whole run.
    flags: what the texts of kept rows show (schema.FLAGS) -> rows. review: what people made of it (review.decisions.Tally),
        empty where nobody was asked. provenance, examples (flat rows), plots (name, title
        and words of each), made (a date): what a card needs besides, filled in when the result is saved.
    """

    mode: str
    rule: str
    keep: str
    rows: int = 0
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    candidates: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, float] | None]] = field(default_factory=dict)
    lengths: dict[str, dict[str, float] | None] = field(default_factory=dict)
    shortened: int = 0
    tokens: dict[str, int | None] = field(default_factory=dict)
    cost: float | None = None
    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    proxy: dict[str, Any] = field(default_factory=dict)
    rounding: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    shard: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    review: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    examples: list[dict[str, Any]] = field(default_factory=list)
    plots: list[dict[str, str]] = field(default_factory=list)
    made: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def exhaustive(self) -> bool:
        """Whether every row has all three reflections, or why one failed, so that any student can select from them."""
        return all(sum(self.candidates.get(origin, {}).values()) >= self.rows for origin in (INSTRUCTION, RESPONSE, BOTH))

    def share(self, count: int, of: int | None = None) -> str:
        """So many of the rows, or of another number, in percent."""
        total = self.rows if of is None else of
        return f"{100 * count / total:.1f} %" if total else "–"

    @property
    def nothing_replayed(self) -> bool:
        """Whether the teacher was a replay in which no row was found: its ids are not the dataset's."""
        asked = [code for codes in self.candidates.values() for code in codes]
        return self.teacher.get("name", "").startswith("replay:") and set(asked) == {"not_attempted"}

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what `save` wrote. Raises DataError where it is something else. Fields that a later version may have
        are passed by."""
        try:
            known = _known(cls, json.loads(Path(path).read_text(encoding="utf-8")))
            return cls(**{**known, "provenance": Provenance(**_known(Provenance, known.get("provenance", {})))})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{Path(path).name} is no report of this tool: {error}.") from error

    def table(self) -> str:
        """The report as the one table that a command prints at its end."""
        return render_table(["", ""], self.lines())

    def medians(self) -> dict[str, str]:
        """Medians of the kept rows before and after, as text: of "ifd", "r_ifd" and "output words"."""
        groups = {name: (self.scores.get(name, {}), "{:.3f}") for name in ("ifd", "r_ifd")}
        groups["output words"] = (self.lengths, "{:.0f}")
        return {name: _change(of.get("original_of_kept"), of.get("chosen"), form) for name, (of, form) in groups.items()}

    def lines(self) -> list[list[str]]:
        """The report as labels and values, both text."""
        lines = [["rows", f"{self.rows:,}"], ["kept", f"{self.kept:,} ({self.share(self.kept)})"]]
        lines += [[f"  {reason}", f"{count:,}"] for reason, count in self.reasons.items()]
        lines += [[f"left out: {what}", f"{count:,}"] for what, count in self.left_out.items()]
        for origin, outcomes in self.candidates.items():
            lines.append([f"candidates: {origin}", ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())])
        if self.missing:
            lines.append(["scores missing", ", ".join(f"{count:,} {code}" for code, count in self.missing.items())])
        lines += [[f"{name}, median of kept", change] for name, change in self.medians().items()]
        lines += [[f"kept, flagged {name}", f"{count:,}"] for name, count in self.flags.items()]
        replies, tokens = self.tokens.get("replies") or 0, [self.tokens.get(name) for name in ("prompt", "completion")]
        lines.append(["reflections answered", f"{replies:,}"])
        spent = "{:,} in, {:,} out".format(*tokens) if None not in tokens else "not reported"
        lines.append(["teacher tokens", spent])
        if self.cost is not None:
            lines.append(["cost of these tokens", f"{self.cost:,.2f}"])
        if self.shortened:
            lines.append(["answers shown without their middle", f"{self.shortened:,}"])
        counts = ("requests", "asked_again", "retries", "from_journal")
        if self.teacher.get("name"):
            lines.append(
                ["this process", ", ".join(f"{self.teacher.get(name, 0):,} {name.replace('_', ' ')}" for name in counts)]
            )
        lines.append(["student passes", f"{self.student.get('passes', 0):,}"])
        if self.proxy:
            lines.append(["decided by the proxy", "{rows:,} rows, {passes_saved:,} student passes saved".format(**self.proxy)])
            checked = "{decisions_changed:,} of {sample:,} decisions that the student checked are others".format(**self.proxy)
            lines.append([f"proxy, margin {self.proxy['margin']:g}", checked])
        if self.rounding:
            lines.append([f"{self.rounding['dtype']} against float32", rounding_words(self.rounding)])
        return lines + [[f"seconds: {stage}", f"{seconds:.1f}"] for stage, seconds in self.seconds.items()]


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are fields of a dataclass."""
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def rounding_words(rounding: Mapping[str, Any]) -> str:
    """How far a 16-bit run is from float32, for the report and the card."""
    if rounding["not_measured"] or rounding["nll"] is None:
        return f"not measured: {rounding['not_measured'] or 'no scores'}"
    ifd = "" if rounding["ifd"] is None else f", ifd and r-IFD by at most {_at_most(rounding['ifd'])}"
    return f"on {rounding['pairs']} pairs losses differ by at most {_at_most(rounding['nll'])}{ifd}"


def _at_most(value: float) -> str:
    """One digit, rounded up.

    >>> _at_most(0.0054), _at_most(0.0)
    ('0.006', '0')
    """
    scale = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return f"{math.ceil(value / scale) * scale:.1g}"


def _change(before: dict[str, float] | None, after: dict[str, float] | None, form: str) -> str:
    return " → ".join("–" if group is None else form.format(group["p50"]) for group in (before, after))


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON that a person can read."""
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def render_table(head: list[str], lines: Iterable[list[str]]) -> str:
    """Plain-text table, columns as wide as their longest cell."""
    cells = [head, *lines] if any(head) else list(lines)
    widths = [max(len(line[n]) for line in cells) for n in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def counted(number: int, what: str) -> str:
    """A number of things in words.

    >>> counted(1, "pair"), counted(2000, "pair")
    ('1 pair', '2,000 pairs')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def decimal(value: float | None) -> str:
    """A number in three decimals, a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(5), duration(90), duration(5400)
    ('5 s', '2 min', '1 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def measure(report: Report, rows: Iterable[Mapping[str, Any]], prices: Prices | None = None) -> Report:
    """Fill in what the decided rows tell: counts, reasons, tokens and their cost, score and length distributions."""
    reasons: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    outcomes: dict[str, Counter[str]] = {}
    tokens: Counter[str] = Counter(replies=0)
    scores: dict[str, dict[str, list[float]]] = {name: _groups() for name in ("ifd", "r_ifd")}
    words = _groups()
    writers: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    for row in rows:
        report.rows += 1
        report.kept += row["kept"]
        reasons[row["reason"]] += 1
        flags.update(row["flags"] if row["kept"] else ())
        first = of_origin(row["candidates"], ORIGINAL)[0]
        for candidate, score in zip(row["candidates"], row["scores"], strict=True):
            _count_candidate(candidate, outcomes, tokens)
            report.shortened += bool(candidate.get("answer_cut"))
            if candidate.get("teacher"):
                writers[candidate["teacher"]] += 1
            if score["missing"]:
                missing[score["missing"]] += 1
        groups = [("original", first), *([("original_of_kept", first), ("chosen", row["choice"])] if row["kept"] else [])]
        for group, n in groups:
            for name, values in scores.items():
                if row["scores"][n][name] is not None:
                    values[group].append(row["scores"][n][name])
            words[group].append(len((row["candidates"][n]["output"] or "").split()))
    report.teacher["writers"] = [name for name, _ in writers.most_common()]
    report.reasons = dict(reasons.most_common())
    report.flags = {name: flags[name] for name in FLAGS if flags[name]}
    report.missing = dict(missing.most_common())
    report.candidates = {origin: dict(counts.most_common()) for origin, counts in outcomes.items()}
    report.tokens = {name: tokens.get(name) for name in ("prompt", "completion", "replies")}
    if prices and None not in report.tokens.values():
        report.cost = prices.cost(tokens["prompt"], tokens["completion"])
    report.scores = {name: {group: _spread(v) for group, v in groups_.items()} for name, groups_ in scores.items()}
    report.lengths = {group: _spread(values) for group, values in words.items()}
    report.versions = versions()
    report.made = date.today().isoformat()
    return report


def _groups() -> dict[str, list[float]]:
    return {"original": [], "original_of_kept": [], "chosen": []}


def _count_candidate(candidate: Mapping[str, Any], outcomes: dict[str, Counter[str]], tokens: Counter[str]) -> None:
    if candidate["origin"] == ORIGINAL:
        return
    outcomes.setdefault(candidate["origin"], Counter())[candidate["error"] or "usable"] += 1
    for name in ("prompt", "completion"):
        if candidate[f"{name}_tokens"] is not None:
            tokens[name] += candidate[f"{name}_tokens"]
    tokens["replies"] += candidate["finish_reason"] is not None


def _spread(values: list[float]) -> dict[str, float] | None:
    """Mean and percentiles, None where there is nothing to describe."""
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return {"n": len(values), "mean": statistics.fmean(values), **{f"p{q}": cuts[q - 1] for q in _QUANTILES}}


def versions() -> dict[str, str]:
    """Versions of what decides the result, for the report and the card."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}
