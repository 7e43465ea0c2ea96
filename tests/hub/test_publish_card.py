"""Cards that people and the program write together: each case of the merge by hand."""

from __future__ import annotations

import pytest
import yaml

from mmedpo.errors import InputError
from mmedpo.hub.publish.card import fill, merge, open_fields, validated

OPEN = "[More information needed before publishing (license): under what licence?]"
CARD = f"---\nlicense: mit\ntags:\n- a\n- b\n---\n\n# Pairs\n\n100 rows.\n\n| a | 1 |\n| b | 2 |\n\n{OPEN}\n\nEnd.\n"


def header(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_the_program_changed_comes_in_where_nobody_edited() -> None:
    new = CARD.replace("100 rows", "200 rows").replace("license: mit", "license: cc0-1.0")
    assert merge(CARD, CARD, new, "here") == (new, [])


def test_what_a_person_wrote_stays_beside_what_the_program_changed() -> None:
    edited = CARD.replace(OPEN, "Under MIT, says the hospital.").replace("End.", "End.\n\nThanks to all.")
    new = CARD.replace("100 rows", "200 rows")
    merged, conflicts = merge(CARD, edited, new, "here")
    assert merged == edited.replace("100 rows", "200 rows") and not conflicts


def test_both_changed_one_place_and_the_person_wins_and_is_told() -> None:
    edited, new = CARD.replace("100 rows.", "About 100 rows."), CARD.replace("100 rows.", "200 rows.")
    merged, (conflict,) = merge(CARD, edited, new, "here")
    assert merged == edited
    said = "here (text): the edit is kept: 'About 100 rows.'; not used: '200 rows.'. If that is wrong, change it there."
    assert str(conflict) == said


def test_rows_of_one_table_do_not_stand_in_each_others_way() -> None:
    edited, new = CARD.replace("| a | 1 |", "| a | 1, counted twice |"), CARD.replace("| b | 2 |", "| b | 3 |")
    merged, conflicts = merge(CARD, edited, new, "here")
    assert "| a | 1, counted twice |\n| b | 3 |\n" in merged and not conflicts


def test_the_same_change_on_both_sides_is_no_conflict() -> None:
    both = CARD.replace("100", "300")
    assert merge(CARD, both, both, "here") == (both, [])


def test_what_a_person_removed_stays_away() -> None:
    edited = CARD.replace("\nEnd.\n", "")
    merged, conflicts = merge(CARD, edited, CARD.replace("100", "200"), "here")
    assert "End." not in merged and "200" in merged and not conflicts


def test_headers_are_merged_key_by_key_and_lists_entry_by_entry() -> None:
    edited = CARD.replace("- b\n", "- mine\nlanguage: de\n").replace("license: mit", "license: gpl-3.0")
    new = CARD.replace("- b\n", "- b\n- c\npretty_name: P\n").replace("license: mit", "license: cc0-1.0")
    merged, (conflict,) = merge(CARD, edited, new, "here")
    assert header(merged) == {"license": "gpl-3.0", "tags": ["a", "mine", "c"], "language": "de", "pretty_name": "P"}
    assert "(header, license): the edit is kept: 'gpl-3.0'; not used: 'cc0-1.0'" in str(conflict)


def test_what_describes_the_files_is_always_the_new_one() -> None:
    base, edited, new = (CARD.replace("license: mit", f"dataset_info: {n}\nlicense: {n}") for n in ("1", "2", "3"))
    merged, conflicts = merge(base, edited, new, "here")
    assert header(merged)["dataset_info"] == 3 and header(merged)["license"] == 2 and len(conflicts) == 1


def test_a_header_that_only_the_person_touched_keeps_its_comments() -> None:
    edited = CARD.replace("license: mit", "license: mit  # as agreed")
    assert "mit  # as agreed" in merge(CARD, edited, CARD.replace("100", "200"), "here")[0]


def test_a_persons_own_card_stays_and_the_generated_text_follows() -> None:
    merged, conflicts = merge(None, "# Mine\n", CARD, "here")
    assert merged == CARD.replace("---\n\n# Pairs", "---\n# Mine\n\n# Pairs") and not conflicts
    assert open_fields(merged) and merge(None, merged, CARD, "here") == (merged, [])
    assert merge(CARD, merged, CARD.replace("100", "200"), "here") == (merged.replace("100", "200"), [])


@pytest.mark.parametrize("emptied", ["", "\n", "---\n---\n"])
def test_a_header_that_is_gone_comes_back(emptied: str) -> None:
    for new in (CARD, CARD.replace("100", "200")):
        assert header(merge(CARD, emptied, new, "here")[0]) == header(CARD)


def test_what_describes_the_files_is_the_new_one_though_the_program_says_the_same() -> None:
    base = CARD.replace("license: mit", "size_categories: 1\nlicense: mit")
    edited = base.replace("size_categories: 1", "size_categories: 9").replace("mit", "gpl-3.0")
    assert header(merge(base, edited, base.replace("100", "200"), "here")[0]) == {
        "size_categories": 1, "license": "gpl-3.0", "tags": ["a", "b"]
    }  # fmt: skip


def test_a_header_alone_as_the_hubs_page_makes_it_gets_the_text() -> None:
    merged, conflicts = merge(None, "---\nlicense: gpl-3.0\n---\n", CARD, "here")
    assert merged == CARD.replace("license: mit", "license: gpl-3.0") and len(conflicts) == 1


def test_line_ends_of_another_system_are_no_edit() -> None:
    assert merge(CARD, CARD.replace("\n", "\r\n"), CARD.replace("100", "200"), "here")[0] == CARD.replace("100", "200")


def test_open_fields_are_found_and_filled() -> None:
    text = CARD + "[More information needed: who are the\npatients?]\n"
    assert open_fields(text) == [("license", "under what licence?"), (None, "who are the patients?")]
    filled = fill(text, {"license": "As the hospital says."})
    assert open_fields(filled) == [(None, "who are the patients?")] and "\nAs the hospital says.\n" in filled
    assert header(filled) == {"license": "other", "license_name": "as-the-hospital-says", "tags": ["a", "b"]}
    assert header(fill(filled.replace("As the hospital says.", OPEN), {"license": "llama3.1"})) == {
        "license": "llama3.1", "tags": ["a", "b"]
    }  # fmt: skip
    assert header(fill(text, {"license": "CC BY 4.0"}))["license"] == "cc-by-4.0"
    with pytest.raises(InputError, match=r"no open field privacy; open fields: license"):
        fill(text, {"privacy": "None."})


@pytest.mark.parametrize("text", ["---\na: [\n---\n", "---\n- a\n---\n", "---\ntags: 3\nlicense: [{\n---\n"])
def test_a_broken_header_is_bad_input_that_names_the_card(text: str) -> None:
    with pytest.raises(InputError, match=r"(?s)here: its header .*Correct it"):
        merge(CARD, text, CARD.replace("mit", "gpl-3.0"), "here")
    with pytest.raises(InputError, match=r"(?s)here: its header .*Correct it"):
        validated(text, "dataset", "here")
