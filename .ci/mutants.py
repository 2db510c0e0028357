"""Mutation check of the metric and of the certificate code, see mutants.toml.

    python .ci/mutants.py run RESULTS.jsonl [GROUP...]     # from the root of a checkout; resumes
    python .ci/mutants.py again RESULTS.jsonl [GROUP...]   # the survivors once more, after tests were added
    python .ci/mutants.py report RESULTS.jsonl > docs/mutants.md

Mutants are those of Cosmic Ray's operators. Each is tested in a process forked from one that has imported
everything but this package, with kernels as plain Python; its source is replaced at import, no file changes.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import resource
import signal
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["NUMBA_DISABLE_JIT"] = "1"
os.environ["WDMOE_TEST_PROFILE"] = "mutants"

CONFIG = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text(encoding="utf-8"))
#: A mutant may take so many times the CPU time of the tests on the code as it is, and so many seconds more.
PATIENCE, GRACE = 3, 10
Mutant = dict[str, str]


# ---------------------------------------------------------------------- mutants


def places(path: str) -> Iterator[tuple[Any, str, int, Any, Any]]:
    """Where configured operators change something: operator, its name, occurrence, node, position."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(Path(path).read_text(encoding="utf-8"))))
    for name in sorted(operator_names()):
        short = name.removeprefix("core/")
        if re.fullmatch("|".join(CONFIG["operators"]), short):
            operator = get_operator(name)()
            found = [(node, start) for node in nodes for start, _ in operator.mutation_positions(node)]
            for occurrence, (node, start) in enumerate(found):
                yield operator, short, occurrence, node, start


def mutant(path: str, operator: Any, name: str, occurrence: int, node: Any, start: Any) -> Mutant | None:
    """One mutant with its source; None where no code changes (an annotation, a docstring)."""
    from cosmic_ray.ast.ast_query import ASTQuery
    from cosmic_ray.mutating import mutate_code

    source = Path(path).read_text(encoding="utf-8")
    changed = mutate_code(source, operator, occurrence)
    if changed is None or bare(changed) == bare(source):
        return None
    lines = zip(source.splitlines(), changed.splitlines(), strict=False)
    before, after = next((one.strip(), two.strip()) for one, two in lines if one != two)
    where = ASTQuery(node).get_definition_name() or "module"
    place = {"path": path, "where": where, "line": str(start[0]), "operator": name}
    return {**place, "before": before, "after": after, "source": changed}


def bare(source: str) -> str:
    """The code without docstrings and annotations, to compare."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return ast.dump(tree)


def drawn(group: dict[str, Any]) -> Iterator[Mutant]:
    """A group's mutants: all, or a sample by the configured seed, in an order of its own."""
    found = [(path, *place) for path in group["modules"] for place in places(path)]
    sample = min(group.get("sample", len(found)), len(found))
    alike: Counter[tuple[str, ...]] = Counter()
    for place in random.Random(CONFIG["seed"]).sample(found, sample):
        made = mutant(*place)
        if made is not None:
            yield {**made, "nth": str(alike[key(made)]), "group": group["name"], "of": str(len(found))}
            alike[key(made)] += 1


# ---------------------------------------------------------------------- running


class Mutated(importlib.abc.MetaPathFinder):
    """Finds one module with another source."""

    def __init__(self, path: str, source: str) -> None:
        self.name = path.removesuffix(".py").replace("/", ".")
        self.path, self.source = path, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The module, if it is the one."""
        if name != self.name:
            return None
        found = importlib.util.spec_from_file_location(name, self.path)
        assert found is not None
        code = compile(self.source, self.path, "exec", dont_inherit=True)
        found.loader.get_code = lambda _: code  # type: ignore[union-attr]
        return found


def tested(tests: list[str], changed: Mutant | None, seconds: float | None) -> tuple[str, float]:
    """Outcome of the tests in a fork, and CPU seconds; `seconds` is what they may take."""
    child = os.fork()
    if child == 0:
        import pytest

        os.setpgid(0, 0)
        if seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1), os.dup2(silent, 2)
        if changed is not None:
            sys.meta_path.insert(0, Mutated(changed["path"], changed["source"]))
        quiet = ["-q", "-x", "--no-header", "--tb=no" if changed else "--tb=short", "-p", "no:cacheprovider"]
        os._exit(int(pytest.main([*quiet, *tests])))
    _, status, used = os.wait4(child, 0)
    took = used.ru_utime + used.ru_stime
    if os.WIFSIGNALED(status):
        killer = os.WTERMSIG(status)
        return ("timeout" if killer in (signal.SIGXCPU, signal.SIGKILL) else "killed"), took
    return ("survived" if os.WEXITSTATUS(status) == 0 else "killed"), took


def judged(group: dict[str, Any], usual: dict[str, float], changed: Mutant) -> tuple[str, float]:
    """Outcome by the group's short list of tests and, where it survives that, by the long one."""
    took = 0.0
    for name in usual:
        outcome, more = tested(group[name], changed, PATIENCE * usual[name] + GRACE)
        took += more
        if outcome != "survived":
            break
    return outcome, took


def run(results: Path, names: list[str], *, again: bool = False) -> None:
    """Test what has not been tested yet, or the survivors once more; one line of JSON per mutant."""
    for name in ("numba", "numpy", "pytest", "scipy.optimize"):  # not what pytest rewrites
        importlib.import_module(name)
    sys.path.insert(0, str(Path.cwd()))
    old = read(results)
    for group in CONFIG["group"]:
        if names and group["name"] not in names:
            continue
        usual: dict[str, float] = {}
        for name in [name for name in ("tests", "then") if name in group]:
            outcome, usual[name] = tested(group[name], None, None)
            if outcome != "survived":
                raise SystemExit(f"the tests of {group['name']} fail without any mutant")
            print(f"{group['name']}, {name}: {usual[name]:.1f} s of CPU without mutants", file=sys.stderr)
        for found in drawn(group):
            known = old.get(key(found))
            if (known is None) if again else (known is not None):
                continue
            if again and known["outcome"] != "survived":
                continue
            outcome, took = judged(group, usual, found)
            line = {name: text for name, text in found.items() if name != "source"}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "outcome": outcome, "seconds": round(took, 2)}) + "\n")


def key(mutant: Mutant) -> tuple[str, ...]:
    """What identifies a mutant as long as its function stays as it is; ``nth`` tells equal lines apart."""
    names = ("path", "where", "operator", "before", "after", "nth")
    return tuple(mutant.get(name, "0") for name in names)


def read(results: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The last outcome of every mutant."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {key(row): row for row in map(json.loads, lines)}


# ---------------------------------------------------------------------- report


def report(results: Path) -> None:
    """Print the page: a table per module, and every survivor with its reason."""
    rows = list(read(results).values())
    print(CONFIG["page"].strip())
    print("\n| module | mutants | killed | timeout | survived |\n| --- | ---: | ---: | ---: | ---: |")
    for path in dict.fromkeys(row["path"] for row in sorted(rows, key=lambda row: row["path"])):
        count = Counter(row["outcome"] for row in rows if row["path"] == path)
        print(f"| {path} | {count.total()} | {count['killed']} | {count['timeout']} | {count['survived']} |")
    count = Counter(row["outcome"] for row in rows)
    print(f"| all | {count.total()} | {count['killed']} | {count['timeout']} | {count['survived']} |")
    left = [row for row in rows if row["outcome"] == "survived"]
    reasons: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(left, key=lambda row: (row["path"], int(row["line"]))):
        reasons.setdefault(reason(row), []).append(row)
    for text, found in sorted(reasons.items(), key=lambda pair: -len(pair[1])):
        print(f"\n## {text} ({len(found)})\n")
        for row in found:
            print(f"* {row['path']}, `{row['where']}`: `{row['before']}` to `{row['after']}`")


def reason(row: dict[str, Any]) -> str:
    """Why a survivor survives, by the first rule that fits."""
    text = f"{row['path']} {row['where']}: {row['before']} -> {row['after']}"
    for rule in CONFIG["reason"]:
        if any(part in text for part in rule["mutants"]):
            return str(rule["why"])
    return "not explained"


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    if what == "report":
        report(Path(path))
    else:
        run(Path(path), rest, again=what == "again")
