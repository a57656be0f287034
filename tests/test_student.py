"""The scoring engine against the published numbers (shared/oracle), against a plain scorer, and against itself."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset, load_dataset, load_from_disk
from datasets.fingerprint import Hasher
from reference_scorer import reference_nlls
from tiny_models import ARCHITECTURES, CHAT_TEMPLATE, LLAMA_LIKE, POSITIONS, make, make_gpt2, make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from srt_hf.errors import ConfigError, DataError, StudentError
from srt_hf.schema import COUNTS, NLLS, SCORE, SCORED_BY, features
from srt_hf.selection import Selector
from srt_hf.student import Student, as_score
from srt_hf.student import loading as student_loading
from srt_hf.student.engine import Engine
from srt_hf.student.head import TargetHead

ORACLE = Path(__file__).parents[2] / "shared" / "oracle"
needs_oracle = pytest.mark.skipif(not ORACLE.is_dir(), reason=f"the published numbers are not at {ORACLE}")

INSTRUCTION, INPUT, OUTPUT = "Give three tips for staying healthy.", "for a cook", "Eat a balanced diet and get enough sleep."
PAIRS = [
    (INSTRUCTION, "", OUTPUT),
    (INSTRUCTION, INPUT, "Exercise regularly."),
    ("What are the colors?", "[red] {blue} {instruction} {} (yellow)", "{'a': [1, 2]} {output} [End]"),
    ("Übersetze: 漢字 🙂", "ñ — é", "Eine Antwort… ▁ 漢字 🙂\n\n\tend "),
    ("Repeat: red red", "red red", "red " * 30),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_gpt2(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llama(tmp_path_factory.mktemp("chatty"), chat_template=CHAT_TEMPLATE))


def candidates(*pairs: tuple[str, str, str], origin: str = "original") -> list[dict[str, Any]]:
    names = ("instruction", "input", "output")
    return [{"origin": origin, "error": None, **dict(zip(names, pair, strict=True))} for pair in pairs]


def reference(folder: str, pairs: list[tuple[str, str, str]], max_length: int) -> list[dict[str, float | None]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [reference_nlls(model, tokenizer, *pair, max_length) for pair in pairs]


def assert_close(got: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    for one, other in zip(got, expected, strict=True):
        assert {name: one[name] for name in NLLS} == pytest.approx({name: other[name] for name in NLLS}, abs=tolerance)


def run_python(code: str | Path, **environment: str) -> str:
    command = [str(code)] if isinstance(code, Path) else ["-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The published numbers


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """The oracle's student and its rows. A copy, whose tokenizer class is named as transformers 4 knows it too."""
    folder = tmp_path_factory.mktemp("oracle")
    shutil.copytree(ORACLE / "student", folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return str(folder), [json.loads(line) for line in (ORACLE / "reference_scores.jsonl").read_text().splitlines()]


@needs_oracle
def test_oracle_parity(oracle: tuple[str, list[dict[str, Any]]]) -> None:
    """Every number of 100 rows with four candidates each, within 1e-4 of the published scorer's."""
    folder, rows = oracle
    student = Student(folder, template="vicuna", dtype="float32")
    batch = {"candidates": [[{**c, "origin": o, "error": None} for o, c in row["candidates"].items()] for row in rows]}
    scores = student.score_candidates(batch)["scores"]
    for row, got in zip(rows, scores, strict=True):
        for expected, score in zip(row["candidates"].values(), got, strict=True):
            names = (*NLLS, "ifd", "r_ifd")
            assert {n: score[n] for n in names} == pytest.approx({n: expected[n] for n in names}, abs=1e-4)
            assert score["missing"] is None
    # 16 losses a row; shared instructions and responses leave fewer passes.
    assert student.count_passes == 1223
    # And so the student decides as the published code does.
    decide = Selector(rule="paper", keep="reflected")
    for row, pairs, got in zip(rows, batch["candidates"], scores, strict=True):
        decision = decide({"candidates": pairs, "scores": got})
        assert (decision["origin"], decision["kept"]) == (row["winner"], row["published_keeps"])


@needs_oracle
def test_reference_scorer_is_the_published_one(oracle: tuple[str, list[dict[str, Any]]]) -> None:
    folder, rows = oracle
    expected = [row["candidates"]["original"] for row in rows[:4]]
    pairs = [(c["instruction"], c["input"], c["output"]) for c in expected]
    assert_close(reference(folder, pairs, 2048), expected)


# Batches, padding, order, architectures


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no-bos"])
def test_batched_equals_one_by_one_and_the_reference(architecture: str, bos: bool, tmp_path: Path) -> None:
    folder = str(make(architecture, tmp_path, bos=bos))
    student = Student(folder, max_length=POSITIONS)
    masks = architecture == "opt" and transformers.__version__.startswith("4.")  # which makes them whatever the attention
    with pytest.warns(UserWarning, match="padded batches, .* a mask") if masks else nullcontext():
        together = student.nlls(PAIRS)
        alone = Student(folder, max_length=POSITIONS, token_budget=1).nlls(PAIRS)
    assert student.load().engine.packs == (architecture != "mamba" and not masks)
    assert_close(together, alone)
    assert_close(together, reference(folder, PAIRS, POSITIONS))
    assert any(losses["nll_y"] is not None for losses in together)


def test_packing_that_is_wrong_is_given_up_with_a_warning(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Student(llama).nlls(PAIRS)
    with monkeypatch.context() as broken:
        broken.setattr("srt_hf.student.attention._mask", lambda own, seen, window, like: like.new_zeros(own, seen))
        student = Student(llama)
        with pytest.warns(UserWarning, match="LlamaForCausalLM is scored in padded batches, which is slower: a mean loss is off"):
            assert_close(student.nlls(PAIRS), expected)
        assert not student.load().engine.packs
    with monkeypatch.context() as broken:
        broken.setattr("srt_hf.student.attention._mask", lambda *_: math.nan)
        with pytest.warns(UserWarning, match="padded batches"):
            assert_close(Student(llama).nlls(PAIRS), expected)
    monkeypatch.setattr("srt_hf.student.engine.pack", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="padded batches, which is slower: division by zero"):
        assert_close(Student(llama).nlls(PAIRS), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own code
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_layers_give_the_same_losses(llama: str, dtype: str) -> None:
    student = Student(llama, dtype=dtype, torch_compile=True)
    assert_close(student.nlls(PAIRS), Student(llama, dtype=dtype).nlls(PAIRS), 1e-5 if dtype == "float32" else 0.02)
    engine = student.load().engine
    assert engine.packs and all(layer._compiled_call_impl is not None for layer in engine.model.model.layers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_compiled_is_said(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    model._no_split_modules = []
    with pytest.raises(StudentError, match=r"LlamaForCausalLM cannot be compiled: it names no layers\. Do without"):
        Engine(model, torch_compile=True)
    mamba = make("mamba", tmp_path)
    with pytest.raises(StudentError, match=r"MambaForCausalLM cannot be compiled: state runs through its layers"):
        Student(str(mamba), torch_compile=True).load()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, dynamic: 1 / 0)
    with pytest.raises(StudentError, match=r"cannot be compiled: division by zero Do without torch_compile; .* C\+\+ compiler"):
        Student(llama, torch_compile=True).load()


_TINY = {**LLAMA_LIKE, "vocab_size": 600, "initializer_range": 0.1}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "shared_intermediate_size": 32}
_LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 64}
SPECIAL: dict[str, dict[str, Any]] = {
    # State that runs from token to token, and so from one packed pass into the next.
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "GraniteMoeHybrid": {"layer_types": ["mamba", "attention"], **_EXPERTS, **_MAMBA},
    # A window that the layers never tell: it is in the mask alone.
    "Phimoe": {"sliding_window": 48, **_EXPERTS},
    # Its positions go by the longest pass of a batch.
    "Phi3": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **_LONGROPE}, "pad_token_id": 0},
    "Mixtral": _EXPERTS,
}


@pytest.mark.filterwarnings("ignore:.*is scored in padded batches:UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_packing_could_break_scores_batched_as_one_by_one(kind: str, dtype: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**{**_TINY, **SPECIAL[kind]})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(make_llama(tmp_path / "other")).save_pretrained(tmp_path)
    student = Student(str(tmp_path), dtype=dtype, max_length=POSITIONS)
    short = [(f"Say {n}.", "", "No.") for n in range(4)]  # a few targets show what a long mean hides
    together = student.nlls([*PAIRS, *short])
    assert_close([student.nlls([pair])[0] for pair in (*PAIRS, *short)], together, 1e-5 if dtype == "float32" else 0.05)
    assert student.load().engine.packs == (kind in ("Phi3", "Mixtral"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gpt2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_gpu_gives_the_cpus_losses(architecture: str, dtype: str, tmp_path: Path) -> None:
    folder = str(make(architecture, tmp_path, **({} if architecture == "gpt2" else {"head_dim": 16})))
    student = Student(folder, max_length=POSITIONS, dtype=dtype)
    assert_close(student.nlls(PAIRS), reference(folder, PAIRS, POSITIONS), 0.05 if dtype == "bfloat16" else 1e-3)
    assert student.load().engine.packs == (dtype == "bfloat16")
    assert_close([student.nlls([pair])[0] for pair in PAIRS], student.nlls(PAIRS), 0.05 if dtype == "bfloat16" else 1e-4)


def test_order_and_neighbours_change_nothing(llama: str) -> None:
    student = Student(llama, token_budget=500)
    forward = student.nlls(PAIRS)
    assert_close(student.nlls(PAIRS[::-1])[::-1], forward)
    assert_close([student.nlls([pair])[0] for pair in PAIRS], forward)


def test_equal_passes_run_once(llama: str) -> None:
    student = Student(llama)
    student.nlls([PAIRS[0]] * 5)
    assert student.count_passes == 4
    # The same response to another instruction shares nll_y; the same instruction with another response shares nll_x.
    student.nlls([(INSTRUCTION, "", OUTPUT), ("Say hello.", "", OUTPUT), (INSTRUCTION, "", "Hello!")])
    assert student.count_passes == 4 + (2 + 3) + (2 + 3)


def test_only_what_is_asked_for_is_run(llama: str) -> None:
    student = Student(llama)
    full = student.nlls(PAIRS[:2])
    student.count_passes = 0
    [first, second] = student.nlls(PAIRS[:2], which=[("nll_y",), ("nll_x_given_y", "nll_y")])
    assert student.count_passes == 3
    assert first == pytest.approx({"nll_y": full[0]["nll_y"], "n_y": full[0]["n_y"], "missing": None})
    assert set(second) == {"nll_y", "n_y", "nll_x_given_y", "n_x_given_y", "missing"}
    assert student.nlls([], which=[]) == []
    with pytest.raises(ConfigError, match="no loss nll_z"):
        student.nlls(PAIRS, which=("nll_z",))
    with pytest.raises(ConfigError, match="for 1 pairs, but there are 5"):
        student.nlls(PAIRS, which=[("nll_y",)])


def test_none_in_a_pair_is_empty(llama: str) -> None:
    student = Student(llama)
    assert student.nlls([(INSTRUCTION, None, OUTPUT)]) == student.nlls([(INSTRUCTION, "", OUTPUT)])


# Adapters and quantised models


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's own, while it makes the adapter
def test_an_adapter_scores_as_its_merged_model(tmp_path: Path) -> None:
    """With its base's tokenizer where it has none; its identity follows the adapter and the base."""
    from peft import LoraConfig, get_peft_model

    base, adapter, merged = (str(tmp_path / name) for name in ("base", "adapter", "merged"))
    network = AutoModelForCausalLM.from_pretrained(make_llama(Path(base)))
    changed = get_peft_model(network, LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"]))
    changed.save_pretrained(adapter)
    changed.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)
    student = Student(adapter)
    assert_close(student.nlls(PAIRS), Student(merged).nlls(PAIRS))
    assert student.nlls(PAIRS[:1])[0]["nll_y"] != pytest.approx(Student(base).nlls(PAIRS[:1])[0]["nll_y"], abs=1e-3)
    before = student.identity()
    make_llama(Path(base), seed=1)
    assert student.identity() != before
    assert student.identity().partition("+")[0] == before.partition("+")[0]


def test_an_adapter_without_peft_is_one_clear_error(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": llama}))
    monkeypatch.setattr("srt_hf.student.loading.find_spec", lambda name: None)
    with pytest.raises(StudentError, match=r"PEFT adapter of .*pip install peft"):
        Student(str(tmp_path)).load()


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 1e-3), (8, 0.05)])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_a_quantised_checkpoint_scores_batched_as_one_by_one(bits: int, tolerance: float, tmp_path: Path) -> None:
    """Within the rounding of their products, which for 8 bits depends on what else is in the batch."""
    from transformers import BitsAndBytesConfig

    full = str(make("llama", tmp_path / "full", hidden_size=128, intermediate_size=256))
    how = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(full, quantization_config=how, dtype=torch.float32).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(full).save_pretrained(tmp_path / "small")
    student = Student(str(tmp_path / "small"))
    together = student.nlls(PAIRS)
    assert student.load().engine.model.is_quantized and student.load().engine.packs
    assert_close([student.nlls([pair])[0] for pair in PAIRS], together, tolerance)
    assert together[0]["nll_y"] != pytest.approx(Student(full).nlls(PAIRS[:1])[0]["nll_y"], abs=1e-4)


# Faults of the published code


def test_fault_01_a_failure_is_never_a_number(llama: str) -> None:
    """The published code writes loss 0 where scoring fails; 0 passes `< 1` and wins the argmin."""
    student = Student(llama)
    long, no_output, no_instruction, error = (
        (f"{INSTRUCTION} " * 200, "", OUTPUT),
        (INSTRUCTION, "", ""),
        (" ", "\n", OUTPUT),
        (INSTRUCTION, "", OUTPUT),
    )
    row = candidates(long, no_output, no_instruction, error)
    row[-1]["error"] = "truncated"
    scores = student.score_candidates({"candidates": [row]})["scores"][0]
    assert [score["missing"] for score in scores] == ["too_long", "empty_output", "empty_instruction", "candidate_error"]
    assert [score["ifd"] for score in scores if score["missing"] != "empty_instruction"] == [None] * 3
    assert scores[2]["r_ifd"] is None
    assert all((score[nll] is None) == (score[n] is None) for score in scores for nll, n in zip(NLLS, COUNTS, strict=True))
    assert {scores[-1][name] for name in SCORE.names if name != "missing"} == {None}


def test_fault_06_instruction_recurring_in_its_input(llama: str) -> None:
    """`rfind` starts the target at the last occurrence; the target is all of instruction + input."""
    instruction, input = "red red", "red red red red"
    [losses] = Student(llama).nlls([(instruction, input, f"red red {instruction}")])
    assert losses["n_x_given_y"] == pytest.approx(losses["n_x"], abs=1)
    assert_close([losses], reference(llama, [(instruction, input, f"red red {instruction}")], POSITIONS))


def test_fault_07_overflow_cuts_tokens_not_characters(llama: str) -> None:
    """A window that is too small keeps the first ids of the whole text, whatever the text looks like."""
    pair = (INSTRUCTION, "", "漢字🙂 " * 60)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    student = Student(llama, template="none", max_length=40)
    [losses] = student.nlls([pair])
    n_prompt = len(tokenizer.encode(f"{INSTRUCTION}\n"))
    assert losses["n_y_given_x"] == losses["n_y"] == 40 - n_prompt
    assert losses["missing"] == "too_long"  # its response fills the window of the r-IFD request
    assert_close(student_at(llama, 160).nlls([pair]), reference(llama, [pair], 160))


def student_at(folder: str, max_length: int) -> Student:
    return Student(folder, max_length=max_length)


def test_fault_11_first_token_is_scored_without_bos(gpt2: str) -> None:
    """A tokenizer without BOS gets its EOS in front, so the first target token counts in both losses."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    [losses] = Student(gpt2, template="none").nlls([(INSTRUCTION, "", OUTPUT)])
    n_target = len(tokenizer.encode(OUTPUT))
    assert (losses["n_y"], losses["n_y_given_x"]) == (n_target, n_target)
    assert losses["n_x"] == len(tokenizer.encode(INSTRUCTION))


def test_fault_12_nan_is_missing(tmp_path: Path) -> None:
    folder = str(make_llama(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.norm.weight.data.fill_(math.nan)
    model.save_pretrained(folder)
    student = Student(folder)
    [losses] = student.nlls(PAIRS[:1])
    assert losses == {**dict.fromkeys((*NLLS, *COUNTS)), "missing": "not_finite"}
    assert as_score(losses)["ifd"] is None


# Windows and templates


def test_the_window_is_the_smaller_of_asked_and_the_models(llama: str) -> None:
    assert Student(llama).scored_by()["max_length"] == POSITIONS
    assert Student(llama, max_length=100).scored_by()["max_length"] == 100


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_prompt_that_fills_the_window_leaves_no_target(llama: str, spare: int) -> None:
    n_prompt = len(AutoTokenizer.from_pretrained(llama).encode(f"{INSTRUCTION}\n"))
    student = Student(llama, template="none", max_length=n_prompt + spare)
    [losses] = student.nlls([(INSTRUCTION, "", OUTPUT)], which=("nll_y", "nll_y_given_x"))
    assert (losses["n_y"], losses["n_y_given_x"]) == ((spare, spare) if spare else (None, None))
    assert losses["missing"] == (None if spare else "too_long")


def test_auto_is_the_chat_template_where_there_is_one(chatty: str, llama: str) -> None:
    assert Student(chatty).scored_by()["template"] == "chat"
    assert Student(llama).scored_by()["template"] == "vicuna"
    with pytest.raises(ConfigError, match="no chat template"):
        Student(llama, template="chat").load()


def ids_of(student: Student, which: str, pair: tuple[str, str, str]) -> tuple[int, ...]:
    """The ids of the one pass behind a loss."""
    engine, seen = student.load().engine, []
    run = engine.mean_nlls
    engine.mean_nlls = lambda passes: (seen.extend(passes), run(passes))[1]  # type: ignore[method-assign, func-returns-value]
    student.nlls([pair], which=(which,))
    engine.mean_nlls = run  # type: ignore[method-assign]
    return seen[0].ids


def test_chat_has_one_bos(chatty: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    ids = ids_of(Student(chatty), "nll_y_given_x", (INSTRUCTION, INPUT, OUTPUT))
    turn = [{"role": "user", "content": f"{INSTRUCTION}\n{INPUT}"}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert list(ids) == tokenizer.encode(prompt + OUTPUT, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1


def test_chat_without_bos_starts_only_the_bare_text(tmp_path: Path) -> None:
    """As Qwen's: the template writes no BOS, so the prompt has none; the text alone still needs a token to start from."""
    folder = str(make_gpt2(tmp_path, chat_template=CHAT_TEMPLATE.replace("{{ bos_token }}", "")))
    tokenizer, student = AutoTokenizer.from_pretrained(folder), Student(folder)
    assert tokenizer.eos_token_id not in ids_of(student, "nll_y_given_x", PAIRS[0])
    assert list(ids_of(student, "nll_y", PAIRS[0])) == [tokenizer.eos_token_id, *tokenizer.encode(OUTPUT)]


def test_chat_template_that_refuses_is_one_clear_error(tmp_path: Path) -> None:
    folder = str(make_llama(tmp_path, chat_template="{{ raise_exception('no user, please') }}"))
    with pytest.raises(StudentError, match="no user, please"):
        Student(folder).nlls(PAIRS)


# dtype and memory


def test_bfloat16_has_float32_logits(tmp_path: Path) -> None:
    """The body is bf16, the logits are not rounded to it; the tied embedding keeps its dtype and its values."""
    folder = str(make("qwen3", tmp_path))
    student = Student(folder, dtype="bfloat16")
    losses = student.nlls(PAIRS)
    engine = student.load().engine
    assert student.scored_by()["dtype"] == "bfloat16"
    assert engine.model.get_input_embeddings().weight.dtype == torch.bfloat16
    # A bf16 body and an fp32 head, written down plainly: the numbers are those, not the ones of bf16 logits.
    body = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    head = body.lm_head.weight.float()
    ids = torch.tensor([ids_of(student, "nll_y", PAIRS[0])])
    with torch.no_grad():
        logits = body.model(input_ids=ids).last_hidden_state[0, :-1].float() @ head.T
    assert losses[0]["nll_y"] == pytest.approx(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item(), abs=1e-5)


needs_precision = pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch has no such setting before 2.9")


@needs_precision
def test_threads_leave_the_precision_of_products_as_it_was() -> None:
    precision = torch.backends.mkldnn.matmul
    usual = precision.fp32_precision

    def score() -> None:
        head = TargetHead(torch.nn.Linear(64, 500, bias=False).bfloat16())
        head.rows = torch.arange(100)
        for _ in range(100):
            with torch.inference_mode():
                head(torch.randn(1, 100, 64).bfloat16())

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert precision.fp32_precision == usual


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_process_may_have_another_default_dtype(dtype: str, tmp_path: Path) -> None:
    folder = str(make("llama", tmp_path))
    usual = Student(folder, dtype=dtype).nlls(PAIRS)
    torch.set_default_dtype(torch.float64)
    try:
        found = Student(folder, dtype=dtype).nlls(PAIRS)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(usual, found, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@needs_precision
def test_only_a_bfloat16_head_multiplies_as_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """An fp32 product may be read so where both factors come from bfloat16; then what the process had set comes back."""
    precision = torch.backends.mkldnn.matmul
    seen: list[str] = []
    product = torch.mm

    def watched(*args: Any, **rest: Any) -> torch.Tensor:
        seen.append(precision.fp32_precision)
        return product(*args, **rest)

    monkeypatch.setattr(torch, "mm", watched)
    full = torch.nn.Linear(8, 5, bias=False)
    half = copy.deepcopy(full).bfloat16()
    hidden = torch.randn(1, 4, 8)
    usual, precision.fp32_precision = precision.fp32_precision, "ieee"
    try:
        with torch.inference_mode():
            for layer in (half, full):
                head = TargetHead(layer)
                head.rows = torch.tensor([1, 3])
                for given in (hidden.bfloat16(), hidden):
                    wanted = given[:, [1, 3]].float() @ layer.weight.float().T
                    assert torch.allclose(head(given), wanted, atol=1e-6)
                with pytest.raises(RuntimeError):
                    head(hidden[..., :7].bfloat16())
        assert seen == ["bf16", "ieee", "bf16", "ieee", "ieee", "ieee"] and precision.fp32_precision == "ieee"
    finally:
        precision.fp32_precision = usual


def out_of_memory_above(limit: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    def limited(input_ids: torch.Tensor, **rest: Any) -> Any:
        if input_ids.numel() > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids=input_ids, **rest)

    return limited


def test_out_of_memory_halves_the_batch(llama: str) -> None:
    expected = Student(llama).nlls(PAIRS)
    student = Student(llama)
    model = student.load().engine.model
    model.forward = out_of_memory_above(300, model.forward)
    with pytest.warns(UserWarning, match=r"Memory ran out while LlamaForCausalLM scored: batches of \d+ tokens from now on"):
        assert_close(student.nlls(PAIRS), expected)
    assert student.load().engine.token_budget <= 600


def test_what_does_not_fit_alone_is_too_long(llama: str) -> None:
    student = Student(llama)
    model = student.load().engine.model
    model.forward = out_of_memory_above(30, model.forward)
    with pytest.warns(UserWarning, match="Memory ran out"):
        [losses] = student.nlls([(INSTRUCTION, "", OUTPUT)], which=("nll_y", "nll_y_given_x"))
    assert losses["nll_y"] is not None
    assert (losses["nll_y_given_x"], losses["missing"]) == (None, "too_long")


@pytest.mark.filterwarnings("ignore:Memory ran out:UserWarning")
def test_memory_that_is_short_for_everything_is_no_property_of_the_rows(llama: str) -> None:
    """`map` would cache the Nones, and a healthy machine would be given them again."""
    student = Student(llama)
    model = student.load().engine.model
    model.forward = out_of_memory_above(1, model.forward)
    with pytest.raises(StudentError, match="Not even one pass fits into the memory"):
        student.nlls(PAIRS)


def test_any_other_failure_of_the_model_stops_with_one_line(llama: str) -> None:
    student = Student(llama)
    student.load().engine.model.forward = lambda **_: torch.zeros(1) @ torch.zeros(2)
    with pytest.raises(StudentError, match="LlamaForCausalLM failed on a batch: inconsistent tensor size"):
        student.nlls(PAIRS)


# As map functions


def test_score_adds_typed_flat_columns(llama: str) -> None:
    rows = Dataset.from_dict({"instruction": [INSTRUCTION] * 2, "output": [None, OUTPUT]})
    scored = rows.map(Student(llama).score, batched=True, batch_size=1)
    assert scored.features.arrow_schema.field("nll_y").type == SCORE.field("nll_y").type
    assert scored["missing"][:] == ["empty_output", None]
    assert scored["ifd"][0] is None
    assert math.log(scored["ifd"][1]) == pytest.approx(scored["nll_y_given_x"][1] - scored["nll_y"][1])


def test_score_candidates_names_who_scored(llama: str) -> None:
    student = Student(llama, max_length=128)
    rows = Dataset.from_list([{"candidates": candidates(*PAIRS[:2])}, {"candidates": []}])
    scored = rows.map(student.score_candidates, batched=True, with_rank=True)
    assert scored.features.arrow_schema.field("scored_by").type == SCORED_BY
    assert [len(scores) for scores in scored["scores"]] == [2, 0]
    revision = student.identity()
    assert scored["scored_by"][1] == {
        "student": Path(llama).name, "revision": revision, "template": "vicuna", "max_length": 128, "dtype": "float32"
    }  # fmt: skip


def test_missing_columns_are_named(llama: str) -> None:
    with pytest.raises(DataError, match="needs the column candidates; this dataset has prompt, text"):
        Student(llama).score_candidates({"prompt": [""], "text": [""]})
    with pytest.raises(DataError, match="instruction and output"):
        Student(llama).score({"input": [""]})


def test_single_rows_are_told_to_come_in_batches(llama: str) -> None:
    rows = Dataset.from_list([{"instruction": INSTRUCTION, "output": OUTPUT, "candidates": candidates(PAIRS[0])}])
    for function in (Student(llama).score, Student(llama).score_candidates):
        with pytest.raises(DataError, match="batched=True"):
            rows.map(function)


def test_a_folder_without_a_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(make_gpt2(tmp_path / "whole")).save_pretrained(tmp_path / "bare")
    with pytest.raises(StudentError, match="okenizer"):
        Student(str(tmp_path / "bare")).load()


def test_forked_workers_give_the_same_numbers(tmp_path: Path) -> None:
    """After torch has computed in the process that forks, too, which hangs a worker that takes no care (student/forks.py)."""
    folder = str(make("llama", tmp_path, hidden_size=256, intermediate_size=1024))
    code = (
        "from datasets import Dataset\nfrom srt_hf.student import Student\n"
        f"student, pairs = Student({folder!r}), {PAIRS!r} * 4\n"
        "rows = Dataset.from_list([{'instruction': a, 'input': b, 'output': c} for a, b, c in pairs])\n"
        "alone = rows.map(student.score, batched=True)['nll_y_given_x'][:]\n"
        "forked = rows.map(student.score, batched=True, num_proc=2)['nll_y_given_x'][:]\n"
        "print(max(abs(one - other) for one, other in zip(alone, forked)) < 1e-5)"
    )
    assert run_python(code, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive") == "True"


def test_spawned_workers_each_load_their_own(llama: str, tmp_path: Path) -> None:
    """As the README shows it for several GPUs; here two workers share the CPU."""
    script = tmp_path / "several.py"
    script.write_text(
        "from datasets import Dataset\nfrom multiprocess import set_start_method\nfrom srt_hf.student import Student\n"
        "if __name__ == '__main__':\n"
        "    set_start_method('spawn')\n"
        f"    rows = Dataset.from_list([{{'candidates': row}} for row in {[candidates(pair) for pair in PAIRS]!r}])\n"
        f"    student = Student({llama!r})\n"
        "    alone = rows.map(student.score_candidates, batched=True, with_rank=True)\n"
        "    spawned = rows.map(student.score_candidates, batched=True, with_rank=True, num_proc=2)\n"
        "    print(alone['scored_by'][:] == spawned['scored_by'][:], student.count_passes)\n"
        "    for one, other in zip(alone['scores'], spawned['scores']):\n"
        "        assert all(abs((one[0][n] or 0) - (other[0][n] or 0)) < 1e-5 for n in one[0] if n != 'missing')\n"
    )
    assert run_python(script).startswith("True ")


@pytest.mark.parametrize("num_proc", [None, 1, 2])
def test_a_bare_map_survives_a_first_error_after_the_first_write(llama: str, tmp_path: Path, num_proc: int | None) -> None:
    """2,500 rows with every number and no code, then 500 with no number and a code; and the other way round."""
    good = candidates(PAIRS[0], origin="response")
    bad = [{**good[0], "error": "refused", "output": None}]
    rows = Dataset.from_dict({"candidates": [good] * 2500 + [bad] * 500})
    scored = rows.map(Student(llama).score_candidates, batched=True, num_proc=num_proc)
    assert [row[0]["missing"] for row in scored["scores"]] == [None] * 2500 + ["candidate_error"] * 500
    assert scored.features["scores"].feature == features(["scores"])["scores"].feature
    scored.to_parquet(tmp_path / "scored.parquet")
    assert load_dataset("parquet", data_files=str(tmp_path / "scored.parquet"), split="train")["scores"][0] == scored["scores"][0]
    backwards = rows.select(range(2999, -1, -1)).map(Student(llama).score_candidates, batched=True, num_proc=num_proc)
    assert backwards["scores"][:] == scored["scores"][::-1]


@pytest.mark.slow
def test_memory_stays_flat(llama: str, tmp_path: Path) -> None:
    """20,000 rows need at most 1.3 times the peak memory of 2,000."""
    peaks = []
    for n in (2_000, 20_000):
        code = (
            "import resource\nfrom datasets import Dataset\nfrom srt_hf.student import Student\n"
            "def rows():\n"
            f"    for n in range({n}):\n"
            "        pairs = [(f'Write about {n}.', '', f'The number {n} is far away.' * k) for k in (1, 2)]\n"
            "        named = [dict(zip(('instruction', 'input', 'output'), pair)) for pair in pairs]\n"
            "        yield {'candidates': [{**one, 'origin': 'response', 'error': None} for one in named]}\n"
            f"student = Student({llama!r}, template='none')\n"
            f"data = Dataset.from_generator(rows, cache_dir={str(tmp_path / str(n))!r})\n"
            "scored = data.map(student.score_candidates, batched=True)\n"
            "print(len(scored), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        count, peak = map(int, run_python(code).split()[-2:])
        assert count == n
        peaks.append(peak)
    print(f"peak RSS: {peaks} KiB")
    assert peaks[1] <= 1.3 * peaks[0]


def test_threads_share_one_load(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = student_loading.load
    monkeypatch.setattr("srt_hf.student.scorer.load", lambda model, *a, **k: loads.append(model) or load(model, *a, **k))  # type: ignore[func-returns-value]
    student, results = Student(llama), []
    threads = [threading.Thread(target=lambda: results.append(student.nlls(PAIRS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [llama]
    assert results[1:] == results[:-1]


# Identity and pickling


def test_pickle_holds_no_weights(llama: str) -> None:
    student = Student(llama, max_length=99)
    fresh = Hasher.hash(student.score_candidates)
    student.nlls(PAIRS)
    assert len(pickle.dumps(student)) < 1000
    copy = pickle.loads(pickle.dumps(student))
    assert (copy.max_length, copy.count_passes) == (99, 0)
    assert copy.nlls(PAIRS) == student.nlls(PAIRS)
    assert Hasher.hash(student.score_candidates) == fresh
    assert Hasher.hash(Student(llama).score_candidates) != fresh


def test_fingerprint_is_the_same_in_another_process(llama: str) -> None:
    code = (
        "from datasets.fingerprint import Hasher\nfrom srt_hf.student import Student\n"
        f"print(Hasher.hash(Student({llama!r}).score_candidates))"
    )
    assert run_python(code, PYTHONHASHSEED="7") == Hasher.hash(Student(llama).score_candidates)


def test_retraining_in_place_is_scored_anew(tmp_path: Path) -> None:
    folder = str(make_llama(tmp_path / "student"))
    student = Student(folder)
    Dataset.from_list([{"candidates": candidates(pair)} for pair in PAIRS]).save_to_disk(tmp_path / "rows")
    rows = load_from_disk(tmp_path / "rows")  # only what lies on disk is cached
    first = rows.map(student.score_candidates, batched=True)
    passes, identity = student.count_passes, student.identity()
    assert rows.map(Student(folder).score_candidates, batched=True)["scores"][:] == first["scores"][:]
    again = rows.map(student.score_candidates, batched=True)
    assert (again._fingerprint, student.count_passes) == (first._fingerprint, passes)

    make_llama(tmp_path / "student", seed=1)
    assert student.identity() != identity
    retrained = rows.map(student.score_candidates, batched=True)
    assert retrained["scored_by"][0]["revision"] == student.identity()
    assert_close([scores[0] for scores in retrained["scores"]], reference(folder, PAIRS, POSITIONS))
    assert retrained["scores"][:] != first["scores"][:]


def test_identity_follows_content_not_the_path(tmp_path: Path) -> None:
    here, there = make_llama(tmp_path / "a"), make_llama(tmp_path / "b")
    identity = Student(str(here)).identity()
    assert Student(str(there)).identity() == identity
    (there / "README.md").write_text("not read by a loader")
    (there / "model.safetensors").touch()
    assert Student(str(there)).identity() == identity
    (there / "tokenizer_config.json").write_text("{}")
    assert Student(str(there)).identity() != identity


def test_hub_student_is_its_commit(tmp_path: Path) -> None:
    """From the Hub cache, offline: the identity is the commit that the revision stands for, and that commit is loaded."""
    sha = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--tiny"
    make_llama(repo / "snapshots" / sha)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(sha)
    code = (
        "import pickle\nfrom srt_hf.student import Student\nstudent = Student('org/tiny')\n"
        "copy = pickle.loads(pickle.dumps(student))\n"
        "print(student.scored_by()['revision'], copy.identity(), student.nlls([('a', 'b', 'c')])[0]['missing'])"
    )
    assert run_python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1").split() == [sha, sha, "None"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_hub_adapter_is_two_commits(tmp_path: Path) -> None:
    """The adapter's and its base's, each loaded as of its own, from the Hub cache."""
    from peft import LoraConfig, get_peft_model

    shas = {name: character * 40 for name, character in (("base", "a"), ("adapter", "b"))}
    folders = {name: tmp_path / f"models--org--{name}" / "snapshots" / sha for name, sha in shas.items()}
    make_llama(folders["base"])
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"])
    changed = get_peft_model(AutoModelForCausalLM.from_pretrained(folders["base"]), config)
    changed.save_pretrained(folders["adapter"])
    written = json.loads((folders["adapter"] / "adapter_config.json").read_text())
    (folders["adapter"] / "adapter_config.json").write_text(json.dumps({**written, "base_model_name_or_path": "org/base"}))
    for name, sha in shas.items():
        (tmp_path / f"models--org--{name}" / "refs").mkdir()
        (tmp_path / f"models--org--{name}" / "refs" / "main").write_text(sha)
    code = (
        "from srt_hf.student import Student\n"
        "one, other = Student('org/adapter'), Student('org/base')\n"
        f"losses = [student.nlls([{PAIRS[0]!r}])[0]['nll_y'] for student in (one, other)]\n"
        "print(one.identity(), abs(losses[0] - losses[1]) > 1e-3)"
    )
    out = run_python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert out.split() == [f"{shas['adapter']}+{shas['base']}", "True"]


# Errors and warnings


def test_construction_is_cheap_and_checks_its_arguments() -> None:
    Student("no/such-model")
    for wrong, message in (
        ({"template": "llama"}, "Choose from vicuna, alpaca, wizardlm, none, chat, auto"),
        ({"dtype": "int8"}, "Choose from auto, fastest, float32, bfloat16, float16"),
        ({"max_length": 1}, "max_length=1"),
        ({"token_budget": 0}, "token_budget=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Student("no/such-model", **wrong)


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StudentError, match=r"The model no/such-model cannot be found"):
        Student("no/such-model").load()
    with pytest.raises(StudentError, match=rf"The student {tmp_path} cannot be loaded"):
        Student(str(tmp_path)).load()


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_broken_file_is_one_clear_error(tmp_path: Path, file: str) -> None:
    (make_llama(tmp_path) / file).write_text("{")
    with pytest.raises(StudentError) as caught:
        Student(str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_filled_with_random_numbers(tmp_path: Path) -> None:
    make("llama", tmp_path, num_hidden_layers=1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(StudentError, match=r"lacks the weights model\.layers\.1"):
        Student(str(tmp_path)).load()


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    make_llama(tmp_path)
    BertForMaskedLM(
        BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(tmp_path)
    with pytest.raises(StudentError, match="not causal"):
        Student(str(tmp_path)).load()


def test_unfamiliar_template_warns_once(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student(llama)
    monkeypatch.setattr(student, "nlls", lambda pairs, rank: [{"nll_y": 1.0, "nll_y_given_x": 2.0} for _ in pairs])
    student.score_candidates({"candidates": [candidates(*PAIRS[:1])] * 49})
    student.score_candidates({"candidates": [candidates(*PAIRS[:1], origin="response")] * 99})
    with pytest.warns(UserWarning, match="50 of 50 originals have ifd > 1") as caught:
        student.score_candidates({"candidates": [candidates(*PAIRS[:1])]})
        student.score_candidates({"candidates": [candidates(*PAIRS[:1])]})
    assert len(caught) == 1


def test_as_score_merges_partial_losses(llama: str) -> None:
    student = Student(llama)
    [whole] = student.nlls(PAIRS[:1])
    [first] = student.nlls(PAIRS[:1], which=("nll_y", "nll_y_given_x"))
    [second] = student.nlls(PAIRS[:1], which=("nll_x", "nll_x_given_y"))
    partial = as_score(first)
    assert (partial["r_ifd"], partial["nll_x"], partial["missing"]) == (None, None, None)
    assert list(partial) == SCORE.names
    assert as_score({**first, **second}) == pytest.approx(as_score(whole))
