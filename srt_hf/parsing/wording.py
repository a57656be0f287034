"""What a section says: nothing, a placeholder, a refusal, or a text with words about itself around it. Pure strings."""

from __future__ import annotations

import re

FLAGS = re.IGNORECASE | re.MULTILINE
EDITED = r"(?:new|better|improved|revised|updated|rewritten|enhanced|refined)"
NAME = rf"{EDITED}[ \t_-]{{1,3}}(?P<noun>instruction|answer|response)"

# Markdown before a tag ("### ", "2. **") and what is left of it behind the tag. The blank that must follow tells it from
# the text's own emphasis: `**[New Answer]:** text` but `[New Answer] **bold** text`.
MARKS = r"[ \t>#*_`~-]{0,12}(?:\d{1,2}[.)])?[ \t*_`~]{0,8}"
COLON = r"[ \t]{0,3}:(?:[*_`]{1,3}(?=\s|\Z))?"
LABELLED = rf"{MARKS}{NAME}(?:[*_`]{{0,3}}{COLON}|[ \t*_`#\r]{{0,12}}$)"


# What other models put around their reasoning: opening mark -> closing mark, at the start of a reply and nowhere else.
_REASONING = {"<seed:think>": "</seed:think>", "◁think▷": "◁/think▷", "[THINK]": "[/THINK]"}
_OPENS = re.compile(rf"\s*({'|'.join(map(re.escape, _REASONING))})")
# gpt-oss: messages to several channels, of which `final` is the reply.
_CHANNEL = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>")
_FINAL = re.compile(r"<\|channel\|>final\b[^<\n]{0,40}(?:<\|constrain\|>[^<\n]{0,40})?<\|message\|>")
_OVER = re.compile(r"<\|(?:return|end)\|>\s*\Z")


def opens_with_reasoning(text: str) -> bool:
    """Whether `text` begins with one of the marks that `without_opening_reasoning` knows."""
    return bool(_OPENS.match(text) or _CHANNEL.match(text))


def without_opening_reasoning(text: str) -> str:
    """`text` without the reasoning that it opens with, in the marks of gpt-oss, Seed-OSS, Kimi and Magistral; else unchanged.

    Reasoning that never ends takes all the rest. Behind the start such a mark is a word of the answer.

    >>> without_opening_reasoning("[THINK]Easy.[/THINK]4"), without_opening_reasoning("Write [THINK] first.")
    ('4', 'Write [THINK] first.')
    >>> without_opening_reasoning("<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>4")
    '4'
    """
    if _CHANNEL.match(text):
        final = _FINAL.search(text)
        return _OVER.sub("", text[final.end() :]).strip() if final else ""
    start = 0
    while mark := _OPENS.match(text, start):
        closing = _REASONING[mark[1]]
        end = text.find(closing, mark.end())
        if end < 0:
            return ""
        start = end + len(closing)
    return text[start:].strip() if start else text


def is_blank(text: str) -> bool:
    """No visible character: white space, zero-width characters and NULs are nothing that a student could learn."""
    return not any(char.isprintable() and not char.isspace() for char in text)


_STOCK = re.compile(
    r"n a|tbd|tba|todo|to be determined|not applicable|unchanged|(?:as|see) above|"
    r"(?:the )?same(?: as (?:above|before|(?:the )?original(?: \w+)?))?|"
    r"no (?:change|modification|revision)s? (?:(?:is|are|was|were) )?(?:needed|required|necessary|made)(?: (?:to|in) the \w+)?"
)
_SLOT = re.compile(
    r"(?:(?:insert|write|put|enter|place) )?(?:(?:your|the|an?|full|complete) ){0,3}"
    rf"(?:{EDITED} )?(?:instruction|answer|response|text)(?: (?:goes )?here)?(?: and nothing else)?"
)
_SLOT_SIGN = re.compile(rf"\b(?:insert|write|put|enter|place|your|here|nothing else|{EDITED})\b")


def _plain(text: str) -> str:
    """Words only: punctuation and case do not count, but "N/A" is "n a", for "Na" answers a question about salt."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def is_placeholder(text: str, none_is_text: bool) -> bool:
    """Whether the whole text only stands for text, as the requested form's own placeholder does.

    "None" answers many a question, so it counts only where the reply wrote the question too or where it stands in brackets.
    """
    text = text.strip(" \t\r\n*_`\"'“”")
    if len(text) > 120:
        return False
    words, bracketed = _plain(text), text[:1] in {*"([<{"} and text[-1:] in {*")]>}"}
    if not words:
        return "…" in text or ".." in text
    if words in ("none", "null", "nil"):
        return bracketed or not none_is_text
    slot = _SLOT.fullmatch(words) and (bracketed or _SLOT_SIGN.search(words))
    return bool(slot or _STOCK.fullmatch(words))


_SORRY = r"(?:(?:i['’]m|i am|we are) (?:(?:very|really|so|truly) )?sorry|(?:my |i )?apolog(?:ies|i[sz]e)|sorry|unfortunately)"
_CANNOT = (
    r"(?:i|we)(?: (?:can(?:no|['’])t|can not|won['’]t(?: be able to)?|will not(?: be able to)?|(?:am|are) (?:unable|not able) to|"
    r"must decline to|(?:do not|don['’]t) feel comfortable)|['’]m (?:unable|not able) to)"
)
_DECLINED = (
    r"(?:assist|comply|fulfil|help(?: you)?(?: with|[.!]|\s*\Z)|"
    r"(?:provid|generat|creat|writ|answer|produc|rewrit|engag|discuss|do|giv|process|continu|complet|support|respond|shar)\w*\b"
    r"[^.!?\n]{0,80}?\b(?:(?:this|that)(?=[.,!]|\s*\Z)|(?:request|content|material|instruction|information|topic|task)s?\b))"
)
# "As an AI I cannot taste, but pizza …" is an answer; without a turn like that it is a refusal, whatever the verb.
_AS_AI = r"as an? (?:ai|artificial|large language|language|responsible)\b[^.!?,\n]{0,60},? "
_REFUSAL = re.compile(
    rf"(?:{_SORRY}[,.;:!]?\s(?:but |however,? )?)?"
    rf"(?:{_AS_AI}{_CANNOT}(?![^\n]{{0,300}}\b(?:but|however)\b)|(?:{_AS_AI})?{_CANNOT} (?:\w+ )?{_DECLINED})",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?:\n]\s{0,3}")


def is_refusal(text: str, reach: int = 0) -> bool:
    """A short text that declines at once, or in a sentence that starts in its first `reach` characters.

    "I'm sorry to hear that" opens a letter and declines nothing.
    """
    text = text.lstrip(' \t\r\n*"“')
    if len(text) > 600:
        return False
    starts = [0, *(sentence.end() for sentence in _SENTENCE.finditer(text, 0, reach))]
    return any(_REFUSAL.match(text, start) for start in starts)


# Editing voice names a thing (an answer, an instruction …) *and* says that it was edited, with nothing but modifiers between:
# "Here is the letter:" and "Here is a reply to your new instruction:" are the text's own.
_MODIFIER = rf"(?:{EDITED}|and|more|much|complete|detailed|comprehensive|thorough|clear|clearer|concise|full|final|helpful)"
_MORE = r"more (?:complete|detailed|comprehensive|thorough|specific|accurate|helpful)"
_THING = r"(?:answer|response|instruction)\b"
_NEW_THING = rf"(?:{_MODIFIER},? ){{0,4}}?(?:{EDITED}|{_MORE}),? (?:{_MODIFIER},? ){{0,4}}(?:{_THING}|version\b)"
_REWRITTEN = r"(?:also )?(?:expanded|revised|improved|rewritten|corrected|updated)(?: upon| on)?"
_LEAD = re.compile(
    r"(?:(?P<mark>[*_]{1,3})?(?:(?:sure|certainly|of course|absolutely|okay|ok|great)[!,.:]?\s{1,2})?"
    r"(?:(?:based on|given|considering|after) [^\n,:.]{1,80}, )?"
    r"(?P<here>(?:here(?:['’]s| is)|(?:below|this|the following) is) )?"
    rf"(?:(?:an?|the|my|your) )?{_NEW_THING}"
    r"(?: (?:to|for|of) (?:[\w'’]{1,20} ){0,4}?(?:instruction|question|prompt|request|task|query|answer|response)\b)?"
    r"(?:,? (?:that|which|with|based|addressing|including|incorporating)\b[^:\n]{0,120})?"
    r"(?: (?:is|would be|follows|is as follows))?"
    # Then a colon, or after "Here is" the end of the line; emphasis that was opened is closed.
    r"(?:(?(mark)(?::(?P=mark)|(?P=mark):)|:)|(?(here)[.!]?(?(mark)(?P=mark))[ \t]*(?:\n|\Z)|(?!)))"
    rf"|{LABELLED})\s*",
    FLAGS,
)
_TRAIL = re.compile(
    r"(?:^|(?<=[.!?])[ \t])[ \t*_>]{0,4}(?:note: )?(?:"
    # "This improved version is faster" may speak of a program: a version must be said to be one of an answer.
    rf"(?:overall, )?(?:this|the|my) {_NEW_THING}(?:(?<!version)|(?=[^\n]{{0,200}}\b{_THING}))[^.\n]{{0,40}}?"
    r" (?:addresses|improves|expands|elaborates|clarifies|corrects|provides|offers|includes|covers|gives|aims|ensures|adds|"
    r"not only|is (?:now |much |also )?(?:more|better|clearer))\b"
    rf"|[\[(]note: i(?:['’]ve| have)? (?:{_REWRITTEN}|added|included)\b"
    rf"|i(?:['’]ve| have) {_REWRITTEN} (?:the|this|your) (?:(?:original|previous|old|given) )?{_THING}"
    r"(?=[.!)\]]| (?:by|to) (?:\w+ing|be|include|make|provide|address|give|add|cover|ensure)\b)"
    rf"|this (?:answer|response|instruction) (?:has been|was|is now) {_REWRITTEN}\b"
    rf"|i hope (?:that )?(?:this|the|my) {_NEW_THING}"
    rf"|compared (?:to|with) (?:the|your) (?:original|previous|old) {_THING})[^\n]*\Z",
    FLAGS,
)
_TRAIL_REACH = 600  # characters at the end of a text in which its last words about itself are looked for


def strip_editing_voice(text: str) -> str:
    """`text` without words at its edges that present it as new, better or revised.

    4 % of the published outputs of the paper's model begin or end with such words.

    >>> strip_editing_voice("Here is the improved answer:\\nParis.\\n\\nThis revised answer addresses the question.")
    'Paris.'
    >>> strip_editing_voice("Here is the letter:\\nDear Ann, …")
    'Here is the letter:\\nDear Ann, …'
    """
    before = None
    while text != before:
        before = text
        text = _without_trail(_without_lead(text.strip()))
    return text


def _without_lead(text: str) -> str:
    start = 0
    while lead := _LEAD.match(text, start):
        start = lead.end()
    return text[start:]


def _without_trail(text: str) -> str:
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        reach = max(0, end - _TRAIL_REACH)
        trail = _TRAIL.search(text, text.rfind("\n", reach, end) + 1 or reach, end)
        if not trail:
            return text[:end]
        end = trail.start()
