"""The student: what a model's own losses say about a pair.

text      how a student reads a pair: template, start token, tokenisation
plan      pairs -> the distinct model passes behind the losses that were asked for (pure Python)
batches   passes -> batches, packed as a prefix tree or padded (pure Python)
attention the attention over packed batches
head      the output head, asked only where a target is predicted
engine    batches -> mean losses (torch)
loading   model name -> model in memory; the border where loading errors become ours
probe     what a device can do, measured in a moment
forks     what torch needs in a forked worker
scorer    `Student`, what `Dataset.map` calls, and `as_score`
yardsticks  what the engine's speed is held against; only scripts/bench_student.py imports it
"""

from srt_hf.student.scorer import Student, as_score

__all__ = ["Student", "as_score"]
