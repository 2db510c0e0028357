"""Compute every shipped device profile from the measured rows in ``instances/data/jetson``.

``python -m wdmoe_opt.instances.devices.derive`` rewrites ``profiles.json``. Nothing in a profile is
typed in but the constants below, each a single published number whose table cannot be shipped.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.archive import write_text
from wdmoe_opt.instances.devices import rows as measured
from wdmoe_opt.instances.devices.profile import (
    PROFILES_FILE,
    SCHEMA_VERSION,
    DeviceProfile,
    Range,
)
from wdmoe_opt.instances.devices.rows import KERNELS_PER_EXPERT, Figure, Row
from wdmoe_opt.instances.devices.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GIGABYTE = 1e9
BYTES_FP16 = 2.0
#: INT4 with an FP16 scale and zero point per 128 weights (4.25 bit); NVFP4, an FP8 scale per 16 (4.5 bit).
BYTES_INT4, BYTES_NVFP4 = 0.5 + 4.0 / 128.0, 0.5 + 1.0 / 16.0


def _constant(value: float, source: str) -> Figure:
    return Figure(value, (f"constant: {value:g}, {source}",))


# The cited constants, ten in all.
_JFDG = "jfdg01/jetson@f6e16765, llama.cpp 57fe1f0, Orin Nano 8GB at 15 W,"
ORIN_FP16_DECODE = _constant(
    20.2, "NVIDIA/TensorRT-Edge-LLM issue 60, AGX Orin 64GB, Qwen3-4B-VL W16A16, token/s"
)
NANO_15W_DECODE_8B = _constant(7.753495, f"{_JFDG} Llama-3.1-8B Q4_K_M, tg128 token/s")
NANO_15W_PROMPT_8B = _constant(245.197215, f"{_JFDG} Llama-3.1-8B Q4_K_M, pp512 token/s")
NANO_15W_DECODE_7B = _constant(7.890549, f"{_JFDG} Qwen2.5-7B Q4_K_M, tg128 token/s")
NANO_15W_PROMPT_7B = _constant(264.739321, f"{_JFDG} Qwen2.5-7B Q4_K_M, pp512 token/s")
Q4_K_M_BYTES = _constant(0.6056, f"{_JFDG} file size over parameters of Q4_K_M models, byte per weight")
THOR_Q8_PROMPT = _constant(
    1736.92, "changjongkim/thor_gtier@9f33b80a, AGX Thor MAXN, Qwen2.5-7B Q8_0, token/s"
)
XAVIER_NX_MEMORY = _constant(43.5 * GIGABYTE, "GpuZelenograd/memtest_vulkan README, Xavier NX 8GB, byte/s")
AGX_XAVIER_PEAK = _constant(136.5 * GIGABYTE, "NVIDIA module data sheet, AGX Xavier, byte/s")
AGX_ORIN_PEAK = _constant(204.8 * GIGABYTE, "NVIDIA module data sheet, AGX Orin 64GB, byte/s")

_MODES = ("maxn", "50w", "30w", "15w")
_STREAM_MODE = {"maxn": "MAXN", "50w": "MODE_50W", "30w": "MODE_30W", "15w": "MODE_15W"}
_AGX = "Jetson Orin AGX"
_NANO = "orin-nano-maxn-super"
_INT4_FORMAT = {
    "agx-thor": "NVFP4", "agx-orin-maxn": "INT4 AWQ", "orin-nx": "INT4 AWQ", _NANO: "INT4 AWQ",
}  # fmt: skip


class Fit:
    """The derivation; every quantity is a :class:`Figure` or a :class:`Range` and knows its rows."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)

    # Choosing rows

    def _one(self, **match: Any) -> Row:
        found = [row for row in self._rows if all(getattr(row, key) == value for key, value in match.items())]
        if len(found) != 1:
            raise LookupError(f"{len(found)} rows instead of one for {match}")
        return found[0]

    def _int4_decode(self, profile: str, model: str) -> Figure:
        weights = _INT4_FORMAT[profile]
        row = self._one(profile=profile, model=model, kind="decode", tokens=1, release=f"v0.9.0 {weights}")
        return _streaming(row, BYTES_NVFP4 if weights == "NVFP4" else BYTES_INT4)

    def _prompt(self, profile: str, model: str, tokens: int) -> Row:
        release = f"v0.9.0 {_INT4_FORMAT[profile]}"
        return self._one(profile=profile, model=model, kind="prefill", tokens=tokens, release=release)

    def _prompt_slope(self, profile: str, short: tuple[str, int], long: tuple[str, int]) -> Figure:
        return _slope(
            self._prompt(profile, *short),
            self._prompt(profile, *long),
        )

    def _slope_8b(self, profile: str) -> Figure:
        return self._prompt_slope(profile, ("Qwen3-8B", 61), ("Qwen3-VL-8B-Instruct", 292))

    def _slope_2b(self, profile: str) -> Figure:
        return self._prompt_slope(profile, ("Qwen3-1.7B", 61), ("Qwen3-VL-2B-Instruct", 292))

    # Launch cost

    def orin_launch(self, mode: str) -> Range:
        """Launch of one expert call on AGX Orin, s: eager from the dispatch logs, low for a CUDA graph."""
        eager = measured.dispatch(mode, "small_matmul", "p50").times(KERNELS_PER_EXPERT)
        first = measured.dispatch(mode, "empty", "p50")
        other = measured.dispatch(mode, "empty", "Min")
        graph = Figure(first.value + (KERNELS_PER_EXPERT - 1) * other.value, first.rows + other.rows)
        return _range(
            eager, graph, self._synchronised_launch(mode), "measured",
            "Centre: five times the median dispatch of a small matrix product in eager PyTorch. Low: a CUDA "
            "graph, taken as one median empty dispatch and four minimal ones. High: eager layers of ViT-B/32 "
            "timed one by one in this mode, one and three kernels, continued to five.",
        )  # fmt: skip

    def _synchronised_launch(self, mode: str) -> Figure:
        one, three = (self._vision_layer(mode, kernels) for kernels in (1, 3))
        return Figure(2.0 * three.value - one.value, one.rows + three.rows)

    def _vision_layer(self, mode: str, kernels: int) -> Figure:
        rows = [
            row for row in self._rows
            if (row.profile, row.model) == (f"agx-orin-{mode}", "vit_b_32 linear FP16")
            and row.kernels == kernels
        ]  # fmt: skip
        middle = float(np.median([row.time for row in rows]))
        return Figure(middle, tuple(row.key for row in rows))

    def nano_launch(self, evidence: str) -> Range:
        """Launch of one expert call on Orin Nano, s, from its smallest matrix products."""
        product, linear = self._smallest("matmul"), self._smallest("linear")
        orin = self.orin_launch("maxn")
        graph = product.times(orin.low / orin.centre)
        return _range(
            product, Figure(graph.value, graph.rows + orin.rows), linear, evidence,
            "Centre and high: five times the median time of matrix products and of linear layers too "
            "small to matter (under 0.1 MFLOP), single calls of 10 to 40 us left out as already queued; "
            "the power mode of these rows is uncertain. Low: the share of a CUDA graph on AGX Orin.",
        )  # fmt: skip

    def _smallest(self, operation: str) -> Figure:
        rows = [
            row for row in self._rows
            if row.profile == _NANO and row.model == operation and row.flop < 2.4e6 and row.time > 1e-4
        ]  # fmt: skip
        middle = float(np.median([row.time for row in rows]))
        return Figure(KERNELS_PER_EXPERT * middle, tuple(row.key for row in rows))

    def borrowed_launch(self, mode: str, why: str) -> Range:
        """Launch of a board without logs: that of AGX Orin in ``mode``."""
        values = self.orin_launch(mode)
        return Range(
            centre=values.centre, low=values.low, high=values.high, evidence="assumed",
            rows=values.rows,
            source=f"No dispatch log of this board; AGX Orin at {mode.upper()} is taken, {why}.",
        )  # fmt: skip

    # AGX Orin

    def orin_bandwidth(self, mode: str, precision: str) -> Range:
        """Weight bandwidth of AGX Orin, byte/s; modes under MAXN are scaled by STREAM."""
        stream = measured.stream_best(_AGX, _STREAM_MODE[mode])
        ratio = stream.over(measured.stream_best(_AGX, "MAXN")) if mode != "maxn" else Figure(1.0, ())
        evidence = "measured" if mode == "maxn" else "scaled"
        scaled = (
            ""
            if mode == "maxn"
            else " All but measured bounds of this mode are MAXN values times the STREAM ratio."
        )
        if precision == "fp16":
            centre = _fp16_decode().times(ratio)
            source = (
                "Centre: whole-model FP16 decode of TensorRT Edge-LLM. Low: eager linear layer 25088x4096 "
                "at one token in this mode. High: best STREAM kernel of this mode, a bound."
            )
            return _range(centre, self._eager_layer(mode), stream, evidence, source + scaled)
        best = measured.aggregate("Jetson AGX Orin 64GB", "best weight-streaming kernel (gate GEMM M=1)")
        slow = _streaming(self._one(model="qwen3-32b", profile="agx-orin-maxn", tokens=1), BYTES_INT4)
        source = (
            "Centre: Qwen3-8B INT4 AWQ decode of TensorRT Edge-LLM. Low: vLLM decode of Qwen3-32B, taken "
            "as 4 bit. High: best INT8 weight-streaming kernel of FlashRT."
        )
        fast = best.times(GIGABYTE).times(ratio)
        centre = self._int4_decode("agx-orin-maxn", "Qwen3-8B").times(ratio)
        return _range(centre, slow.times(ratio), fast, evidence, source + scaled)

    def _eager_layer(self, mode: str) -> Figure:
        row = self._one(
            profile=f"agx-orin-{mode}", model="vgg16 linear FP16", release=f"jetson_orin_agx_{mode}",
            used=25088.0 * 4096.0,
        )  # fmt: skip
        return _streaming(row, BYTES_FP16)

    def orin_rate(self, mode: str, precision: str) -> Range:
        """Compute rate of AGX Orin, FLOP/s."""
        if mode == "maxn":
            return self._orin_maxn_rate(precision)
        if precision == "int4":
            return self._orin_mode_int4_rate(mode)
        return self._orin_mode_fp16_rate(mode)

    def _orin_maxn_rate(self, precision: str) -> Range:
        large, small = self._slope_8b("agx-orin-maxn"), self._slope_2b("agx-orin-maxn")
        slow = self._prompt_slope(
            "agx-orin-maxn", ("Qwen3-VL-8B-Instruct", 292), ("Qwen3-VL-8B-Instruct", 2089)
        )
        if precision == "int4":
            return _range(
                large, slow, small, "measured",
                "Marginal prompt time of TensorRT Edge-LLM INT4 (FP16 arithmetic): centre 8B body, 61 to "
                "292 tokens; high 1.7B body; low 8B body, 292 to 2,089 tokens, attention inside.",
            )  # fmt: skip
        mean = Figure((large.value + small.value) / 2.0, large.rows + small.rows)
        return _range(
            mean, slow, self._gemm_50w_large, "scaled",
            "Centre: mean of the marginal prompt times of two bodies with INT4 weights, whose arithmetic "
            "is FP16. Low: the 8B body between 292 and 2,089 tokens. High: eager 4096x4096 products at 50 "
            "W, so not the limit of MAXN.",
        )  # fmt: skip

    @property
    def _gemm_50w_large(self) -> Figure:
        rows = [
            self._one(profile="agx-orin-50w", model="linear 4096x4096", tokens=n) for n in (16384, 524288)
        ]
        return _slope(*rows)

    @property
    def _gemm_50w_centre(self) -> Figure:
        rows = [self._one(profile="agx-orin-50w", model="linear 2048x4096", tokens=n) for n in (512, 2048)]
        return _slope(*rows)

    def _clock_ratio(self, mode: str, base: str = "maxn") -> Figure:
        return measured.clock(_AGX, _STREAM_MODE[mode]).over(measured.clock(_AGX, _STREAM_MODE[base]))

    def _orin_mode_fp16_rate(self, mode: str) -> Range:
        maxn = self._orin_maxn_rate("fp16")
        low = Figure(maxn.centre, maxn.rows).times(self._clock_ratio(mode))
        if mode == "50w":
            return _range(
                self._gemm_50w_centre, low, self._gemm_50w_large, "measured",
                "Centre: eager linear layer 2048x4096, 512 to 2,048 tokens. High: 4096x4096 products. "
                "Low: MAXN centre times the clock ratio.",
            )  # fmt: skip
        ratio = self._clock_ratio(mode, "50w")
        source = "Centre and high: 50 W values times the clock ratio. Low: MAXN centre times the clock ratio."
        if mode == "15w":
            low = Figure(maxn.centre, maxn.rows).times(_mlperf_15w())
            source = (
                "Centre and high: the 50 W values times the clock ratio. Low: derived from MLPerf "
                "Inference v3.0, BERT-99 Offline, open division, cTuning, 15 W system against the default "
                "one of the same submitter, times the MAXN centre."
            )
        return _range(
            self._gemm_50w_centre.times(ratio), low, self._gemm_50w_large.times(ratio), "scaled", source
        )

    def _orin_mode_int4_rate(self, mode: str) -> Range:
        maxn = self._orin_maxn_rate("int4")
        clocks = self._clock_ratio(mode)
        memory = measured.stream_best(_AGX, _STREAM_MODE[mode]).over(measured.stream_best(_AGX, "MAXN"))
        slow = _mlperf_15w() if mode == "15w" else clocks
        named = (
            "the MLPerf v3.0 ratio (derived, cTuning, open, BERT-99 Offline)"
            if mode == "15w"
            else "the clock ratio"
        )
        return _range(
            Figure(maxn.centre, maxn.rows).times(clocks), Figure(maxn.low, maxn.rows).times(slow),
            Figure(maxn.high, maxn.rows).times(memory), "scaled",
            f"MAXN values: centre times the GPU clock ratio, low times {named}, high times the STREAM ratio.",
        )  # fmt: skip

    # Orin NX and Orin Nano

    def orin_nx_bandwidth(self, precision: str) -> Range:
        """Weight bandwidth of Orin NX, byte/s."""
        stream = measured.stream_best("Jetson Orin NX", "MAXN")
        large, small = (self._int4_decode("orin-nx", name) for name in ("Qwen3-8B", "Qwen3-1.7B"))
        if precision == "fp16":
            return _range(
                stream, small, large, "bound",
                "Centre: best STREAM kernel, a bound that agrees with whole-model INT4 decode (high "
                "Qwen3-8B, low Qwen3-1.7B of TensorRT Edge-LLM).",
            )  # fmt: skip
        return _range(
            large, small, large, "measured",
            "Centre and high: Qwen3-8B INT4 AWQ decode of TensorRT Edge-LLM, already at the STREAM rate. "
            "Low: Qwen3-1.7B.",
        )  # fmt: skip

    def orin_nx_rate(self, precision: str) -> Range:
        """Compute rate of Orin NX, FLOP/s; FP16 arithmetic in both precisions."""
        large, small = self._slope_8b("orin-nx"), self._slope_2b("orin-nx")
        note = "measured with INT4 weights and FP16 arithmetic"
        return _range(
            large, large, small, "measured" if precision == "int4" else "scaled",
            f"Marginal prompt time of TensorRT Edge-LLM, {note}: centre and low 8B body, high 1.7B body.",
        )  # fmt: skip

    def nano_bandwidth(self, precision: str) -> Range:
        """Weight bandwidth of Orin Nano at MAXN_SUPER, byte/s."""
        block = self._one(model="swiglu 5120x13824", used=3.0 * 5120 * 13824)
        small = self._one(model="swiglu 1536x8960")
        llama = self._llama_decode
        fp16, fp16_small = _streaming(block, BYTES_FP16), _streaming(small, BYTES_FP16)
        of_weights = _streaming(llama, BYTES_INT4)
        if precision == "fp16":
            llama_bytes = Figure(of_weights.value / BYTES_INT4, of_weights.rows).times(Q4_K_M_BYTES)
            return _range(
                fp16, _smaller(fp16_small, of_weights), llama_bytes,
                "measured",
                "Centre: standalone cuBLAS SwiGLU 5120x13824 at one token. Low: the slower of SwiGLU "
                "1536x8960 and llama.cpp decode of Qwen2.5-7B counted at 4.25 bit. High: that decode at "
                "its true Q4_K_M size.",
            )  # fmt: skip
        trt = self._int4_decode(_NANO, "Qwen3-1.7B")
        return _range(
            trt, of_weights, _larger(fp16, trt), "measured",
            "Centre: Qwen3-1.7B INT4 AWQ decode of TensorRT Edge-LLM. Low: llama.cpp Q4_K_M decode of "
            "Qwen2.5-7B in weights per second. High: the FP16 SwiGLU block in byte per second.",
        )  # fmt: skip

    @property
    def _llama_decode(self) -> Row:
        return self._one(model="Qwen2.5-Coder-7B", kind="decode", release="llamacpp after 32")

    @cached_property
    def _nano_products(self) -> tuple[Figure, Figure]:
        """Additive fit of large linear layers: compute rate, and the one with the bandwidth held fixed."""
        rows = [
            row for row in self._rows if row.profile == _NANO and row.model == "linear" and row.used > 8e6
        ]
        keys = tuple(row.key for row in rows)
        reading = np.array([row.stored_bytes(BYTES_FP16) / row.time for row in rows])
        computing = np.array([row.flop / row.time for row in rows])
        both = np.linalg.lstsq(np.stack([reading, computing], axis=1), np.ones(len(rows)), rcond=None)[0]
        block = _streaming(self._one(model="swiglu 5120x13824", used=3.0 * 5120 * 13824), BYTES_FP16)
        rest = 1.0 - reading / block.value
        alone = float(computing @ rest / (computing @ computing))
        return Figure(1.0 / float(both[1]), keys), Figure(1.0 / alone, keys + block.rows)

    def nano_rate(self, precision: str) -> Range:
        """Compute rate of Orin Nano at MAXN_SUPER, FLOP/s."""
        slow = self._slope_2b(_NANO)
        if precision == "fp16":
            joint, fixed = self._nano_products
            return _range(
                joint, slow, _larger(fixed, joint), "measured",
                "Centre: additive fit, in relative error, of the linear layers with more than 8 million "
                "weights. High: the same with the bandwidth held at the SwiGLU value. Low: marginal "
                "prompt time of TensorRT Edge-LLM, 1.7B.",
            )  # fmt: skip
        prompts = [
            self._one(model="Qwen2.5-Coder-7B", kind="prefill", release="llamacpp", tokens=n)
            for n in (32, 512)
        ]
        centre = _slope(*prompts)
        return _range(
            centre, slow, centre, "measured",
            "Centre and high: llama.cpp Q4_K_M, marginal prompt time of Qwen2.5-7B, 32 to 512 tokens. "
            "Low: TensorRT Edge-LLM INT4 AWQ, 1.7B body, 61 to 292 tokens.",
        )  # fmt: skip

    def nano_15w_bandwidth(self, precision: str) -> Range:
        """Weight bandwidth of Orin Nano at 15 W, byte/s."""
        large = NANO_15W_DECODE_8B.times(_decoded("llama-3-1-8b"))
        other = NANO_15W_DECODE_7B.times(_decoded("Qwen2.5-Coder-7B"))
        stream = measured.stream_best("Jetson Orin Nano", "15W").over(
            measured.stream_best("Jetson Orin Nano", "MAXN_SUPER")
        )
        if precision == "fp16":
            values = self.nano_bandwidth("fp16")
            scaled = Figure(values.high, values.rows).times(stream)
            centre, low = large.times(Q4_K_M_BYTES), other.times(Q4_K_M_BYTES)
            return _range(
                centre, _smaller(low, centre), _larger(scaled, centre), "scaled",
                "Centre: llama.cpp Q4_K_M decode of Llama-3.1-8B in byte per second. Low: Qwen2.5-7B. "
                "High: the MAXN_SUPER high times the STREAM ratio.",
            )  # fmt: skip
        return _range(
            large.times(BYTES_INT4), other.times(BYTES_INT4), large.times(Q4_K_M_BYTES), "measured",
            "Centre: llama.cpp Q4_K_M decode of Llama-3.1-8B in weights per second. Low: Qwen2.5-7B. "
            "High: Llama-3.1-8B in byte per second.",
        )  # fmt: skip

    def nano_15w_rate(self, precision: str) -> Range:
        """Compute rate of Orin Nano at 15 W, FLOP/s; prompt time less one decode step."""
        large = _prompt_rate("llama-3-1-8b", 512, NANO_15W_PROMPT_8B, NANO_15W_DECODE_8B)
        other = _prompt_rate("Qwen2.5-Coder-7B", 512, NANO_15W_PROMPT_7B, NANO_15W_DECODE_7B)
        whole = NANO_15W_PROMPT_8B.times(2.0 * SHAPES["llama-3-1-8b"].used)
        return _range(
            large, whole, other, "measured" if precision == "int4" else "scaled",
            "llama.cpp Q4_K_M, 512-token prompt less one decode step: centre Llama-3.1-8B, high "
            "Qwen2.5-7B; low without that subtraction.",
        )  # fmt: skip

    # AGX Thor

    def thor_bandwidth(self, precision: str) -> Range:
        """Weight bandwidth of AGX Thor, byte/s."""
        blocks = sorted(
            (row for row in self._rows if row.profile == "agx-thor" and row.model == "bf16 ffn_swiglu"),
            key=lambda row: row.time,
        )
        fast, slow = (_streaming(row, BYTES_FP16) for row in (blocks[0], blocks[-1]))
        if precision == "fp16":
            memory = measured.aggregate("Jetson AGX Thor", "DRAM bandwidth").times(GIGABYTE)
            return _range(
                slow, memory, fast, "measured",
                "Centre and high: two runs of a whole BF16 SwiGLU 4096x11008 at one token. Low: the "
                "memory read-out of the same source.",
            )  # fmt: skip
        layer = self._one(profile="agx-thor", model="w4a16 ffn_swiglu")
        centre = self._int4_decode("agx-thor", "Qwen3-8B")
        return _range(
            centre, _streaming(layer, BYTES_NVFP4), _larger(fast, centre), "measured",
            "Centre: Qwen3-8B NVFP4 decode of TensorRT Edge-LLM. Low: fused W4A16 SwiGLU 4096x11008 at "
            "one token, which was no faster than 8 bit. High: the BF16 block in byte per second.",
        )  # fmt: skip

    def thor_rate(self, precision: str) -> Range:
        """Compute rate of AGX Thor, FLOP/s."""
        slow = THOR_Q8_PROMPT.times(2.0 * SHAPES["Qwen2.5-Coder-7B"].used)
        if precision == "fp16":
            large = measured.aggregate("Jetson AGX Thor", "cuBLAS large square GEMM").times(1e12)
            return _range(
                large, slow, large, "measured",
                "Centre and high: large square BF16 product of cuBLAS. Low: whole prompts of llama.cpp "
                "Q8_0, Qwen2.5-7B.",
            )  # fmt: skip
        prompt = self._one(
            profile="agx-thor",
            model="Qwen3-8B",
            kind="prefill",
            tokens=2048,
            release="v0.9.0 llm_bench NVFP4",
        )
        centre = Figure(2.0 * prompt.used * prompt.tokens / prompt.time, (prompt.key,))
        return _range(
            centre, slow, centre, "measured",
            "Centre and high: Qwen3-8B NVFP4 prompt of 2,048 tokens of TensorRT Edge-LLM. Low: whole "
            "prompts of llama.cpp Q8_0, Qwen2.5-7B, which has no 4 bit arithmetic.",
        )  # fmt: skip

    # Xavier, estimated

    def xavier_bandwidth(self, board: str, precision: str) -> Range:
        """Weight bandwidth of a Xavier, byte/s, from AGX Orin's use of its memory."""
        orin, peak = self.orin_bandwidth("maxn", "fp16"), AGX_XAVIER_PEAK.over(AGX_ORIN_PEAK)
        low, high = (Figure(value / orin.centre, orin.rows) for value in (orin.low, orin.high))
        if board == "agx-xavier":
            centre, evidence = Figure(orin.centre, orin.rows).times(peak), "scaled"
            source = (
                "Peak memory rate times the share of its peak that AGX Orin uses at centre, low and high."
            )
        else:
            centre, evidence = XAVIER_NX_MEMORY, "bound"
            source = "Centre: a memory read-out, a bound. Low and high: the spread of AGX Orin around it."
        if precision == "int4":
            source += " INT4 weights are taken to stream at the FP16 byte rate: no INT4 row exists."
            evidence = "scaled"
        return _range(centre, centre.times(low), centre.times(high), evidence, source)

    def xavier_rate(self, board: str, precision: str) -> Range:
        """Compute rate of a Xavier, FLOP/s, derived from MLPerf BERT-99 ratios anchored on AGX Orin."""
        system = {"agx-xavier": "AGX_Xavier_TRT", "xavier-nx": "Xavier_NX_TRT"}[board]
        offline = measured.mlperf("v1.1", "closed/NVIDIA", system, "Offline")
        single = measured.mlperf("v1.1", "closed/NVIDIA", system, "SingleStream")
        per_sample = flop_per_bert_sample()
        fast = per_sample.times(offline).times(0.5)
        slow = per_sample.over(single).times(0.5)
        source = (
            f"Derived from MLPerf Inference v1.1, BERT-99, closed division, NVIDIA, {system}: centre and "
            "high Offline, low SingleStream; anchored on AGX Orin (v3.0, Orin_TRT, Offline) and its INT8 "
            "feed-forward rate; FP16 taken as half of INT8."
        )
        if precision == "int4":
            ratio = self._slope_8b("agx-orin-maxn").value / self.orin_rate("maxn", "fp16").centre
            fast, slow = fast.times(ratio), slow.times(ratio)
            source += " Times the INT4 to FP16 ratio of AGX Orin: no INT4 row exists."
        return _range(fast, slow, fast, "scaled", source)


def flop_per_bert_sample() -> Figure:
    """INT8 operations per MLPerf BERT-99 sample on AGX Orin: feed-forward rate over samples/s."""
    rate = measured.flashrt_rate("AGX Orin", "int8", 1032, ("gate_or_up", "gate_or_up", "down"))
    return rate.over(measured.mlperf("v3.0", "closed/NVIDIA", "Orin_TRT", "Offline"))


def derive_profiles() -> tuple[DeviceProfile, ...]:
    """All shipped profiles, computed from the measured rows."""
    fit = Fit(measured.read_rows()[0])
    return tuple(profile for precision in ("fp16", "int4") for profile in _of_precision(fit, precision))


def fitted_rows(profiles: Iterable[DeviceProfile]) -> frozenset[str]:
    """Keys of all rows that the profiles say they were derived from."""
    ranges = (
        value for one in profiles for value in (one.launch_time, one.weight_bandwidth, one.compute_rate)
    )
    return frozenset(key for values in ranges for key in values.rows)


def main() -> None:
    """Rewrite profiles.json."""
    write_text(PROFILES_FILE, render(derive_profiles()))


def render(profiles: Iterable[DeviceProfile]) -> str:
    """Text of profiles.json."""
    content = {"schema_version": SCHEMA_VERSION, "profiles": [profile.to_dict() for profile in profiles]}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _of_precision(fit: Fit, precision: str) -> Iterable[DeviceProfile]:
    for mode in _MODES:
        budget = None if mode == "maxn" else float(mode.removesuffix("w"))
        yield _profile(
            f"agx-orin-{mode}", precision, fit.orin_launch(mode), fit.orin_bandwidth(mode, precision),
            fit.orin_rate(mode, precision), memory=64, budget=budget,
        )  # fmt: skip
    yield _profile(
        "agx-thor", precision, fit.borrowed_launch("maxn", "whose host is slower"),
        fit.thor_bandwidth(precision), fit.thor_rate(precision), memory=128,
    )  # fmt: skip
    yield _profile(
        "orin-nx", precision, fit.borrowed_launch("maxn", "whose CPU cores are the same, at a higher clock"),
        fit.orin_nx_bandwidth(precision), fit.orin_nx_rate(precision), memory=16,
    )  # fmt: skip
    yield _profile(
        "orin-nano-maxn-super", precision, fit.nano_launch("measured"), fit.nano_bandwidth(precision),
        fit.nano_rate(precision), memory=8,
    )  # fmt: skip
    yield _profile(
        "orin-nano-15w", precision, fit.nano_launch("assumed"), fit.nano_15w_bandwidth(precision),
        fit.nano_15w_rate(precision), memory=8, budget=15.0,
    )  # fmt: skip
    for board, memory in (("agx-xavier", 32), ("xavier-nx", 8)):
        yield _profile(
            f"{board}-estimated", precision, fit.borrowed_launch("15w", "the slowest host with a log"),
            fit.xavier_bandwidth(board, precision), fit.xavier_rate(board, precision), memory=memory,
        )  # fmt: skip


def _profile(
    name: str,
    precision: str,
    launch: Range,
    bandwidth: Range,
    rate: Range,
    *,
    memory: int,
    budget: float | None = None,
) -> DeviceProfile:
    int4 = BYTES_NVFP4 if name == "agx-thor" else BYTES_INT4
    return DeviceProfile(
        name=name, precision=precision, bytes_per_weight=BYTES_FP16 if precision == "fp16" else int4,
        launch_time=launch, weight_bandwidth=bandwidth, compute_rate=rate, memory=memory * GIGABYTE,
        power_budget=budget,
        provenance={"derived_by": "instances/devices/derive.py", "data": "instances/data/jetson"},
    )  # fmt: skip


def _range(centre: Figure, low: Figure, high: Figure, evidence: str, source: str) -> Range:
    rows = tuple(dict.fromkeys(centre.rows + low.rows + high.rows))
    values = {"centre": centre.value, "low": low.value, "high": high.value}
    return Range(
        **{key: _six_digits(value) for key, value in values.items()},
        evidence=evidence,
        source=source,
        rows=rows,
    )


def _six_digits(value: float) -> float:
    return round(value, 5 - math.floor(math.log10(abs(value))))


def _streaming(row: Row, bytes_per_weight: float) -> Figure:
    return Figure(row.stored_bytes(bytes_per_weight) / row.time, (row.key,))


def _slope(short: Row, long: Row) -> Figure:
    rate = 2.0 * long.used * (long.tokens - short.tokens) / (long.time - short.time)
    return Figure(rate, (short.key, long.key))


def _fp16_decode() -> Figure:
    shape = SHAPES["Qwen3-4B-Instruct-2507"]
    return ORIN_FP16_DECODE.times(BYTES_FP16 * (shape.used + shape.head))


def _decoded(model: str) -> float:
    return float(SHAPES[model].used + SHAPES[model].head)


def _prompt_rate(model: str, tokens: int, prompt: Figure, decode: Figure) -> Figure:
    time = tokens / prompt.value - 1.0 / decode.value
    return Figure(2.0 * SHAPES[model].used * tokens / time, prompt.rows + decode.rows)


def _mlperf_15w() -> Figure:
    name = "nvidia_orin{}-nvidia_original-gpu-tensorrt-v8.5.2.2-default_config"
    slow, default = (
        measured.mlperf("v3.0", "open/cTuning", name.format(end), "offline") for end in ("_max15", "")
    )
    return slow.over(default)


def _pick(choose: Callable[[float, float], float], one: Figure, other: Figure) -> Figure:
    return Figure(choose(one.value, other.value), one.rows + other.rows)


def _larger(one: Figure, other: Figure) -> Figure:
    return _pick(max, one, other)


def _smaller(one: Figure, other: Figure) -> Figure:
    return _pick(min, one, other)


if __name__ == "__main__":
    main()
