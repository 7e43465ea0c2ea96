"""Join questions with predictions by id, and check that a line which names its question names the source's.

Lines of two layouts are read: {"id", "prediction"}, and {"question_id", "text"} of LLaVA and LLaVA-Med.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedpo.data import options
from mmedpo.data.columns import COLUMNS
from mmedpo.data.text import folded, number_of, words
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.metrics import choice
from mmedpo.evaluation.predictions import Line, is_nothing, reread
from mmedpo.evaluation.predictions import faults as wrong_types
from mmedpo.evaluation.score import Row, Scoring, first_ids, question_faults, read_by_id, read_lines
from mmedpo.runs.provenance import portable

MOST = 0.9  # share of missing predictions above which they seem to be of another split
IDS = COLUMNS["id"]
ANSWERS = ("prediction", "text", "response")  # "prediction" is the answer, whatever else there is
NAMED = ("question", "prompt", "query")  # fields that name the question, perhaps inside an instruction
TAG = re.compile(r"<[^<>\s]{1,40}>")  # image tokens of prompts
WHOLE = re.compile(r"(\d{1,18})(?:\.0)?", re.ASCII)  # an id that is a whole number, as a table may write it
EXACT = 2**53  # larger floats are no exact integers
SHOWN_TEXT = 80  # characters of each question in a fault


def joined(questions_file: Path, predictions_file: Path, scoring: Scoring | None = None) -> list[tuple[Row, Line]]:
    """Return each question with its line of predictions without thoughts, in the order of the questions.

    Raises:
        InputError: files missing or broken; ids missing, surplus, repeated or ambiguous; fields of a wrong type; lines
            that name another question; all are listed.
    """
    questions, faults = read_by_id(questions_file)
    predictions, more = _read_predictions(predictions_file, questions)
    faults += more
    faults += question_faults(questions.values(), scoring)
    faults += [fault for id_, row in predictions.items() for fault in wrong_types(id_, row)]
    faults += [
        Fault(id_, "option_logps", said)
        for id_, row in predictions.items()
        if (said := choice.fault(row.get("option_logps"), questions.get(id_, {}).get("options")))
    ]
    elsewhere = _answers_another(predictions, questions)
    faults += elsewhere
    missing = [id_ for id_ in questions if id_ not in predictions]
    surplus = [id_ for id_ in predictions if id_ not in questions]
    faults += [Fault(id_, "prediction", "is missing; every question needs one") for id_ in missing]
    faults += [Fault(id_, "prediction", "answers no question; remove it, or add the question") for id_ in surplus]
    if faults:
        said = _apart(len(questions), missing, len(predictions), surplus)
        said += _named_another(predictions, questions, list(dict.fromkeys(fault.row for fault in elsewhere)))
        raise InputError(
            f"{portable(str(predictions_file))} cannot be scored: {number_of(len(faults), 'faults')}.{said}", faults
        )
    _refuse_echoes(predictions_file, predictions, questions)
    return [(row, reread(predictions[id_])) for id_, row in questions.items()]


def _read_predictions(path: Path, questions: Mapping[str, Row]) -> tuple[dict[str, Row], list[Fault]]:
    """Return lines of predictions as {"id", "prediction", ...} by id, and the faults of their ids and answers."""
    by_number = defaultdict(list)
    for known in questions:
        if whole := WHOLE.fullmatch(known):
            by_number[int(whole[1])].append(known)
    rows: dict[str, Row] = {}
    faults = []
    for number, row in read_lines(path):
        place = f"{path.name}:{number}"
        given = {name: row[name] for name in IDS if not is_nothing(row.get(name)) and row[name] != ""}
        ids = {name: _id_of(value, by_number) for name, value in given.items()}
        id_ = next(iter(ids.values()), None)
        if len(set(ids.values())) > 1:
            said = f"{' and '.join(ids)} differ; keep the one of the question"
            faults.append(Fault(place, "id", said, " and ".join(map(repr, given.values()))))
        elif id_ is None:
            shared = any(_number(value) in by_number for value in given.values())
            said = "is the number of several ids" if shared else "is neither a string nor a whole number"
            remedy = "write the id as text" if shared else "every line needs one"
            faults.append(Fault(place, "id", f"{said}; {remedy}", repr(next(iter(given.values()), row.get("id")))))
        elif id_ in rows:
            faults.append(Fault(place, "id", "occurs before; keep one line", repr(id_)))
        else:
            named = ANSWERS[:1] if "prediction" in row else [name for name in ANSWERS if name in row]
            if len(named) == 2 and row["text"] != row["response"]:
                said = "is not the text; name the answer prediction"
                faults.append(Fault(id_, "response", said, repr(row["response"])))
            rows[id_] = {**row, "id": id_, **({"prediction": row[named[0]]} if named else {})}
    return rows, faults


def _id_of(value: Any, by_number: Mapping[int, Sequence[str]]) -> str | None:
    """Return the id that a line gives as text, or as the number of at most one of the questions' ids; else None."""
    if isinstance(value, str):
        return value
    if (number := _number(value)) is None:
        return None
    known = by_number.get(number, [str(number)])
    return known[0] if len(known) == 1 else None


def _number(value: Any) -> int | None:
    """Return a whole number, which a table with an empty cell writes as a float; else None."""
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _answers_another(predictions: Mapping[str, Row], questions: Mapping[str, Row]) -> list[Fault]:
    """Return faults of predictions that carry fields of another question.

    The prompt of a report is not compared: it names no finding, and is often the model's own.
    """
    faults = []
    for id_, row in predictions.items():
        question = questions.get(id_, {})
        offered, _ = options.read(row.get("options"))
        if offered and [*map(folded, offered)] != [*map(folded, question.get("options") or ())]:
            said = "are not the source's in its order, so that a letter names another; answer with the source's options"
            faults.append(Fault(id_, "options", said, repr(offered)))
        if "image_digest" in row:  # a line of questions.jsonl
            said = "differs from the current question; answer it again, or restore the source"
            columns = [name for name in ("question", "image_digest") if name in row and name in question]
            faults += [Fault(id_, name, said) for name in columns if row[name] != question[name]]
        elif question.get("task") != "report" and (named := _named(row)) and not _asks(named.values(), question):
            said = "is not the source's question; answer that one, or remove the field"
            texts = f"{next(iter(named.values()))[:SHOWN_TEXT]!r} for {question['question'][:SHOWN_TEXT]!r}"
            faults.append(Fault(id_, next(iter(named)), said, texts))
    return faults


def _named(row: Row) -> dict[str, str]:
    """Return the fields of a line that name its question, as text."""
    texts = {name: _text(row.get(name)) for name in NAMED}
    return {name: text for name, text in texts.items() if not is_nothing(text) and _plain(text)}


def _text(value: Any) -> str:
    """Return the texts of a prompt: a string, or chat messages."""
    if isinstance(value, str):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return "\n".join(map(_text, parts))


def _plain(text: str) -> str:
    """Return the words of a text, each between spaces, without tags; "" for none."""
    return " ".join(["", *found, ""]) if (found := words(TAG.sub(" ", text))) else ""


def _asks(texts: Iterable[str], question: Row) -> bool:
    """Return True if one of the texts has the words of the question, or if there is no question."""
    asked = _plain(_text(question.get("question")))
    return any(asked in _plain(text) for text in texts)


def _named_another(predictions: Mapping[str, Row], questions: Mapping[str, Row], ids: Sequence[str]) -> str:
    """Return a sentence on the lines that name another question, and on rows that are shifted; "" for none."""
    if not ids:
        return ""
    said = f" {len(ids)} of {len(predictions)} predictions name another question than the source's: {first_ids(ids)}."
    rows = offset(predictions, questions)
    if rows is None:
        return said + " Their ids seem to be of another numbering." * (2 * len(ids) > len(predictions))
    where = f"{number_of(abs(rows), 'rows')} {'further down' if rows > 0 else 'further up'}"
    return f"{said} All of them name the question {where}: the file is shifted against its ids."


def offset(predictions: Mapping[str, Row], questions: Mapping[str, Row]) -> int | None:
    """Return the number of rows by which all lines that name a question are shifted, or None.

    A line without a row at that place (the last of a shifted file) does not count.
    """
    places = {id_: place for place, id_ in enumerate(questions)}
    asked = [_plain(_text(row.get("question"))) for row in questions.values()]
    named = {
        places[id_]: [_plain(text) for text in texts.values()]
        for id_, row in predictions.items()
        if questions.get(id_, {}).get("task", "report") != "report" and (texts := _named(row))
    }

    def hits(place: int, rows: int) -> bool | None:
        there = place + rows
        return any(asked[there] in text for text in named[place]) if 0 <= there < len(asked) else None

    first = next((place for place in named if not hits(place, 0)), None)
    if first is None:
        return None
    for rows in sorted((place - first for place in range(len(asked)) if hits(first, place - first)), key=abs):
        found = [hit for place in named if (hit := hits(place, rows)) is not None]
        if len(found) > 1 and all(found):
            return rows
    return None


def _refuse_echoes(path: Path, predictions: Mapping[str, Row], questions: Mapping[str, Row]) -> None:
    """Raise InputError for a file of questions, whose "text" is the question itself."""
    texts = [
        (_plain(_text(row["prediction"])), _plain(_text(questions[id_].get("question"))))
        for id_, row in predictions.items()
        if "text" in row
    ]
    if texts and len(texts) == len(predictions) and all(said and said == asked for said, asked in texts):
        raise InputError(
            f"{portable(str(path))}: the text of every line is its question. Give the file of answers, or name the "
            "answers prediction."
        )


def _apart(asked: int, missing: Sequence[str], answered: int, surplus: Sequence[str]) -> str:
    """Return a sentence on ids without a partner, with the first of them; "" for none."""
    said = ""
    if missing:
        said += f" {len(missing)} of {asked} questions have no prediction: {first_ids(missing)}."
    if surplus:
        said += f" {len(surplus)} of {answered} predictions answer no question: {first_ids(surplus)}."
    if surplus and len(missing) > MOST * asked:
        said += " They look like predictions for another split or source."
    return said
