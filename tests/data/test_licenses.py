"""Licences of a mixed source: which is the strictest, and where all are recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data import licenses
from mmedpo.data.sources import read_source
from mmedpo.hub import cards
from mmedpo.hub.publish import content
from mmedpo.hub.publish.content import origin
from mmedpo.runs.json_files import read_json

MakeSource = Callable[..., Path]

IN_ORDER = (  # from the strictest; those of a line are alike
    ("PhysioNet Credentialed Health Data License 1.5.0", "cc-by-4.0 (credentialed)"),
    ("unknown", "terms of the clinic", "llama3", "sample license", "unlicensed", "Unlicensed data",
     "CC0 labels; unknown"),
    ("cc-by-nc-nd-4.0", "CC BY-NC-ND 3.0", "ccbyncnd"),
    ("cc-by-nd-4.0", "CC BY NoDerivatives 4.0"),
    ("cc-by-nc-sa-4.0", "CC BY‑NC‑SA 4.0"),
    ("cc-by-nc-4.0", "CC0 1.0 (labels), CC BY-NC 4.0 (images)", "cc-by-nc-4.0; metadata cc0", "CC BY 4.0 NC",
     "cc by 4.0-nc", "MIT (code) / CC BY-NC 4.0 (data)", "CC BY 4.0, not for commercial use",
     "Creative Commons Attribution-NonCommercial 4.0"),
    ("cc-by-sa-4.0", "CC BY 4.0 (labels), CC BY-SA 4.0 (images)"),
    ("gpl-3.0", "GPLv3", "odbl", "mpl-2.0"),
    ("cc-by-4.0", "mit", "Apache License 2.0", "bsd-3-clause", "unrestricted with attribution (NIH Clinical Center)"),
    ("cc0-1.0", "CC0", "Public Domain", "pddl", "The Unlicense"),
)  # fmt: skip


def test_licences_are_ordered_by_what_they_forbid() -> None:
    values = [[licenses.strictness(name) for name in alike] for alike in IN_ORDER]
    assert values[0][0] >= values[0][1] and [len(set(found)) for found in values[1:]] == [1] * (len(IN_ORDER) - 1)
    assert [found[-1] for found in values] == sorted({found[-1] for found in values}, reverse=True)


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["CC-BY-4.0", "cc by 4.0", " cc-by-4.0 ", "CC\u2011BY\u20114.0", "cc_by_4.0"], {"cc-by-4.0": 5}),
        (["Clinic terms", "clinic  terms", "Clinic terms"], {"Clinic terms": 3}),
        (["CC BY-NC 4.0"], {"CC BY-NC 4.0": 1}),
        (["cc0-1.0", "cc-by-4.0", "CC BY 4.0"], {"cc-by-4.0": 2, "cc0-1.0": 1}),
        (["openrail", "openrail++"], {"openrail": 1, "openrail++": 1}),
        (["\u8a31\u8afe", "\u7981\u6b62"], {"\u7981\u6b62": 1, "\u8a31\u8afe": 1}),
    ],
)
def test_spellings_of_one_licence_are_one(names: list[str], counts: dict[str, int]) -> None:
    assert list(licenses.strictest_first(names).items()) == list(counts.items())


@pytest.fixture
def mixed(make_source: MakeSource) -> Path:
    terms = ["cc-by-sa-4.0", "cc0-1.0", "cc-by-nc-4.0", "cc0-1.0", None, "cc0-1.0"]
    return make_source(
        [
            {"id": str(number), "image": "a.png", "question": f"Is there {number}?", "answer": "yes", "license": one}
            for number, one in enumerate(terms)
        ],
        name="mixed",
    )


COUNTS = {"cc-by-nc-4.0": 1, "cc-by-sa-4.0": 1, "mit": 1, "cc0-1.0": 3}
LISTED = ", ".join(f"{name} ({count} of 6 questions)" for name, count in COUNTS.items())


def test_mixed_source_is_recorded_as_all_of_its_licences(mixed: Path) -> None:
    source = read_source(mixed, license="mit")
    assert (source.license, list(source.licenses.items())) == ("cc-by-nc-4.0", list(COUNTS.items()))
    assert source.record(None)["licenses"] == COUNTS and source.record(None)["license"] == "cc-by-nc-4.0"
    assert source.notices == [f"mixed is under several licences: {LISTED}. The strictest applies to the dataset."]
    assert read_source(mixed, limit=1, license="mit").notices == []


def test_card_names_the_strictest_licence_first(mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    asked = {"chat": "standin:rules", "judges": ["standin:strict", "standin:lenient"]}
    settings = Settings(source=mixed, license="mit", localizer="none", **asked)
    curate_folder(settings, folder)
    source = read_source(mixed, license="mit")
    assert caplog.messages[:-1] == [*source.notices, source.split_notice]  # said before anything is made
    cards.write_dataset_card(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"Licences of the source as recorded, the strictest first: {LISTED}." in card
    manifest = read_json(folder / "manifest.json")
    assert manifest["source"]["licenses"] == COUNTS
    assert origin("dataset", manifest) == "pairs from mixed (cc-by-nc-4.0, cc-by-sa-4.0, mit, cc0-1.0)"
    assert any("under several licences" in notice for notice in content.dataset(folder, "user/pairs").notices)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"license": "mit"}, "mit"),  # as earlier versions recorded it
        ({"license": "mit", "licenses": {"mit": 4}}, "mit"),
        ({}, "unknown"),
    ],
)
def test_source_under_one_licence_is_said_as_before(source: dict[str, Any], said: str) -> None:
    assert licenses.said(source) == said and licenses.notices(source) == []


def test_a_licence_is_one_line_so_that_it_forges_none_in_a_notice(make_source: Callable[..., Path]) -> None:
    row = {"image": "a.png", "question": "Is it?", "answer": "yes"}
    rows = [{**row, "id": "q1", "license": "mit\nError: done"}, {**row, "id": "q2", "license": "cc0", "source": "a\rb"}]
    source = read_source(make_source(rows))
    assert {(one.license, one.source) for one in source.samples} >= {("cc0", "a b")}
    assert len(source.notices) == 1 and len(source.notices[0].splitlines()) == 1
