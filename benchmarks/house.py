"""Sizes of the package and its tests, and the imports between its modules.

Run     python benchmarks/house.py
Prints  JSON. `code_lines` are lines that hold code: no blank ones, comments or docstrings. An `arrow` is an import of
        one module by another, imports for type checking included; `circles` are the sets of modules that reach each
        other, `floors` the modules in the longest chain of imports, circles counted as one. `help_seconds` is the best
        processor time of five runs of `mmedpo --help`. Tests are counted by function, not by parameter.
Needs   grimp, which import-linter brings.
"""

from __future__ import annotations

import ast
import io
import json
import resource
import subprocess
import sys
import tokenize
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).resolve().parent.parent
HELPS = 5
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Return how many lines hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for token in tokens if token.type not in NO_CODE for n in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            lines -= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
    return len(lines)


def size(files: Iterable[Path]) -> dict[str, Any]:
    """Return number of files, lines, code lines and the longest file."""
    texts = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}
    lines = {name: text.count("\n") for name, text in texts.items()}
    longest = max(lines, key=lambda name: lines[name])
    return {
        "files": len(texts), "lines": sum(lines.values()), "code_lines": sum(map(code_lines, texts.values())),
        "longest": f"{longest} ({lines[longest]})", "over_320": sum(count > 320 for count in lines.values()),
    }  # fmt: skip


def imports() -> dict[str, Any]:
    """Return modules, arrows, circles and floors of the package."""
    graph = grimp.build_graph("mmedpo", exclude_type_checking_imports=False, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    reached = {module: graph.find_upstream_modules(module) for module in graph.modules}
    circle = {
        module: frozenset({module} | {other for other in reached[module] if module in reached[other]})
        for module in graph.modules
    }
    below = {
        each: {circle[other] for module in each for other in imported[module]} - {each} for each in circle.values()
    }
    floors: dict[frozenset[str], int] = {}
    for each in TopologicalSorter(below).static_order():
        floors[each] = 1 + max((floors[other] for other in below[each]), default=0)
    return {
        "modules": len(imported), "arrows": sum(map(len, imported.values())), "floors": max(floors.values()),
        "circles": sorted(sorted(each) for each in set(circle.values()) if len(each) > 1),
    }  # fmt: skip


def tests() -> dict[str, Any]:
    """Return size and number of the tests."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))))
    return {**size(files), "tests": sum(isinstance(n, ast.FunctionDef) and n.name.startswith("test_") for n in nodes)}


def help_seconds() -> float:
    """Return the processor time of the fastest of some runs of `mmedpo --help`."""
    times = []
    for _ in range(HELPS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "mmedpo", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(min(times), 3)


def main() -> None:
    package = ROOT / "mmedpo"
    loose = [file.stem for file in package.glob("*.py") if file.stem not in ("__init__", "__main__")]
    found = {
        "package": {**size(sorted(package.rglob("*.py"))), "loose_modules": len(loose)}, "imports": imports(),
        "tests": tests(), "help_seconds": help_seconds(),
    }  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
