"""From passes to the batches that a model runs: packed as a prefix tree where its attention allows, else padded. Pure Python.

Passes have much in common: all prompts begin with the template, and the candidates of a row share instructions. Sorted by their
tokens, neighbours share the most. A packed batch holds each common beginning once: every pass adds one segment, the tokens that
the pass before it has not, which sees the tokens before it wherever in the batch they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from srt_hf.student.plan import Pass

# Keys that a packed batch's segments may see for each token of its budget: each copies those of its context.
_KEYS_A_TOKEN = 4
# A common beginning that is shorter is run again: seeing it from elsewhere costs more than its few tokens.
_WORTH_SHARING = 16


class Segment(NamedTuple):
    """Tokens [start, stop) of a packed batch, and where in the batch the tokens before them lie, in reading order. A batch's
    segments follow each other without gaps."""

    start: int
    stop: int
    context: Sequence[int]


@dataclass
class Batch:
    """One forward pass of the model.

    members: the passes in it, by index. inputs: (sequences, length) token ids. positions: of a packed batch, each token's
    place in its pass. segments: of a packed batch. rows, targets: where in the flattened batch a target is predicted, and which.
    losses: each member's targets, by index into `rows`.
    """

    members: list[int] = field(default_factory=list)
    inputs: list[list[int]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    losses: list[list[int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Tokens that the model runs, padding included."""
        return sum(map(len, self.inputs))


def packing_order(passes: Sequence[Pass]) -> list[int]:
    """Indices of the passes with those next to each other that share the most."""
    return sorted(range(len(passes)), key=lambda i: passes[i].ids)


def padding_order(passes: Sequence[Pass]) -> list[int]:
    """Indices of the passes, longest first: neighbours pad each other least, and a batch that is too large fails at once."""
    return sorted(range(len(passes)), key=lambda i: -len(passes[i].ids))


def pack(passes: Sequence[Pass], order: Sequence[int], budget: int) -> Batch:
    """The first passes of `order`, at least one, in a sequence of at most `budget` tokens that see a few times as many keys."""
    batch, sequence = Batch(), list[int]()
    before: tuple[int, ...] = ()
    keys = 0
    where: list[int] = []  # of the pass before: where each of its tokens lies
    wanted: dict[tuple[int, int], int] = {}  # (position, target) -> row
    for i in order:
        ids, start = passes[i]
        shared = _common_length(before, ids)
        own = ids[shared:-1]  # the last token predicts nothing that is asked for
        keys += len(ids) - 1
        if batch.members and (len(sequence) + len(own) > budget or keys > _KEYS_A_TOKEN * budget):
            break
        begin, where = len(sequence), where[:shared]
        if own:
            batch.segments.append(Segment(begin, begin + len(own), where))
        sequence.extend(own)
        batch.positions.extend(range(shared, len(ids) - 1))
        where = [*where, *range(begin, len(sequence))]
        before = ids[:-1]
        batch.members.append(i)
        targets = zip(where[start - 1 :], ids[start:], strict=True)
        batch.losses.append([wanted.setdefault(target, len(wanted)) for target in targets])
    batch.inputs = [sequence]
    batch.rows, batch.targets = map(list, zip(*wanted, strict=True))
    return batch


def pad(passes: Sequence[Pass], order: Sequence[int], budget: int) -> Batch:
    """The first passes of `order`, at least one, side by side in at most `budget` tokens. No attention mask is needed: in a
    causal model no token sees the padding after it."""
    width = len(passes[order[0]].ids) - 1
    batch = Batch(members=list(order[: max(1, budget // width)]))
    for n, (ids, start) in enumerate(passes[i] for i in batch.members):
        batch.inputs.append([*ids[:-1], *[0] * (width - len(ids) + 1)])
        batch.losses.append(list(range(len(batch.rows), len(batch.rows) + len(ids) - start)))
        batch.rows.extend(range(n * width + start - 1, n * width + len(ids) - 1))
        batch.targets.extend(ids[start:])
    return batch


def _common_length(before: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens both begin with, or 0 where sharing them is not worth it. The last of `ids` is not an input."""
    length = 0
    for one, other in zip(before, ids[:-1], strict=False):
        if one != other:
            break
        length += 1
    return length if length >= _WORTH_SHARING else 0
