"""The page: tables, conclusions and figures, from the file of raw numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

from wdmoe_opt.archive import write_atomically
from wdmoe_opt.benchmarks.what_dropping_costs.pictures import pictures
from wdmoe_opt.benchmarks.what_dropping_costs.plan import (
    BOTH,
    CHANNEL,
    FLEET,
    FOREIGN,
    LIGHTEST,
    MAIN,
    OPTIMAL,
    RANDOM,
    SECOND,
    UNIFORM,
    Curve,
    Plan,
)
from wdmoe_opt.benchmarks.what_dropping_costs.results import Results
from wdmoe_opt.benchmarks.what_dropping_costs.statistics import (
    TARGETS,
    Crossing,
    Estimate,
    Row,
    at_retention,
    crossings,
    rank_correlation,
    row,
)

NAME = "what-dropping-costs"
COMMAND = "python -m wdmoe_opt.benchmarks.what_dropping_costs --out docs"
#: The held-out texts of the kinds that the model was trained on, taken together.
TOGETHER = "both"
TITLES = {
    "gsm8k": "GSM8K test",
    "shakespeare": "tinyshakespeare, held-out part",
    FOREIGN: "HumanEval (never trained on code)",
    TOGETHER: "GSM8K and tinyshakespeare",
}
#: Retention at which controls are compared.
COMPARED = (0.95, 0.9, 0.8)


@dataclass(frozen=True)
class Findings:
    """What the page shows.

    Attributes
    ----------
    rows : list of Row
        Of each text, and of the familiar texts together.
    crossings : list of Crossing
        The same, of the curves with several settings.
    """

    rows: list[Row]
    crossings: list[Crossing]

    def of(self, text: str, curve: Curve) -> list[Row]:
        """Rows of a curve, from gentle to harsh."""
        return [one for one in self.rows if (one.text, one.curve) == (text, curve.name)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": [asdict(one) for one in self.rows],
            "crossings": [asdict(one) for one in self.crossings],
        }


def groups(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Texts by label: each alone, and those of the kinds trained on together."""
    familiar = tuple(text for text in plan.texts if text != FOREIGN)
    return {text: (text,) for text in plan.texts} | ({TOGETHER: familiar} if len(familiar) > 1 else {})


def find(results: Results, plan: Plan) -> Findings:
    """Every number of the page."""
    labels = groups(plan).items()
    return Findings(
        [
            row(results, label, texts, curve, setting)
            for label, texts in labels
            for curve in plan.curves
            for setting in curve.settings
        ],
        [
            one
            for label, texts in labels
            for curve in plan.curves
            if len(curve.settings) > 1
            for one in crossings(results, label, texts, curve)
        ],
    )


def write(results: Results, plan: Plan, folder: Path) -> Findings:
    """Write page and figures into a folder; returns what they show."""
    findings = find(results, plan)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    panels = {text: TITLES[text] for text in plan.texts}
    drawn = pictures(findings.rows, panels, {curve.name: curve.title for curve in plan.curves})
    for picture in drawn:
        _save(images / f"{picture.name}.png", picture.png)
    _save(folder / f"{NAME}.md", page(results, plan, findings).encode())
    return findings


def _save(path: Path, content: bytes) -> None:
    write_atomically(path, lambda stream: stream.write(content))


def page(results: Results, plan: Plan, findings: Findings) -> str:
    """Text of the page."""
    label = TOGETHER if len(groups(plan)) > len(plan.texts) else plan.texts[0]
    parts = [
        _introduction(results, plan),
        "## Which floor to choose\n",
        _floors(findings, label),
        *(_floor_table(findings, text) for text in groups(plan)),
        "![Loss against retention](images/what-dropping-costs-retention.png)\n",
        "## What latency it buys\n",
        _latency_words(findings, plan),
        *(_latency_table(findings, plan, text) for text in groups(plan)),
        "![Loss against latency](images/what-dropping-costs-latency.png)\n",
        "## Is gate weight a good stand-in for capability\n",
        _stand_in(findings, label),
        *(_control_table(findings, text) for text in groups(plan)),
        "![Controls at equal retention](images/what-dropping-costs-controls.png)\n",
        "![Controls at equal number of experts](images/what-dropping-costs-experts.png)\n",
        "## How far the answer carries\n",
        _LIMITS,
        "## Every point\n",
        *(_all_points(findings, plan, text) for text in plan.texts),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


# ---------------------------------------------------------------------- words


def _introduction(results: Results, plan: Plan) -> str:
    each = results.about["tokens_per_pass"]
    minutes = results.total("seconds") / 60
    return f"""\
# What dropping experts costs

This page is generated by `{COMMAND}`;
edit the code, not the page. Raw numbers of every forward pass: [results.json]({NAME}/results.json);
what is there is not measured again without `--fresh`. Measuring took {minutes:.0f} core-minutes.

The tiny MoE that ships with the package (Mixtral architecture, 8 experts, top-2, 6 blocks, weights
`{results.about["weights"][:19]}`) predicts held-out text while its experts sit behind a simulated network
([in the loop](in-the-loop.md)). {plan.passes} forward passes of {each} tokens, {plan.passes * each:,} tokens,
of each text, spread over it evenly; the same passes and the same channel states for every policy. GSM8K and
tinyshakespeare are of the kinds it was trained on; **HumanEval is not: the model has never seen program
text**, and is kept apart.

- Loss: bits per byte; its increase is relative to plain top-2 on the same passes. Accuracy: share of tokens
  that the model held most likely.
- Retention: kept gate weight over that of plain top-2, mean over tokens and blocks.
- Latency: simulated, of all blocks together, on eight boards (`{FLEET}`, one expert each) at 100 MHz in
  the cell of paper A while they move (`{CHANNEL}`), experts and payload priced at the sizes of
  Mixtral 8x7B; a new channel state for each pass. Relative to plain top-2 with optimal bandwidth, so that
  only dropping counts; against equal bandwidth, as in the papers, where it says so.
- Intervals cover 95 %, with forward passes as the sample: Student's t for single settings, bootstrap where
  values lie between settings.
"""


def _floors(findings: Findings, text: str) -> str:
    """Which floor keeps the loss, with the interval's upper end."""
    lines = [
        "A mean floor, drop only, by `certified`. The lowest floor measured whose loss increase stays below\n"
        "a limit, the upper end of its interval included, and so does that of every gentler one\n"
        f"({TITLES[text]}):\n",
        _safe_table(findings, text, MAIN),
        "The same where every token keeps at least half of its own weight (`min_token_retention=0.5`), here\n"
        "its heavier expert:\n",
        _safe_table(findings, text, BOTH),
    ]
    return "\n".join(lines)


def _safe_table(findings: Findings, text: str, curve: Curve) -> str:
    heads = ("loss increase at most", "floor", "loss increase", "accuracy, points", "latency")
    return _table(heads, (_safe(findings.of(text, curve), target) for target in TARGETS))


def _safe(rows: list[Row], target: float) -> tuple[str, ...]:
    chosen = safe_floor(rows, target)
    if chosen is None:
        return (_percent(target), "none measured", "", "", "")
    return (_percent(target), f"**{chosen.setting:g}**", *_costs(chosen))


def safe_floor(rows: Sequence[Row], target: float) -> Row | None:
    """The harshest setting up to which every interval of the loss increase ends below the target."""
    chosen = None
    for one in rows:
        if one.loss.high > target:
            break
        chosen = one
    return chosen


def _latency_words(findings: Findings, plan: Plan) -> str:
    lines = [
        "Reduction of total latency where a curve's loss has risen by so much, between measured settings\n"
        "linearly. *Italic*: the curve ends before; the reduction at its end. In brackets the reduction\n"
        "against plain top-2 with equal bandwidth; optimal bandwidth alone, without any loss, gives:\n"
    ]
    rows = [
        (TITLES[text], _reduction(findings.of(text, OPTIMAL)[0].latency_uniform)) for text in groups(plan)
    ]
    return "\n".join([*lines, _table(("text", "equal to optimal bandwidth"), rows)])


def _stand_in(findings: Findings, text: str) -> str:
    """What the controls say."""
    order = [(curve, at_retention(findings.of(text, curve), 0.9)) for curve in (LIGHTEST, SECOND, RANDOM)]
    best, worst = min(order, key=lambda pair: pair[1]), max(order, key=lambda pair: pair[1])
    inside = [
        one for one in findings.rows if one.text == text and one.curve not in (UNIFORM.name, OPTIMAL.name)
    ]
    policies = [one for one in inside if one.curve not in (LIGHTEST.name, SECOND.name, RANDOM.name)]
    main = at_retention(findings.of(text, MAIN), 0.9)
    return f"""\
Controls drop to the same floor without asking for latency: the lightest experts anywhere, the lighter
expert of random tokens, a random one of the two experts of random tokens. If gate weight told all, equal
retention would mean equal loss.

On {TITLES[text]} at retention 0.9 the loss rises least for "{best[0].title}"
({_percent(best[1])}) and most for "{worst[0].title}" ({_percent(worst[1])}); `certified` is at
{_percent(main)}. Over all policies and settings the rank correlation of lost gate weight and loss increase is
{rank_correlation(policies):.3f}; with the controls {rank_correlation(inside):.3f}.
"""


_LIMITS = """\
- One model of 7 million parameters, trained once, on little text; intervals cover the choice of passes, not
  another training. Loss increases of a model of Mixtral's size were not measured.
- It has two experts per token: a token loses half of its experts or none. Models with more, smaller experts
  can lose less at a time.
- Its gate was balanced by the usual auxiliary loss and never trained with dropped experts.
- What is measured is prediction of the next token in windows of 256. Generated answers, where errors add up,
  were not judged.
- Latency is simulated on one fleet, in one cell. Another fleet changes what latency a floor buys; it changes
  what the floor costs only through which experts go.
- The order of policies and the shape of the curves are what may carry over; the floor's number is to be
  checked on one's own model: `WirelessExperts` ([in the loop](in-the-loop.md)) does so in a few lines.
"""


# ---------------------------------------------------------------------- tables


def _floor_table(findings: Findings, text: str) -> str:
    header = ("mean floor", "retention", "bits per byte", "loss increase", "accuracy, points", "latency")
    rows = (
        (f"{one.setting:g}", f"{one.retention:.3f}", f"{one.bits_per_byte:.4f}", *_costs(one))
        for one in findings.of(text, MAIN)
    )
    return f"**{TITLES[text]}**, `certified`, drop only:\n\n{_table(header, rows)}"


def _latency_table(findings: Findings, plan: Plan, text: str) -> str:
    titles = {curve.name: curve.title for curve in plan.curves}
    found = [one for one in findings.crossings if one.text == text]
    rows = (
        (titles[name], *(_crossed(one) for one in found if one.curve == name))
        for name in dict.fromkeys(one.curve for one in found)
    )
    header = ("policy", *(f"at {_percent(target)}" for target in TARGETS))
    return f"**{TITLES[text]}**:\n\n{_table(header, rows)}"


def _crossed(one: Crossing) -> str:
    shown = f"{_reduction(one.latency)} ({_percent(1 - one.latency_uniform.value)})"
    return shown if one.reached else f"*{shown}*"


def _control_table(findings: Findings, text: str) -> str:
    rows = (
        (curve.title, *(_percent(at_retention(findings.of(text, curve), kept)) for kept in COMPARED))
        for curve in (MAIN, LIGHTEST, SECOND, RANDOM)
    )
    header = ("what is dropped", *(f"at retention {kept:g}" for kept in COMPARED))
    return f"**{TITLES[text]}**, loss increase:\n\n{_table(header, rows)}"


def _all_points(findings: Findings, plan: Plan, text: str) -> str:
    header = ("policy", "setting", "retention", "experts per token", "loss increase", "accuracy, points",
              "latency")  # fmt: skip
    titles = {curve.name: curve for curve in plan.curves}
    rows = (
        (
            titles[one.curve].title,
            f"{one.setting:g}" if titles[one.curve].knob else "",
            f"{one.retention:.3f}",
            f"{one.experts:.3f}",
            *_costs(one),
        )
        for one in findings.rows
        if one.text == text
    )
    return f"**{TITLES[text]}**:\n\n{_table(header, rows)}"


def _costs(one: Row) -> tuple[str, str, str]:
    """Loss increase, change of accuracy in per cent points, relative latency; each with its interval."""
    return _share(one.loss), _shown(one.accuracy_change, 100, "+.2f"), _shown(one.latency, 1, ".3f")


def _reduction(ratio: Estimate) -> str:
    return _share(Estimate(1 - ratio.value, 1 - ratio.high, 1 - ratio.low))


def _share(estimate: Estimate) -> str:
    return _shown(estimate, 100, _precision(estimate.value), " %")


def _shown(estimate: Estimate, scale: float, form: str, unit: str = "") -> str:
    # + 0.0: no minus before a zero.
    value, low, high = (
        f"{round(scale * one, 6) + 0.0:{form}}" for one in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}{unit} [{low}, {high}]"


def _percent(share: float) -> str:
    return "-" if isnan(share) else f"{100 * share:{_precision(share)}} %"


def _precision(share: float) -> str:
    return ".1f" if abs(share) >= 0.02 else ".2f"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, marks, *rows))
