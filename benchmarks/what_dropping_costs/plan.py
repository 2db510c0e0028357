"""What is measured: curves of policies, each over one setting from gentle to harsh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: Sizes that experts and payload are priced at: those of Mixtral 8x7B.
WIDTH, EXPERT_WIDTH = 4096, 14336
FLEET, CHANNEL = "orin-mix-8", "cell-100mhz-moving"
#: States of the channel that are skipped from one forward pass to the next.
STRIDE = 25
#: Text unlike anything the model was trained on.
FOREIGN = "humaneval"
TEXTS = ("gsm8k", "shakespeare", FOREIGN)

_FLOORS = (0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.75, 0.7)
_FEW_FLOORS = (0.98, 0.95, 0.9, 0.8, 0.7)
_TOKEN_FLOORS = (0.9, 0.8, 0.7, 0.65, 0.6, 0.55, 0.5)
_THRESHOLDS = (0.72, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Curve:
    """A policy over a range of settings.

    Attributes
    ----------
    name, title : str
        Of files and tables, and of legends.
    policy : str
        A name that `WirelessNetwork` knows, or one of `controls.CONTROLS`.
    knob : {"min_retention", "min_token_retention", "threshold", ""}
        What the settings set: a floor, or the one threshold that Algorithm 1 tries; "" if nothing.
    settings : tuple of float
        From gentle to harsh.
    request, options : mapping
        Further fields of `Problem`, and options of the policy.
    renormalise : bool
        See `WirelessExperts`.
    """

    name: str
    title: str
    policy: str
    knob: str
    settings: tuple[float, ...]
    request: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    renormalise: bool = True

    def request_at(self, setting: float) -> dict[str, Any]:
        """Fields of `Problem` at a setting."""
        floor = {self.knob: setting} if self.knob.startswith("min_") else {}
        return {**self.request, **floor}

    def options_at(self, setting: float) -> dict[str, Any]:
        """Options of the policy at a setting."""
        one = {"alpha": setting, "theta_max": setting, "trial": "last"} if self.knob == "threshold" else {}
        return {**self.options, **one}

    def described(self, setting: float) -> dict[str, Any]:
        """What a measurement is identified by."""
        return {
            "policy": self.policy,
            "request": self.request_at(setting),
            "options": self.options_at(setting),
            "renormalise": self.renormalise,
        }


def _rerouted(candidates: int) -> dict[str, Any]:
    return {"candidates": candidates, "max_experts": 2}


UNIFORM = Curve("topk-uniform", "plain top-2, equal bandwidth", "topk-uniform", "", (1.0,))
OPTIMAL = Curve("topk", "plain top-2, optimal bandwidth", "topk", "", (1.0,))
MAIN = Curve("certified", "certified, drop only", "session", "min_retention", (1.0, *_FLOORS))
#: With two experts the heavier one has half of the weight or more, so that every token keeps it.
BOTH = Curve("certified-both", "certified, drop only, half of every token", "session", "min_retention",
             _FLOORS, {"min_token_retention": 0.5})  # fmt: skip
LIGHTEST = Curve("lightest", "lightest anywhere", "lightest", "min_retention", (0.95, 0.9, 0.8, 0.7))
SECOND = Curve("second", "second expert, random tokens", "second", "min_retention", (0.95, 0.9, 0.8, 0.7))
RANDOM = Curve("random", "random expert, random tokens", "random", "min_retention", (0.95, 0.9, 0.8, 0.7))

CURVES = (
    UNIFORM,
    OPTIMAL,
    MAIN,
    Curve("certified-4", "certified, re-routing among 4", "session", "min_retention", _FEW_FLOORS,
          _rerouted(4)),
    Curve("certified-8", "certified, re-routing among 8", "session", "min_retention", _FEW_FLOORS,
          _rerouted(8)),
    BOTH,
    Curve("certified-token", "certified, floor per token", "session", "min_token_retention", _TOKEN_FLOORS),
    Curve("certified-token-8", "certified, floor per token, re-routing among 8", "session",
          "min_token_retention", (0.95, 0.9, 0.8, 0.7, 0.6), _rerouted(8)),
    Curve("certified-raw", "certified, weights not scaled back", "session", "min_retention",
          (0.95, 0.9, 0.8), renormalise=False),
    Curve("greedy", "greedy, drop only", "greedy", "min_retention", _FEW_FLOORS),
    Curve("alternating", "alternating, drop only", "alternating", "min_retention", (0.95, 0.9, 0.8)),
    Curve("greedy-wlr", "greedy, weight-to-latency ratio of the block", "greedy", "min_retention",
          (0.95, 0.9, 0.8, 0.7), {"objective": "wlr-block"}),
    Curve("wdmoe", "Algorithm 1, one threshold", "wdmoe", "threshold", _THRESHOLDS),
    Curve("wdmoe-default", "Algorithm 1, defaults", "wdmoe", "", (1.0,)),
    Curve("wdmoe-other", "Algorithm 1, start 0.8, step 0.05, factor 1.05", "wdmoe", "", (1.0,),
          options={"alpha": 0.8, "delta": 0.05, "gamma": 1.05}),
    LIGHTEST,
    SECOND,
    RANDOM,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that the numbers depend on beside the model.

    Attributes
    ----------
    curves : tuple of Curve
        With `UNIFORM`, which all are compared with, and `OPTIMAL`.
    texts : tuple of str
        Of `texts.HELD_OUT`, in the page's order.
    passes : int
        Forward passes of each text, spread over it evenly.
    windows : int
        Of the model's context, in each pass.
    """

    curves: tuple[Curve, ...] = CURVES
    texts: tuple[str, ...] = TEXTS
    passes: int = 48
    windows: int = 2

    def quick(self) -> Plan:
        """A try-out: every curve at its ends only, three passes of each text."""
        curves = tuple(
            replace(curve, settings=tuple(dict.fromkeys((curve.settings[0], curve.settings[-1]))))
            for curve in self.curves
        )
        return replace(self, curves=curves, passes=3)

    def units(self) -> list[tuple[str, Curve, float]]:
        """What is measured one by one: text, curve, setting."""
        return [
            (text, curve, setting)
            for text in self.texts
            for curve in self.curves
            for setting in curve.settings
        ]

    def as_dict(self) -> dict[str, Any]:
        """What identifies all measurements alike."""
        return {
            "passes": self.passes, "windows": self.windows, "fleet": FLEET, "channel": CHANNEL,
            "stride": STRIDE, "width": WIDTH, "expert_width": EXPERT_WIDTH,
        }  # fmt: skip


def key(curve: Curve, setting: float) -> str:
    """Name of a measurement inside its text."""
    return f"{curve.name} {setting:g}"
