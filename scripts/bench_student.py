# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf"]
# ///
"""How fast a student scores on this device, beside the two ways in use: one run, interleaved repetitions, medians and ratios.

    python scripts/bench_student.py --student HuggingFaceTB/SmolLM2-135M --data alpaca.json --limit 50 --json bench.json
    python scripts/bench_student.py --student DIR --data FILE --random_init llama-2-7b      # a shape, with DIR's tokenizer
    python scripts/bench_student.py --student BIG --data FILE --proxy SMALL                 # can SMALL decide for BIG?

A row is four candidates: original, instruction, response, both. What was measured is in scripts/bench_student.md.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import datasets
import torch
import transformers

import srt_hf
from srt_hf.cli import option, parse, run
from srt_hf.errors import ConfigError, DataError
from srt_hf.estimate import score_in_stages
from srt_hf.report import render_table, write_json
from srt_hf.schema import BOTH, INSTRUCTION, ORIGINAL, RESPONSE
from srt_hf.scoring import BATCH
from srt_hf.sources import prepare
from srt_hf.student.yardsticks import Key, OtherWays, Way, by_key, environment, four_candidates, interleave, stand_in

ORIGINS = (ORIGINAL, INSTRUCTION, RESPONSE, BOTH)
Rows = list[list[dict[str, Any]]]  # each its candidates, in the order of ORIGINS
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "llama-2-7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False},
}  # fmt: skip
NOTES = """{device}, {threads} threads, torch {torch}, transformers {transformers}; {rows} rows, {repetitions} repetitions
×           median of the ratios to `published` (batch 1, float32, all logits, all hidden states); `padded`: sorted, 8 a batch
rows/s      of both scaled by tokens from {baseline_rows} of the rows to all; tokens/s: tokens run, padding left out
duplicates  passes asked for that equal another; shared: tokens of the others that stand in a beginning run once
padding     positions run for no loss; MiB: peak above what was in use before
matmul      the linear layers' products alone, as torch has them by default, as a share of the time; |Δnll|: largest difference"""


@dataclass
class Arguments:
    """What is timed"""

    student: str = field(metadata={"help": "Hub id or folder of a causal LM (required)"})
    data: str = field(metadata={"help": "rows of instruction, input, output, or with a column `candidates` (required)"})
    limit: int = option(100, "rows")
    baseline_limit: int = option(10, "rows for the two slow ways")
    repetitions: int = option(3, "timed runs of each way")
    dtype: str = option("fastest", "of our fastest way; fastest: bfloat16 where its products are")
    torch_compile: bool = option(False, "compile the layers of ours")
    random_init: str | None = option(None, f"random weights in this shape: {', '.join(SHAPES)}")
    proxy: str | None = option(None, "a smaller student, to see how well its scores stand in")
    json: str | None = option(None, "file for every number")

    def __post_init__(self) -> None:
        for name in ("limit", "baseline_limit", "repetitions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}.", "Give at least 1.")


def load_rows(data: str, limit: int) -> Rows:
    """The file's own candidates, or some made from each row and the next: longer, as a teacher's are, and begun otherwise."""
    table = srt_hf.load_rows(data)
    table = table.select(range(min(limit, len(table))))
    if "candidates" in table.column_names:
        found = [c if isinstance(c, dict) else {one["origin"]: one for one in c} for c in table["candidates"]]
        found = [row for row in found if all(row.get(o) and not row[o].get("error") for o in ORIGINS)]
    else:
        found = [dict(zip(ORIGINS, made, strict=True)) for made in four_candidates(list(prepare(table)))]
    if not found:
        raise DataError(f"{data} has no row with all four candidates: {', '.join(ORIGINS)}, none with an error.")
    return [[{"input": "", **row[o], "row": n, "origin": o, "error": None} for o in ORIGINS] for n, row in enumerate(found)]


def shape_without_weights(name: str, tokenizer_of: str, folder: str) -> str:
    """A folder with a random Llama of this shape and another student's tokenizer."""
    if name not in SHAPES:
        raise ConfigError(f"There is no shape {name!r}.", f"Choose from {', '.join(SHAPES)}.")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPES[name], max_position_embeddings=4096)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return folder


def exhaustive(student: srt_hf.Student, rows: Rows) -> dict[Key, float]:
    """Every loss of every candidate, in the pipeline's batches."""
    batches = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
    scores = chain(*(student.score_candidates({"candidates": batch})["scores"] for batch in batches))
    return by_key(chain(*rows), chain(*scores))


def selective(student: srt_hf.Student, rows: Rows) -> dict[Key, float]:
    """Only what the decisions ask for, in the pipeline's order and batches."""
    losses: dict[Key, float] = {}
    for batch in (rows[at : at + BATCH] for at in range(0, len(rows), BATCH)):
        columns = score_in_stages(batch, student, srt_hf.select)
        losses |= by_key(chain(*columns["candidates"]), chain(*columns["scores"]))
    return losses


def make_ways(students: dict[str, srt_hf.Student], network: Any, rows: Rows, few: Rows) -> dict[str, Way]:
    ways: dict[str, Way] = {}
    for name, student in students.items():
        loaded = student.load()
        others = OtherWays(network, loaded.texts, loaded.max_length)
        passes = others.passes(chain(*rows))
        if not ways:
            tokens = [sum(len(one.ids) for one in found.values()) for found in (others.passes(chain(*few)), passes)]
            for score in (others.published, others.padded):
                work = len(rows) * tokens[0] / tokens[1]  # rows that their tokens are worth
                ways[score.__name__] = Way(partial(score, [*chain(*few)]), network, passes, False, work)
        for suffix, ours in (("", exhaustive), ("-selective", selective)):
            ways[name + suffix] = Way(partial(ours, student, rows), loaded.engine.model, passes, True, len(rows))
    return ways


def show(report: dict[str, Any]) -> str:
    columns = {"rows/s": "rows_per_second .2f", "×": "rows_ratio .2f", "tokens/s": "tokens_per_second ,.0f"}
    columns |= {"×/token": "tokens_ratio .2f", "padding": "padding_share .1%", "duplicates": "duplicate_share .1%"}
    columns |= {"shared": "shared_share .1%", "|Δnll|": "largest_nll_difference .1e", "MiB": "memory_mib ,.0f"}
    columns["matmul"] = "matmul_share .0%"
    lines = [[way] for way in report["ways"]]
    for line, found in zip(lines, report["ways"].values(), strict=True):
        line += ["–" if found[name] is None else format(found[name], form) for name, form in map(str.split, columns.values())]
    return f"{NOTES.format(**report)}\n\n{render_table(['', *columns], lines)}"


def main(given: Arguments) -> int:
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = load_rows(given.data, given.limit)
    few = rows[:: -(-len(rows) // given.baseline_limit)]
    with tempfile.TemporaryDirectory() as folder:
        model = shape_without_weights(given.random_init, given.student, folder) if given.random_init else given.student
        ours = partial(srt_hf.Student, model, torch_compile=given.torch_compile)
        students = {"float32": ours(dtype="float32")}
        device = students["float32"].load().engine.model.device
        fastest = (other := ours(dtype=given.dtype)).load().dtype
        students.setdefault(fastest, other)
        del other  # where it is float32 too, it would be a second model in memory
        students |= {"proxy": srt_hf.Student(given.proxy, dtype="float32")} if given.proxy else {}
        network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).eval()
        ways = make_ways(students, network, rows, few)
        interleave([*ways.values()], given.repetitions)
    report = {**asdict(given), **environment(device), "fastest": fastest, "rows": len(rows), "baseline_rows": len(few)}
    report["ways"] = {name: way.figures(ways["published"]) for name, way in ways.items()}
    print(show(report))
    if given.proxy:
        report["stand_in"] = stand_in(rows, ways["proxy"].losses, ways["float32"].losses, srt_hf.select)
        print("\nThe proxy instead of the student:", ", ".join(f"{name} {value}" for name, value in report["stand_in"].items()))
    if given.json:
        write_json(given.json, report)
    return 0


if __name__ == "__main__":
    [arguments] = parse(__doc__, Arguments)
    sys.exit(run(lambda: main(arguments)))
