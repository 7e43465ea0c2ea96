"""Compute per-question scores and metrics, and read and write the lines of an evaluation folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.data.studies import linked
from mmedpo.data.text import number_of
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation import require_known
from mmedpo.evaluation.metrics import (
    choice,
    judged,
    med_vqa,
    preference,
    question_sets,
    report_generation,
    visual_reliance,
)
from mmedpo.evaluation.metrics.reports import clinical
from mmedpo.evaluation.predictions import Line, counts, notes
from mmedpo.runs import bounded_json
from mmedpo.runs.json_files import read_text, sha256, write_json
from mmedpo.runs.provenance import versions
from mmedpo.schema import TASKS

if TYPE_CHECKING:
    from mmedpo.evaluation.asking import Judges

METRICS = {  # by folder of eval/
    "med_vqa": judged.metrics,
    "report_generation": report_generation.metrics,
    "preference": preference.metrics,
    "visual_reliance": visual_reliance.metrics,
}
PROTOCOLS = {"med_vqa": "strict", "report_generation": "coco"}  # defaults
PARTS = {"med_vqa": "vqa_protocol", "report_generation": "report_protocol"}  # folder of eval/ -> field of `Scoring`
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # lone surrogates, which JSON can escape but UTF-8 cannot store
SHOWN_IDS = 5

Row = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """Protocols by which answers are scored.

    Attributes:
        vqa_protocol: one of `med_vqa.PROTOCOLS`, or `judged.NAME`, which needs judges.
        report_protocol: one of `report_generation.PROTOCOLS`.
        meteor_variant: one of `report_generation.METEOR_VARIANTS`; None takes the report protocol's own.
        clinical: clinical scores of reports, some of `clinical.NAMES`.

    Raises:
        InputError: an unknown name.
    """

    vqa_protocol: str = PROTOCOLS["med_vqa"]
    report_protocol: str = PROTOCOLS["report_generation"]
    meteor_variant: str | None = None
    clinical: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "clinical", clinical.names_in(self.clinical))
        require_known("vqa_protocol", self.vqa_protocol, (*med_vqa.PROTOCOLS, judged.NAME))
        require_known("report_protocol", self.report_protocol, report_generation.PROTOCOLS)
        if self.meteor_variant is not None:
            require_known("meteor_variant", self.meteor_variant, report_generation.METEOR_VARIANTS)

    def prepare(self, tasks: Iterable[str]) -> None:
        """Check that judges and clinical scores fit questions of these tasks, and load the networks of the latter.

        Raises:
            InputError: clinical scores without reports, judges of answers without any; weights are missing.
        """
        tasks = set(tasks)
        judged.require_answers(self.vqa_protocol, tasks)
        clinical.require_reports(self.clinical, tasks)
        clinical.load(self.clinical)

    def judges_fault(self, judges: Sequence[str]) -> list[str]:
        """Return a sentence where scores need judges, or judges have nothing to judge."""
        asked = {
            f"vqa_protocol {judged.NAME}": self.vqa_protocol == judged.NAME,
            f"clinical {clinical.JUDGED}": clinical.JUDGED in self.clinical,
        }
        if judges:
            return [] if any(asked.values()) else [f"judges make no score that was asked for; add {' or '.join(asked)}"]
        return [f"{name} needs judges, chat models that read the answers" for name, needs in asked.items() if needs]

    @property
    def protocols(self) -> dict[str, str]:
        """Protocols by folder of eval/, as in results.json."""
        return {part: getattr(self, name) for part, name in PARTS.items()}

    def reference_fault(self, row: str, column: str, task: str | None, reference: Any) -> Fault | None:
        """Return the fault of a row's gold answer in `column`, or None."""
        if isinstance(reference, str) and (
            report_generation.reference_words(reference, self.report_protocol)
            if task == "report"
            else med_vqa.tokens(reference)
        ):
            return None
        return Fault(row, column, "has no words to compare with; drop the question", repr(reference))

    def score_all(self, answers: Sequence[tuple[Row, str]], lines: Sequence[Row] = ()) -> list[Row]:
        """Return the scores of each (question, prediction); all reports have METEOR, or none has.

        Args:
            lines: scores of those that are no reports, where judges make them.
        """
        reports = [(text, row["reference"]) for row, text in answers if row["task"] == "report"]
        others = [(row, text) for row, text in answers if row["task"] != "report"]
        said, gold = ([report[side] for report in reports] for side in (0, 1))
        of_reports = iter(report_generation.score_all(said, gold, self.report_protocol, self.meteor_variant))
        questions = [row for row, _ in others]
        lines = lines or self._score_answers(questions, [text for _, text in others])
        of_others = iter(question_sets.with_sets(questions, lines))
        return [next(of_reports if row["task"] == "report" else of_others) for row, _ in answers]

    def _score_answers(self, questions: Sequence[Row], predictions: Sequence[str]) -> list[Row]:
        return med_vqa.score_all(
            predictions,
            [row["reference"] for row in questions],
            [row["task"] for row in questions],
            self.vqa_protocol,
            questions=[row["question"] for row in questions],
            options=[row.get("options") for row in questions],
        )

    def metrics(self, scores: Sequence[Row]) -> Row:
        """Return the "metrics" of results.json from the lines of scores.jsonl."""
        reports = [score for score in scores if score["task"] == "report"]
        answers = [score for score in scores if score["task"] != "report"]
        return judged.aggregate(answers, self.vqa_protocol) | report_generation.aggregate(
            reports, self.meteor_variant, self.report_protocol
        )


def finish(
    folder: Path, answered: Sequence[tuple[Row, Line]], scoring: Scoring, results: Row, judges: Judges | None = None,
    kept: clinical.Found | None = None, verdicts: judged.Found | None = None,
) -> Row:  # fmt: skip
    """Score answers, write the evaluation folder, and warn of answers that are missing or were cut off.

    Each line of scores.jsonl is {"id", "image_id", "task", ...} with the result of `med_vqa.score` (closed and open
    questions), `judged.of_answers` (by judges) or `report_generation.score` (reports).

    Args:
        folder: folder that holds questions.jsonl.
        answered: questions in order, each with its line of predictions.jsonl.
        scoring: protocols of the scores.
        results: further fields of results.json.
        judges: chat models that make some scores.
        kept: clinical scores of all answers that were made before.
        verdicts: verdicts of judges on the answers that were made before.

    Returns:
        The content of results.json (docs/files.md).
    """
    predictions = [{"id": row["id"], **line} for row, line in answered]
    if scoring.vqa_protocol == judged.NAME and verdicts is None:
        verdicts = judged.of_answers(answered, judges)
    found = scoring.score_all([(row, line["prediction"]) for row, line in answered], verdicts.lines if verdicts else ())
    likelihoods = [choice.of_line(row, line) for row, line in answered]
    added = clinical.of_answers(scoring.clinical, answered, judges, kept)
    parts = zip(answered, found, likelihoods, added.lines, strict=True)
    scores = [about(row) | score | more | own for (row, _), score, more, own in parts]
    counted = counts(predictions)
    if results.get("model") is None:  # predictions made elsewhere may not record what was cut off
        counted = {name: value for name, value in counted.items() if value or name != "cut_off"}
    for note in notes(predictions):
        log.warning(note)
    metrics = scoring.metrics(scores)
    if why := next((line["option_logps_absent"] for _, line in answered if "option_logps_absent" in line), None):
        log.warning("Options are not measured by likelihood: %s", why)
        metrics |= {f"{metric.name}_absent": why for metric in choice.METRICS}
    results = results | {"versions": versions(), **counted, "protocols": scoring.protocols}
    if verdicts:
        metrics["med_vqa_definition"] = verdicts.definition
        results |= verdicts.record
    results |= {"metrics": metrics | added.definitions, **(judges.record() if judges else {})}
    errors = {"errors": added.errors} if clinical.JUDGED in added.names else {}
    return write_results(folder, predictions, scores, results, **errors)


def about(question: Row) -> Row:
    """Return the fields that a line of scores.jsonl begins with."""
    return {column: question[column] for column in ("id", "image_id", "task")}


def read_by_id(path: Path) -> tuple[dict[str, Row], list[Fault]]:
    """Return the objects of a JSONL file by "id", in order, and the faults of their ids.

    Raises:
        InputError: a missing file, or a line that is not a JSON object.
    """
    rows: dict[str, Row] = {}
    faults = []
    for number, row in read_lines(path):
        id_ = row.get("id")
        if not isinstance(id_, str) or not id_:
            faults.append(Fault(f"{path.name}:{number}", "id", "is not a string; every line needs one", repr(id_)))
        elif id_ in rows:
            faults.append(Fault(f"{path.name}:{number}", "id", "occurs before; keep one line", repr(id_)))
        else:
            rows[id_] = row
    return rows, faults


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_results(
    folder: Path, predictions: Sequence[Row], scores: Sequence[Row], results: Row, **more: Sequence[Row]
) -> Row:
    """Write predictions.jsonl, scores.jsonl, `more` files, and results.json with their digests; return its content."""
    files = {f"{name}.jsonl": rows for name, rows in {"predictions": predictions, "scores": scores, **more}.items()}
    for name, rows in files.items():
        write_lines(folder / name, rows)
    results = {**results, "files_sha256": {name: sha256(folder / name) for name in files}}
    write_json(folder / "results.json", results)
    return results


def check_digests(folder: Path, results: Row, names: Iterable[str]) -> None:
    """Raise InputError where a file of an evaluation folder does not match its digest in `results`."""
    recorded = results.get("files_sha256")
    expected = {**(recorded if isinstance(recorded, dict) else {}), "questions.jsonl": results.get("questions_sha256")}
    files = [f"{name}.jsonl" for name in names]
    if changed := [file for file in files if sha256(folder / file) != expected.get(file)]:
        raise InputError(
            f"{folder}: {', '.join(changed)} changed after results.json was written, or belongs to another run. "
            "Run `mmedpo evaluate` again."
        )


def read_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number, object) of a JSONL file, or of a JSON list; raise InputError as `read_by_id`."""
    try:
        text = read_text(path, "give a finished evaluation, or a file of predictions")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); write it again.") from None
    # splitlines() would also split at characters that JSON does not escape, such as U+2028.
    for number, line in enumerate(_of_list(text) or text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = bounded_json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error}); write the file again.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is {line.strip()[:40]}, not an object with an id.")
        if "\\u" in line and HALF_CHARACTER.search(json.dumps(row, ensure_ascii=False)):
            raise InputError(
                f"{path}, line {number} holds a lone surrogate, which UTF-8 cannot store. Write the file again."
            )
        yield number, row


def _of_list(text: str) -> list[str]:
    """Return the entries of a JSON list as lines; nothing for another text."""
    if not text.lstrip().startswith("["):
        return []
    with suppress(ValueError):
        return [json.dumps(entry) for entry in bounded_json.loads(text)]
    return []


def refuse_unscorable(questions: Iterable[Row], scoring: Scoring | None = None) -> None:
    """Raise InputError, which lists all `question_faults`, if there are any."""
    faults = question_faults(questions, scoring)
    if faults:
        raise InputError(f"{number_of(len({fault.row for fault in faults}), 'questions')} cannot be scored:", faults)


def picture(question: Row) -> str:
    """Return the identity of a question's image: its digest, or its name in records without one."""
    return str(question.get("image_digest") or question["image_id"])


def pictures(question: Row) -> list[str]:
    """Return the identities of a question's images."""
    return question.get("image_digests") or [picture(question)]


def clusters(questions: Iterable[Row]) -> list[str]:
    """Return the cluster of each question, for intervals and tests: its image, with all that questions link to it."""
    return linked([pictures(question) for question in questions])


def question_faults(questions: Iterable[Row], scoring: Scoring | None = None) -> list[Fault]:
    """Return the faults of lines of questions.jsonl by the protocols of `scoring`."""
    scoring, faults = scoring or Scoring(), []
    for row in questions:
        task, image = row.get("task"), row.get("image_id")
        if task not in TASKS:
            faults.append(Fault(row["id"], "task", f"is unknown; choose one of: {', '.join(TASKS)}", repr(task)))
        if not isinstance(image, str):
            said = "is not a string; name the image, since intervals resample images"
            faults.append(Fault(row["id"], "image_id", said, repr(image)))
        if lacking := scoring.reference_fault(row["id"], "reference", task, row.get("reference")):
            faults.append(lacking)
    return faults


def first_ids(ids: Sequence[str]) -> str:
    """Return the first ids as text for a message."""
    return ", ".join(ids[:SHOWN_IDS]) + (", ..." if len(ids) > SHOWN_IDS else "")
