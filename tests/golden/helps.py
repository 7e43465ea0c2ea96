"""What `--help` says of each command, whose options are promised to users.

Left out are options that the help of `curate` has too, what builders say of their data, and options that TRL brings to
`train`, which are counted: their words change with its version.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from golden import render
from golden.commands import run

COMMANDS = (
    "curate", "build", "preview", "audit", "convert", "train", "evaluate", "questions", "score", "compare", "attention",
    "publish", "rejoin", "quickstart",
)  # fmt: skip
BUILDERS = ("folder", "iu_xray", "mimic_cxr", "nih_bbox", "path_vqa", "released", "slake", "vqa_rad")
WIDTH = {"COLUMNS": "1000"}  # an option a line


def make(folder: Path) -> dict[str, str]:
    """Return what each command says with --help, by the name of its file."""
    found = {"help/mmedpo.txt": _said("--help", folder), "help/curate.txt": (curate := _said("curate --help", folder))}
    known = {line for line in curate.splitlines() if line.startswith("  -")}
    for command in (*COMMANDS[1:], *(f"build {name}" for name in BUILDERS)):
        lines = [line for line in _said(f"{command} --help", folder).splitlines() if line not in known]
        if command.startswith("build "):  # facts about data are in its docstring
            lines = lines[lines.index("options:") :]
        if command == "train":
            theirs = [line for line in lines if _is_theirs(line)]
            lines = [line for line in lines if line not in theirs] + [f"  and {len(theirs)} options of TRL"]
        found[f"help/{command.replace(' ', '-')}.txt"] = "\n".join(lines) + "\n"
    return found


def _said(line: str, folder: Path) -> str:
    code, printed = run(line, folder, WIDTH)
    assert code == 0, printed
    return re.sub(r"\n *\n+", "\n\n", re.sub(r"(\n  -[^\n]*)\n  (?=[^\s-])", r"\1  ", render.terminal(printed)))


def _is_theirs(line: str) -> bool:
    """Return whether TRL brings this option, with its default and its words."""
    from trl import DPOConfig, ModelConfig

    theirs = {field.name.replace("_", "-") for kind in (DPOConfig, ModelConfig) for field in fields(kind)}
    named = re.match(r"  (?:-\w[^-]*, )?--(?:no-)?([\w-]+)", line)
    return bool(named and named[1] in theirs - {"max-length"})
