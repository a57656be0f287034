"""A file of a teacher's servers, which may change while a run goes on: one URL a line, `#` begins a comment."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

from srt_hf.errors import ConfigError
from srt_hf.teacher.protocol import Backend, without_query

_COMMENT = re.compile(r"(?:^|\s)#.*")
_CURE = "Write one server's URL on each line, such as http://host:8080."


class Roster:
    """The servers that the file at `path` names, as backends that `make` makes of their addresses, each once."""

    def __init__(self, path: str | Path, make: Callable[[str], Backend]) -> None:
        self._path = Path(path)
        self._make = make
        self._made: dict[str, Backend] = {}
        self._content: bytes | str | None = None  # what was heeded last
        self._last_look: bytes | str | None = None

    def read(self) -> dict[str, Backend]:
        """Address -> backend, in the file's order. Raises ConfigError where it cannot be read, or names no server."""
        self._content = self._look()
        return self._backends(self._content)

    def news(self) -> dict[str, Backend] | None:
        """As `read`, where the file has changed and twice in a row looked the same: one that is being written is not heeded yet.
        Else None. A file that is broken, empty or away changes nothing, with one warning."""
        before, self._last_look = self._last_look, self._look()
        if self._last_look != before or self._last_look == self._content:
            return None
        self._content = self._last_look
        try:
            return self._backends(self._content)
        except ConfigError as error:
            warnings.warn(f"{error.message} The run goes on with the servers that it has.", stacklevel=2)
            return None

    def _look(self) -> bytes | str:
        """What the file holds, or why it cannot be read."""
        try:
            return self._path.read_bytes()
        except OSError as error:
            return error.strerror or type(error).__name__

    def _backends(self, content: bytes | str) -> dict[str, Backend]:
        if isinstance(content, str):
            raise ConfigError(f"The teacher's file {self._path} cannot be read: {content}.")
        lines = [_COMMENT.sub("", line).strip() for line in content.decode(errors="replace").splitlines()]
        for number, line in enumerate(lines, start=1):
            if line and not re.fullmatch(r"(?:tgi\+)?https?://\S+", line):
                raise ConfigError(f"Line {number} of {self._path} is no address: {without_query(line)[:80]!r}.", _CURE)
        addresses = dict.fromkeys(filter(None, lines))
        if not addresses:
            raise ConfigError(f"The teacher's file {self._path} names no server.", _CURE)
        self._made |= {one: self._make(one) for one in addresses if one not in self._made}
        return {one: self._made[one] for one in addresses}
