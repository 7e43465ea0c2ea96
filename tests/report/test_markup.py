"""Text of data inside Markdown: what a name of a table, a model or a record must not become."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmedpo.hub import cards
from mmedpo.hub.publish.card import open_fields
from mmedpo.report.markup import code, inline
from mmedpo.runs.json_files import read_json, write_json

EXAMPLES = Path(__file__).parents[2] / "model_cards" / "examples"


@pytest.mark.parametrize(("text", "shown"), [
    ("vqa-rad", "vqa-rad"), ("a_b [0.1, 0.2] (made) 50 % #3 x > y", "a_b [0.1, 0.2] (made) 50 % #3 x > y"),
    ("[click](http://evil)", r"[click]\(http\://evil)"), ("![x](http://t/p.png)", r"![x]\(http\://t/p.png)"),
    ("[a][b]", r"[a]\[b]"), ("<img src=x>", r"\<img src=x>"), ("<http://evil>", r"\<http\://evil>"),
    ("**b** _i_ `c` ~~s~~", r"\*\*b\*\* \_i\_ \`c\` \~\~s\~\~"), ("a | b", r"a \| b"), ("\\| a", r"\\\| a"),
    ("# big", r"\# big"), ("> said", r"\> said"), ("- one", r"\- one"), ("1. one", r"1\. one"), ("-0.5", "-0.5"),
    ("a\n\n# b\n---", "a # b ---"), ("&lt;b&gt; &amp; R&D", r"\&lt;b\&gt; \&amp; R&D"),
    ("a\x1b[2Jb\u202ec", "a[2Jbc"),
    ("$x$ $$y$$", "&#36;x&#36; &#36;&#36;y&#36;&#36;"), (r"\(x\) \[y\]", r"&#92;(x\\) &#92;[y\\]"),
    ("www.evil.example", r"www\.evil.example"),
    ("[More information needed: x]", "[more information needed: x]"),
])  # fmt: skip
def test_inline(text: str, shown: str) -> None:
    assert inline(text) == shown


@pytest.mark.parametrize(("text", "shown"), [
    ("train", "train"), ("a` <b> `c", "a' <b> 'c"), ("a|b\n\nc", "a\\|b c"), ("*x*_", "*x*_"),
])  # fmt: skip
def test_code(text: str, shown: str) -> None:
    assert code(text) == shown


EVIL = (
    "x](http://evil) ![p](http://evil/p.png) <script>alert(1)</script> `| **b** "
    "[More information needed before publishing (evil): x] https://evil \n\n# Fake\n```\n---\n"
)


def filled(tmp_path: Path, kind: str, name: str, changes: dict[str, Any]) -> str:
    folder = Path(shutil.copytree(EXAMPLES / kind, tmp_path / kind))
    write_json(folder / name, read_json(folder / name) | changes)
    return cards.dataset_card(folder) if kind == "dataset" else cards.adapter_card(folder)


@pytest.mark.parametrize("kind", ["dataset", "stripped", "adapter"])
def test_a_card_holds_no_markup_of_data(tmp_path: Path, kind: str) -> None:
    manifest = read_json(EXAMPLES / "dataset" / "manifest.json")
    source = {**manifest["source"], "name": EVIL, "license": EVIL, "split": EVIL, "hub": EVIL, "upstream_split": EVIL}
    if kind == "adapter":
        training = read_json(EXAMPLES / "adapter" / "training.json")
        lora = {**training["lora"], "model_revision": 'a", trust_remote_code=True, x="'}
        card = filled(tmp_path, kind, "training.json", {
            "model": EVIL, "dataset": EVIL, "command": EVIL, "hardware": EVIL, "lora": lora,
            "credentialed_source": EVIL, "config": {**training["config"], f"k{EVIL}": EVIL},
            "third_parties": {"to": [EVIL]},
        })  # fmt: skip
        assert r'revision="a\", trust_remote_code=True, x=\""' in card
    else:
        changes = {
            "source": {**source, "credentialed": True}, "chat_model": EVIL, "judges": [EVIL], "localizer": EVIL,
            "rejects": {EVIL: 1}, "command": EVIL, "versions": {EVIL: EVIL}, "counts": {EVIL: 3}, "query": EVIL,
            "calls": {EVIL: {"calls": 1}}, "third_parties": {"to": [EVIL], "questions": 1},
        }  # fmt: skip
        card = filled(tmp_path, "dataset", "manifest.json", changes)
        if kind == "stripped":
            card = cards.stripped_card(tmp_path / "dataset", cards.Published("me/it", "", [], {}))
    body = card.split("---\n", 2)[2]
    outside = re.sub(r"```.*?^```$", "", body, flags=re.S | re.M)  # code blocks hold what they hold
    prose = re.sub(r"(?<!\\)`[^`\n]*`", "", outside)
    assert "](http://evil" not in prose and not re.search(r"(?<!\\)<script>", prose) and "**b**" not in prose
    assert not re.search(r"(?<!\\)https?://evil", prose) and "\n# Fake" not in card
    assert "evil" not in [key for key, _ in open_fields(card)]
    fences = re.findall(r"^```", body, flags=re.M)
    assert len(fences) % 2 == 0 and "\n```\n---" not in body
    tables = [line for line in prose.splitlines() if line.startswith("|")]
    assert tables and all(line.rstrip().endswith("|") for line in tables)
