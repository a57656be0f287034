"""What every script in scripts/ shares: a help page that a person can read, and errors as one line each."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srt_hf.errors import SrtError


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling of each option, and its default only where there is one worth knowing."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=118)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        value = "" if action.nargs in (0, "?") else " " + (action.metavar or action.dest.rpartition("_")[2].upper())  # type: ignore[operator]
        return action.option_strings[0] + value

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.default not in (None, False, argparse.SUPPRESS)
        return f"{text} [{action.default}]".replace("%", "%%") if shown else text.replace("%", "%%")


def parse(description: str | None, *groups: type) -> tuple[Any, ...]:
    """Parse the command line (and `--config FILE.yaml`; the command line wins) into instances of the dataclasses `groups`.

    Each dataclass becomes a group of the help page, headed by its docstring. A wrong option or config file ends the program
    with one line and exit code 2.
    """
    import yaml
    from trl import TrlParser

    for group in groups:
        group._argument_group_name = group.__doc__  # type: ignore[attr-defined]  # what HfArgumentParser looks for
    name = Path(sys.argv[0]).name
    parser = TrlParser(
        groups,
        description=description,
        formatter_class=_HelpFormatter,
        usage=f"python scripts/{name} [options]",
        epilog="--config FILE.yaml takes any of these options from a file; the command line wins.",
        allow_abbrev=False,
    )
    try:
        return parser.parse_args_and_config()
    except (OSError, ValueError, IndexError, yaml.YAMLError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def run(main: Callable[[], int], interrupted: str = "") -> int:
    """Run a script's main and return its exit code: an error of ours is one line on stderr; `interrupted` says what is safe."""
    warnings.showwarning = _show_warning
    # datasets cancels the other rows of an async map that failed; asyncio would print a traceback for each of them.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        return main()
    except SrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted. {interrupted}".strip(), file=sys.stderr)
        # datasets' worker threads may still hold requests open; nothing of theirs is needed any more.
        sys.stdout.flush()
        os._exit(130)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
