"""Every error that a user of `srt_hf` can meet, as one tree.

    SrtError
    ├── DataError             the dataset is not what a step needs: columns, types, no rows
    ├── ConfigError           an argument has a value that nothing here understands
    ├── StudentError          the student model or its tokenizer cannot be loaded or used
    ├── JournalError          the journal of teacher replies cannot be opened, read or written
    ├── TeacherError          the run cannot go on with this teacher
    │   ├── TeacherUnreachable    nothing answers (an outage, a wrong address)
    │   ├── TeacherAuthError      the server answers, but not to this key
    │   └── RequestFailed         this one request failed for good; `code` says why, the run goes on
    ├── ClusterError          the Ray cluster cannot be reached, or cannot be used
    ├── HubError              the Hub refused, or a repo is not one that may be written to
    └── AnnotationError       the Argilla server is away or refused, or a dataset there is another one

A *row's* failure (an unparsable reply, a refused request) stops no run: inside `Teacher.chat` it is `RequestFailed`, in
the dataset an `error` code of a candidate (`schema.ERRORS`). All other classes are for what stops a run. Each carries a
`hint`, the cure; every instance survives pickling, because `Dataset.map(num_proc=...)` sends it between processes and
hangs where it does not.
"""

from __future__ import annotations


class SrtError(Exception):
    """Base of the tree. `str(error)` is one line: what is wrong, then the hint."""

    hint = ""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class DataError(SrtError):
    """The dataset lacks what a step needs."""


class ConfigError(SrtError):
    """An argument has a value that nothing here understands."""


class StudentError(SrtError):
    """The student model or its tokenizer cannot be loaded or used."""

    hint = "Give a Hub model id or a folder that AutoModelForCausalLM and AutoTokenizer can load."


class JournalError(SrtError):
    """The journal of teacher replies cannot be opened, read or written."""


class TeacherError(SrtError):
    """The run cannot go on with this teacher. Every reply received so far is in the journal."""


class TeacherUnreachable(TeacherError):
    """Nothing answers at the teacher's address, or nothing has answered for the whole outage budget."""

    hint = (
        "Start a server, for example `docker run --gpus all -p 8080:80 ghcr.io/huggingface/text-generation-inference "
        "--model-id MODEL`, `vllm serve MODEL` or `transformers serve MODEL`, and give its address as the teacher. "
        "Replies received so far are in the journal; the same command goes on from there."
    )


class TeacherAuthError(TeacherError):
    """The server answers, but does not accept the key."""

    hint = "Pass teacher_key (or SRT_HF_TEACHER_KEY); for Inference Providers log in with `hf auth login`."


class RequestFailed(TeacherError):
    """One request failed for good while the teacher as a whole works. `code` is one of `schema.ERRORS`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.args = (message, code)
        self.code = code


class ClusterError(SrtError):
    """The Ray cluster cannot be reached, or cannot be used."""


class HubError(SrtError):
    """The Hub refused, or the repo is not one that this tool may write to."""


class AnnotationError(SrtError):
    """The Argilla server is away or refused, or its dataset is not the one that is meant."""
