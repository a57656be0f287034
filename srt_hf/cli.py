"""What every script in scripts/ shares: a help page that a person can read, and errors as one line each."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn

from srt_hf.errors import ConfigError, SrtError

_QUERY = re.compile(r"(https?://[^\s'?]+)\?[^\s']*")
# Where a word holds an absolute path among other things: two parts at least, since "</s>" is no path.
_PATH = re.compile(r"""(?<![\w:/.~-])(?:~[^\s'"/]*(?:/[^\s'",;:{}\[\]/]+)+|(?:/[^\s'",;:{}\[\]/]+){2,})/?""")
_SECRET = re.compile(r"""("[^"]*(?:key|token|secret|password|authorization)[^"]*"\s*:\s*")(?:[^"\\]|\\.)*(")""", re.I)
_KIND = re.compile(r"(?:replay|local):(?=[/~.])")
# Options whose values are nobody else's business: tokens, and where a private server is.
_PRIVATE_OPTION = re.compile(r"--(?:(?:push[_-]to[_-])?hub[_-]token|argilla[_-](?:key|url))(=.*)?", re.S)
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")


def option(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field that is an option of the command line, with what argparse shall know of it."""
    return field(default=default, metadata={"help": help, **more})


def explained(values: Mapping[str, str]) -> str:
    """An option's values and what they mean, for its help text."""
    return ", ".join(f"{value} ({meaning})" for value, meaning in values.items())


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling of each option, and its default only where there is one worth knowing."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=118)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        value = "" if action.nargs in (0, "?") else " " + (action.metavar or action.dest.rpartition("_")[2].upper())  # type: ignore[operator]
        return action.option_strings[0] + value

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = not any(action.default is hidden for hidden in (None, False, "", argparse.SUPPRESS))  # 0 is a default too
        return f"{text} [{action.default}]".replace("%", "%%") if shown else text.replace("%", "%%")


def parse(description: str | None, *groups: type, subcommand: str = "") -> tuple[Any, ...]:
    """Parse the command line (and `--config FILE.yaml`; the command line wins) into instances of the dataclasses `groups`.

    Each dataclass becomes a group of the help page, headed by its docstring, and may raise ConfigError for its values. A wrong
    option or config file ends the program with one line and exit code 2. subcommand: the first word of the command line, which is
    none of these options.
    """
    import yaml

    try:
        *parsed, keys, words = _parser(description, groups, subcommand).parse_args_and_config(
            sys.argv[2:] if subcommand else None, return_remaining_strings=True, separate_remaining_strings=True
        )
    except IndexError:
        refuse("--config needs a file: --config FILE.yaml.")
    except OSError as error:
        refuse(f"The config file {error.filename} cannot be read: {error.strerror}.")
    except yaml.YAMLError as error:
        refuse(f"The config file is no YAML: {error}.")
    except (ConfigError, ValueError) as error:
        refuse(str(error))
    if words:
        refuse(f"There is no option {words[0]}. See --help.")
    if keys:
        refuse(f"There is no option {keys[0]}, which the config file sets. See --help.")
    return tuple(parsed)


def _parser(description: str | None, groups: tuple[type, ...], subcommand: str) -> Any:
    from trl import TrlParser

    for group in groups:
        group._argument_group_name = group.__doc__  # type: ignore[attr-defined]  # what HfArgumentParser looks for
    name = f"{Path(sys.argv[0]).name} {subcommand}".strip()
    parser = TrlParser(
        groups,
        description=description,
        formatter_class=_HelpFormatter,
        usage=f"python scripts/{name} [options]",
        epilog="--config FILE.yaml takes any of these options from a file; the command line wins.",
        allow_abbrev=False,
    )
    parser.error = refuse  # argparse's own prints the usage too
    return parser


def choose_subcommand(description: str | None, known: Collection[str]) -> str:
    """The first word of the command line, which must be one of these. `--help` prints the description and ends the program."""
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    if chosen in ("-h", "--help"):
        print((description or "").strip())
        sys.exit(0)
    if chosen not in known:
        what = f"There is no subcommand {chosen}" if chosen else "A subcommand is missing"
        refuse(f"{what}: it is one of {', '.join(known)}. See --help.")
    return chosen


def refuse(complaint: str) -> NoReturn:
    """End the program over a wrong option: one line on stderr, exit code 2."""
    print(f"error: {' '.join(complaint.split())}", file=sys.stderr)
    sys.exit(2)


def json_object(text: str | dict[str, Any] | None, option: str) -> dict[str, Any] | None:
    """The JSON object that is an option's value; a config file may give a mapping. Raises ConfigError."""
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise ConfigError(f"{option} is no JSON ({error}).", """Write it as '{"field": value}'.""") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{option} is no JSON object.", """Write it as '{"field": value}'.""")
    return found


def changed(*groups: Any) -> list[str]:
    """Names of the options, of instances of option dataclasses, that are not at their defaults."""
    return [item.name for group in groups for item in fields(group) if getattr(group, item.name) != item.default]


def command() -> str:
    """The command as it was given and as it may be published: see `publishable`."""
    return publishable(shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]))


def publishable(command: str) -> str:
    """A command without tokens and the address of an Argilla server, without the queries of addresses, which may hold a secret,
    and with the last part of each absolute path only.

    >>> publishable("python scripts/train_sft.py --dataset /home/me/rows.jsonl --hub_token hf_x --output_dir=out")
    'python scripts/train_sft.py --dataset rows.jsonl --output_dir=out'
    >>> publishable("python scripts/evaluate.py pairwise --test_sets /a/b.jsonl,/c/d.jsonl --model replay:/home/me/r.jsonl")
    'python scripts/evaluate.py pairwise --test_sets b.jsonl,d.jsonl --model replay:r.jsonl'
    >>> publishable("python scripts/evaluate.py human --argilla_key 'a b' --argilla_dataset study --argilla-url=http://10.0.0.1")
    'python scripts/evaluate.py human --argilla_dataset study'
    """
    words = [_without_path(_QUERY.sub(r"\1", word)) for word in _public(shlex.split(command))]
    return _TOKEN.sub("hf_…", shlex.join(words))


def _public(words: Iterable[str]) -> Iterator[str]:
    """The words without private options and their values."""
    rest = iter(words)
    for word in rest:
        found = _PRIVATE_OPTION.fullmatch(word)
        if found is None:
            yield word
        elif not found[1]:
            next(rest, None)  # its value


def _without_path(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    kind = _KIND.match(value)  # replay:/home/me/replies.jsonl
    if kind:
        option, equals, value = option + equals + kind[0], "", value[kind.end() :]
    return option + equals + ",".join(_last_part(part) for part in masked(value).split(","))


def _last_part(value: str) -> str:
    if Path(value).is_absolute() or value.startswith(("~", "..")):
        return Path(value).name
    return _PATH.sub(lambda match: Path(match[0]).name, value)


def masked(text: str) -> str:
    """JSON without the values of keys that sound like secrets.

    >>> masked('{"api_key": "sk-1", "top_k": 20}')
    '{"api_key": "…", "top_k": 20}'
    """
    return _SECRET.sub(r"\1…\2", text)


def run(main: Callable[[], int], interrupted: str = "") -> int:
    """Run a script's main and return its exit code: an error of ours is one line on stderr and 1, or 2 where an option's value
    is wrong; `interrupted` says what is safe.
    """
    warnings.showwarning = _show_warning
    # datasets cancels the other rows of an async map that failed; asyncio would print a traceback for each of them.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        return main()
    except SrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:  # a disk that is full, say
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted. {interrupted}".strip(), file=sys.stderr)
        # datasets' worker threads may still hold requests open; nothing of theirs is needed any more.
        sys.stdout.flush()
        os._exit(130)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
