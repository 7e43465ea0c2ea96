"""Check of judges on pairs of known severity, before their scores become weights.

`judge_check.jsonl` has 40 pairs, eight of each severity: questions and reports about several organs and modalities,
written for this check. They come from no dataset, and the prompt's examples are not among them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmedpo.curation.relevance import NO_SCORE, NOT_WRONG, Item, Panel, Relevance
from mmedpo.errors import InputError
from mmedpo.models.chat import WAITING, ChatModel, ChatReply, ChatRequest
from mmedpo.models.chat.batch import settle
from mmedpo.runs.formats import STANDIN

log = logging.getLogger(__name__)
VERSION = "judge_check@1"  # of the pairs and of what is computed
SEVERITIES = ("not wrong", "absurd", "wording only", "moderate", "critical")  # ascending relevance
BAR = 0.5  # least Spearman of the panel; rules that only compare words reach 0.38
MOST_UNREADABLE = 0.5
BELOW_ALL = -0.1  # rank of "not wrong", below the lowest score
POLICIES = ("stop", "go")
HEADINGS = [
    "",
    "Spearman with the known order",
    "unreadable",
    '"not wrong" recognised',
    "calls a pair",
    "tokens a pair",
]


@cache
def pairs() -> list[tuple[str, Item]]:
    """Return the pairs with their severities."""
    lines = Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    return [(one["severity"], Item(one["question"], one["gold"], one["rejected"])) for one in map(json.loads, lines)]


class _Metered:
    """Judge whose requests and tokens are counted, an equal request once."""

    def __init__(self, judge: ChatModel) -> None:
        self.name, self.revision, self._judge = judge.name, judge.revision, judge
        self.replies: dict[str, ChatReply] = {}

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        requests = list(requests)
        replies = self._judge.complete(requests)
        self.replies.update(zip((request.text for request in requests), replies, strict=True))
        return replies


def check(panel: Panel) -> dict[str, Any]:
    """Let each judge alone, and then the panel, score the pairs; return the manifest's "judge_check".

    Raises:
        InputError, Stopped: by a judge; or requests wait for batches.
    """
    alone = {}
    for name, judge in panel.judges.items():
        metered = _Metered(judge)
        alone[name] = _measured(Panel([metered], rounds=1), [metered])
    together = next(iter(alone.values()))
    if len(alone) > 1:
        judges = [_Metered(judge) for judge in panel.judges.values()]
        together = _measured(Panel(judges, panel.rounds, panel.tolerance, panel.mode), judges)
    settle(panel.judges.values())
    passed = (together["spearman"] or 0) >= BAR and together["unreadable"] <= MOST_UNREADABLE
    return {
        "version": VERSION, "pairs": len(pairs()), "bar": BAR, "most_unreadable": MOST_UNREADABLE, "passed": passed,
        "panel": together, "judges": alone,
    }  # fmt: skip


def _measured(panel: Panel, judges: Sequence[_Metered]) -> dict[str, Any]:
    results = panel.score([item for _, item in pairs()])
    found = [_value(result) for result in results]
    right = [value == BELOW_ALL for value, (severity, _) in zip(found, pairs(), strict=True) if severity == "not wrong"]
    lost = [result.judgements[-1]["rationale"] for result in results if result.reason == NO_SCORE]
    if unread := [why for why in lost if WAITING not in why]:
        log.warning(
            f"Judge check, {' and '.join(panel.judges)}, the first of {len(unread)} unreadable pairs: {unread[0]}"
        )
    replies = [reply for judge in judges for reply in judge.replies.values()]
    unknown = any(reply.text is not None and reply.completion_tokens is None for reply in replies)
    tokens = sum((reply.prompt_tokens or 0) + (reply.completion_tokens or 0) for reply in replies)
    return {
        "spearman": _spearman(found), "unreadable": found.count(None) / len(found),
        "not_wrong_recognised": sum(right) / len(right), "calls_per_pair": len(replies) / len(found),
        "tokens_per_pair": None if unknown else tokens / len(found),
    }  # fmt: skip


def _value(result: Relevance) -> float | None:
    return BELOW_ALL if result.reason == NOT_WRONG else result.score


def _spearman(found: Sequence[float | None]) -> float | None:
    """Return the rank correlation of the readable values with the severities; None where they are all equal."""
    from scipy.stats import spearmanr

    known = [
        (value, SEVERITIES.index(severity))
        for value, (severity, _) in zip(found, pairs(), strict=True)
        if value is not None
    ]
    if len({value for value, _ in known}) < 2 or len({rank for _, rank in known}) < 2:
        return None
    return round(float(spearmanr(*zip(*known, strict=True)).statistic), 4)


def table(checked: Mapping[str, Any]) -> list[list[str]]:
    """Return the check as rows of texts, headings first."""
    parts = {"panel": checked["panel"], **checked["judges"]}
    return [HEADINGS, *([name, *_shown(part)] for name, part in parts.items())]


def _shown(part: Mapping[str, Any]) -> list[str]:
    spearman, tokens = part["spearman"], part["tokens_per_pair"]
    return [
        "none, all are equal" if spearman is None else f"{spearman:.2f}",
        f"{100 * part['unreadable']:.0f} %", f"{100 * part['not_wrong_recognised']:.0f} %",
        f"{part['calls_per_pair']:.1f}", "unknown" if tokens is None else f"{tokens:,.0f}",
    ]  # fmt: skip


def said(checked: Mapping[str, Any]) -> str:
    """Return the panel's result as a sentence without its full stop."""
    spearman, unreadable, right, *_ = _shown(checked["panel"])
    bar, most = checked["bar"], f"{100 * checked['most_unreadable']:.0f} %"
    return (
        f"{checked['pairs']} pairs of known severity: Spearman {spearman} (bar {bar}), {unreadable} unreadable "
        f'(at most {most}), {right} of the "not wrong" recognised'
    )


def before_run(panel: Panel, policy: str) -> dict[str, Any] | None:
    """Return the check of a run's judges and log its result; None, said too, for stand-ins.

    Raises:
        InputError: the panel is below the bar, and `policy` is "stop"; or by a judge.
    """
    if all(name.startswith(STANDIN) for name in panel.judges):
        log.warning("The judges are stand-ins, which are not checked on pairs of known severity.")
        return None
    checked = check(panel)
    for name, spearman, unreadable, right, calls, tokens in table(checked)[1:]:
        log.warning(
            f"Judge check on {len(pairs())} pairs of known severity, {name}: Spearman {spearman}; {unreadable} "
            f'unreadable; {right} of the "not wrong" recognised; {calls} calls and {tokens} tokens a pair.'
        )
    refuse_below_bar(checked, policy)
    return checked


def refuse_below_bar(checked: Mapping[str, Any], policy: str) -> None:
    """Raise InputError where the panel is below the bar and `policy` is "stop"."""
    if not checked["passed"] and policy == "stop":
        raise InputError(
            f"The judges are below the bar on {said(checked)}. Their scores are no clinical relevance. Name other "
            "judges, go without (--judges none --weights none), or keep these with --judges-below-bar go."
        )


def notes(checked: Mapping[str, Any] | None) -> list[str]:
    """Return notes for the weights' record: judges below the bar."""
    if checked is None:
        return []
    below = [name for name, part in checked["judges"].items() if (part["spearman"] or 0) < checked["bar"]]
    found = [] if checked["passed"] else [f"The judges are below the bar on {said(checked)}."]
    if checked["passed"] and below:
        found.append(f"Alone below the bar on {checked['pairs']} pairs of known severity: {', '.join(below)}.")
    return found
