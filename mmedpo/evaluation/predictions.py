"""Lines of predictions.jsonl: the scored answer, the raw text, and the reason for a missing answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmedpo.errors import Fault
from mmedpo.models import thoughts
from mmedpo.models.thoughts import Answer

Line = dict[str, Any]
KEPT = {"raw": str, "cut": bool, "unanswered": str}  # optional fields of a line; null means absent
NOTHING = "the prediction is null or NaN"  # an empty cell of a table


def line(answer: Answer) -> Line:
    """Return {"prediction"}, and "raw" (the whole text), "cut" (True), "unanswered" (the reason) where they apply."""
    found: Line = {"prediction": answer.said or ""}
    if answer.raw is not None and answer.raw != found["prediction"]:
        found["raw"] = answer.raw
    if answer.partial is not None:
        found["cut"] = True
    return found if answer.said else found | {"unanswered": answer.failure}


def unanswered(why: str | None) -> Line:
    """Return the line of a question without an answer."""
    return {"prediction": "", "unanswered": why or "not asked"}


def reread(row: Mapping[str, Any]) -> Line:
    """Return the line for one written elsewhere, whose prediction may still hold a thought."""
    kept = {name: row[name] for name in (*KEPT, "option_logps", "option_logps_absent") if row.get(name) is not None}
    if is_nothing(said := row["prediction"]):
        return {"prediction": "", "unanswered": NOTHING} | kept
    return line(thoughts.read(said)) | kept


def is_nothing(said: Any) -> bool:
    """Return True for an empty cell of a table: null, NaN, or the text "nan" that pandas writes."""
    return said is None or said != said or (isinstance(said, str) and said.strip().casefold() == "nan")


def faults(id_: str, row: Mapping[str, Any]) -> list[Fault]:
    """Return faults for fields of wrong types in a line written elsewhere."""
    found = []
    if "prediction" not in row or not (isinstance(said := row["prediction"], str) or is_nothing(said)):
        given = repr(row["prediction"]) if "prediction" in row else "nothing"
        found.append(Fault(id_, "prediction", "is not a string; an unanswered question has ''", given))
    for name, kind in KEPT.items():
        if not isinstance(row.get(name), kind | None):
            wanted = "a string" if kind is str else "true or false"
            found.append(Fault(id_, name, f"is not {wanted}; correct or remove it", repr(row[name])))
    return found


def without_open_thoughts(lines: Mapping[str, Line]) -> dict[str, Line]:
    """Return the lines of one model with unfinished thoughts marked as unanswered.

    A chat template may open a thought, which an endpoint does not report. Where any text ends a thought that it did not
    begin, a cut answer without the end of a thought is an unfinished one.
    """
    if not any(thoughts.ends_opened_thought(said.get("raw", "")) for said in lines.values()):
        return dict(lines)
    unfinished = {
        id_: {"prediction": "", "raw": said["prediction"], "unanswered": thoughts.UNFINISHED}
        for id_, said in lines.items()
        if said.get("cut") and "raw" not in said
    }
    return {**lines, **unfinished}


def counts(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts "unanswered" and "cut_off" of results.json, and "unanswered_reasons" where there are any."""
    reasons = Counter(said.get("unanswered") or thoughts.EMPTY for said in lines if not said["prediction"])
    return {
        "unanswered": reasons.total(),
        **({"unanswered_reasons": dict(reasons.most_common())} if reasons else {}),
        "cut_off": sum(bool(said.get("cut")) for said in lines),
    }


def notes(lines: Sequence[Line]) -> Iterable[str]:
    """Yield a sentence for each limitation of the predictions: unanswered, cut off, unfinished thoughts."""
    counted, total = counts(lines), len(lines)
    if counted["unanswered"]:
        why = ", ".join(f"{reason} ({count})" for reason, count in counted["unanswered_reasons"].items())
        advice = " Raise --max-new-tokens for unfinished thoughts." if thoughts.UNFINISHED in why else ""
        yield f"{counted['unanswered']} of {total} questions got no answer and count as '': {why}.{advice}"
    if counted["cut_off"]:
        yield (
            f"{counted['cut_off']} of {total} answers were cut off at the longest length and are scored as they are: "
            "raise --max-new-tokens or --max-new-tokens-report."
        )
    unbegun = sum(thoughts.ends_opened_thought(said.get("raw", "")) for said in lines)
    plain = sum("raw" not in said and bool(said["prediction"]) for said in lines)
    if unbegun and plain:
        yield (
            f"{unbegun} of {total} predictions contain the end of a thought that the chat template began. {plain} "
            "contain none and are scored as they are: give '' for unfinished thoughts."
        )
