"""What a device can do, measured in a moment."""

from __future__ import annotations

import math
import re
import time
from functools import cache
from pathlib import Path

import torch

# bfloat16 rounds, so it must pay clearly.
_CLEARLY_FASTER = 1.2


def product_seconds(rows: int, width: int, out: int, dtype: torch.dtype, *, device: torch.device) -> float:
    """Seconds of one warm matrix product (rows, width) × (width, out) with torch's default settings, the right side stored as a
    linear layer stores it."""
    left = torch.rand(rows, width, device=device).to(dtype)
    right = torch.rand(out, width, device=device).to(dtype).t()
    result = left @ right
    times = 20 if device.type == "cuda" else 1  # a GPU's products are shorter than the call
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        torch.mm(left, right, out=result)
    _wait(device)
    return (time.perf_counter() - start) / times


@cache
def fastest_dtype(device: str) -> str:
    """ "bfloat16" where its matrix products are clearly faster on `device` than float32's, else "float32"."""
    half, full = (
        min(product_seconds(512, 1024, 1024, dtype, device=torch.device(device)) for _ in range(5))
        for dtype in (torch.bfloat16, torch.float32)
    )
    return "bfloat16" if half * _CLEARLY_FASTER < full else "float32"


def free_memory(device: torch.device) -> float:
    """Bytes that may still be taken there; infinite where nothing tells."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what a model before this one had counts as used
        return torch.cuda.mem_get_info(device)[0]
    try:
        [kibibytes] = re.findall(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    except (OSError, ValueError):
        return math.inf
    return int(kibibytes) * 1024


def _wait(device: torch.device) -> None:
    """Return when the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
