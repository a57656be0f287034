"""The reply parser: every variant that it recovers, every code that it gives, and properties that hold for any string."""

from __future__ import annotations

import re
import runpy
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from srt_hf import parsing
from srt_hf.parsing import (
    Reflection,
    parse_instruction_reflection,
    parse_response_reflection,
    strip_editing_voice,
    strip_reasoning,
)
from srt_hf.parsing.wording import is_placeholder
from srt_hf.prompts import ANSWER_PLACEHOLDER, INSTRUCTION_PLACEHOLDER, Prompts
from srt_hf.schema import ERRORS

PAIR = "[New Instruction]\nName a prime.\n[End]\n[New Answer]\nSeven.\n[End]"
quick = settings(deadline=None, derandomize=True, max_examples=300)


def pair(reply: str, finish_reason: str | None = "stop") -> tuple[str | None, str | None, str | None]:
    found = parse_instruction_reflection(reply, finish_reason)
    return found.instruction, found.output, found.error


def answer(body: str, finish_reason: str | None = "stop") -> str | None:
    """The output of a well-formed response reflection with this section, or its error in capitals."""
    found = parse_response_reflection(f"Too short.\n\n[Better Answer]\n{body}\n[End]", finish_reason)
    return found.error.upper() if found.error else found.output


# --- Forms -------------------------------------------------------------------------------------------------------------

FORMS = {
    "as requested": f"Vague.\n\n{PAIR}",
    "windows line ends": f"Vague.\n\n{PAIR}".replace("\n", "\r\n"),
    "text after the last [End]": f"{PAIR}\n\nLet me know if I can help. [End] of all.",
    "no closing tag": "[New Instruction]\nName a prime.\n\n[New Answer]\nSeven.",
    "first closing tag missing": "[New Instruction]\nName a prime.\n[New Answer]\nSeven.\n[End]",
    "a rule between open sections": "### New Instruction\nName a prime.\n\n---\n\n### New Answer\nSeven.",
    "labels": "New Instruction: Name a prime.\n\nNew Answer: Seven.",
    "labels with [End]": "New Instruction:\nName a prime.\n[End]\nNew Answer:\nSeven.\n[End]",
    "headings": "### New Instruction\nName a prime.\n\n### New Answer ###\nSeven.",
    "bold labels": "**New Instruction:** Name a prime.\n\n**New Answer**:\nSeven.",
    "numbered labels": "1. **New Instruction:**\nName a prime.\n2. **New Answer:**\nSeven.",
    "tag and label": "[New Instruction]\nName a prime.\n[End]\n\nNew Answer:\nSeven.",
    "bold tags": "**[New Instruction]**\nName a prime.\n**[End]**\n\n**[New Answer]**\nSeven.\n**[End]**",
    "tags with colons": "[New Instruction]: Name a prime.\n[End]\n**[New Answer]:** Seven.\n[End]",
    "heading tags": "## [New Instruction]\nName a prime.\n## [End]\n## [New Answer]\nSeven.\n## [End]",
    "code tags": "`[New Instruction]`\nName a prime.\n`[End]`\n`[New Answer]`\nSeven.\n`[End]`",
    "escaped tags": "\\[New Instruction\\]\nName a prime.\n\\[End\\]\n\\[New Answer\\]\nSeven.\n\\[End\\]",
    "lower case, blanks": "[new instruction]\nName a prime.\n[ end ]\n[ NEW  ANSWER ]\nSeven.\n[END]",
    "named ends": "[New Instruction]\nName a prime.\n[End of New Instruction]\n[New Answer]\nSeven.\n[/New Answer]",
    "start tags": "[New Instruction]\n[Start]\nName a prime.\n[End]\n[New Answer][Start]Seven.\n[End]",
    "other word for new": "[Improved Instruction]\nName a prime.\n[End]\n[Revised Response]\nSeven.\n[End]",
    "inline [End]": "[New Instruction]\nName a prime. [End]\n\n[New Answer]\nSeven. **[End]**",
    "doubled [End]": "[New Instruction]\nName a prime. [End]\n[End]\n[New Answer]\nSeven. [End][End]",
    "inline [End], then talk": "[New Instruction]\nName a prime. [End]\n[New Answer]\nSeven. [End]\nThat is all",
    "one line": "[New Instruction] Name a prime. [End] [New Answer] Seven. [End]",
    "mid-line tags": "Done: [New Instruction] Name a prime. [End]\nAnd: [New Answer] Seven. [End]",
    "wrong order": "[New Answer]\nSeven.\n[End]\n[New Instruction]\nName a prime.\n[End]",
    "reply in a fence": f"```\nVague.\n\n{PAIR}\n```",
    "sections in a fence": f"Vague.\n\n```text\n{PAIR}\n```",
    "each section in a fence": "[New Instruction]\n```\nName a prime.\n```\n[End]\n[New Answer]\n```\nSeven.\n```\n[End]",
    "fence closed after [End]": "[New Instruction]\nName a prime.\n[End]\n[New Answer]\n```\nSeven.\n[End]\n```",
    "tag doubled": "[New Instruction]\n[New Instruction]\nName a prime.\n[End]\n[New Answer]\n\n[New Answer]\nSeven.\n[End]",
    "tags named in the critique": f"The [New Instruction] is clearer and the [New Answer] longer.\n{PAIR}",
    "tag at the start of a line of the critique": f"[New Answer] must be longer.\n[New Instruction] must be clear.\n\n{PAIR}",
    "form echoed first": f"[New Instruction]\n{INSTRUCTION_PLACEHOLDER}\n[End]\n[New Answer]\n…\n[End]\n{PAIR}",
    "draft first": f"[New Instruction]\nDraft.\n[End]\n[New Answer]\nA draft.\n[End]\nBetter:\n{PAIR}",
    "named again at the end": f"{PAIR}\n[New Instruction] is now clear.\n[New Answer] is now right.",
    "reasoning": f"<think>Draft: {PAIR}</think>\n{PAIR}",
    "reasoning without its opening tag": f"Draft:\n{PAIR.replace('Seven', 'Two')}\n</think>\n\n{PAIR}",
    "editing voice": PAIR.replace("Name", "Here is the new instruction:\nName").replace("Seven.", "New Answer: Seven."),
}


@pytest.mark.parametrize("reply", FORMS.values(), ids=FORMS)
def test_a_pair_is_recovered(reply):
    assert pair(reply) == ("Name a prime.", "Seven.", None)


RESPONSE_FORMS = {
    "as requested": "Vague.\n[Better Answer]\nSeven.\n[End]",
    "no closing tag": "Vague.\n[Better Answer]\nSeven.",
    "label": "Vague.\n### Better Answer:\nSeven.",
    "another step's tag": "Vague.\n[New Answer]\nSeven.\n[End]",
    "an unasked section": "Vague.\n[Better Answer]\nSeven.\n[New Instruction]\nName a prime.\n[End]",
    "mid-line": "Vague. So: **[Better Answer]** Seven. [End]",
    "bold tag": "Vague.\n**[Better Answer]**\nSeven.\n**[End]**",
    "last complete one": "Vague.\n[Better Answer]\nSix.\n[End]\n[Better Answer]\nSeven.\n[End]\n[Better Answer] is odd",
    "looped until the limit": "Vague.\n" + "[Better Answer]\nSeven.\n[End]\n" * 9,
}


@pytest.mark.parametrize("reply", RESPONSE_FORMS.values(), ids=RESPONSE_FORMS)
def test_a_response_is_recovered(reply):
    found = parse_response_reflection(reply)
    assert (found.instruction, found.output, found.error) == (None, "Seven.", None)
    assert found.critique is not None and found.critique.startswith("Vague.")


@pytest.mark.parametrize(
    ("reply", "critique"),
    [
        (f"  Vague.\n\n- Short.\n{PAIR}", "Vague.\n\n- Short."),
        (f"```\nVague.\n{PAIR}\n```", "Vague."),
        (f"<think>Hm.</think>\nVague.\n{PAIR}", "Vague."),
        (PAIR, None),
        (f"---\n{PAIR}", None),
        ("Vague.\n[New Instruction]\nName a prime.\n[End]", "Vague."),
        ("Vague, and the answer is", "Vague, and the answer is"),
        ("I'm sorry, but I can't help with that.", None),
    ],
)
def test_the_critique_is_what_stands_before_the_result(reply, critique):
    assert parse_instruction_reflection(reply).critique == critique


# --- Where a section ends ------------------------------------------------------------------------------------------------

KEPT_WHOLE = {
    "ends of words": "Protect Endangered species.\nThe End\nEND OF FILE\nEnd\n(End)\n# End\nEnding.",
    "[End] in prose": "The block goes from [Start] to [End]\nand is then parsed.",
    "[End] in mid-line": 'Call stop("[End]") and return.',
    "[End] in inline code": "A section stops at `[End]`\nwhatever follows.",
    "[End] in a code block": "```ini\n[Start]\nx = 1\n[End]\n```\nThat is the file.",
    "another tag": "[End of File]\n[Ending]\n[The End]\nDone.",
    "a code answer": "```python\nprint('hi')\n```",
    "two bare fences": "```\na\n```\nand\n```\nb\n```",
    "bold at the edges": "**Yes**, it is **true**",
    "a list": "* one\n* two",
    "a label in the text": "Dear Ann,\nNew response: none yet.",
    "thinking in code": "Use it so:\n<think>\nHm.\n</think>\nDone.",
    "an unclosed thought": "Models open with\n<think>\nand close it later.",
}


@pytest.mark.parametrize("text", KEPT_WHOLE.values(), ids=KEPT_WHOLE)
@pytest.mark.parametrize("end", ["\n[End]", "\n[End]\nBye.", "\n**[End]**", " [End]", " [End]\n[End]\nBye."])
def test_text_that_only_looks_like_a_tag_is_kept(text, end):
    assert parse_response_reflection(f"[Better Answer]\n{text}{end}").output == text


@pytest.mark.parametrize("text", KEPT_WHOLE.values(), ids=KEPT_WHOLE)
def test_text_that_only_looks_like_a_tag_is_kept_without_a_closing_tag(text):
    assert parse_response_reflection(f"[Better Answer]\n{text}").output == text


def test_fault_03_the_bare_word_end_closes_nothing():
    reply = "[New Instruction]\nHow to Protect Endangered species?\n[End]\n[New Answer]\nEnd poaching. The End\n[End]"
    assert pair(reply) == ("How to Protect Endangered species?", "End poaching. The End", None)
    assert answer("Protect Endangered species") == "Protect Endangered species"


def test_emphasis_of_the_text_is_not_taken_for_emphasis_of_the_tag():
    assert parse_response_reflection("[Better Answer] **Yes** and **no**[End]").output == "**Yes** and **no**"
    assert parse_response_reflection("**[Better Answer]**: * one\n* two").output == "* one\n* two"


def test_a_bare_fence_is_decoration_only_around_the_whole():
    assert answer("```\nSeven.\n```") == "Seven."
    assert answer("```\nRun:\n```sh\nls\n```\nDone.\n```") == "Run:\n```sh\nls\n```\nDone."
    assert answer("```\nls\n```\nlists files.") == "```\nls\n```\nlists files."


# --- Errors --------------------------------------------------------------------------------------------------------------


def test_fault_02_every_well_formed_reply_gives_its_response():
    replies = [f"Analysis {n}.\n[Better Answer]\nAnswer {n}.\n[End]" for n in range(20)]
    assert [parse_response_reflection(reply).output for reply in replies] == [f"Answer {n}." for n in range(20)]


@pytest.mark.parametrize("body", ["N/A", "n/a.", "[N/A]", "", "None", "..."])
def test_fault_04_an_instruction_without_its_answer_is_no_pair(body):
    found = parse_instruction_reflection(f"Vague.\n[New Instruction]\nName a prime.\n[End]\n[New Answer]\n{body}\n[End]")
    assert found == Reflection("Vague.", None, None, "placeholder" if body else "empty")


def test_fault_04_a_missing_answer_is_no_pair():
    found = parse_instruction_reflection("Vague.\n[New Instruction]\nName a prime.\n[End]\n")
    assert found == Reflection("Vague.", None, None, "unparsable")


@pytest.mark.parametrize(
    ("reply", "finish_reason", "error"),
    [
        (PAIR, "length", None),
        (f"{PAIR}\n[New Instruction]\nName a pri", "length", None),
        (PAIR.removesuffix("\n[End]"), "stop", None),
        (PAIR.removesuffix("\n[End]"), None, None),
        (PAIR.removesuffix("\n[End]"), "length", "truncated"),
        (PAIR.removesuffix("\nSeven.\n[End]"), "length", "truncated"),
        ("[New Instruction]\nName a prime.\n[End]\n", "length", "truncated"),
        ("[New Instruction]\nName a pri", "length", "truncated"),
        ("The instruction is va", "length", "truncated"),
        ("<think>The instruction is va", "length", "truncated"),
        (f"[New Instruction]\n…\n[End]\n[New Answer]\n…\n[End]\n{PAIR[:40]}", "length", "truncated"),
        (f"[New Answer] must be longer.\n{PAIR[:-8]}", "length", "truncated"),
        (PAIR.replace("Seven.", "N/A"), "length", "placeholder"),
    ],
)
def test_truncation(reply, finish_reason, error):
    assert parse_instruction_reflection(reply, finish_reason).error == error


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("", "empty"),
        (" \n\t\u200b\x00", "empty"),
        ("<think>All of it.", "empty"),
        ("[Better Answer]\n[End]", "empty"),
        ("[Better Answer]", "empty"),
        ("[Better Answer]\nHere is the improved answer:\n[End]", "empty"),
        ("The answer is fine as it is.", "unparsable"),
        ("The [Better Answer] should be longer.", "unparsable"),
        ("[Better Answer]\nSeven, see the [New Answer] above.\n[End]", "unparsable"),
        ("I’m sorry, but I can’t assist with that.", "refused"),
        ("[New Instruction]\nName a prime.\n[End]", "unparsable"),
    ],
)
def test_errors(reply, error):
    found = parse_response_reflection(reply)
    assert (found.instruction, found.output, found.error) == (None, None, error)


def test_parts_of_two_drafts_are_never_paired():
    drafts = "[New Instruction]\nDraft.\n[End]\n[New Answer]\nOld.\n[End]\n[New Instruction]\nName a prime.\n[End]\n"
    assert pair(drafts + "[New Answer]\nSev", "length") == ("Draft.", "Old.", None)
    assert pair("[New Instruction]\nDraft.\n[End]\n[New Answer]\nN/A\n[End]\n[New Instruction]\nX\n[End]")[:2] == (None, None)


PLACEHOLDERS = [
    INSTRUCTION_PLACEHOLDER,
    ANSWER_PLACEHOLDER,
    "The answer, and nothing else.",
    "...",
    "…",
    "[…]",
    "your new instruction",
    "**Your new answer here**",
    "<new answer here>",
    "(better answer)",
    "[insert answer]",
    "[Insert your new answer here]",
    "{answer}",
    "N/A",
    "n/a",
    "TBD",
    "Not applicable",
    "(None)",
    "Same as above.",
    "No change needed",
    "No changes are needed.",
    "[Your improved response]",
    "Better Answer: (the answer, and nothing else)",
]
ANSWERS = [
    "None of them",
    "None",
    "4",
    "No.",
    "N",
    "Na",
    "NA",
    "-",
    "?",
    "🙂",
    "The answer",
    "No change",
    "The same as above, but in red.",
    "Nothing else.",
    "(a)",
    "[1, 2]",
]


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_placeholders(text):
    assert answer(text) == "PLACEHOLDER"
    assert pair(PAIR.replace("Name a prime.", text)) == (None, None, "placeholder")


@pytest.mark.parametrize("text", ANSWERS)
def test_short_answers_are_no_placeholders(text):
    assert answer(text) == text


def test_the_prompts_own_form_holds_nothing():
    prompts = Prompts()
    assert parse_instruction_reflection(prompts.instruction).error == "placeholder"
    assert parse_response_reflection(prompts.response).error == "placeholder"


REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, but I can’t help with this request.",
    "I am very sorry, but I am unable to fulfill your request.",
    "Sorry, I can't help you with that.",
    "I cannot assist with that request, but I can suggest something else.",
    "I can't do that.",
    "Unfortunately, I cannot provide instructions on this topic.",
    "I apologize, but I'm not able to generate such content.",
    "As an AI language model, I can't do that.",
    "As an AI, I cannot feel pain.",
    "I won't be able to write this kind of content.",
]
NO_REFUSALS = [
    "I'm sorry to hear that you are ill.",
    "Dear Ann,\nI am sorry that I cannot attend your party.",
    "I'm sorry, but I can't attend the meeting on Monday.",
    "I can't wait to see you!",
    "I cannot complete the marathon this year.",
    "I cannot recommend this book enough.",
    "As an AI language model, I cannot taste food, but most people like pizza with cheese.",
    "Sorry is a song.",
    "As an AI language model, I have no preferences. Here are the facts.",
    "I can't help but smile.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text):
    assert answer(text) == "REFUSED"
    assert parse_instruction_reflection(text).error == "refused"
    assert parse_response_reflection(f"Hello. {text}").error == "refused"
    assert pair(PAIR.replace("Seven.", text)) == (None, None, "refused")


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_answers_that_are_no_refusals(text):
    assert answer(text) == text
    assert parse_response_reflection(text).error == "unparsable"


def test_a_long_answer_is_no_refusal():
    text = "I can't help with this in full. " + "It depends on where you live. " * 30
    assert answer(text) == text.strip()


# --- Reasoning -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<think>a</think>b", "b"),
        ("<THINKING>\na\n</Thinking>\n\nb", "b"),
        ("<reasoning>a</reasoning>\nb", "b"),
        ("<think>\n\n</think>\n\nb", "b"),
        ("a</think>b", "b"),
        ("<think>a", ""),
        ("<think>[Better Answer]\na\n[End]", ""),
        ("<think>a</think><think>b</think>c", "c"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("a <think>b</think> c", "a  c"),
        ("a\n<think>b", "a"),
        ("<think>Close it.</think>The tag </think> closes.", "The tag </think> closes."),
        ("It lacks a <think> tag.\n[New Answer]\nb", "It lacks a <think> tag.\n[New Answer]\nb"),
        ("[New Answer]\nb</think>\n[End]", "[New Answer]\nb</think>\n[End]"),
        ("[New Instruction]\na</think>\n[New Answer]\nb", "[New Instruction]\na</think>\n[New Answer]\nb"),
        ("<think>a</think>[New Answer]\n```\n<think>b</think>\n```", "[New Answer]\n```\n<think>b</think>\n```"),
        ("no tags \n", "no tags \n"),
        ("think > reasoning </ think>", "think > reasoning </ think>"),
        ("<seed:think>8 1?</seed:think>3 8", "3 8"),
        ("◁think▷a\n◁/think▷\n3 8", "3 8"),
        (" [THINK]a[/THINK]\n[THINK]b[/THINK] 3 8", "3 8"),
        ("[THINK]8 1", ""),
        ("[THINK]a[/THINK]Write [THINK] … [/THINK].", "Write [THINK] … [/THINK]."),
        ("Its mark is [THINK].\n[THINK] opens, [/THINK] closes. ", "Its mark is [THINK].\n[THINK] opens, [/THINK] closes. "),
        ("a◁/think▷b ◁think▷", "a◁/think▷b ◁think▷"),
        ("<|channel|>analysis<|message|>8 1?<|end|><|start|>assistant<|channel|>final<|message|>3 8<|return|>", "3 8"),
        ("<|channel|>analysis 8 1?<|channel|>final<|message|>3 8", "3 8"),
        ("<|start|>assistant<|channel|>final <|constrain|>json<|message|>{}", "{}"),
        ("<|channel|>analysis<|message|>8 1", ""),
        ("<|channel|>final<|message|>Write <|channel|>final<|message|>.", "Write <|channel|>final<|message|>."),
        ("It writes <|channel|>analysis<|message|> first.", "It writes <|channel|>analysis<|message|> first."),
    ],
)
def test_strip_reasoning(text, reply):
    assert strip_reasoning(text) == reply


def test_reasoning_at_the_start_of_a_section_never_reaches_the_pair():
    assert answer("<think>Hm.</think>\nSeven.") == "Seven."
    assert answer("<think>Hm.") == "EMPTY"
    assert answer("<seed:think>Hm.</seed:think>\nSeven.") == "Seven." and answer("[THINK]Hm.") == "EMPTY"


# --- Editing voice -------------------------------------------------------------------------------------------------------

LEADS = [
    "Here is the improved answer:\n",
    "Here's a new and complete answer to the instruction:\n\n",
    "Here’s a better response: ",
    "**Here is the revised answer:**\n\n",
    "Here is a more detailed answer to the user's question:\n",
    "Here is an improved version:\n",
    "Here is the improved answer.\n\n",
    "Better Answer:\n",
    "Better Answer: ",
    "Revised response:\n",
    "### Improved Answer\n",
    "Sure! Here is the revised response:\n",
    "Certainly, here is the new instruction:\n",
    "Based on the analysis, here is a revised, more detailed answer:\n",
    "A better answer would be: ",
    "The improved response is as follows:\n",
    "Here is the improved answer:\nBetter answer: ",
]
TRAILS = [
    "\n\nThis revised answer addresses the question in full.",
    " This improved response provides more detail.",
    "\nThe new instruction is more specific and asks for reasons.",
    "\n\n[Note: I have expanded on the second point.]",
    "\n\n(Note: I've added an example.)",
    "\nI hope this improved answer helps.",
    " I hope this improved answer helps! Let me know.",
    "\n\n*Note: This revised answer is more complete.*",
    "\nI have revised the original answer to include an example.",
    "\nThis improved version of the answer covers all points.",
    "\n\nNote: This answer has been revised to be more helpful.",
    "\n\nCompared to the original answer, it is longer.",
    "\n\nThis new answer adds a source. This revised answer is better.",
]
OWN_WORDS = [
    "Here is a list of fruits:\n1. Apple",
    "Here is the letter:\nDear Ann,",
    "Sure! This recipe is easy.",
    "Sure! Here is a recipe:\nMix it.",
    "Here is a revised version of the paragraph:\nIt rained.",
    "Here is a reply to your new instruction:\nNo.",
    "Here is a new response to the customer's complaint:\nDear Sir,",
    "The new response team was deployed.",
    "Seven. The new answer is 42.",
    "Wait for me. I hope this helps!",
    "Use a set. This improved version is faster.",
    "Dear Ann,\nNote: I have added the invoice.",
    "It rained. I have updated the response to the client.",
    "New instructions: none.",
    "A better answer is hard to find.",
    "Better late than never.",
]


@pytest.mark.parametrize("lead", LEADS)
def test_editing_voice_at_the_start_goes(lead):
    assert strip_editing_voice(f"{lead}Paris is a city.") == "Paris is a city."
    assert answer(f"{lead}Paris is a city.") == "Paris is a city."


@pytest.mark.parametrize("trail", TRAILS)
def test_editing_voice_at_the_end_goes(trail):
    assert strip_editing_voice(f"Paris is a city.{trail}") == "Paris is a city."
    assert pair(PAIR.replace("Seven.", f"Seven.{trail}")) == ("Name a prime.", "Seven.", None)


@pytest.mark.parametrize("text", OWN_WORDS)
def test_the_texts_own_words_stay(text):
    assert strip_editing_voice(text) == text


def test_editing_voice_inside_the_text_stays():
    text = "He said:\nHere is the improved answer:\nParis.\nThis revised answer addresses it.\nThen he left."
    assert strip_editing_voice(text) == text


# --- Properties ----------------------------------------------------------------------------------------------------------

PARSERS = [parse_instruction_reflection, parse_response_reflection]
TAGS = ["[New Instruction]", "[New Answer]", "[Better Answer]", "[End]", "[Start]", "[/New Answer]", "New Answer:"]
FRAGMENTS = [*TAGS, *PLACEHOLDERS[:8], *LEADS[:4], *TRAILS[:4], *REFUSALS[:2], "### ", "**", "```", "```python", "<think>"]
fragments = st.sampled_from([*FRAGMENTS, "</think>", "\n", "\n", "\n", " ", "text", "4", "[", "]", "\ud800", "\x00", ":"])
replies = st.one_of(
    st.text(st.characters()),
    st.lists(fragments, max_size=30).map("".join),
    st.lists(st.one_of(fragments, st.text(max_size=5)), max_size=30).map("\n".join),
)
ANY_TAG = re.compile(r"\[(?:new|better) (?:instruction|answer)\]|^\s*\[end\]\s*$", re.I | re.M)
CODE = re.compile(r"^ {0,3}```.*?^ {0,3}```", re.S | re.M)


@pytest.mark.parametrize("parse", PARSERS)
@given(replies, st.sampled_from(["stop", "length", None]))
@settings(quick, max_examples=1000)
def test_any_reply_gives_a_whole_result_or_one_error(parse, reply, finish_reason):
    found = parse(reply, finish_reason)
    if found.error:
        assert found.error in ERRORS and found.instruction is None and found.output is None
        return
    texts = [found.output] if parse is parse_response_reflection else [found.instruction, found.output]
    assert parse is parse_instruction_reflection or found.instruction is None
    for text in texts:
        assert text and text == text.strip()
        assert text.encode()  # no lone surrogates: Arrow takes it
        assert not ANY_TAG.search(CODE.sub("", text))
        assert strip_editing_voice(text) == text
        assert parse(f"[New Instruction]\n{text}\n[End]\n[New Answer]\n{text}\n[End]").error != "placeholder"


def is_clean(text: str) -> bool:
    looks_special = re.search(r"\[|```|<|new|better|improved|sorry|cannot", text, re.I)
    return bool(text.strip()) and any(c.isprintable() and not c.isspace() for c in text) and not looks_special


clean = st.text(min_size=1).filter(is_clean).filter(lambda text: not is_placeholder(text, none_is_text=False))


@given(clean, clean, st.sampled_from(["\n", "\n\n", "\r\n"]))
@example("New York", "...but", "\n")
@quick
def test_well_formed_replies_round_trip(instruction, output, gap):
    reply = gap.join(["Vague.", "[New Instruction]", instruction, "[End]", "[New Answer]", output, "[End]"])
    assert parse_instruction_reflection(reply) == Reflection("Vague.", instruction.strip(), output.strip(), None)
    reply = gap.join(["Vague.", "[Better Answer]", output, "[End]", "Bye."])
    assert parse_response_reflection(reply, "length") == Reflection("Vague.", None, output.strip(), None)


@given(st.lists(st.sampled_from([*LEADS, *TRAILS, *OWN_WORDS, "\n", " ", "**", "Paris."]), max_size=12).map("".join))
@example("Here is the improved answer. This revised answer addresses it.")
@quick
def test_stripping_the_editing_voice_is_idempotent(text):
    once = strip_editing_voice(text)
    assert strip_editing_voice(once) == once


@given(st.text(), st.text())
@quick
def test_what_is_not_a_string_of_tags_is_left_alone_by_strip_reasoning(before, after):
    assume("<" not in before + after)
    assert strip_reasoning(before + after) == before + after
    assert strip_reasoning(f"<think>{before}</think>{after}") == after.strip()


N = 10_000
HOSTILE = {
    "brackets": "[" * 50 * N,
    "closing brackets": "]" * 50 * N,
    "stars": "*" * 50 * N,
    "backticks": "`" * 50 * N,
    "blanks": " " * 50 * N + "x",
    "blank lines": "\n" * 50 * N + "x",
    "blank tags": "[ \t" * 10 * N,
    "thoughts": "<think>" * 10 * N,
    "nested thoughts": "<think>" * 5 * N + "</think>" * 5 * N,
    "other thoughts": "[THINK]" * 10 * N,
    "thought after thought": "[THINK][/THINK]\n" * 5 * N,
    "blanks before no thought": " " * 50 * N + "[THIN",
    "channels": "<|channel|>final " * 5 * N,
    "open fences": "[Better Answer]\n" + "```x\n" * 10 * N,
    "fences": "[Better Answer]\n" + "```\n[End]\n" * 5 * N,
    "fence of blanks": "[Better Answer]\n" + "``` a" + " " * 50 * N + "`",
    "sections": "[Better Answer]\nx\n[End]\n" * 3 * N,
    "tags": "[New Instruction][New Answer]" * 3 * N,
    "mentions": "x [New Answer]" * 3 * N,
    "inline ends": "[Better Answer] " + "x [End]  \n" * 5 * N,
    "ends and blanks": "[Better Answer] " + "x [End]" + " \n" * 20 * N + "x",
    "leads": "[Better Answer]\n" + "Better Answer: Here is the improved answer: " * 2 * N,
    "trails": "[Better Answer]\nx" + " This revised answer addresses it." * 2 * N,
    "note after note": "[Better Answer]\n" + "\nI hope this improved answer helps." * 2 * N,
    "rules": "[Better Answer]\nx" + "\n---" * 10 * N,
    "quotes": "> " * 20 * N + "[End",
    "apologies": "I'm sorry, but I can't " * 3 * N,
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE)
def test_hostile_replies_take_linear_time(reply):
    start = time.perf_counter()
    for parse in PARSERS:
        parse(reply)
    # A quadratic step takes minutes at this size, a linear one about a second.
    assert time.perf_counter() - start < 15


def test_a_parser_of_other_bytes_is_another_version(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(Path(parsing.__file__).parent, tmp_path / "parsing"))

    def version() -> str:
        return runpy.run_path(str(copy / "__init__.py"))["PARSER_VERSION"]

    assert version() == parsing.PARSER_VERSION
    (copy / "wording.py").write_bytes((copy / "wording.py").read_bytes() + b"# changed\n")
    assert version() != parsing.PARSER_VERSION
