"""solve_many(): a batch of problems by one method, in order."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from wdmoe_opt.errors import InputError, UnknownNameError, WdmoeError
from wdmoe_opt.instance import Instance
from wdmoe_opt.problem import Problem
from wdmoe_opt.solution import Solution
from wdmoe_opt.solving import solve
from wdmoe_opt.validation import whole

#: Problems that are taken from the input ahead of the one waited for, per thread.
AHEAD = 4


def solve_many(
    problems: Iterable[Problem | Instance],
    method: str = "certified",
    *,
    threads: int = 1,
    progress: bool = False,
    **options: Any,
) -> list[Solution]:
    """Solve a batch of problems by one method.

    Parameters
    ----------
    problems : iterable of Problem or Instance
        May be a generator: it is read as solutions are made, a few ahead with several threads.
    method : str
        See `solve`.
    threads : int
        Problems that are solved at the same time; each by one thread.
    progress : bool
        Whether to show a bar on standard error, if that is a terminal.
    **options
        Further arguments of `solve`; its ``time_limit`` is per problem.

    Returns
    -------
    list of Solution
        In the order of the problems. Every one is what `solve` finds for its problem alone, whatever the
        number of threads and whatever stands before it.

    Raises
    ------
    InputError
        If an argument breaks a rule; errors of single problems name the first one, as ``problems[i]``.
    WdmoeError
        As `solve` raises, with ``problems[i]`` in front.
    KeyboardInterrupt
        On Ctrl-C, by every method; with several threads once the problems that they are at are solved.
    """
    threads = whole("threads", threads, 1, 4096, "must be 1 to 4096")
    try:
        items = enumerate(problems)
    except TypeError:
        rule = f"must be several problems, got one {type(problems).__name__}"
        raise InputError("problems", rule) from None
    count = len(problems) if isinstance(problems, Sized) else None
    found = _solutions(items, method, threads, options)
    if progress:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        found = iter(track(found, "solving", count, console=console, disable=not sys.stderr.isatty()))
    return list(found)


def _solutions(
    items: Iterator[tuple[int, Problem | Instance]], method: str, threads: int, options: dict[str, Any]
) -> Iterator[Solution]:
    if threads == 1:
        for index, problem in items:
            yield _solve_one(index, problem, method, options)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Solution]] = deque()

        def submit(number: int) -> None:
            for index, problem in islice(items, number):
                waiting.append(pool.submit(_solve_one, index, problem, method, options))

        try:
            submit(AHEAD * threads)
            while waiting:
                yield waiting.popleft().result()
                submit(1)
        finally:
            for future in waiting:
                future.cancel()


def _solve_one(index: int, problem: Problem | Instance, method: str, options: dict[str, Any]) -> Solution:
    """One problem; its errors name it."""
    where = f"problems[{index}]"
    if not isinstance(problem, (Problem, Instance)):
        raise InputError(where, f"must be a Problem or an Instance, got {type(problem).__name__}")
    try:
        solution = solve(problem, method, **options)
    except UnknownNameError:
        raise
    except InputError as error:
        field = f"{where}.{error.field}"
        raise InputError(field, error.rule, index=error.index, value=error.value) from error
    except WdmoeError as error:
        raise type(error)(f"{where}: {error}") from error
    if solution.termination.limit == "interrupt":
        # What one problem has so far is no batch.
        raise KeyboardInterrupt
    return solution
