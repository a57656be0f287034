r"""A teacher's reply -> a reflection or an error code. Pure; never raises; time linear in the length of the reply.

The requested form is `[New Instruction] … [End] [New Answer] … [End]` or `[Better Answer] … [End]` after an analysis
(METHOD §2). Real replies bend it, so this is how a reply is read:

- **A section starts** at its tag at the start of a line (or right after an `[End]`), markdown around it allowed. Where a
  section has no such tag, its label counts (`New Answer:`, `### New Answer`), else a tag in mid-line if an [End] closes it.
- **A section ends** at the first [End] alone on its line, else at the last [End] that ends a line and has the end of a
  sentence before it or a blank line, a tag or nothing after it. An [End] inside a closed code fence is code. Without any
  the section runs to the next tag or to the end of the reply. The word "End" without brackets is text (METHOD §6, fault 3).
- **Tags repeat**, as an echo in the analysis or a reply in a loop. The last complete result wins, and the instruction and
  the answer of a result are neighbours, never from two drafts: a pair is whole or it is an error (METHOD §6, fault 4).
- **A tag left inside a section** means that the tags cannot be told apart: `unparsable`, not a guess.

Every quantifier over what a teacher can repeat is bounded or disjoint from its neighbours, so no reply can stall a run.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from srt_hf.prompts import ANSWER_PLACEHOLDER, INSTRUCTION_PLACEHOLDER

PARSER_VERSION = "1"

_FLAGS = re.IGNORECASE | re.MULTILINE
_INSTRUCTION, _ANSWER = "instruction", "answer"

# Tags and labels. `_MARKS` is the markdown before a tag ("### ", "2. **"); `_AFTER` what is left of it behind the tag, told
# apart from the text's own emphasis by the blank that follows: `**[New Answer]:** text` but `[New Answer] **bold** text`.
_EDITED = r"(?:new|better|improved|revised|updated|rewritten|enhanced|refined)"
_NAME = rf"{_EDITED}[ \t_-]{{1,3}}(?P<noun>instruction|answer|response)"
_MARKS = r"[ \t>#*_`~-]{0,12}(?:\d{1,2}[.)])?[ \t*_`~]{0,8}"
_COLON = r"[ \t]{0,3}:(?:[*_`]{1,3}(?=\s|\Z))?"
_AFTER = rf"(?:[*_`]{{1,3}}(?=[\s:]|\Z))?(?:{_COLON})?(?:[ \t]{{0,3}}#{{1,6}}(?=[ \t]*$))?"
_BRACKETS = rf"\\?\[[ \t*_]{{0,4}}(?:start of )?(?:the )?{_NAME}[ \t*_:]{{0,4}}\\?\]"
_TAG = re.compile(_BRACKETS, _FLAGS)
_TAG_FIRST = re.compile(rf"(?:^|(?<=end\])[ \t]{{0,4}}){_MARKS}{_BRACKETS}{_AFTER}", _FLAGS)
_TAG_INLINE = re.compile(rf"(?:(?<!\S)[*_`]{{1,3}})?{_BRACKETS}{_AFTER}", _FLAGS)
_LABEL = re.compile(rf"^{_MARKS}{_NAME}(?:[*_`]{{0,3}}{_COLON}|[ \t*_`#\r]{{0,12}}$)", _FLAGS)
_START = re.compile(r"\s*[*_`]{0,3}\[(?:start|begin)\][*_`]{0,3}:?", re.IGNORECASE)

_END = re.compile(
    r"(?:(?P<alone>^[ \t>#*_`~]{0,12})|(?<!`)(?:(?<!\S)[*_]{1,3})?)"
    rf"\\?\[[ \t*_]{{0,4}}(?:/?end|(?:/|end (?:of )?(?:the )?)(?:{_EDITED} )?(?:instruction|answer|response))"
    r"[ \t*_]{0,4}\\?\][ \t*_`~.\r]{0,12}(?=\n|\Z)",
    _FLAGS,
)
_PAUSE = re.compile(r"\n[ \t\r]*(?:\n|\Z)|\Z")
_FENCE = re.compile(r"^[ \t]{0,3}(?P<ticks>`{3,})(?P<language>[^`\n]*)$", re.MULTILINE)
_RULE = re.compile(r"\n[ \t]*[-*_]{3,9}[ \t]*\Z")
_THOUGHT = re.compile(r"(?P<first>^[ \t]*)?<(?P<close>/?)(?:think|thinking|reasoning)>", _FLAGS)

# Editing voice: words about the new text instead of the text. Each pattern needs an object that says so (an answer, a
# response, an instruction, a version) *and* a word that says it was edited; "Here is the letter:" is an answer's own text.
_THING = r"(?:answer|response|instruction|version)"
_MODIFIER = rf"(?:{_EDITED}|and|more|much|complete|detailed|comprehensive|thorough|clear|clearer|concise|full|final|helpful)"
_NEW_THING = (
    rf"(?:{_MODIFIER},? ){{0,4}}?(?:{_EDITED}|more (?:detailed|complete|comprehensive|specific|accurate|helpful))"
    rf",? (?:{_MODIFIER},? ){{0,4}}{_THING}\b"
)
_LEADING_VOICE = re.compile(
    r"(?P<mark>[*_]{1,3})?(?:(?:sure|certainly|of course|absolutely|okay|ok|great)[!,.:]?\s{1,2})?"
    r"(?:(?:based on|given|considering|after)[^\n,:.]{1,80}, )?(?P<here>(?:here(?:'s|’s| is)|(?:below|this|the following) is) )?"
    rf"(?:an? |the |my |your )?{_NEW_THING}"
    r"(?: (?:to|for|of) (?:[\w'’]{1,20} ){0,4}?(?:instruction|question|prompt|request|task|query|answer|response)\b)?"
    r"(?:,? (?:that|which|with|based|addressing|including|incorporating|considering)\b[^:\n]{0,120})?"
    r"(?: (?:is|would be|could be|is as follows|follows))?"
    r"(?:(?(mark)(?::(?P=mark)|(?P=mark):)|:)|(?(here)[.!]?(?(mark)(?P=mark))[ \t]*(?:\n|\Z)|(?!)))",
    re.IGNORECASE,
)
_TRAILING_VOICE = re.compile(
    r"(?:^|(?<=[.!?])[ \t])[ \t*_>]{0,4}(?:"
    rf"(?:note:? |overall,? )?(?:this|the|my) {_NEW_THING}(?<!version)(?: of the (?:answer|response|instruction))? (?:addresses|"
    r"improves|expands|elaborates|clarifies|corrects|provides|offers|includes|covers|gives|aims|ensures|adds|now|also|not only|"
    r"is (?:now |much |also )?(?:more|better|clearer|complete|comprehensive|designed))\b"
    r"|[\[(]note:? (?:that )?i(?:['’]ve| have)? (?:also )?(?:expanded|revised|improved|rewritten|corrected|updated|added|included)\b"
    r"|(?:note:? (?:that )?)?i(?:['’]ve| have) (?:also )?(?:expanded|revised|improved|rewritten|corrected|updated|enhanced)(?: on| upon)? "
    r"(?:the|this|your) (?:original |previous |old |given )?(?:answer|response|instruction)(?=[.,;:!)\]]| (?:to|by|with|so|and)\b)"
    rf"|i hope (?:that )?(?:this|the|my) {_NEW_THING}|in (?:this|the) {_NEW_THING},? i\b"
    r"|compared (?:to|with) the original (?:answer|response|instruction)\b"
    r")[^\n]*\Z",
    _FLAGS,
)
_VOICE_REACH = 600  # characters at the end of a text in which its last sentence about itself is looked for

_CANNOT = (
    r"(?:can(?:no|['’])t|can not|am unable to|['’]m unable to|am not able to|['’]m not able to|won['’]t(?: be able to)?|"
    r"will not(?: be able to)?|must decline to|have to decline to|do not feel comfortable|don['’]t feel comfortable)"
)
_REFUSAL = re.compile(
    r"(?:(?:(?:i['’]m|i am|we are) (?:very |really |so |truly )?sorry|my apologies|apologies|i apologi[sz]e|sorry|unfortunately)"
    r"[,.;:!]?\s(?:but |however,? )?)?(?P<ai>as an? (?:ai|artificial|language|responsible)[^.!?\n]{0,60}?,? )?(?:i|we) ?"
    rf"{_CANNOT} (?:(?:\w+ )?(?:assist|comply|fulfil)|(?:\w+ )?help(?: you)?(?: with|[.!]|\s*\Z)|"
    r"(?:\w+ )?(?:provide|providing|generate|create|creating|write|writing|answer|produce|rewrite|engage|discuss|do|give|process|"
    r"continue|complete|support|respond|share|participate)\b[^.!?\n]{0,80}?\b(?:this|that|such|request|content|material|instruction|topic)"
    r"|(?(ai)(?![^\n]{0,300}\b(?:but|however)\b)|(?!)))",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?:\A|[.!?:\n])[\s\"'“*]{0,4}(?=\w)")
_REFUSAL_LENGTH, _REFUSAL_START = 800, 120  # a refusal is short and comes at once

# Whole sections that stand for text. Punctuation and case do not count, so "N/A" is "n a"; "Na" (sodium) is an answer.
_STOCK = re.compile(
    r"n a|tb[ad]|to ?do|not applicable|to be (?:determined|done)|(?:the )?same(?: as (?:above|before|(?:the )?original))?|as above|see above|"
    r"unchanged|no (?:change|modification|revision)s? (?:is |are |was |were )?(?:needed|required|necessary|made)(?: (?:to|in|for) the \w+)?"
)
_SLOT = re.compile(
    r"(?P<sure>(?:insert|write|put|enter|type|place) )?(?:(?P<your>your)|the|an?)? ?(?:(?:full|complete|text of|actual) ?)*"
    rf"(?P<new>{_EDITED} )?(?:instruction|answer|response|text)(?P<here>(?: goes| comes)? here)?(?: and nothing else)?"
)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


_PROMPTS_OWN = {_plain(INSTRUCTION_PLACEHOLDER), _plain(ANSWER_PLACEHOLDER)}


@dataclass(frozen=True)
class Reflection:
    """What a reply holds. With `error` (a code of `schema.ERRORS`) there is no instruction and no output, never half a pair."""

    critique: str | None
    instruction: str | None
    output: str | None
    error: str | None


@dataclass(frozen=True)
class _Section:
    name: str
    start: int  # where its tag stands in the reply
    text: str
    closed: bool
    error: str | None


def parse_instruction_reflection(reply: str, finish_reason: str | None = "stop") -> Reflection:
    """Read `[New Instruction] … [End] [New Answer] … [End]` (paper eq. 4-6).

    >>> parse_instruction_reflection("Vague.\\n[New Instruction]\\nAdd 2 and 2.\\n[End]\\n[New Answer]\\n4\\n[End]")
    Reflection(critique='Vague.', instruction='Add 2 and 2.', output='4', error=None)
    """
    return _parse(reply, (_INSTRUCTION, _ANSWER), cut=finish_reason == "length")


def parse_response_reflection(reply: str, finish_reason: str | None = "stop") -> Reflection:
    """Read `[Better Answer] … [End]` (paper eq. 7-9). The instruction of the result is always None.

    >>> parse_response_reflection("[Better Answer]\\nProtect Endangered species.", finish_reason="length").error
    'truncated'
    """
    return _parse(reply, (_ANSWER,), cut=finish_reason == "length")


def _parse(reply: str, needed: tuple[str, ...], cut: bool) -> Reflection:
    # Arrow holds UTF-8, which has no lone surrogates; half an emoji in one reply must not stop the whole map.
    text = strip_reasoning(re.sub(r"[\ud800-\udfff]", "\ufffd", reply))
    sections = _sections(text, needed, cut)
    result = _last_result(sections, needed)
    if not result:
        error = _error_of_the_whole(text, bool(sections), cut)
        return Reflection(_critique(text, sections) if error in ("truncated", "unparsable") else None, None, None, error)
    critique = _critique(text, result)
    error = next((section.error for section in result if section.error), None)
    if error:
        went_on = not (sections[-1] in result and sections[-1].closed)
        return Reflection(critique, None, None, "truncated" if cut and went_on else error)
    found = {section.name: section.text for section in result}
    return Reflection(critique, found.get(_INSTRUCTION) if _INSTRUCTION in needed else None, found[_ANSWER], None)
