"""The teacher's prompts and the student's templates. Pure strings.

The criteria are the paper's; the wording is this project's own. The student's templates are formats and hold
byte for byte what the published scorer used, so that scores can be compared.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_hf.errors import ConfigError

SYSTEM = "You are a careful editor of instruction-tuning data. You judge strictly, then you write a better version."

INSTRUCTION_REFLECTION = """Below is one training example: an instruction, its input if it has one, and the answer.

### Instruction
{instruction}

### Input
{input}

### Answer
{output}

Work in three steps.

1. Judge the instruction. Go through each of these in turn: the complexity of its topic, the level of detail it asks for, \
the knowledge it requires, its ambiguity, and whether it involves logical reasoning or problem solving. Then judge the \
answer: its helpfulness, relevance, accuracy and level of detail. Then explain how the weaknesses of the instruction lead \
to the weaknesses of the answer.
2. From this analysis write a better instruction. It must be complete: whoever reads it sees neither the old instruction \
nor the input, so work everything that is needed from them into it.
3. Answer your new instruction as helpfully, accurately and in as much detail as possible.

{form}"""

RESPONSE_REFLECTION = """Below is one training example: an instruction, its input if it has one, and the answer.

### Instruction
{instruction}

### Input
{input}

### Answer
{output}

Work in two steps.

1. Judge the answer on helpfulness, relevance, accuracy and level of detail, each in turn, and say what is wrong or missing.
2. Write a better answer to the same instruction: complete on its own, correct, and as detailed as the instruction deserves. \
Do not mention the old answer or your analysis in it.

{form}"""

# What the requested form shows in place of text; a reply that only echoes it holds nothing (parsing.py).
INSTRUCTION_PLACEHOLDER = "(the new instruction, and nothing else)"
ANSWER_PLACEHOLDER = "(the answer, and nothing else)"

INSTRUCTION_FORM = f"""Give the analysis first. Then give the two results in exactly this form, with nothing after the last [End]:

[New Instruction]
{INSTRUCTION_PLACEHOLDER}
[End]
[New Answer]
{ANSWER_PLACEHOLDER}
[End]"""

RESPONSE_FORM = f"""Give the analysis first. Then give the result in exactly this form, with nothing after [End]:

[Better Answer]
{ANSWER_PLACEHOLDER}
[End]"""

# The same for a reply that is constrained to a JSON schema (parsing/structured.py).
JSON_FORM = """Reply with one JSON object and nothing else. Its fields are plain text: "analysis" with the analysis, {fields}."""

REMINDER = """Your reply could not be read, because it did not follow the requested form. Write the complete reply again and \
put each result between its tag and [End], each on a line of its own, with real text in place of the placeholder: {tags}"""

NO_INPUT = "(none)"
# Response reflection of a rewritten instruction: the original input is shown, but the pair will stand without it.
FOLDED_INPUT = """The instruction above was rewritten to stand alone. For reference only, the input of its first version was:
{input}
The answer must not depend on the reader seeing this."""


@dataclass(frozen=True)
class Prompts:
    """The wording that the teacher sees. `{instruction}`, `{input}` and `{output}` are filled in; nothing else is."""

    system: str = SYSTEM
    instruction: str = INSTRUCTION_REFLECTION.replace("{form}", INSTRUCTION_FORM)
    response: str = RESPONSE_REFLECTION.replace("{form}", RESPONSE_FORM)
    reminder: str = REMINDER

    def __post_init__(self) -> None:
        for step in ("instruction", "response"):
            absent = [slot for slot in ("{instruction}", "{output}") if slot not in getattr(self, step)]
            if absent:
                raise ConfigError(f"The {step} prompt lacks {', '.join(absent)}.", "Put the slots where the text belongs.")

    @classmethod
    def from_file(cls, path: str | Path) -> Prompts:
        """Read a user's own wording: a YAML or JSON mapping with any of `system`, `instruction`, `response`, `reminder`.

        Raises ConfigError where the file is no such mapping.
        """
        import yaml

        try:
            wording: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"The prompts file {path} cannot be read: {error}.") from error
        known = set(cls.__dataclass_fields__)
        if not isinstance(wording, dict) or not set(wording) <= known or not all(isinstance(v, str) for v in wording.values()):
            raise ConfigError(f"The prompts file {path} is not a mapping of {', '.join(sorted(known))} to text.")
        return cls(**wording)

    def reflection(self, step: str, instruction: str, input: str, output: str, structured: bool = False) -> list[dict[str, str]]:
        """Messages that ask for one reflection. `step` is the origin of the candidate that is asked for; structured: as JSON."""
        if step == "both" and input.strip():
            input = FOLDED_INPUT.replace("{input}", input)
        wording, form = (self.instruction, INSTRUCTION_FORM) if step == "instruction" else (self.response, RESPONSE_FORM)
        if structured:
            fields = '"instruction" with the new instruction and "answer" with its answer'
            json_form = JSON_FORM.replace("{fields}", fields if step == "instruction" else 'and "answer" with the better answer')
            # Your own wording may ask for its form in its own words, so what counts comes last.
            wording = wording.removesuffix(form).rstrip() + "\n\n" + json_form
        text = _fill(wording, {"instruction": instruction, "input": input if input.strip() else NO_INPUT, "output": output})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    def again(self, messages: list[dict[str, str]], step: str, reply: str, structured: bool = False) -> list[dict[str, str]]:
        """The request after an unusable reply: the reply itself and a reminder of the form, never the same text twice."""
        tags = "[New Instruction] … [End] [New Answer] … [End]" if step == "instruction" else "[Better Answer] … [End]"
        if structured:
            tags = '{"analysis": …, "instruction": …, "answer": …}' if step == "instruction" else '{"analysis": …, "answer": …}'
        reminder = {"role": "user", "content": _fill(self.reminder, {"tags": tags})}
        return [*messages, {"role": "assistant", "content": reply or "(nothing)"}, reminder]


def well_formed_reply(step: str, critique: str, instruction: str, output: str) -> str:
    """A reply in exactly the requested form, as a teacher would have written it."""
    if step == "instruction":
        return f"{critique}\n\n[New Instruction]\n{instruction}\n[End]\n[New Answer]\n{output}\n[End]"
    return f"{critique}\n\n[Better Answer]\n{output}\n[End]"


def _fill(wording: str, values: dict[str, str]) -> str:
    """Put values into their `{slots}` in one pass: braces inside a value are text and stay as they are."""
    slots = "|".join(re.escape(name) for name in values)
    return re.sub(rf"\{{({slots})\}}", lambda match: values[match[1]], wording)


@dataclass(frozen=True)
class Template:
    """A student's prompt format: `no_input` and `input` for an empty and a given input, and what stands before the answer."""

    no_input: str
    input: str
    # Between prompt and answer in training text. The scorer puts nothing there; FastChat trains Vicuna with a space.
    answer_prefix: str = ""
    # Between an answer, with the end token that closes it, and the next question. No template was trained with several turns.
    next_turn: str = "\n\n"

    def prompt(self, instruction: str, input: str = "") -> str:
        return _fill(self.input if input else self.no_input, {"instruction": instruction, "input": input})

    def turn(self, instruction: str, input: str = "") -> str:
        """What a user says in a chat, for `chat_template` to make `prompt` of it.

        >>> TEMPLATES["vicuna"].turn("Add.", "1 and 2")
        'Add.\\nInput:\\n1 and 2'
        """
        return instruction + self._parts()[1] + input if input else instruction

    def chat_template(self, start: str = "''") -> str:
        """The Jinja template with which a server asks a model that was trained with this form.

        One user turn with the generation prompt is `prompt`, and an answer after it is the completion that TRL trains, with the
        end token. A system turn stands before the question, as `rows.single_turn` reads one. `start` is a Jinja expression
        for what the tokenizer puts before a text, such as "bos_token": servers add nothing to what the template renders.
        """
        head, joint, tail, head_with_input = self._parts()
        texts = {
            "head": head,
            "head_with_input": head_with_input,
            "joint": joint,
            "next_turn": self.next_turn,
            "answer": tail,
            "answer_prefix": self.answer_prefix,
        }
        return _fill(_CHAT, {"start": start, **{name: json.dumps(text) for name, text in texts.items()}})

    def _parts(self) -> tuple[str, str, str, str]:
        """What stands before the instruction, between it and an input, and after both; and the first where there is an input."""
        head, tail = self.no_input.split("{instruction}")
        head_with_input, joint = self.input.removesuffix(tail).removesuffix("{input}").split("{instruction}")
        return head, joint, tail, head_with_input


# An input is known by what joins it to its instruction, since a chat turn is one text.
_CHAT = """\
{%- set state = namespace(before='', asked=false) -%}
{{- {start} -}}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- set state.before = state.before + message['content'] + '\\n\\n' -%}
  {%- elif message['role'] == 'user' -%}
    {%- set text = state.before + message['content'] -%}
    {%- if state.asked -%}
      {{- {next_turn} + text -}}
    {%- elif {joint} in text -%}
      {{- {head_with_input} + text -}}
    {%- else -%}
      {{- {head} + text -}}
    {%- endif -%}
    {%- set state.before = '' -%}
    {%- set state.asked = true -%}
  {%- elif message['role'] == 'assistant' -%}
    {{- {answer} + {answer_prefix} + message['content'] + eos_token -}}
  {%- else -%}
    {{- raise_exception('This model knows the roles system, user and assistant, not ' + message['role'] + '.') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- {answer} -}}
{%- endif -%}
"""

_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}{input_block}\n\n### Response:"
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. USER: {instruction}{input_block} ASSISTANT:"
)

TEMPLATES: dict[str, Template] = {
    "vicuna": Template(
        _VICUNA.replace("{input_block}", ""),
        _VICUNA.replace("{input_block}", "\nInput:\n{input}"),
        answer_prefix=" ",
        next_turn="USER: ",  # FastChat's
    ),
    "alpaca": Template(
        _ALPACA.replace("{paired}", "").replace("{input_block}", ""),
        _ALPACA.replace("{paired}", ", paired with an input that provides further context").replace(
            "{input_block}", "\n\n### Input:\n{input}"
        ),
        next_turn="\n\n### Instruction:\n",
    ),
    "wizardlm": Template("{instruction}\n\n### Response:", "{instruction}\n{input}\n\n### Response:"),
    "none": Template("{instruction}\n", "{instruction}\n{input}\n"),
}
# `chat` is the tokenizer's own template around `user_turn`; `auto` is chat where there is one, else vicuna.
TEMPLATE_NAMES = (*TEMPLATES, "chat", "auto")

_GUESS = (
    "Below is the response to an instruction, please guess the corresponding instruction for the given response.\n"
    "{output}\nGenerate the instruction for the above response."
)


def user_turn(instruction: str, input: str = "") -> str:
    """The user's side of a pair as one chat turn: the instruction and, on a new line, the input when there is one.

    >>> user_turn("Add.", "1 and 2")
    'Add.\\n1 and 2'
    """
    return f"{instruction}\n{input}" if input else instruction


def guess_instruction(output: str) -> str:
    """The r-IFD request (paper eq. 8): guess the instruction from the response. It goes into the instruction slot."""
    return _fill(_GUESS, {"output": output})
