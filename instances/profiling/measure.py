"""Time a SwiGLU expert on the machine this runs on. One file: needs Python 3.8 or later and torch.

    python measure.py --width 2048 --expert-width 1408 --precision fp16 --json out.json

Every sample is one call, down(silu(gate(x)) * up(x)), five kernels, from start to finished result. Calls go
round through several copies of the weights, together larger than the last-level cache, so that the
weights stream from memory as they do when a model's other blocks have run in between. A tiny expert gives
the launch cost. Where that hides the expert itself, a wider one is timed too.
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SCHEMA_VERSION = 1
KIND = "expert-timing"
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
TOKENS = (1, 8, 32, 128, 512)
MIB = 1024 * 1024
TINY = 8
#: An expert whose time at one token is less than this many launches is joined by a wider one.
VISIBLE = 5.0
WIDE_BYTES = 512 * MIB


class MeasureError(Exception):
    """The measurement cannot be made here, or not as asked."""


class Expert:
    """Copies of one expert's weights, used in turn.

    Parameters
    ----------
    torch : module
    place : torch.device
    dtype : torch.dtype
    width, expert_width : int
        Model width, and width inside the expert.
    copies : int
    """

    def __init__(
        self, torch: Any, place: Any, dtype: Any, width: int, expert_width: int, copies: int
    ) -> None:
        self.torch, self.place, self.dtype, self.width = torch, place, dtype, width
        self.weights = 3 * width * expert_width
        shapes = ((expert_width, width), (expert_width, width), (width, expert_width))
        self.copies = [[self._random(*shape) for shape in shapes] for _ in range(copies)]
        self.turn = 0

    def _random(self, rows: int, columns: int) -> Any:
        # Drawn in float32: old builds cannot draw half precision on a CPU.
        values = self.torch.rand(rows, columns, device=self.place) - 0.5
        return (values / math.sqrt(columns)).to(self.dtype)

    def tokens(self, count: int) -> Any:
        """Random activations (count, width)."""
        return self._random(count, self.width)

    def __call__(self, x: Any) -> Any:
        """Feed-forward of activations (tokens, width) through the next copy."""
        gate, up, down = self.copies[self.turn]
        self.turn = (self.turn + 1) % len(self.copies)
        functional = self.torch.nn.functional
        inner = functional.silu(functional.linear(x, gate)) * functional.linear(x, up)
        return functional.linear(inner, down)


def measure(
    width: int,
    expert_width: int,
    precision: str = "fp32",
    tokens: Sequence[int] = TOKENS,
    device: str = "auto",
    repeats: int = 50,
    warm_up: int = 5,
    seconds: float = 10.0,
    max_bytes: int = 1024 * MIB,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Time an expert at several token counts.

    Parameters
    ----------
    width, expert_width : int
        Model width, and width inside the expert.
    precision : {"fp32", "fp16", "bf16"}
    tokens : sequence of int
        Token counts, at least two different ones.
    device : str
        "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    repeats, warm_up : int
        Timed and untimed calls per token count.
    seconds : float, s
        Stop a token count after this long, but not before five samples.
    max_bytes : int, byte
        Memory for the copies of the weights.
    on_step : callable, optional
        Called with a label before each timing.

    Returns
    -------
    dict
        Launch, and per (expert, token count) the median, quartiles and extremes in s; see ``--json``.

    Raises
    ------
    MeasureError
        Naming what cannot be done.
    """
    torch, place, dtype = _prepare(width, expert_width, precision, tokens, device, repeats, warm_up)
    say = on_step or (lambda label: None)

    def timed(label: str, call: Callable[[], Any]) -> dict[str, Any]:
        say(label)
        return _statistics(_samples(torch, place, call, repeats, warm_up, seconds))

    with torch.inference_mode():
        one = torch.zeros(1, device=place)
        kernel = timed("empty kernel", lambda: one.add_(0))
        tiny = Expert(torch, place, dtype, TINY, TINY, 1)
        tiny_input = tiny.tokens(1)
        launch = timed("tiny expert", lambda: tiny(tiny_input))
        counts = sorted(set(tokens))
        made = _make(torch, place, dtype, width, expert_width, max_bytes)
        rows, streams = _rows(made[0], counts, timed), [made[1]]
        if rows[0]["median"] < VISIBLE * launch["median"]:
            size = dtype_bytes(torch, dtype) * 3 * width * expert_width
            factor = max(1, min(WIDE_BYTES, max_bytes // 2) // size)
            if factor > 1:
                del made
                made = _make(torch, place, dtype, width, factor * expert_width, max_bytes)
                rows += _rows(made[0], [counts[0], counts[-1]], timed)
                streams.append(made[1])
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "precision": precision,
        "bytes_per_weight": dtype_bytes(torch, dtype),
        "width": width,
        "expert_width": expert_width,
        "empty_kernel": kernel,
        "launch": launch,
        "expert": rows,
        "streams": streams,
        "notes": _notes(place, precision, streams),
        "cache_bytes": cache_bytes(torch, place),
        "environment": environment(torch, place),
    }


def dtype_bytes(torch: Any, dtype: Any) -> int:
    """Bytes of one number of ``dtype``."""
    return int(torch.empty(0, dtype=dtype).element_size())


def cache_bytes(torch: Any, place: Any) -> int:
    """Size of the last-level cache in bytes, as far as it is told; else a generous guess."""
    if place.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(place), "L2_cache_size", 0)) or 64 * MIB
    found = 0
    for path in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        with open(path, encoding="ascii") as stream:
            text = stream.read().strip()
        scale = {"K": 1024, "M": MIB}.get(text[-1:], 1)
        found = max(found, int(text.rstrip("KM") or 0) * scale)
    return found or 32 * MIB


def environment(torch: Any, place: Any) -> dict[str, Any]:
    """Say what was measured on: device, memory, versions, threads, and a Jetson's power mode."""
    cuda = place.type == "cuda"
    properties: Any = torch.cuda.get_device_properties(place) if cuda else None
    return {
        "device": properties.name if cuda else _processor(),
        "device_type": place.type,
        "memory": int(properties.total_memory) if cuda else _memory(),
        "threads": torch.get_num_threads(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32),
        "power_mode": _power_mode(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _prepare(
    width: int,
    expert_width: int,
    precision: str,
    tokens: Sequence[int],
    device: str,
    repeats: int,
    warm_up: int,
) -> tuple[Any, Any, Any]:
    """Check the request; torch, the device and the type."""
    sizes = {"width": width, "expert_width": expert_width, "repeats": repeats, "warm_up": warm_up}
    for name, value in sizes.items():
        if value < 1:
            raise MeasureError(f"{name} = {value}: must be at least 1")
    if len(set(tokens)) < 2 or min(tokens) < 1:
        raise MeasureError(f"tokens = {list(tokens)}: must be at least two different counts, each at least 1")
    if precision not in PRECISIONS:
        raise MeasureError(f"precision = {precision!r}: must be one of {', '.join(PRECISIONS)}")
    try:
        import torch
    except ImportError as error:
        raise MeasureError(f"torch is needed to measure ({error})") from None
    place = _place(torch, device)
    dtype = getattr(torch, PRECISIONS[precision])
    _try_precision(torch, place, dtype, precision)
    return torch, place, dtype


def _place(torch: Any, device: str) -> Any:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise MeasureError(f"device = {device!r}: must be auto, cpu, cuda or cuda:<number>") from None
    if place.type not in ("cpu", "cuda"):
        raise MeasureError(f"device = {device!r}: only cpu and cuda can be timed")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise MeasureError(f"device = {device!r}: torch finds {torch.cuda.device_count()} GPUs here")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    return place


def _try_precision(torch: Any, place: Any, dtype: Any, precision: str) -> None:
    try:
        probe = Expert(torch, place, dtype, TINY, TINY, 1)
        probe(probe.tokens(2))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise MeasureError(
            f"precision = {precision!r}: torch cannot run it on {place.type} ({reason})"
        ) from None


def _make(
    torch: Any, place: Any, dtype: Any, width: int, expert_width: int, max_bytes: int
) -> tuple[Expert, dict[str, Any]]:
    """Build an expert in as many copies as outgrow the cache, and a note of their bytes."""
    size = dtype_bytes(torch, dtype) * 3 * width * expert_width
    if size > max_bytes:
        raise MeasureError(f"max_bytes = {max_bytes}: one expert has {size} bytes of weights")
    wanted = max(2, math.ceil(3 * cache_bytes(torch, place) / size))
    copies = min(wanted, max_bytes // size)
    note = {"weights": 3 * width * expert_width, "copies": copies, "bytes": copies * size}
    note["from_memory"] = copies * size >= 2 * cache_bytes(torch, place)
    try:
        return Expert(torch, place, dtype, width, expert_width, copies), note
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise MeasureError(f"max_bytes = {max_bytes}: {copies} copies do not fit here ({reason})") from None


def _notes(place: Any, precision: str, streams: Sequence[dict[str, Any]]) -> list[str]:
    """Say what the reader of the times should know."""
    notes = []
    if place.type == "cpu" and precision != "fp32":
        notes.append(f"many CPUs emulate {precision}: fp32 may be faster, so time it as well")
    if not all(stream["from_memory"] for stream in streams):
        notes.append("the copies of the weights may fit in the cache: allow more memory for them")
    return notes


def _rows(
    expert: Expert, counts: Sequence[int], timed: Callable[[str, Callable[[], Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    for count in counts:
        times = timed(f"{expert.weights} weights, {count} tokens", partial(expert, expert.tokens(count)))
        rows.append({"weights": expert.weights, "tokens": count, **times})
    return rows


def _samples(
    torch: Any, place: Any, call: Callable[[], Any], repeats: int, warm_up: int, seconds: float
) -> list[float]:
    """Seconds of each timed call, at most ``repeats``."""
    once = _time_on_gpu if place.type == "cuda" else _time_on_cpu
    for _ in range(warm_up):
        once(torch, call)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < repeats and (len(found) < 5 or time.perf_counter() < end):
        found.append(once(torch, call))
    return found


def _time_on_cpu(torch: Any, call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _time_on_gpu(torch: Any, call: Callable[[], Any]) -> float:
    """Seconds on an idle GPU from the first event to the last, waits for launches included."""
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) * 1e-3


def _statistics(samples: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(samples)
    return {
        "median": _quantile(ordered, 0.5),
        "q1": _quantile(ordered, 0.25),
        "q3": _quantile(ordered, 0.75),
        "min": ordered[0],
        "max": ordered[-1],
        "samples": len(ordered),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.lower().startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    if not hasattr(os, "sysconf"):
        return None
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _power_mode() -> str | None:
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        answer = subprocess.run([tool, "-q"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return " ".join(answer.stdout.split()) or None


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time a SwiGLU expert on this machine.")
    parser.add_argument("--width", type=int, required=True, help="model width")
    parser.add_argument("--expert-width", type=int, required=True, help="width inside the expert")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--repeats", type=int, default=50, help="timed calls per token count")
    parser.add_argument("--warm-up", type=int, default=5, help="untimed calls before them")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time per token count")
    parser.add_argument("--max-bytes", type=int, default=1024 * MIB, help="memory for copies of the weights")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--json", required=True, help="file to write")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says; 0, or 2 with one line on standard error."""
    given = _arguments(arguments)
    try:
        if given.threads:
            import torch

            torch.set_num_threads(given.threads)
        found = measure(
            given.width,
            given.expert_width,
            given.precision,
            given.tokens,
            given.device,
            given.repeats,
            given.warm_up,
            given.seconds,
            given.max_bytes,
            on_step=lambda label: print("timing " + label, file=sys.stderr),
        )
        with open(given.json, "w", encoding="utf-8") as stream:
            json.dump(found, stream, indent=2)
    except (MeasureError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in found["notes"]:
        print("note: " + note, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
