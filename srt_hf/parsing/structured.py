"""A reply that the server constrained to a JSON schema -> a reflection. Pure, never raises.

The fields hold plain text, so nothing has to be found in them; what they say is judged as a section's text is.
"""

from __future__ import annotations

import json
import re
from typing import Any

from srt_hf.parsing import ANSWER, INSTRUCTION, Reflection, own_text, readable, strip_reasoning, why_unusable

ANALYSIS = "analysis"
_FENCED = re.compile(r"\A```\w*\s*(.*?)\s*```\Z", re.DOTALL)


def schema(step: str) -> dict[str, Any]:
    """The JSON schema of a reply to `step` (the origin of the candidate that is asked for)."""
    names = (ANALYSIS, *_results(step))
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": list(names),
        "additionalProperties": False,
    }


def parse_structured(reply: str, step: str, finish_reason: str | None = "stop") -> Reflection | None:
    """Read a reply in the form of `schema(step)`; None where it is in none of that form, so that it may hold tags.

    >>> parse_structured('{"analysis": "Vague.", "answer": "4"}', "response")
    Reflection(critique='Vague.', instruction=None, output='4', error=None)
    """
    text = strip_reasoning(readable(reply)).strip()
    fenced = _FENCED.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text, strict=False)
    except (ValueError, RecursionError):
        return Reflection(None, None, None, "truncated") if finish_reason == "length" and text.startswith("{") else None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in _results(step)):
        return None
    results = {name: readable(found[name]).strip() for name in _results(step)}
    clean = {name: own_text(text) for name, text in results.items()}
    critique = readable(str(found.get(ANALYSIS) or "")).strip() or None
    for name, text in results.items():
        error = why_unusable(text, clean[name], none_is_text=INSTRUCTION not in results)
        if error:
            return Reflection(critique, None, None, error)
    return Reflection(critique, clean.get(INSTRUCTION), clean[ANSWER], None)


def _results(step: str) -> tuple[str, ...]:
    return (INSTRUCTION, ANSWER) if step == INSTRUCTION else (ANSWER,)
