"""A picture as files: drawn once, saved as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A picture with its words.

    Attributes
    ----------
    name : str
        Of its files, without ending.
    title, caption : str
    png, svg : bytes
        Empty where there is none.
    reason : str
        Why there is none; "" where there is one.
    width, height : int
        Pixels at 100 per inch.
    """

    name: str
    title: str
    caption: str
    png: bytes = b""
    svg: bytes = b""
    reason: str = ""
    width: int = 0
    height: int = 0


def make_picture(name: str, title: str, caption: str, draw: Callable[[], Any]) -> Picture:
    """Draw and save; ``draw`` returns a matplotlib figure, or the reason why there is none."""
    import matplotlib as mpl

    from wdmoe_opt.benchmarks.report.pictures.style import RC

    with mpl.rc_context(RC):
        figure = draw()
        if isinstance(figure, str):
            return Picture(name, title, caption, reason=figure)
        # Without the date and the version of the drawing program, equal results give equal files.
        png = _saved(figure, "png", {"Software": None})
        # The layout is that of the first file.
        figure.set_layout_engine("none")
        svg = _saved(figure, "svg", {"Date": None, "Creator": None})
    width, height = (round(100 * length) for length in figure.get_size_inches())
    return Picture(name, title, caption, png, svg, "", width, height)


def _saved(figure: Any, kind: str, metadata: dict[str, None]) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()
