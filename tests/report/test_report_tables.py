"""Tables of a comparison: equal content for terminal, Markdown and LaTeX, and names that stay text in each."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from invented import comparison

from mmedpo.report import tables

STRANGE = "a_b & 50% #1 {x} \\ ~^<$> | *肺* [link](http://x) " + "long " * 30


def renamed(found: Any, old: str, new: str) -> Any:
    """A comparison in which a run has another name."""
    if isinstance(found, dict):
        return {new if key == old else key: renamed(value, old, new) for key, value in found.items()}
    if isinstance(found, list):
        return [renamed(value, old, new) for value in found]
    return new if found == old else found


def test_rows_are_a_table() -> None:
    table = tables.rows(comparison())
    assert table[0] == ["metric", "run", "value [95 % interval]", "difference to start", "p (Holm)"]
    assert table[1:4] == [
        ["overall_accuracy", "start", "0.690 [0.660, 0.720]", "", ""],
        ["", "dpo", "0.700 [0.670, 0.730]", "+0.010 [-0.011, +0.031]", "0.002"],
        ["", "mmedpo", "0.741 [0.711, 0.771]", "+0.051 [+0.030, +0.072]", "0.002"],
    ]
    assert [row[0] for row in table[4:]] == ["open_f1", "", ""]


def test_groups_have_tables_of_their_own() -> None:
    main, organ = tables.sheets(comparison())
    assert main.rows == tables.rows(comparison())
    assert organ.rows[0][:3] == ["organ", "metric", "run"]
    assert [row[:2] for row in organ.rows[1:8]] == [
        ["CHEST (1,203 questions, 399 images)", "overall_accuracy"], ["", ""], ["", ""], ["", "open_f1"], ["", ""],
        ["", ""], ["<HEAD> (1 question, 1 image)", "overall_accuracy"],
    ]  # fmt: skip
    assert organ.rows[7][3:] == ["0.250", "", ""]  # measured on one image: a value alone
    assert "the 4 tests of this table" in organ.note and "few images are not tested" in organ.note


def test_notes_say_what_was_measured_on_and_what_differs() -> None:
    note = tables.sheets(comparison())[0].note
    assert "max_new_tokens is 32 in 'dpo', but 64 in 'start'." in note
    assert "Open questions: F1 of words (602 questions, 390 images)" in note


def test_variants_are_named_and_zeros_have_no_sign() -> None:
    found = comparison()
    entries = {run: {"value": -0.0002, "difference": 0.0001, "difference_low": -0.0004, "difference_high": 0.1}
               for run in found["runs"]}  # fmt: skip
    found |= {"metrics": {"meteor": entries}, "definitions": {"meteor_variant": "nltk_wordnet"}}
    assert tables.rows(found)[1] == ["meteor (nltk_wordnet)", "start", "0.000", "0.000 [0.000, +0.100]", ""]
    assert tables.sheets(found)[0].note.startswith("Scored by meteor nltk_wordnet. Brackets are")


def test_markdown_keeps_its_columns_whatever_the_names() -> None:
    text = tables.markdown(renamed(comparison(), "mmedpo", STRANGE))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in lines]
    assert widths == [5] * 8 + [6] * 14
    assert "\\|" in text and "\\<HEAD>" in text and "肺" in text and "](http" not in text


def test_latex_escapes_every_special_character() -> None:
    assert tables.latex_text(r"50% of a_b & #1 {x} $5 \ ~ ^") == (
        r"50\% of a\_b \& \#1 \{x\} \$5 \textbackslash{} \textasciitilde{} \textasciicircum{}"
    )
    assert tables.latex_text("[+0.1, -0.2]\n\x00x") == "{}[$+$0.1, $-$0.2] x"
    assert tables.latex_text("wt-1 bleu-2 肺 µ") == "wt-1 bleu-2 肺 µ"


def test_latex_has_equal_columns_and_balanced_braces() -> None:
    text = tables.latex(renamed(comparison(), "mmedpo", STRANGE))
    lines = [line for line in text.splitlines() if line.endswith(r" \\") and "&" in line]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines] == [4] * 7 + [5] * 13
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert [text.count(word) for word in (r"\toprule", r"\bottomrule", r"\begin{longtable}")] == [2, 2, 1]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    name = STRANGE.replace("肺", "é").replace("long " * 30, "")
    (tmp_path / "table.tex").write_text(tables.latex(renamed(comparison(), "mmedpo", name)), encoding="utf-8")
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,longtable}\n"
    (tmp_path / "page.tex").write_text(head + "\\begin{document}\n\\input{table}\n\\end{document}\n")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
