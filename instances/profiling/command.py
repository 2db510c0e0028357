"""What ``wdmoe-opt profile-device`` does: measure this machine, or read a measurement, and fit a profile."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wdmoe_opt.errors import InputError
from wdmoe_opt.instances.profiling import measure as measuring
from wdmoe_opt.instances.profiling.fit import fit_profile, load_measurement, write_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def profile_command(
    output: str | Path,
    *,
    width: int | None = None,
    expert_width: int | None = None,
    precision: str = "fp32",
    tokens: Sequence[int] = measuring.TOKENS,
    device: str = "auto",
    repeats: int = 50,
    seconds: float = 10.0,
    max_bytes: int = 1024 * measuring.MIB,
    measurement: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: bool | None = True,
) -> dict[str, Any]:
    """Write the device profile of this machine, or of one that ``measure.py`` was run on.

    Parameters
    ----------
    output : str or Path
        The profile file (JSON) to write.
    width, expert_width : int, optional
        Model width and width inside the expert; needed unless ``measurement`` is given.
    precision, tokens, device, repeats, seconds, max_bytes
        See `measure.measure`.
    measurement : str or Path, optional
        File written by ``measure.py --json``, here or on another machine, to fit instead of measuring.
    name : str, optional
        Name of the profile; default device and precision.
    overwrite : bool
        Replace an existing ``output``.
    progress : bool, optional
        Show a progress bar; None only on a terminal.

    Returns
    -------
    dict
        The profile as written.

    Raises
    ------
    ProfilingError
        If the measurement does not determine a profile.
    InputError, InstanceFileError
        Naming what else is wrong.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise InputError("output", "exists already; ask to overwrite it", value=str(output))
    if not output.parent.is_dir():
        raise InputError("output", "its folder does not exist", value=str(output))
    if measurement is not None:
        found = load_measurement(measurement)
    elif width is None or expert_width is None:
        raise InputError("width", "width and expert_width are needed, or a measurement")
    else:
        with _bar(len(set(tokens)) + 2, progress) as step:
            found = _measured(
                width, expert_width, precision, tokens, device, repeats, seconds, max_bytes, step
            )
    profile = fit_profile(found, name)
    write_profile(output, profile)
    return profile


def _measured(
    width: int,
    expert_width: int,
    precision: str,
    tokens: Sequence[int],
    device: str,
    repeats: int,
    seconds: float,
    max_bytes: int,
    step: Callable[[str], None],
) -> dict[str, Any]:
    try:
        return measuring.measure(
            width,
            expert_width,
            precision,
            tokens,
            device,
            repeats,
            seconds=seconds,
            max_bytes=max_bytes,
            on_step=step,
        )
    except measuring.MeasureError as error:
        raise InputError("profile-device", str(error)) from None


@contextmanager
def _bar(total: int, show: bool | None) -> Iterator[Callable[[str], None]]:
    """Progress over timings on standard error; yields the function that names the next one."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    visible = sys.stderr.isatty() if show is None else show
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as bar:
        task = bar.add_task("profile", total=total)
        started = iter(range(1_000_000))

        def step(label: str) -> None:
            done = next(started)
            bar.update(task, description=label, completed=done, total=max(total, done + 1))

        yield step
        bar.update(task, completed=next(started))
