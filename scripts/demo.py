# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf"]
# ///
"""The whole method in two minutes on a laptop: no server, no token, no GPU.

    python scripts/demo.py          (or `make demo`, which installs everything first)

40 hand-written rows (scripts/demo/rows.jsonl), recorded teacher replies, some of them malformed as real ones are
(scripts/demo/replies.jsonl), and as student a toy: a Llama of under a million parameters that is trained here, in seconds, on the
40 rows themselves. Its scores are real but mean nothing beyond this demo.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the network

import srt_hf
from srt_hf.cli import run
from srt_hf.prompts import TEMPLATES, guess_instruction
from srt_hf.report import render_table

DATA = Path(__file__).parent / "demo"
TEMPLATE = "vicuna"
TRAIN_STEPS, BATCH = 30, 16  # few, so that the toy does not know the originals by heart


def training_texts(rows: list[dict[str, str]]) -> list[str]:
    """Every row as an answer to its instruction, as an instruction to its answer, and bare: what the student will be asked."""
    template = TEMPLATES[TEMPLATE]
    texts = []
    for row in rows:
        asked = row["instruction"] + row["input"]
        texts += [
            template.prompt(row["instruction"], row["input"]) + row["output"],
            template.prompt(guess_instruction(row["output"])) + asked,
            row["output"],
            asked,
        ]
    return [text for text in texts if text]


def make_toy_student(folder: Path, texts: list[str]) -> None:
    """Train a byte-level BPE tokenizer and a tiny Llama on `texts` and save both."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=1500, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=1, **shape
        )
    )
    rows = [[0, *tokenizer(text)["input_ids"][:255]] for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(TRAIN_STEPS):
        batch = [rows[n] for n in torch.randint(len(rows), (BATCH,)).tolist()]
        width = max(map(len, batch))
        ids = torch.tensor([row + [1] * (width - len(row)) for row in batch])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in batch])
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == TRAIN_STEPS - 1:
            print(f"  step {step:3}  loss {loss.item():.2f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def before_after(recycled: srt_hf.Recycled) -> str:
    """One line a row: scores of the original and of the choice, and the decision.

    Numbers are cut, not rounded: 1.000 would also be what is just below 1, and below 1 is what keeps a row.
    """
    lines = []
    for row in recycled.rows:
        before, after = row["scores"][0], row["scores"][row["choice"]]
        numbers = [before["ifd"], before["r_ifd"], after["ifd"], after["r_ifd"]]
        shown = ["–" if number is None else f"{math.floor(1000 * number) / 1000:.3f}" for number in numbers]
        question = " ".join(row["instruction"].split())
        lines.append(
            [row["id"], question[:34] + "…" * (len(question) > 34), *shown, "kept" if row["kept"] else "", row["reason"]]
        )
    return render_table(["id", "instruction", "ifd", "r-ifd", "→ ifd", "→ r-ifd", "", "reason"], lines)


def fine_tune(recycled: srt_hf.Recycled, student: Path, folder: Path) -> None:
    """A few SFT steps with TRL on the kept rows."""
    from trl import SFTConfig, SFTTrainer

    rows = recycled.dataset.map(
        srt_hf.to_prompt_completion, fn_kwargs={"template": TEMPLATE}, remove_columns=recycled.dataset.column_names
    )
    arguments = SFTConfig(
        str(folder), max_steps=4, per_device_train_batch_size=8, learning_rate=1e-3, logging_steps=1, max_length=512,
        gradient_checkpointing=None, report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(model=str(student), args=arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(folder))


def main(output: Path) -> int:
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.perf_counter()
    rows = [json.loads(line) for line in (DATA / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    print(f"1. Training a toy student on {len(rows)} rows (an honest toy: its scores mean nothing beyond this demo)")
    make_toy_student(output / "toy-student", training_texts(rows))
    print("\n2. Recycling: recorded teacher replies, the toy student decides\n")
    recycled = srt_hf.recycle(
        srt_hf.load_rows(str(DATA / "rows.jsonl")),
        teacher=f"replay:{DATA / 'replies.jsonl'}",
        student=srt_hf.Student(str(output / "toy-student"), template=TEMPLATE, dtype="float32"),
    )
    print(before_after(recycled))
    print(f"\n{recycled.report.table()}")
    made = srt_hf.Provenance("scripts/demo/rows.jsonl", command="python scripts/demo.py")
    recycled.save_to_disk(output / "dataset", provenance=made)
    print(f"\n3. Saved: {output / 'dataset'} (README.md is the card; {recycled.page} shows every row, in a browser)")
    print("\n4. Fine-tuning the student on the kept rows with TRL")
    print("   (a few steps of a toy: its loss stays high, and all that they show is that the road works)\n")
    fine_tune(recycled, output / "toy-student", output / "fine-tuned")
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Everything is in {output}.")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo-output"), help="folder for everything (%(default)s)")
    arguments = parser.parse_args()
    sys.exit(run(lambda: main(arguments.output_dir)))
