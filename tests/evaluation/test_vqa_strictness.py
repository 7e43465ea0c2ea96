"""The claims of the med_vqa card about real closed questions, computed again."""

import importlib.util
import json
from pathlib import Path

import pytest

from mmedpo.evaluation.metrics import closed, med_vqa

ROOT = Path(__file__).resolve().parents[2]


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


strictness = benchmark("vqa_strictness")


@pytest.fixture(scope="module")
def accuracies(shared_data):
    return strictness.accuracies(strictness.closed_answers(shared_data / "vqa-rad"))


def test_the_gold_answer_is_right_bare_and_in_sentences_of_five_styles(accuracies):
    rows = [found for kind, found in accuracies.items() if kind.startswith(("the gold", "`"))]
    assert [(found["strict"], found["strict@3"]) for found in rows] == [(1.0, 1.0)] * 6


def test_a_constant_yes_earns_what_the_split_holds_of_it(accuracies, shared_data):
    gold = strictness.closed_answers(shared_data / "vqa-rad").references
    assert accuracies['"yes" everywhere']["strict"] == [answer.lower() for answer in gold].count("yes") / len(gold)


def test_the_cards_table_is_what_the_benchmark_prints(accuracies):
    card = (ROOT / "eval" / "med_vqa" / "README.md").read_text(encoding="utf-8")
    for kind, found in accuracies.items():
        assert f"| {kind} | {' | '.join(f'{100 * value:.1f}' for value in found.values())} |" in card


def test_no_contradicting_sentence_is_a_hit_under_strict():
    rows = json.loads(strictness.CONTRADICTIONS.read_text(encoding="utf-8"))
    assert len(rows) > 20
    for row in rows:
        assert closed.verdict(row["prediction"], row["reference"]) != "correct", row
        assert closed.asked_verdict(row["prediction"], row["reference"], row["question"]) != "correct", row
        # Every one is a trap: the gold answer occurs in it.
        assert med_vqa.score(row["prediction"], row["reference"], "closed", "paper")["correct"] == 1.0, row


def test_choices_of_known_worth_get_it_beside_the_other_option_too(shared_data):
    choices = benchmark("choice_answers")
    asked = choices.questions(shared_data / "vqa-rad")
    assert len(asked) > 70
    earned = {
        style: choices.accuracy(asked, style, "strict") for style in choices.RIGHT + choices.WRONG + choices.UNREAD
    }
    assert earned == dict.fromkeys(choices.RIGHT, 1.0) | dict.fromkeys(choices.WRONG + choices.UNREAD, 0.0)


def test_yes_and_no_stated_in_ten_styles_are_read_and_their_contrary_and_hedges_are_not(shared_data):
    yes_no = benchmark("yes_no_answers")
    asked, others = yes_no.questions(shared_data / "vqa-rad")
    assert (len(asked), others, len(yes_no.STYLES)) == (168, 4, 10)
    for style in yes_no.STYLES:
        assert [yes_no.accuracy(asked, style, "strict", contrary) for contrary in (False, True)] == [1.0, 0.0], style
    assert {yes_no.accuracy(asked, style, "strict") for style in yes_no.UNREAD} == {0.0}
    card = (ROOT / "eval" / "med_vqa" / "README.md").read_text(encoding="utf-8")
    assert "\n".join(yes_no.table(asked)) in card
