r"""A teacher's reply -> a reflection or an error code. Pure, never raises, time linear in the length of the reply.

The requested form is an analysis, then `[New Instruction] … [End] [New Answer] … [End]` or `[Better Answer] … [End]`
(the published grammar). Real replies bend it. This is how one is read:

- **A section starts** at its tag at the start of a line or right behind an [End], with or without markdown around it. If a
  section has no such tag, its label counts (`New Answer:`, `### New Answer`), else its tag in mid-line if an [End] closes it.
- **A section ends** at the first [End] alone on its line, else at the last [End] that ends a line and stands after a full
  stop or before a tag, a blank line or nothing. An [End] inside a closed code fence is code; the bare word "End" is text
  (a fault of the published code). Without an [End] the section runs to the next tag or to the end of the reply.
- **A result** is an instruction and its neighbour, the answer, never parts of two drafts. Tags repeat, as an echo in the
  analysis or in a loop: the last complete result wins. A pair is whole or it is an error (the published code mixes them).
- **A tag left inside a section** means that the tags cannot be told apart. That is `unparsable`, not a guess.

In the patterns everything that a teacher can repeat is bounded or disjoint from what follows, so no reply can stall a run.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from srt_hf.parsing.wording import (
    COLON,
    EDITED,
    FLAGS,
    LABELLED,
    MARKS,
    NAME,
    is_blank,
    is_placeholder,
    is_refusal,
    opens_with_reasoning,
    strip_editing_voice,
    without_opening_reasoning,
)

# Digest of the parser's own source, so that what another parser read is never taken from the cache of `Dataset.map`.
PARSER_VERSION = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()

INSTRUCTION, ANSWER = "instruction", "answer"

_AFTER = rf"(?:[*_`]{{1,3}}(?=[\s:]|\Z))?(?:{COLON})?(?:[ \t]{{0,3}}#{{1,6}}(?=[ \t]*$))?"
_BRACKETS = rf"\\?\[[ \t*_]{{0,4}}(?:start of )?(?:the )?{NAME}[ \t*_:]{{0,4}}\\?\]"

_TAG = re.compile(rf"(?:^|(?:(?<=end\])|(?<=think>)|(?<=ing>))[ \t]{{0,4}}){MARKS}{_BRACKETS}{_AFTER}", FLAGS)
_LABEL = re.compile(rf"^{LABELLED}", FLAGS)
_MENTION = re.compile(rf"(?:(?<!\S)[*_`]{{1,3}})?{_BRACKETS}{_AFTER}", FLAGS)
_START = re.compile(r"[*_`]{0,3}\[(?:start|begin)\][*_`]{0,3}:?", FLAGS)
_END = re.compile(
    r"(?:(?P<alone>^[ \t>#*_~]*`{0,2}[*_]{0,3})|(?<!`)(?:(?<!\S)[*_]{1,3})?)"
    rf"(?:\\?\[[ \t*_]{{0,4}}(?:/?end|(?:/|end (?:of )?(?:the )?)(?:{EDITED} )?(?:instruction|answer|response))"
    r"[ \t*_]{0,4}\\?\][ \t*_`~.\r]*){1,3}(?=\n|\Z)",
    FLAGS,
)
_FULL_STOPS = (*'.!?…")”*', "```")
_PAUSE = re.compile(r"\n[ \t\r]*(?:\n|\Z)|\Z")
_FENCE = re.compile(r"^[ \t]{0,3}(?P<ticks>`{3,})(?P<language>[^`\n]*[^`\s])?[ \t\r]*$", FLAGS)
_RULE = re.compile(r"\n[ \t]*[-*_]{3,9}\Z")  # between sections that lack their [End]
_WRAPPINGS = 3  # layers around a text that are taken off; bounded, so that the time stays linear
_THOUGHT = re.compile(r"(?P<line>^[ \t]*)?<(?P<close>/?)(?:think|thinking|reasoning)>", FLAGS)


@dataclass(frozen=True)
class Reflection:
    """What a reply holds. With an `error` (a code of `schema.ERRORS`) there is no instruction and no output: no half pairs."""

    critique: str | None
    instruction: str | None
    output: str | None
    error: str | None


@dataclass(frozen=True)
class _Section:
    name: str
    start: int  # offset of its tag in the reply
    text: str
    closed: bool
    error: str | None


def parse_instruction_reflection(reply: str, finish_reason: str | None = "stop") -> Reflection:
    """Read `[New Instruction] … [End] [New Answer] … [End]` (paper eq. 4-6).

    >>> parse_instruction_reflection("Vague.\\n[New Instruction]\\nAdd 2 and 2.\\n[End]\\n[New Answer]\\n4\\n[End]")
    Reflection(critique='Vague.', instruction='Add 2 and 2.', output='4', error=None)
    """
    return _parse(reply, (INSTRUCTION, ANSWER), cut=finish_reason == "length")


def parse_response_reflection(reply: str, finish_reason: str | None = "stop") -> Reflection:
    """Read `[Better Answer] … [End]` (paper eq. 7-9); `instruction` is always None.

    >>> parse_response_reflection("Too short.\\n[Better Answer]\\nProtect Endang", finish_reason="length")
    Reflection(critique='Too short.', instruction=None, output=None, error='truncated')
    """
    return _parse(reply, (ANSWER,), cut=finish_reason == "length")


def _parse(reply: str, needed: tuple[str, ...], cut: bool) -> Reflection:
    text = strip_reasoning(readable(reply))
    sections = _sections(text, needed, cut)
    result = _last_result(sections, needed)
    error = _error(text, sections, result, cut)
    critique = None if error == "refused" and not result else _critique(text, result or sections)
    if error:
        return Reflection(critique, None, None, error)
    found = {section.name: section.text for section in result}
    return Reflection(critique, found.get(INSTRUCTION), found[ANSWER], None)


def readable(reply: str) -> str:
    """`reply` without lone surrogates, which Arrow's UTF-8 has not: half an emoji in one reply must not stop the whole map."""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", reply)


def _error(text: str, sections: list[_Section], result: list[_Section], cut: bool) -> str | None:
    """Why the reply holds no result. Whatever else is wrong, a reply that stopped in mid-section was truncated."""
    if not sections and is_refusal(text, reach=100):
        return "refused"
    error = next((section.error for section in result if section.error), None)
    if result and (error is None or (cut and sections[-1] in result and sections[-1].closed)):
        return error
    if cut:
        return "truncated"
    return error or ("empty" if is_blank(text) else "unparsable")


def _critique(text: str, sections: list[_Section]) -> str | None:
    critique = _unwrapped((text[: sections[0].start] if sections else text).strip())
    return critique if any(map(str.isalnum, critique)) else None


# What is reasoning and what is reply.


def strip_reasoning(text: str) -> str:
    """`text` without the `<think>…</think>` blocks before its first section tag; a text without any comes back unchanged.

    A block without its opening tag starts where the text starts (DeepSeek's chat template opens it in the prompt), one that
    is never closed takes all the rest. Behind the first section tag `<think>` is a word of the answer. The marks of
    other models count where the text begins with them (`wording.without_opening_reasoning`).

    >>> strip_reasoning("Easy: [New Answer] 4</think>\\n[New Answer]\\nWrite <think> first.")
    '[New Answer]\\nWrite <think> first.'
    """
    text = without_opening_reasoning(text)
    thoughts = list(_THOUGHT.finditer(text))
    if not thoughts:
        return text
    tokens = sorted([*thoughts, *_TAG.finditer(text), *_LABEL.finditer(text)], key=lambda token: token.start())
    roles = [*map(_role, tokens), "end"]
    kept: list[str] = []
    start, nested, inside = 0, 0, _starts_inside(roles)
    for place, token in enumerate(tokens):
        role = roles[place]
        if inside:
            nested += role == "open"
            start, inside = token.end(), role != "close"
        elif role == "open" and (token["line"] is not None or roles[place + 1] == "close"):
            kept.append(text[start : token.start()])
            inside = True
        elif role == "close" and nested:  # what was kept stood before the second end of a nested block
            kept, start, nested = [], token.end(), nested - 1
        elif role in (INSTRUCTION, ANSWER):
            break
    return "".join([*kept, "" if inside else text[start:]]).strip()


def _role(token: re.Match[str]) -> str:
    """open | close for a reasoning tag, the section's name for a section tag."""
    if token.re is _THOUGHT:
        return "close" if token["close"] else "open"
    return INSTRUCTION if token["noun"].lower() == INSTRUCTION else ANSWER


def _starts_inside(roles: list[str]) -> bool:
    """Whether the text starts in the middle of reasoning: the first reasoning tag closes, and what stands before is a draft.

    Sections are drafts if each of them comes again. If not, the closing tag is a word of an answer.
    """
    first = min(roles.index(role) for role in ("open", "close") if role in roles)
    return roles[first] == "close" and set(roles[:first]) <= set(roles[first:])


# What the sections are and which of them are the result.


def _sections(text: str, needed: tuple[str, ...], cut: bool) -> list[_Section]:
    heads = _heads(text, needed)
    stops = [*(head.start() for head in heads), len(text)][1:]
    return [_section(text, head, stop, needed, cut) for head, stop in zip(heads, stops, strict=True)]


def _heads(text: str, needed: tuple[str, ...]) -> list[re.Match[str]]:
    """Where sections start, for each name by the strongest sign that the reply has of it."""
    signs = [list(pattern.finditer(text)) for pattern in (_TAG, _LABEL, _MENTION)]
    heads: list[re.Match[str]] = []
    for name in (INSTRUCTION, ANSWER):
        named = [[head for head in sign if _role(head) == name] for sign in signs]
        # A section that nobody asked for is only a border, and only a real tag makes one.
        heads += next(filter(None, named), []) if name in needed else named[0]
    return sorted(heads, key=lambda head: head.start())


def _section(text: str, head: re.Match[str], stop: int, needed: tuple[str, ...], cut: bool) -> _Section:
    end = _end(text, head.end(), stop)
    body = text[head.end() : end.start()] if end else _RULE.sub("", text[head.end() : stop].rstrip())
    clean = own_text(body.strip())
    if not end and cut and stop == len(text):
        error: str | None = "truncated"
    elif not end and head.re is _MENTION:
        error = "unparsable"
    else:
        error = why_unusable(body, clean, none_is_text=INSTRUCTION not in needed)
    return _Section(_role(head), head.start(), clean, end is not None, error)


def _end(text: str, start: int, stop: int) -> re.Match[str] | None:
    """The [End] that closes the section between `start` and `stop` (module docstring)."""
    ends = list(_END.finditer(text, start, stop))
    outside = _outside_code(ends, list(_FENCE.finditer(text, start, stop)))
    alone = next((place for place, end in enumerate(outside) if end["alone"] is not None), None)
    if alone is not None:
        return _first_of_run(text, outside[: alone + 1])
    for end in reversed(outside):
        before = text[max(start, end.start() - 5) : end.start()].rstrip()
        if before.endswith(_FULL_STOPS) or _PAUSE.match(text, end.end(), stop):
            return end
    # The fence around a whole answer is sometimes closed only after the [End].
    return ends[-1] if ends and not text[ends[-1].end() : stop].strip("` \t\r\n") else None


def _first_of_run(text: str, ends: list[re.Match[str]]) -> re.Match[str]:
    """The last of `ends`, or the first of those that stand before it with nothing between them: "Seven. [End]\\n[End]"."""
    last = ends.pop()
    while ends and not text[ends[-1].end() : last.start()].strip():
        last = ends.pop()
    return last


def _outside_code(ends: list[re.Match[str]], fences: list[re.Match[str]]) -> list[re.Match[str]]:
    """The ends that are not inside a closed fence. As in CommonMark, a fence with a language or a shorter one closes none."""
    outside: list[re.Match[str]] = []
    held: list[re.Match[str]] = []  # inside a fence that may never be closed
    opening: re.Match[str] | None = None
    for token in sorted([*ends, *fences], key=lambda token: token.start()):
        if token.re is _END:
            (held if opening else outside).append(token)
        elif opening is None:
            opening = token
        elif not token["language"] and len(token["ticks"]) >= len(opening["ticks"]):
            opening, held = None, []
    return outside + held


def _last_result(sections: list[_Section], needed: tuple[str, ...]) -> list[_Section]:
    """The neighbours that make up the last complete result; failing that, the last result with its errors; else []."""
    filled = [section for section in sections if section.error != "empty"]  # a doubled tag leaves an empty one
    for order in (needed, needed[::-1]):
        for among in (filled, sections):
            windows = [among[place : place + len(order)] for place in range(len(among))]
            results = [window for window in windows if tuple(section.name for section in window) == order]
            usable = [result for result in results if not any(section.error for section in result)]
            closed = [result for result in usable if all(section.closed for section in result)]
            if results:
                return (closed or usable or results)[-1]
    return []


def own_text(body: str) -> str:
    """A section without what its writer put around the text: a start tag, reasoning, a bare fence, words about the text."""
    if start := _START.match(body):
        body = body[start.end() :].strip()
    if _THOUGHT.match(body) or opens_with_reasoning(body):
        body = strip_reasoning(body)
    for _ in range(_WRAPPINGS):  # words about the text inside a fence, or a fence inside such words
        body = strip_editing_voice(_unwrapped(body))
    return body


def _unwrapped(text: str) -> str:
    """`text` without a bare fence around the whole of it. A fence with a language is the answer's own and stays."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return text
    opens = not fences[0]["language"] and fences[0].start() == 0
    closes = not fences[-1]["language"] and fences[-1].end() == len(text)
    if len(fences) % 2:  # the other half of the decoration is outside the section
        closes = closes and not opens
    elif not (opens and closes and (len(fences) == 2 or fences[1]["language"])):
        opens = closes = False
    return text[fences[0].end() if opens else 0 : fences[-1].start() if closes else len(text)].strip()


def why_unusable(body: str, clean: str, none_is_text: bool) -> str | None:
    if is_placeholder(body, none_is_text) or is_placeholder(clean, none_is_text):
        return "placeholder"
    if is_blank(clean):
        return "empty"
    if _MENTION.search(clean):
        return "unparsable"
    return "refused" if is_refusal(clean) else None
