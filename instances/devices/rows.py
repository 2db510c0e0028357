"""The shipped measured rows, read into two forms: timed calls and single figures.

A :class:`Row` is a time that a profile can predict: a layer, a feed-forward block or a whole model.
A :class:`Figure` is any other number (memory benchmark, clock, launch log, benchmark result). Both carry the
file and line they stand in, so that what a fit used can be told from what it did not.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from wdmoe_opt.instances.devices.shapes import SHAPES, ModelShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = Path(__file__).resolve().parent.parent / "data" / "jetson"

Record: TypeAlias = dict[str, str]
LeftOut: TypeAlias = Counter[str]

#: Kernels of one expert call in eager mode: gate, up, activation, product, down.
KERNELS_PER_EXPERT = 5
AGX_ORIN_MODES = {
    "MAXN": "agx-orin-maxn",
    "50W": "agx-orin-50w",
    "30W": "agx-orin-30w",
    "15W": "agx-orin-15w",
}

_TENSORRT = "tensorrt-edge-llm/performance_benchmarks.csv"
_TENSORRT_BOARDS = {
    "Jetson AGX Thor": "agx-thor",
    "Jetson AGX Orin": "agx-orin-maxn",
    "Jetson Orin NX": "orin-nx",
    "Jetson Orin Nano": "orin-nano-maxn-super",
}
_TENSORRT_PREFILL = (
    ("Prefill E2E (ms)", ("Prefill Seq Len", "Input Len")),
    ("Prefill Time (ms)", ("Prefill Seq Len",)),
    ("Runtime Prefill (ms)", ("Runtime Prefill Tok/Run",)),
    ("Prefill (ms)", ("Prefill Tokens",)),
)
_TENSORRT_DECODE = ("Decode (tok/s)", "Generation (tok/s)")
_VISION_TOKENS = {"vit_b_16": 197, "vit_l_16": 197, "vit_b_32": 50}
_FUSED_KERNELS = {"Linear_ReLU_Dropout": 2, "Linear_Dropout": 1, "LayerNorm_Linear_GELU_+1more": 3}
_FLASHRT_MATRICES = {"ffn_swiglu": 3, "ffn_gelu": 2}


@dataclass(frozen=True)
class Figure:
    """A number with the rows it comes from; sources survive arithmetic."""

    value: float
    rows: tuple[str, ...]

    def times(self, other: Figure | float) -> Figure:
        """Product with a number or another figure."""
        if isinstance(other, Figure):
            return Figure(self.value * other.value, self.rows + other.rows)
        return Figure(self.value * other, self.rows)

    def over(self, other: Figure) -> Figure:
        """Quotient of two figures."""
        return Figure(self.value / other.value, self.rows + other.rows)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured time and what was computed in it.

    Parameters
    ----------
    key : str
        ``folder/file:line``, with ``#part`` where a line holds several times.
    profile, precision : str
        The shipped profile that predicts it.
    kind : str
        One of ``KINDS`` of the back-test.
    model, release : str
        What ran, and the version of the document.
    tokens : float
        Tokens through the layer, or through the model in this step.
    time : float, s
    streamed, used : float
        Weights read once, and weights that each token passes (they differ for a mixture of experts).
    head, head_tokens : float
        Weights of an output head, and how many tokens pass it.
    head_bytes : float, optional
        Bytes per weight of the head; default as in the body.
    kernels : int
        Kernel launches inside the measured time; 0 where they overlap or are contained in the class B rates.
    """

    key: str
    profile: str
    precision: str
    kind: str
    model: str
    tokens: float
    time: float
    streamed: float
    used: float
    release: str = ""
    head: float = 0.0
    head_tokens: float = 0.0
    head_bytes: float | None = None
    kernels: int = 0

    def stored_bytes(self, bytes_per_weight: float) -> float:
        """Bytes read once, with body weights of ``bytes_per_weight`` bytes."""
        of_head = bytes_per_weight if self.head_bytes is None else self.head_bytes
        return self.streamed * bytes_per_weight + self.head * of_head

    @property
    def flop(self) -> float:
        """Two FLOP per weight and token."""
        return 2.0 * (self.used * self.tokens + self.head * self.head_tokens)


def read_rows() -> tuple[tuple[Row, ...], LeftOut]:
    """All timed rows, and how many timed lines were left out for which reason."""
    left_out: LeftOut = Counter()
    readers: tuple[Callable[[LeftOut], Iterator[Row]], ...] = (
        _gemm_sweep, _mlp_sweep, _linear_subgraphs, _nano_baselines, _flashrt, _fabric_ffn, _fabric_prompts,
        _fabric_llama_bench, _tensorrt, _ai_lab,
    )  # fmt: skip
    return tuple(row for reader in readers for row in reader(left_out)), left_out


def _lines(file: str) -> Iterator[tuple[str, Record]]:
    with (DATA / file).open(newline="", encoding="utf-8") as stream:
        for number, record in enumerate(csv.DictReader(stream), start=2):
            yield f"{file}:{number}", record


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"[0-9.]+", text) else None


def _layer(
    key: str,
    profile: str,
    model: str,
    *,
    tokens: float,
    weights: float,
    ms: float,
    kernels: int = 0,
    release: str = "",
) -> Row:
    return Row(
        key=key, profile=profile, precision="fp16", kind="eager layer" if kernels else "layer", model=model,
        release=release, tokens=tokens, time=ms * 1e-3, streamed=weights, used=weights, kernels=kernels,
    )  # fmt: skip


def _gemm_sweep(left_out: LeftOut) -> Iterator[Row]:
    for key, line in _lines("branes-graphs/gemm_sweep_full_cuda_50w.csv"):
        if line["precision"] != "fp16":
            left_out["FP32: no profile in this precision"] += 1
            continue
        inputs, outputs = int(line["K"]), int(line["N"])
        tokens = int(line["M"]) * int(line["batch_size"])
        time = float(line["empirical_time_ms"])
        name = f"linear {inputs}x{outputs}"
        yield _layer(key, "agx-orin-50w", name, tokens=tokens, weights=inputs * outputs, ms=time, kernels=1)


def _mlp_sweep(left_out: LeftOut) -> Iterator[Row]:
    for key, line in _lines("branes-graphs/mlp_sweep_full_cuda_maxn.csv"):
        if line["precision"] != "fp16":
            left_out["FP32: no profile in this precision"] += 1
            continue
        hidden = json.loads(line["hidden_dims"])
        widths = [int(line["input_dim"]), *hidden, int(line["output_dim"])]
        weights = sum(one * other for one, other in pairwise(widths))
        row = _layer(
            key, "agx-orin-maxn", f"mlp {widths}", tokens=int(line["batch_size"]), weights=weights,
            ms=float(line["empirical_time_ms"]), kernels=2 * len(hidden) + 1,
        )  # fmt: skip
        yield row


def _linear_subgraphs(left_out: LeftOut) -> Iterator[Row]:
    for key, line in _lines("branes-graphs/agx_orin_linear_subgraphs.csv"):
        tokens = _VISION_TOKENS.get(line["model"], 1) * int(line["batch_size"])
        weights = float(line["flops"]) / (2.0 * tokens)
        profile = AGX_ORIN_MODES[line["power_mode"]]
        kernels = _FUSED_KERNELS[line["fusion_pattern"]]
        name, time, run = f"{line['model']} linear", float(line["latency_mean_ms"]), line["hardware_id"]
        name = f"{name} {line['precision']}"
        yield _layer(
            key, profile, name, tokens=tokens, weights=weights, ms=time, kernels=kernels, release=run
        )


def _nano_baselines(left_out: LeftOut) -> Iterator[Row]:
    for operation in ("linear", "matmul"):
        for key, line in _lines(f"branes-graphs/jetson_orin_nano_8gb_{operation}.csv"):
            tokens, inputs, outputs = map(int, line["shape"].split("x"))
            time = float(line["latency_s"]) * 1e3
            yield _layer(
                key,
                "orin-nano-maxn-super",
                operation,
                tokens=tokens,
                weights=inputs * outputs,
                ms=time,
                kernels=1,
            )


def _flashrt(left_out: LeftOut) -> Iterator[Row]:
    known = {"bf16": "fp16", "int4": "int4", "w4a16": "int4", "nvfp4 (bf16 out)": "int4"}
    for key, line in _lines("flashrt/gemm_us.csv"):
        precision = known.get(line["precision"])
        if precision is None:
            left_out["FlashRT in INT8, FP8 or W8A16, or a fused region of unclear extent"] += 1
            continue
        weights = int(line["K"]) * int(line["N"]) * _FLASHRT_MATRICES.get(line["op"], 1)
        cached = line["precision"].startswith("nvfp4")
        yield Row(
            key=key, profile="agx-thor" if "Thor" in line["board"] else "agx-orin-maxn", precision=precision,
            kind="layer in cache" if cached else "layer", model=f"{line['precision']} {line['op']}",
            tokens=int(line["M_tokens"]), time=float(line["us"]) * 1e-6, streamed=weights, used=weights,
        )  # fmt: skip


def _fabric_ffn(left_out: LeftOut) -> Iterator[Row]:
    share = {("swiglu_ffn", "p50_ms"): 1.0, ("swiglu_ffn_compute_per_rank", "p50_ms_about"): 0.5}
    for key, line in _lines("jetsonfabric/tensor_parallel_swiglu_ffn.csv"):
        part = share.get((line["experiment"], line["metric"]))
        if part is None or (part == 1.0 and line["placement"] != "local"):
            left_out["network tests, 95th percentiles and times that contain a network step"] += 1
            continue
        weights = part * 3 * int(line["hidden"]) * int(line["intermediate"])
        name = f"swiglu {line['hidden']}x{line['intermediate']}"
        yield _layer(key, "orin-nano-maxn-super", name, tokens=1, weights=weights, ms=float(line["value"]))


def _whole(
    key: str,
    profile: str,
    model: str,
    kind: str,
    tokens: float,
    time: float,
    release: str,
    head_bytes: float | None = None,
) -> Row:
    shape: ModelShape = SHAPES[model]
    return Row(
        key=f"{key}#{kind.replace('padded ', '')}", profile=profile, precision="int4",
        kind=f"moe {kind}" if shape.experts > 1 else kind, model=model, tokens=tokens, time=time,
        release=release, streamed=shape.streamed(tokens), used=shape.used, head=shape.head,
        head_tokens=tokens if kind == "decode" else 1.0, head_bytes=head_bytes,
    )  # fmt: skip


def _fabric_prompts(left_out: LeftOut) -> Iterator[Row]:
    for key, line in _lines("jetsonfabric/ttft_by_prompt.csv"):
        for engine in ("native", "llamacpp"):
            where, model, prompt = f"{key}#{engine}", line["model"], int(line["prompt_tokens"])
            first = float(line[f"{engine}_ttft_ms"]) * 1e-3
            step = 1.0 / float(line[f"{engine}_decode_tok_s"])
            yield _whole(where, "orin-nano-maxn-super", model, "prefill", prompt, first, engine)
            yield _whole(where, "orin-nano-maxn-super", model, "decode", 1, step, f"{engine} after {prompt}")


def _fabric_llama_bench(left_out: LeftOut) -> Iterator[Row]:
    for key, line in _lines("jetsonfabric/llama_bench_1.5b.csv"):
        prompt, generated, time = int(line["n_prompt"]), int(line["n_gen"]), float(line["avg_ns"]) * 1e-9
        kind, tokens, step = ("prefill", prompt, time) if prompt else ("decode", 1, time / generated)
        yield _whole(key, "orin-nano-maxn-super", line["model"], kind, tokens, step, "llama-bench")


def _tensorrt(left_out: LeftOut) -> Iterator[Row]:
    for key, line in _lines(_TENSORRT):
        reason = _tensorrt_refusal(line)
        if reason:
            left_out[reason] += 1
            continue
        yield from _tensorrt_rows(key, line)


def _tensorrt_refusal(line: Record) -> str:
    if line["Mode"] not in ("", "Vanilla") or (not line["Mode"] and "Vanilla" not in line["table"]):
        return "TensorRT Edge-LLM with a draft model (EAGLE3, MTP, DFlash)"
    if line["Model"] not in SHAPES:
        return "TensorRT Edge-LLM models whose layer shapes are not in shapes.py (hybrid or not decoder-only)"
    if _number(line["Batch"]) is None:
        return "TensorRT Edge-LLM rows without a batch size"
    return ""


def _tensorrt_rows(key: str, line: Record) -> Iterator[Row]:
    profile = next(name for board, name in _TENSORRT_BOARDS.items() if line["platform"].startswith(board))
    batch, model, release = float(line["Batch"]), line["Model"], _tensorrt_release(line)
    bench = line["table"].startswith("llm_bench")
    for time_column, token_columns in _TENSORRT_PREFILL:
        time = _number(line[time_column])
        tokens = next((count for name in token_columns if (count := _number(line[name]))), None)
        if time and tokens:
            kind = "padded prefill" if batch > 1 and tokens < 1000 and not bench else "prefill"
            total = tokens * batch if bench else tokens
            yield _whole(key, profile, model, kind, total, time * 1e-3, release, head_bytes=2.0)
    for column in _TENSORRT_DECODE:
        rate = _number(line[column])
        if rate:
            yield _whole(key, profile, model, "decode", batch, batch / rate, release, head_bytes=2.0)


def _tensorrt_release(line: Record) -> str:
    """Version, table where it is a bare engine benchmark, and format of the language model's weights."""
    weights = (line["Precision"] or line["LLM Prec"]).split(" / ")[0]
    table = ["llm_bench"] if line["table"].startswith("llm_bench") else []
    return " ".join([line["section"].split()[0], *table, weights])


def _ai_lab(left_out: LeftOut) -> Iterator[Row]:
    file = "llm-bench-tables/jetson_ai_lab_benchmarks.json"
    for number, entry in enumerate(json.loads((DATA / file).read_text(encoding="utf-8"))):
        for board, profile in (("orin", "agx-orin-maxn"), ("thor", "agx-thor")):
            for batch in (1, 8):
                time = batch / float(entry[board][f"concurrency{batch}"])
                key = f"{file}:[{number}]#{board}#{batch}"
                yield _whole(key, profile, entry["modelId"], "decode", batch, time, "vLLM", head_bytes=2.0)


@cache
def stream_best(hardware: str, mode: str) -> Figure:
    """Best STREAM kernel over 256 and 512 MB on a board in a power mode, byte/s."""
    file = "branes-graphs/jetson_gpu_calibrations.csv"
    found = [
        (float(line["achieved_bandwidth_gbps"]) * 1e9, key)
        for key, line in _lines(file)
        if line["hardware"].startswith(hardware) and line["power_mode"] == mode
    ]
    value, key = max(found)
    return Figure(value, (key,))


@cache
def clock(hardware: str, mode: str) -> Figure:
    """Highest GPU clock of a power mode as the calibration rows state it, Hz."""
    file = "branes-graphs/jetson_gpu_calibrations.csv"
    found = [
        (float(line["max_sm_clock_mhz"]) * 1e6, key)
        for key, line in _lines(file)
        if line["hardware"].startswith(hardware) and line["power_mode"] == mode
    ]
    value, key = max(found)
    return Figure(value, (f"{key}#clock",))


@cache
def dispatch(mode: str, kernel: str, statistic: str) -> Figure:
    """Launch cost of a kernel on AGX Orin, s; ``statistic`` is "Min", "p50" or "p99"."""
    file = f"branes-graphs/kernel_dispatch_agx_orin_{mode}.log"
    inside = False
    for number, text in enumerate((DATA / file).read_text(encoding="utf-8").splitlines(), start=1):
        if text.startswith("Statistics ("):
            inside = text.startswith(f"Statistics ({kernel} kernel)")
        elif inside and text.strip().startswith(f"{statistic}:"):
            return Figure(float(text.split()[1]) * 1e-3, (f"{file}:{number}",))
    raise LookupError(f"{file}: no {statistic} of {kernel}")


def aggregate(board: str, quantity: str) -> Figure:
    """Return a value of flashrt/aggregates.csv in its own unit."""
    for key, line in _lines("flashrt/aggregates.csv"):
        if line["board"] == board and line["quantity"] == quantity:
            return Figure(float(line["value"]), (key,))
    raise LookupError(f"flashrt/aggregates.csv: no {quantity!r} of {board!r}")


def flashrt_rate(board: str, precision: str, tokens: int, operations: tuple[str, ...]) -> Figure:
    """FLOP/s over the first matching rows of flashrt/gemm_us.csv, one per named operation."""
    flop, time, keys = 0.0, 0.0, []
    for operation in operations:
        key, line = next(
            (key, line)
            for key, line in _lines("flashrt/gemm_us.csv")
            if board in line["board"]
            and (line["precision"], line["op"], line["M_tokens"]) == (precision, operation, str(tokens))
        )
        flop += 2.0 * tokens * int(line["K"]) * int(line["N"])
        time += float(line["us"]) * 1e-6
        keys.append(key)
    return Figure(flop / time, tuple(keys))


def mlperf(edition: str, submitter: str, system: str, scenario: str) -> Figure:
    """Return an MLPerf Inference BERT-99 result: samples/s (Offline) or mean latency in s (SingleStream)."""
    for key, line in _lines("mlperf-inference/jetson_language_results.csv"):
        found = (line["round"], line["submitter"], line["system"], line["benchmark"])
        if found == (edition, submitter, system, "bert-99") and line["scenario"].lower() == scenario.lower():
            offline = scenario.lower() == "offline"
            value = float(line["samples_per_second"]) if offline else float(line["mean_latency_ns"]) * 1e-9
            return Figure(value, (key,))
    raise LookupError(f"MLPerf Inference {edition} {submitter} {system} {scenario}: no such row")
