"""Selective Reflection-Tuning on the Hugging Face stack (ACL 2024, arXiv 2402.10110).

    ds = ds.map(srt_hf.reflect)                                                       # the teacher writes candidates
    ds = ds.map(srt_hf.Student("meta-llama/Llama-2-7b-hf").score_candidates, batched=True)   # the student scores them
    ds = ds.map(srt_hf.select)                                                        # and decides

Names are imported on first use, so that `import srt_hf` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srt_hf import evaluation as evaluation
    from srt_hf import review as review
    from srt_hf.errors import SrtError as SrtError
    from srt_hf.pipeline import recycle as recycle
    from srt_hf.pipeline import reselect as reselect
    from srt_hf.prompts import Prompts as Prompts
    from srt_hf.published import load_candidates as load_candidates
    from srt_hf.reflection import Reflector as Reflector
    from srt_hf.reflection import reflect as reflect
    from srt_hf.report import Provenance as Provenance
    from srt_hf.result import Recycled as Recycled
    from srt_hf.rows import flatten as flatten
    from srt_hf.rows import to_messages as to_messages
    from srt_hf.rows import to_prompt_completion as to_prompt_completion
    from srt_hf.rows import top as top
    from srt_hf.rows import with_ids as with_ids
    from srt_hf.selection import Selector as Selector
    from srt_hf.selection import select as select
    from srt_hf.sources import load_rows as load_rows
    from srt_hf.student import Student as Student
    from srt_hf.teacher import Teacher as Teacher

_HOME = {
    "Provenance": "report",
    "SrtError": "errors",
    "recycle": "pipeline",
    "reselect": "pipeline",
    "Prompts": "prompts",
    "load_candidates": "published",
    "Reflector": "reflection",
    "reflect": "reflection",
    "Recycled": "result",
    "flatten": "rows",
    "to_messages": "rows",
    "to_prompt_completion": "rows",
    "top": "rows",
    "with_ids": "rows",
    "Selector": "selection",
    "select": "selection",
    "load_rows": "sources",
    "Student": "student",
    "Teacher": "teacher",
}
_MODULES = ("evaluation", "review")
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("srt_hf")
    if name in _MODULES:
        return import_module(f"srt_hf.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'srt_hf' has no attribute {name!r}")
    value = getattr(import_module(f"srt_hf.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
