"""Predict every measured row that no profile was derived from, and say how far off the profiles are.

``python -m wdmoe_opt.instances.devices.backtest`` prints the tables, ``--json`` prints the rows and groups as
JSON, ``--write docs/device-backtest.md`` writes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.archive import write_text
from wdmoe_opt.errors import InputError
from wdmoe_opt.instances.devices.derive import (
    Fit,
    derive_profiles,
    fitted_rows,
    flop_per_bert_sample,
)
from wdmoe_opt.instances.devices.profile import LEVELS, DeviceProfile, Range, expert_weights
from wdmoe_opt.instances.devices.rows import KERNELS_PER_EXPERT, Row, mlperf, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: What a row is, and how its prediction is put together.
KINDS = {
    "layer": "one linear layer or feed-forward block, timed warm, launches overlapped or replayed: no launch",
    "eager layer": "layer or small network timed call by call in eager PyTorch: launch_time x kernels / 5",
    "layer in cache": "as layer, but the weights stay in the L2 cache between repeats: no cold expert",
    "prefill": "whole model, one prompt: body weights for all tokens, output head for one",
    "padded prefill": "eight short prompts padded by the engine: more tokens ran than the row counts",
    "decode": "whole model, one step of one token per sequence: body and output head for each",
    "moe prefill": "as prefill; experts read: those that even and independent routing touches",
    "moe padded prefill": "as padded prefill, for a mixture of experts",
    "moe decode": "as decode, for a mixture of experts",
}
#: Kinds whose token count or weights are known not to be what was timed; kept out of the table by board.
MISCOUNTED = ("layer in cache", "padded prefill", "moe padded prefill")
#: Upper limits of the token buckets.
BUCKETS = (1, 8, 64, 512, 4096, None)
MIXTRAL_EXPERT = expert_weights(4096, 14336)

_GROUP_HEADER = ("n", "median error", "median size", "worst low", "worst high", "inside low to high")


@dataclass(frozen=True)
class Outcome:
    """A measured row beside its three predictions, s; ``error`` is centre over measured, minus one."""

    row: Row
    low: float
    centre: float
    high: float

    @property
    def error(self) -> float:
        """Relative error of the centre prediction; negative where the profile is too fast."""
        return self.centre / self.row.time - 1.0

    @property
    def inside(self) -> bool:
        """Whether the measured time lies between the low and the high prediction."""
        return self.low <= self.row.time <= self.high


@dataclass(frozen=True)
class Group:
    """Errors of a set of rows, as fractions of the measured time."""

    n: int
    median_error: float
    median_size: float
    worst_low: float
    worst_high: float
    inside: float


def predict(profile: DeviceProfile, row: Row, level: str = "centre") -> float:
    """Time in s that a profile gives for what was computed in a row."""
    first, per_byte, per_flop = profile.costs(level)
    launch = first * row.kernels / KERNELS_PER_EXPERT
    return launch + row.stored_bytes(profile.bytes_per_weight) * per_byte + row.flop * per_flop


def unused_rows(profiles: Iterable[DeviceProfile]) -> tuple[Row, ...]:
    """All timed rows but those that a profile names as its source."""
    fitted = fitted_rows(profiles)
    return tuple(row for row in read_rows()[0] if row.key not in fitted)


def run() -> tuple[Outcome, ...]:
    """Back-test of the profiles as the code derives them now."""
    profiles = derive_profiles()
    by_name = {(profile.name, profile.precision): profile for profile in profiles}
    return tuple(
        Outcome(row, *(predict(by_name[row.profile, row.precision], row, level) for level in LEVELS))
        for row in unused_rows(profiles)
    )


def summarise(outcomes: Sequence[Outcome]) -> Group:
    """Median, spread and coverage of the errors.

    Raises
    ------
    InputError
        If there is no row.
    """
    if not outcomes:
        raise InputError("outcomes", "must hold at least one row")
    errors = np.array([outcome.error for outcome in outcomes])
    return Group(
        n=len(errors),
        median_error=float(np.median(errors)),
        median_size=float(np.median(np.abs(errors))),
        worst_low=float(errors.min()),
        worst_high=float(errors.max()),
        inside=float(np.mean([outcome.inside for outcome in outcomes])),
    )


def grouped(
    outcomes: Iterable[Outcome], label: Callable[[Outcome], tuple[str, ...]]
) -> dict[tuple[str, ...], Group]:
    """Group by label, in the order in which the labels appear."""
    members: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        members.setdefault(label(outcome), []).append(outcome)
    return {name: summarise(group) for name, group in members.items()}


def by_board_and_tokens(outcomes: Iterable[Outcome]) -> dict[tuple[str, ...], Group]:
    """Group by profile, precision and token bucket, without the miscounted kinds."""
    counted = [outcome for outcome in outcomes if outcome.row.kind not in MISCOUNTED]
    counted.sort(key=lambda one: (one.row.profile, one.row.precision, one.row.tokens))
    return grouped(counted, lambda one: (one.row.profile, one.row.precision, bucket(one.row.tokens)))


def by_board(outcomes: Iterable[Outcome]) -> dict[tuple[str, ...], Group]:
    """Group by profile and precision, without the miscounted kinds."""
    counted = [outcome for outcome in outcomes if outcome.row.kind not in MISCOUNTED]
    counted.sort(key=lambda one: (one.row.profile, one.row.precision))
    return grouped(counted, lambda one: (one.row.profile, one.row.precision))


def by_kind(outcomes: Iterable[Outcome]) -> dict[tuple[str, ...], Group]:
    """Group by kind, profile and precision, of all kinds."""
    rows = sorted(outcomes, key=lambda one: (list(KINDS).index(one.row.kind), one.row.profile))
    return grouped(rows, lambda one: (one.row.kind, one.row.profile, one.row.precision))


def by_size(outcomes: Iterable[Outcome]) -> dict[tuple[str, ...], Group]:
    """Group single layers by profile and by weights, since small layers are mostly launch cost."""
    rows = [one for one in outcomes if one.row.kind in ("layer", "eager layer")]
    rows.sort(key=lambda one: (one.row.profile, one.row.precision, one.row.used))
    return grouped(rows, lambda one: (one.row.profile, one.row.precision, _size(one.row.used)))


def by_thor_format(outcomes: Iterable[Outcome]) -> dict[tuple[str, ...], Group]:
    """Group the whole models of TensorRT Edge-LLM on AGX Thor by kind and format of the weights."""
    rows = [
        one
        for one in outcomes
        if one.row.profile == "agx-thor"
        and one.row.key.startswith("tensorrt-edge-llm/")
        and one.row.kind not in MISCOUNTED
    ]
    rows.sort(key=lambda one: (one.row.kind, one.row.release.split()[-1]))
    return grouped(rows, lambda one: (one.row.kind, one.row.release.split()[-1]))


def bucket(tokens: float) -> str:
    """Name of the token bucket, for example "9 to 64"."""
    below = 0
    for limit in BUCKETS:
        if limit is None:
            return f"over {below}"
        if tokens <= limit:
            return str(limit) if limit == below + 1 else f"{below + 1} to {limit}"
        below = limit
    raise AssertionError("the last bucket has no limit")


def page() -> str:
    """Text of docs/device-backtest.md."""
    profiles, outcomes = derive_profiles(), run()
    untested = sorted({one.name for one in profiles} - {one.row.profile for one in outcomes})
    parts = [
        _INTRODUCTION,
        _profiles_section(profiles),
        _section("Back-test by board", _BY_BOARD, ("profile", "precision"), by_board(outcomes)),
        f"No row left to test: {', '.join(untested)}.",
        _section(
            "Back-test by board and token count",
            "",
            ("profile", "precision", "tokens"),
            by_board_and_tokens(outcomes),
        ),
        _section("Single layers by size", _BY_SIZE, ("profile", "precision", "weights"), by_size(outcomes)),
        _section("By kind of row", _kinds_text(), ("kind", "profile", "precision"), by_kind(outcomes)),
        _section("AGX Thor by weight format", "", ("kind", "weights"), by_thor_format(outcomes)),
        _READING,
        _checks_section(),
        _left_out_section(len(outcomes)),
        _sources_section(profiles),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def to_json() -> dict[str, Any]:
    """Rows with predictions, and the groups, as JSON values."""
    outcomes = run()
    tables = {"board": by_board, "board_tokens": by_board_and_tokens, "size": by_size, "kind": by_kind}
    groups = {
        name: [{"group": list(label), **asdict(group)} for label, group in table(outcomes).items()]
        for name, table in tables.items()
    }
    rows = [
        asdict(one.row) | {"low": one.low, "centre": one.centre, "high": one.high, "error": one.error}
        for one in outcomes
    ]
    return {"groups": groups, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the back-test."""
    parser = argparse.ArgumentParser(
        prog="python -m wdmoe_opt.instances.devices.backtest", description=__doc__
    )
    parser.add_argument("--json", action="store_true", help="print rows and groups as JSON")
    parser.add_argument("--write", type=Path, metavar="PATH", help="write the page to PATH")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        write_text(chosen.write, page())
    elif chosen.json:
        json.dump(to_json(), sys.stdout, indent=1)
    else:
        outcomes = run()
        print(_table(("profile", "precision"), by_board(outcomes)))
        print()
        print(_table(("profile", "precision", "tokens"), by_board_and_tokens(outcomes)))


def _size(weights: float) -> str:
    for limit, name in (
        (1e6, "under 1 million"),
        (8e6, "1 to 8 million"),
        (64e6, "8 to 64 million"),
    ):
        if weights < limit:
            return name
    return "64 million or more"


def _section(title: str, text: str, labels: Sequence[str], groups: dict[tuple[str, ...], Group]) -> str:
    parts = [f"## {title}", text.strip(), _table(labels, groups)]
    return "\n\n".join(part for part in parts if part)


def _table(labels: Sequence[str], groups: dict[tuple[str, ...], Group]) -> str:
    lines = [[*label, *_cells(group)] for label, group in groups.items()]
    return _markdown([*labels, *_GROUP_HEADER], lines)


def _cells(group: Group) -> list[str]:
    errors = (group.median_error, group.median_size, group.worst_low, group.worst_high)
    shown = [f"{100 * value:+.0f} %" for value in errors]
    shown[1] = shown[1].removeprefix("+")
    return [str(group.n), *shown, f"{100 * group.inside:.0f} %"]


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _profiles_section(profiles: Iterable[DeviceProfile]) -> str:
    header = (
        "profile", "precision", "launch, ms", "bandwidth, GB/s", "rate, TFLOP/s", "Mixtral: fixed ms",
        "Mixtral: us per token", "evidence: launch / bandwidth / rate",
    )  # fmt: skip
    return f"## Profiles\n\n{_PROFILES.strip()}\n\n{_markdown(header, map(_profile_cells, profiles))}"


def _profile_cells(profile: DeviceProfile) -> list[str]:
    launch, bandwidth, rate = profile.launch_time, profile.weight_bandwidth, profile.compute_rate
    stored = MIXTRAL_EXPERT * profile.bytes_per_weight
    fixed = [1e3 * stored / value for value in (bandwidth.centre, bandwidth.high, bandwidth.low)]
    tokens = [1e6 * profile.compute_time(MIXTRAL_EXPERT, level) for level in ("centre", "low", "high")]
    evidence = " / ".join(value.evidence for value in (launch, bandwidth, rate))
    return [
        profile.name, profile.precision, _spread(launch, 1e3), _spread(bandwidth, 1e-9), _spread(rate, 1e-12),
        _three(fixed), _three(tokens), evidence,
    ]  # fmt: skip


def _spread(values: Range, scale: float) -> str:
    return _three([scale * value for value in (values.centre, values.low, values.high)])


def _three(values: Sequence[float]) -> str:
    centre, low, high = (f"{value:.3g}" for value in values)
    return f"{centre} ({low} to {high})"


def _kinds_text() -> str:
    return "\n".join(f"- {kind}: {text}." for kind, text in KINDS.items())


def _checks_section() -> str:
    offline = mlperf("v3.0", "closed/NVIDIA", "Orin_NX_TRT", "Offline")
    scaled = flop_per_bert_sample().value * offline.value / 2.0
    known = Fit(read_rows()[0]).orin_nx_rate("fp16").centre
    return _CHECKS.format(scaled=scaled * 1e-12, known=known * 1e-12, error=100.0 * (scaled / known - 1.0))


def _left_out_section(tested: int) -> str:
    rows, left_out = read_rows()
    lines = "\n".join(f"- {count} lines: {reason}." for reason, count in sorted(left_out.items()))
    return (
        f"## What was not predicted\n\nOf {len(rows)} timed rows, {len(rows) - tested} are named by a "
        f"profile as its source and {tested} are tested. No profile or shape fits these other lines of the "
        f"shipped files:\n\n{lines}"
    )


def _sources_section(profiles: Iterable[DeviceProfile]) -> str:
    lines = []
    for profile in profiles:
        lines.append(f"### {profile.name}, {profile.precision}\n")
        named = {
            "launch": profile.launch_time,
            "bandwidth": profile.weight_bandwidth,
            "rate": profile.compute_rate,
        }
        lines += [f"- {name}, {values.evidence}. {values.source}" for name, values in named.items()]
        lines.append("")
    constants = sorted(row for row in fitted_rows(profiles) if row.startswith("constant: "))
    cited = "\n".join(f"- {row.removeprefix('constant: ')}" for row in constants)
    return "## Sources by profile\n\n" + "\n".join(lines) + f"\n### Constants cited as facts\n\n{cited}"


_INTRODUCTION = """
# Device profiles and their back-test

This page is generated by `python -m wdmoe_opt.instances.devices.backtest --write docs/device-backtest.md`;
edit the code, not the page.

A profile gives the time of one expert call over M tokens as launch + weight bytes / bandwidth + 2 x weights
x M / rate. The centre, low and high values are computed from the measured rows in `instances/data/jetson`
by `instances/devices/derive.py`; each value lists its rows in `profiles.json`. The back-test predicts every
other timed row of those files.

No public log times a 4096 x 14336 expert alone on any Jetson at several token counts. Orin NX rests on one
vendor table and a memory benchmark. The power mode of the TensorRT Edge-LLM rows is not stated; those of
AGX Orin are taken as MAXN, those of Orin Nano as MAXN_SUPER. The two Xaviers are estimated from ratios.

    from wdmoe_opt.instances.devices import expert_weights, load_profile

    profile = load_profile("agx-orin-maxn", precision="int4")
    weights = expert_weights(2048, 768)
    profile.activation_time(weights)         # s, once per active expert
    profile.compute_time(weights, "high")    # s per token, pessimistic
"""

_PROFILES = """
Each cell is centre (low to high). The Mixtral columns (4096 x 14336, 176,160,768 weights) are times without
launch, low being the short one. Evidence speaks of the centre: measured, rows of this board; scaled,
another mode, board or precision times a ratio; bound, a memory benchmark that a real layer cannot beat;
assumed, no row. MLPerf results are cited by name in the sources below; every rate found from them is
derived from them and is not an MLPerf result.
"""

_BY_BOARD = """
Error is predicted over measured, minus one: negative where the profile is too fast. Median size is the
median of the absolute error. The last column says how many measured times lie between the low and the high
prediction. The three kinds whose row does not count what was computed (see below) are left out here and in
the next table.
"""

_BY_SIZE = """
An expert of OLMoE or the Qwen MoE models has 5 to 17 million weights, one of Mixtral 176 million.
"""

_READING = """
## Reading the tables

- Prompts of whole models up to 512 tokens on AGX Orin and Orin NX are where the form fits best. Models
  under 1 billion weights are predicted too fast: their many small kernels cost launches that rates found
  from an 8 billion model do not hold.
- Decode of eight sequences is predicted too fast on AGX Orin and AGX Thor, the boards that have such rows.
  Kernels for a few tokens reach neither the bandwidth of one token nor the rate of a long prompt. Two to
  eight tokens are the weak spot of the form.
- Prompts over 512 tokens contain attention, which grows with the square of the length and which an expert
  does not have.
- AGX Thor in INT4 is two machines: NVFP4 has its own arithmetic, INT4 AWQ and GPTQ compute in 16 bit. The
  centre is NVFP4, so prompts in the other formats are predicted far too fast.
- Orin Nano in INT4 is tested on Q4_K_M files, which store more bytes per weight than the 4.25 bit of the
  profile: part of their error is that.
- Eager layers of AGX Orin are single calls with a synchronisation after each, at clocks that follow the
  load, and most are small. They take mostly two to four times the prediction; the high launch value comes
  from such calls. Large ones at one token reach about half of the centre bandwidth, which is where its low
  value comes from.
- The FP16 rate of AGX Orin at MAXN is that of kernels with INT4 weights and FP16 arithmetic, the one at 50
  W that of plain FP16 products, which is why they are nearly equal. No long FP16 product at MAXN is among
  the rows.
- Orin Nano rows with errors of several hundred percent are single calls of 15 to 40 us among neighbours of
  120 to 170 us: their launch was queued ahead. They stay in.
- Some tested rows are near relatives of fitted ones: BF16 beside FP16, the same model in another release or
  after another prompt. The profiles did not see their values, but rows of another board owner would be a
  harder test.
"""

_CHECKS = """
## A check of the Xavier method

The Xavier rates are derived from MLPerf Inference BERT-99 Offline ratios to AGX Orin, with FP16 taken as
half of INT8. The same rule, applied to the Orin NX result of NVIDIA (v3.0, closed division, Orin_NX_TRT,
Offline), gives {scaled:.2f} TFLOP/s; the rate from TensorRT Edge-LLM prompts is {known:.2f}, so the derived
value is off by {error:+.0f} %.
"""


if __name__ == "__main__":
    main()
