"""Session: one block after another in an inference loop, each solve starting from the last prices.

Channels and gate outputs change little from one token batch to the next, so the prices of the last
solve are almost right for the next one: a few Newton steps replace the search for them. All buffers are
made once; results are views of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt.errors import InputError, UnsupportedError, WdmoeError
from wdmoe_opt.floors import floor_conflict
from wdmoe_opt.instance import Instance
from wdmoe_opt.interrupts import interrupts_heard
from wdmoe_opt.kernels.intake import mix_weights, price_selection, take_gains, take_routing
from wdmoe_opt.kernels.price_newton import Link, Prices
from wdmoe_opt.kernels.single_block import BOUND, COLD, LATENCY, STAGES, Block, air_times, fleet_work
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.registry import BoundKind, Control, Point, Termination
from wdmoe_opt.relaxation import PROVE, Stage
from wdmoe_opt.single_block import (
    NO_STAGES,
    PROVE_TABLE,
    Workspace,
    stage_table,
)
from wdmoe_opt.solvers.certified import POLISH_TOKENS, TRADES, Group, assemble, certified
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solving import priced_solution
from wdmoe_opt.validation import (
    IntArray,
    RealArray,
    float_array,
    freeze,
    int_array,
    real_array,
    real_scalar,
    require_shape,
    require_type,
    whole,
)

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.solution import Solution

#: Stage that takes the last prices to the next inputs, wide enough for a channel that moved some dB; the
#: first proving stage of a cold start would only repeat it.
WARM_TABLE = stage_table((Stage(0.15, 1e-3, 5, 0.03),))
WARM_PROVE_TABLE = stage_table(PROVE[1:])


@dataclass(eq=False)
class _Memory:
    """What a session knows of one block: its last inputs, and the prices it ended at."""

    ids: IntArray
    weights: RealArray
    mass: RealArray
    tokens: int
    gains: RealArray | None
    link_time: RealArray | None
    prices: Prices
    reached: NDArray[np.bool_]
    #: Tokens of the last solve whose prices are kept, 0 if there are none.
    priced: int = 0


@dataclass(eq=False)
class SessionResult:
    """What one call of `Session.solve` found.

    Its arrays are the session's own, read-only, and valid until the session's next call, after which they
    refuse to be read; `copy` keeps them.

    Attributes
    ----------
    block, tokens : int
    latency : float, s
        Of the block; inf if there is no selection that keeps the floors.
    retention : float
        Mean kept gate weight.
    lower_bound : float, s
    bound_kind : {"claimed", "certified", "none"}
        "certified" only if the session was told to recheck every bound.
    termination : Termination
    warm : bool
        Whether the last prices served as a start.
    timings : dict of str to s
        "prepare" (checks and copies), "solve", "certify".
    """

    block: int
    tokens: int
    latency: float
    retention: float
    lower_bound: float
    bound_kind: BoundKind
    termination: Termination
    warm: bool
    timings: dict[str, float]
    _template: Problem
    _keep: NDArray[np.bool_]
    _bandwidth: RealArray | None
    _device_time: RealArray
    _memory: _Memory
    _proof: Workspace | Certificate | None
    _session: Session | None
    _call: int

    def _valid(self) -> None:
        if self._session is not None and self._session._calls != self._call:
            raise WdmoeError("this result was a view and its session has solved again; keep one with copy()")

    @property
    def keep(self) -> NDArray[np.bool_]:
        """Selection, bool (tokens, m), aligned with ``expert_ids``."""
        self._valid()
        return self._keep

    @property
    def bandwidth(self) -> RealArray | None:
        """Bandwidth, Hz (devices,); None on a measured link."""
        self._valid()
        return self._bandwidth

    @property
    def device_time(self) -> RealArray:
        """Time of each device, s (devices,)."""
        self._valid()
        return self._device_time

    @property
    def expert_ids(self) -> IntArray:
        """Candidates of the call, (tokens, m)."""
        self._valid()
        ids: IntArray = _read_only(self._memory.ids[: self.tokens])
        return ids

    @property
    def feasible(self) -> bool:
        """Whether there is a selection that keeps the floors; one that is found does."""
        return isfinite(self.latency)

    @property
    def gap(self) -> float:
        """Distance of latency and bound over the latency; inf without either."""
        if self.bound_kind == "none" or not isfinite(self.latency):
            return inf
        return (self.latency - self.lower_bound) / self.latency if self.latency > 0 else 0.0

    def gate_weights(self, *, renormalise: bool = True, out: RealArray | None = None) -> RealArray:
        """What the model should mix with, (tokens, m), 0 where an expert is not used.

        Parameters
        ----------
        renormalise : bool
            Scale a token's kept weights back to the sum of its top-k weights.
        out : float64 array (tokens, m), optional
            Where to write; default a new array.

        Raises
        ------
        InputError
            If ``out`` has another shape or dtype.
        """
        self._valid()
        if out is None:
            out = np.empty(self._keep.shape)
        elif not isinstance(out, np.ndarray) or out.dtype != np.float64:
            raise InputError("out", "must be a float64 array")
        require_shape("out", out, self._keep.shape, "(tokens, m)")
        m = self._memory
        mix_weights(m.weights[: self.tokens], m.mass[: self.tokens], self._keep, renormalise, out)
        return out

    def copy(self) -> SessionResult:
        """An independent result that stays as it is."""
        self._valid()
        m, n = self._memory, self.tokens
        own = replace(
            m, ids=m.ids[:n].copy(), weights=m.weights[:n].copy(), mass=m.mass[:n].copy(),
            gains=None if m.gains is None else m.gains.copy(),
            link_time=None if m.link_time is None else m.link_time.copy(),
        )  # fmt: skip
        return replace(
            self,
            timings=dict(self.timings),
            _keep=freeze(self._keep.copy()),
            _bandwidth=None if self._bandwidth is None else freeze(self._bandwidth.copy()),
            _device_time=freeze(self._device_time.copy()),
            _memory=own,
            _proof=self._certificate(),
            _session=None,
        )

    def problem(self) -> Problem:
        """The problem of this call, of one block, built and checked anew."""
        self._valid()
        m, n = self._memory, self.tokens
        return _problem(self._template, self.block, m.ids[:n], m.weights[:n], m.gains, m.link_time)

    def to_solution(self) -> Solution:
        """The full solution: problem, price by the metric, and the certificate, rechecked."""
        problem = self.problem()
        if not self.feasible:
            point = Point(None, None, self.termination)
            return priced_solution(problem, point, "session", dict(self.timings))
        width = self._bandwidth
        if width is not None and problem.allocation != "shared":
            width = problem.fixed_bandwidth if problem.allocation == "fixed" else width[None, :].copy()
        point = Point(
            self._keep[None].copy(), width, self.termination, lower_bound=self.lower_bound,
            bound_kind=self.bound_kind, certificate=self._certificate(),
        )  # fmt: skip
        return priced_solution(problem, point, "session", dict(self.timings))

    def _certificate(self) -> Certificate | None:
        """A certificate of its own arrays."""
        if not isinstance(self._proof, Workspace):
            return self._proof
        proof = self._proof.proof(self.tokens)
        return None if proof is None else assemble((1, *self._keep.shape), [proof])

    def __repr__(self) -> str:
        return (
            f"<SessionResult block {self.block}, {self.tokens} tokens: latency {self.latency * 1e3:.4g} ms, "
            f"retention {self.retention:.4f}, gap {self.gap:.2%} {self.bound_kind}>"
        )


class Session:
    """Solves one block per call, again and again, for objective "latency".

    Parameters
    ----------
    problem : Problem
        The template: its fleet, payload and request stay; its routing and gains are what the first calls
        leave out. With several blocks every call names the one it is for: gains, floors and prices are
        kept block by block, as layers of a model differ more than one layer does between forward passes.
    max_tokens : int, optional
        Most tokens of a call; default and least the template's number.
    rel_gap : float
        Relative gap at which a solve may stop.
    certify : bool
        Recheck every bound by the certificate's check, which then is called "certified".
    time_limit : float, s, optional
        Per call, for the searches that follow where the compiled stages leave a gap, as they do with few
        tokens; 0 leaves them out.

    Raises
    ------
    InputError
        If an argument breaks a rule; among others if several blocks share bandwidth: a session solves
        them one at a time, so theirs must be "per-block" or "fixed".
    UnsupportedError
        If the objective is not latency, or only loads are known.

    Notes
    -----
    One session per thread; a call while another one runs raises `WdmoeError`. The same sequence of calls
    gives the same bits. With one block, free bandwidth and dispatch "expert" a call is one compiled run
    from the last prices (and a cold one where the devices in reach changed, where the residual says that
    the last prices lead astray, or where they leave a gap); the other modes solve each call like method
    "certified".
    """

    def __init__(
        self,
        problem: Problem,
        *,
        max_tokens: int | None = None,
        rel_gap: float = 1e-3,
        certify: bool = False,
        time_limit: float | None = None,
    ) -> None:
        require_type("problem", problem, Problem)
        _check_template(problem)
        if not isinstance(certify, (bool, np.bool_)):
            raise InputError("certify", "must be True or False", value=certify)
        inst = problem.instance
        rule = f"must be at least the template's {inst.tokens} tokens"
        self.max_tokens = (
            inst.tokens
            if max_tokens is None
            else whole("max_tokens", max_tokens, inst.tokens, 2**31 - 1, rule)
        )
        if time_limit is not None:
            time_limit = real_scalar("time_limit", time_limit, minimum=0)
        self.template, self.certify = problem, bool(certify)
        self._control = Control(time_limit=time_limit, rel_gap=real_scalar("rel_gap", rel_gap, minimum=0))
        self._lock = Lock()
        self._calls = 0
        self._fast = problem.allocation != "fixed" and problem.dispatch == "expert"
        try:
            self._make_buffers()
            self._memories = [self._memory(i) for i in range(inst.blocks)]
        except MemoryError:
            raise InputError("max_tokens", "must fit into memory", value=self.max_tokens) from None

    def _make_buffers(self) -> None:
        inst, t = self.template.instance, self.template.tables
        shape = (self.max_tokens, inst.columns)
        self._ids, self._weights = np.empty(shape, dtype=np.int64), np.empty(shape)
        self._allowed, self._share = np.empty((1, *shape), dtype=np.int32), np.empty((1, *shape))
        self._plain = np.empty((1, *shape), dtype=np.bool_)
        self._mass, self._richest = np.empty(self.max_tokens), np.empty(2)
        self._alike, self._mean_work = fleet_work(t.expert_device, t.compute, inst.devices)
        freeze(self._mean_work)
        self._work = np.zeros((1, 1, 1) if self._alike else (1, *shape))
        self._gains = np.zeros((2, inst.devices))
        self._times = np.zeros(inst.devices)
        self._c_down, self._c_up = np.zeros((1, inst.devices)), np.zeros((1, inst.devices))
        self._reached = np.zeros(inst.devices, dtype=np.bool_)
        self._powers: tuple[Any, ...] | None = None
        if inst.token_time_link is None:
            radio = (inst.power_down, inst.power_up, inst.noise_density)
            self._powers = (*radio, t.bits_down, t.bits_up, t.high)
        self._space = Workspace(self.max_tokens, inst.columns, inst.devices, inst.experts)
        self._device_time = np.empty(inst.devices)
        views = (self._allowed, self._share, self._work, self._plain, self._c_down, self._c_up)
        self._seen = tuple(_read_only(array) for array in views)
        self._link = Link(
            t.bits_down, self._seen[4], t.bits_up, self._seen[5], t.low, t.high, t.total, t.link_delay
        )

    def _memory(self, i: int) -> _Memory:
        inst = self.template.instance
        assert inst.expert_ids is not None
        assert inst.gate_weights is not None
        shape = (self.max_tokens, inst.columns)
        ids, weights = np.empty(shape, dtype=np.int64), np.empty(shape)
        ids[: inst.tokens], weights[: inst.tokens] = inst.expert_ids[i], inst.gate_weights[i]
        gains = None
        if inst.gain_down is not None and inst.gain_up is not None:
            gains = np.array([g[i] if g.ndim == 2 else g for g in (inst.gain_down, inst.gain_up)])
        times = None if inst.token_time_link is None else inst.token_time_link.copy()
        k, e = inst.devices, inst.experts
        prices = Prices(
            np.empty((1, k)), np.empty((1, k)), np.empty(1), np.empty(1), np.empty((1, k)), np.empty(1),
            np.empty((1, e)), self._space.prices.bids,
        )  # fmt: skip
        return _Memory(
            ids, weights, np.empty(self.max_tokens), inst.tokens, gains, times, prices,
            np.zeros(k, dtype=np.bool_),
        )  # fmt: skip

    # ------------------------------------------------------------------ solve

    def solve(
        self,
        *,
        expert_ids: ArrayLike | None = None,
        gate_weights: ArrayLike | None = None,
        gain_down: ArrayLike | None = None,
        gain_up: ArrayLike | None = None,
        token_time_link: ArrayLike | None = None,
        block: int | None = None,
    ) -> SessionResult:
        """Solve one block for new inputs; what is left out stays as it was on the block's last call.

        Parameters
        ----------
        expert_ids : int array (tokens, m), optional
            By falling gate weight, -1 (trailing only) for none; NumPy or DLPack. Any number of tokens from
            1 to ``max_tokens``; with another number than before, ``gate_weights`` is needed too.
        gate_weights : float array (tokens, m), optional
        gain_down, gain_up : float array (devices,), power ratio, optional
            0 means that the device cannot be reached.
        token_time_link : float array (devices,), s per token, optional
            On a measured link; inf means that the device cannot be reached.
        block : int, optional
            Which block of the template; needed if it has several.

        Returns
        -------
        SessionResult
            Valid until the next call.

        Raises
        ------
        InputError
            As `Instance` and `Problem` raise, indices without the block's. The session stays as it was.
        WdmoeError
            If another call on this session is running.
        """
        if not self._lock.acquire(blocking=False):
            raise WdmoeError("another call on this session is running; make one session per thread")
        try:
            with interrupts_heard():
                started = perf_counter()
                row = self._row(block)
                memory = self._memories[row]
                tokens = self._stage(
                    row, memory, expert_ids, gate_weights, gain_down, gain_up, token_time_link
                )
                self._commit(memory, tokens)
                return self._solved(row, memory, started)
        finally:
            self._lock.release()

    def _row(self, block: int | None) -> int:
        blocks = len(self._memories)
        if block is None:
            if blocks > 1:
                raise InputError("block", f"is missing: the template has {blocks} blocks")
            return 0
        return whole("block", block, 0, blocks - 1, f"must be 0 to {blocks - 1}")

    def _stage(
        self,
        row: int,
        memory: _Memory,
        expert_ids: ArrayLike | None,
        gate_weights: ArrayLike | None,
        gain_down: ArrayLike | None,
        gain_up: ArrayLike | None,
        token_time_link: ArrayLike | None,
    ) -> int:
        """Copy inputs to the session's own buffers and check them there; returns the number of tokens."""
        tokens = self._stage_routing(memory, expert_ids, gate_weights)
        self._stage_link(memory, gain_down, gain_up, token_time_link)
        p, t, n = self.template, self.template.tables, slice(tokens)
        fits = True
        if self._powers is not None:
            down, up, noise, bits_down, bits_up, high = self._powers
            fits = take_gains(
                self._gains[0], self._gains[1], down, up, noise, bits_down, bits_up, high, self._c_down,
                self._c_up, self._reached,
            )  # fmt: skip
        else:
            np.isfinite(self._times, out=self._reached)
            fits = bool((self._times >= 0).all())
        fits = fits and take_routing(
            self._ids[n], self._weights[n], p.instance.top_k or 0, p.candidate_columns, p.expert_cap,
            self._reached[t.expert_device], t.compute, self._allowed[:, n], self._share[:, n],
            self._work if self._alike else self._work[:, n], self._mass[n], self._plain[:, n], self._richest,
        )  # fmt: skip
        if not fits:
            self._refuse(row, tokens)
        return tokens

    def _stage_routing(
        self, memory: _Memory, expert_ids: ArrayLike | None, gate_weights: ArrayLike | None
    ) -> int:
        columns = self.template.instance.columns
        ids: Any = memory.ids[: memory.tokens]
        weights: Any = memory.weights[: memory.tokens]
        if expert_ids is not None:
            ids = _as_array(expert_ids)
            if ids is None or ids.dtype.kind != "i":
                ids = int_array("expert_ids", expert_ids)
            ids = self._table("expert_ids", ids, columns)
        if gate_weights is not None:
            weights = _as_array(gate_weights)
            if weights is None or weights.dtype.kind != "f" or weights.dtype.itemsize > 8:
                weights = real_array("gate_weights", gate_weights)
            weights = self._table("gate_weights", weights, columns)
        tokens = int(ids.shape[0])
        if weights.shape[0] != tokens:
            name = "gate_weights" if gate_weights is not None else "expert_ids"
            rule = f"must have as many tokens as the other: expert_ids has {tokens}, "
            raise InputError(name, f"{rule}gate_weights has {weights.shape[0]}")
        np.copyto(self._ids[:tokens], ids, casting="same_kind")
        np.copyto(self._weights[:tokens], weights)
        return tokens

    def _table(self, name: str, array: Any, columns: int) -> Any:
        """Input (tokens, m) or (1, tokens, m) of an allowed size."""
        if array.ndim == 3 and array.shape[0] == 1:
            array = array[0]
        if array.ndim != 2 or array.shape[1] != columns or array.shape[0] == 0:
            raise InputError(name, f"must have shape (tokens, {columns}), tokens not 0; got {array.shape}")
        if array.shape[0] > self.max_tokens:
            rule = f"must have at most max_tokens = {self.max_tokens} tokens, got {array.shape[0]}"
            raise InputError(name, rule)
        return array

    def _stage_link(
        self,
        memory: _Memory,
        gain_down: ArrayLike | None,
        gain_up: ArrayLike | None,
        token_time_link: ArrayLike | None,
    ) -> None:
        shape = self._times.shape
        if memory.gains is None:
            if gain_down is not None or gain_up is not None:
                name = "gain_down" if gain_down is not None else "gain_up"
                raise InputError(name, "cannot be given: the template has a measured link")
            assert memory.link_time is not None
            self._times[:] = memory.link_time
            if token_time_link is not None:
                times = float_array("token_time_link", token_time_link)
                require_shape("token_time_link", times, shape, "(devices,)")
                self._times[:] = times
            return
        if token_time_link is not None:
            raise InputError("token_time_link", "cannot be given: the template has a radio link")
        self._gains[:] = memory.gains
        for r, (name, given) in enumerate((("gain_down", gain_down), ("gain_up", gain_up))):
            if given is not None:
                gain = _as_array(given)
                if gain is None or gain.dtype.kind != "f":
                    gain = real_array(name, given, minimum=0)
                require_shape(name, gain, shape, "(devices,)")
                self._gains[r] = gain

    def _refuse(self, row: int, tokens: int) -> None:
        """Raise what the objects themselves say of these inputs."""
        gains = None if self._powers is None else self._gains
        times = self._times if self._powers is None else None
        try:
            _problem(self.template, row, self._ids[:tokens], self._weights[:tokens], gains, times)
        except InputError as error:
            index = error.index
            if error.field in ("expert_ids", "gate_weights") and index is not None:
                index = index[1:]
            raise InputError(error.field, error.rule, index=index, value=error.value) from None
        raise WdmoeError("the session refused inputs that keep every rule; please report this")

    def _commit(self, memory: _Memory, tokens: int) -> None:
        """Make staged inputs the block's own; from here on older results are void."""
        self._calls += 1
        n = slice(tokens)
        memory.ids[n], memory.weights[n], memory.mass[n] = self._ids[n], self._weights[n], self._mass[n]
        memory.tokens = tokens
        if memory.gains is not None:
            memory.gains[:] = self._gains
        if memory.link_time is not None:
            memory.link_time[:] = self._times

    # ------------------------------------------------------------------ the ways to an answer

    def _solved(self, row: int, memory: _Memory, started: float) -> SessionResult:
        ready = perf_counter()
        floor = float(np.asarray(self.template.min_retention)[row])
        token_floor = float(np.asarray(self.template.min_token_retention)[row])
        low = 1 - FEASIBILITY_TOLERANCE
        poor = self._richest[0] < floor * memory.tokens * low or self._richest[1] < token_floor * low
        if self._fast and poor:
            return self._nothing(row, memory, floor_conflict(self._shell(row, memory)), started, ready)
        if not self._fast:
            return self._solve_generally(row, memory, started, ready)
        found = self._solve_fast(memory, floor, token_floor)
        proof: Workspace | Certificate | None = self._space
        lower, warm = self._space.bound, not found[COLD]
        tokens = memory.tokens
        numbers = self._space.found
        open_gap = found[LATENCY] - lower > self._control.rel_gap * found[LATENCY]
        if open_gap and tokens <= POLISH_TOKENS and self._control.time_limit != 0:
            group = self._finished(row, memory)
            lower = group.lower
            numbers.keep[:tokens] = group.keep[0]
            if group.bandwidth is not None:
                numbers.bandwidth[:] = group.bandwidth.reshape(-1)
            best = group.relaxation.best
            proof = None if best is None else assemble(self._share[:, :tokens].shape, [best])
        return self._result(
            row, memory, numbers.keep[:tokens], numbers.bandwidth, lower, proof, warm, started, ready
        )

    def _solve_fast(self, memory: _Memory, floor: float, token_floor: float) -> RealArray:
        """The compiled stages, from the last prices if there are any; returns `Found.numbers`."""
        space, tokens = self._space, memory.tokens
        n = slice(tokens)
        allowed, share, work, plain = (array[:, n] for array in self._seen[:4])
        t = self.template.tables
        block = Block(
            allowed, share, self._seen[2] if self._alike else work, t.expert_device, t.compute, t.activation,
            t.link_delay, self._mean_work, self._alike, floor * tokens, token_floor, self.template.expert_cap,
        )  # fmt: skip
        priced, prices = memory.priced, memory.prices
        memory.priced = 0  # an interrupted call leaves prices that nobody should start from
        warm = priced > 0 and bool((memory.reached == self._reached).all())
        if warm and priced != tokens:
            # Twice the tokens take twice the time; what a transfer is worth stays.
            for array in (prices.slack, prices.deadline, prices.hertz):
                array *= tokens / priced
        space.prices, numbers, gap = prices, space.found.numbers, self._control.rel_gap
        space.begin()
        if warm:
            space.lead(block, self._link, plain, WARM_TABLE)
            warm = not numbers[COLD]
            space.prove(block, self._link, WARM_PROVE_TABLE if warm else PROVE_TABLE, TRADES, gap)
        if not numbers[STAGES] or (warm and numbers[LATENCY] - numbers[BOUND] > gap * numbers[LATENCY]):
            # The last prices may have led astray: what new ones give is kept where it is better.
            space.lead(block, self._link, plain, NO_STAGES)
            space.prove(block, self._link, PROVE_TABLE, TRADES, gap)
        memory.priced, memory.reached[:] = tokens, self._reached
        return numbers

    def _finished(self, row: int, memory: _Memory) -> Group:
        """Searches and ascent from where the stages stopped, as method "certified" does them."""
        shell = self._shell(row, memory)
        plain = self._plain[:, : memory.tokens]
        group = Group(shell, slice(0, 1), plain, self._control, Deadline.of(self._control))
        group.adopt(self._space)
        group.finish()
        return group

    def _solve_generally(self, row: int, memory: _Memory, started: float, ready: float) -> SessionResult:
        """Method "certified" on this call's block."""
        shell = self._shell(row, memory)
        point = certified(shell, self._control)
        if point.keep is None:
            return self._nothing(row, memory, point.termination.detail, started, ready)
        keep = self._space.found.keep[: memory.tokens]
        keep[:] = point.keep[0]
        width = self._space.found.bandwidth
        if point.bandwidth is not None:
            width[:] = np.atleast_2d(point.bandwidth)[0]
        return self._result(
            row, memory, keep, width, point.lower_bound, point.certificate, False, started, ready
        )

    def _result(
        self,
        row: int,
        memory: _Memory,
        keep: NDArray[np.bool_],
        bandwidth: RealArray,
        lower: float,
        proof: Workspace | Certificate | None,
        warm: bool,
        started: float,
        ready: float,
    ) -> SessionResult:
        t, n = self.template.tables, memory.tokens
        link = air_times(self._link, bandwidth) if memory.link_time is None else memory.link_time
        latency, retention = price_selection(
            memory.ids[:n], memory.weights[:n], memory.mass[:n], keep, t.expert_device, t.compute,
            t.activation, t.link_delay, t.by_device, link, self._device_time,
        )  # fmt: skip
        found = perf_counter()
        result = SessionResult(
            row, n, latency, retention, lower, "claimed" if lower > 0 else "none", _OPTIMAL, warm,
            {"prepare": ready - started, "solve": found - ready}, self.template, _read_only(keep),
            _read_only(bandwidth) if memory.link_time is None else None, _read_only(self._device_time),
            memory, proof, self, self._calls,
        )  # fmt: skip
        if self.certify:
            self._recheck(result)
            result.timings["certify"] = perf_counter() - found
        if not result.gap <= self._control.rel_gap:
            result.termination = _OPEN
        return result

    def _recheck(self, result: SessionResult) -> None:
        """Replace the claimed bound by what its certificate proves."""
        from wdmoe_opt.certificates.check import recompute

        certificate = result._certificate()
        proved = -inf
        if certificate is not None:
            proved = recompute(self._shell(result.block, result._memory), certificate)
        result.lower_bound = proved
        result.bound_kind = "certified" if isfinite(proved) else "none"

    def _nothing(self, row: int, memory: _Memory, why: str, started: float, ready: float) -> SessionResult:
        """No selection keeps the floors."""
        keep = self._space.found.keep[: memory.tokens]
        keep[:] = False
        self._device_time[:] = inf
        return SessionResult(
            row, memory.tokens, inf, nan, -inf, "none", Termination("infeasible", detail=why), False,
            {"prepare": ready - started, "solve": perf_counter() - ready}, self.template, _read_only(keep),
            None, _read_only(self._device_time), memory, None, self, self._calls,
        )  # fmt: skip

    def _shell(self, row: int, memory: _Memory) -> Problem:
        """The call's problem over the session's own buffers, which have been checked: valid in this call."""
        n = memory.tokens
        known = self.template.instance
        changes: dict[str, Any] = {
            "expert_ids": memory.ids[None, :n],
            "gate_weights": memory.weights[None, :n],
        }
        if memory.gains is not None:
            changes |= {"gain_down": memory.gains[0], "gain_up": memory.gains[1]}
        else:
            changes |= {"token_time_link": memory.link_time}
        instance = object.__new__(Instance)
        vars(instance).update({**_fields(known), **changes})
        shell = object.__new__(Problem)
        request = _fields(self.template) | {"instance": instance} | self.template.block_request(row)
        vars(shell).update(request)
        return shell


_OPTIMAL = Termination("optimal", detail="within the gap asked for")
_OPEN = Termination("feasible-at-limit", "relaxation", "the relaxation leaves this gap")


def _fields(owner: Instance | Problem) -> dict[str, Any]:
    """Fields of a frozen object, without what it has derived from them."""
    return {name: vars(owner)[name] for name in owner.__dataclass_fields__ if name in vars(owner)}


def _problem(
    template: Problem,
    row: int,
    ids: IntArray,
    weights: RealArray,
    gains: RealArray | None,
    link_time: RealArray | None,
) -> Problem:
    """One block's problem, built and checked as any other."""
    link: dict[str, Any] = {"token_time_link": link_time}
    if gains is not None:
        link = {"gain_down": gains[0], "gain_up": gains[1]}
    return template.for_block(row, expert_ids=ids[None], gate_weights=weights[None], **link)


def _check_template(problem: Problem) -> None:
    if problem.objective != "latency":
        raise UnsupportedError(
            f"a Session is for objective 'latency', not {problem.objective!r}; use solve()"
        )
    if not problem.selectable:
        raise UnsupportedError("a Session selects experts, and the instance has loads only; use solve()")
    if problem.instance.blocks > 1 and problem.allocation == "shared":
        rule = "must be 'per-block' or 'fixed' with several blocks: a Session solves them one at a time"
        raise InputError("allocation", rule, value=problem.allocation)
    if problem.max_latency is not None:
        raise UnsupportedError("a Session does not know max_latency; use solve()")


def _as_array(value: ArrayLike) -> NDArray[Any] | None:
    """An array as it is, or None where the checks of `validation` have to look at the value first."""
    if type(value) is np.ndarray and value.dtype.itemsize <= 8:
        return value
    return None


def _read_only(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view
