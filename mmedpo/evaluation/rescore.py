"""Score without a model: a finished evaluation under other protocols, or predictions made elsewhere."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmedpo.data import credentialed
from mmedpo.errors import InputError
from mmedpo.evaluation.asking import Judges, Judging
from mmedpo.evaluation.contents import QUESTIONS, keep
from mmedpo.evaluation.joining import joined
from mmedpo.evaluation.metrics import judged
from mmedpo.evaluation.metrics.reports import clinical
from mmedpo.evaluation.questions import Asked, QuestionSet, read
from mmedpo.evaluation.score import PARTS, Scoring, check_digests, finish, read_by_id, read_lines
from mmedpo.runs import formats, writable
from mmedpo.runs.json_files import read_json, read_object, sha256
from mmedpo.runs.options import refuse
from mmedpo.runs.provenance import portable
from mmedpo.runs.run_folder import short_folder

log = logging.getLogger(__name__)


def main(
    run: Path | None, predictions: Path | None, asked: Asked, chosen: Mapping[str, Any],
    output: Path, record: dict[str, Any], judging: Judging | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the evaluation folder `output` of `mmedpo score`.

    Args:
        run: finished evaluation; give either `run` or `predictions`.
        predictions: file of predictions.
        asked: choice of the questions, with `predictions` only.
        chosen: fields of `Scoring`; None takes the run's, or the default.
        output: folder to write.
        record: further fields of results.json (name, command).
        judging: options of the judges that some scores need.

    Returns:
        The content of results.json.

    Raises:
        InputError: neither or both are given, options without effect, or answers that cannot be scored.
    """
    writable.check(output)
    given = {name: value for name, value in chosen.items() if value is not None}
    judging = judging or Judging()
    asked_of_judges = {name: given[name] for name in ("clinical", "vqa_protocol") if name in given}
    refuse(Scoring(**asked_of_judges).judges_fault(judging.judges))
    if (run is None) == (predictions is None):
        raise InputError("Give either a finished evaluation or --predictions FILE with --source or --dataset.")
    if run is not None:
        if unused := [f"--{one.name.replace('_', '-')}" for one in fields(asked) if getattr(asked, one.name)]:
            raise InputError(f"{run} has its own questions; leave out {', '.join(unused)}.")
        scoring = _changed(scoring_of(run), given)
        with short_folder(output) as folder:
            again = given.get("vqa_protocol") == judged.NAME
            return score_run(run, folder, scoring, record, judging, output, again)
    scoring = Scoring(**given)
    questions = read(asked, scoring)
    if questions.note:
        log.warning(questions.note)
    sent = judging.consent(
        questions.record["source"] if questions.marked else None, len(questions.questions), questions.marked_by
    )
    with short_folder(output) as folder, judging.open(output, questions.marked) as judges:
        return score_predictions(questions, Path(str(predictions)), folder, scoring, {**record, **sent}, judges)


def _changed(before: Scoring, given: Mapping[str, Any]) -> Scoring:
    """Return `before` with the `given` fields; another report protocol brings its own METEOR unless one is given."""
    scoring = replace(before, **given)
    kept = scoring.report_protocol == before.report_protocol or "meteor_variant" in given
    return scoring if kept else replace(scoring, meteor_variant=None)


def scoring_of(run: Path) -> Scoring:
    """Return the protocols of a finished evaluation, without its clinical scores, which `score_run` keeps.

    Raises:
        InputError: `run` is not a finished evaluation of answers.
    """
    results = read_json(run / "results.json")
    protocols = results.get("protocols") if isinstance(results, dict) else None
    metrics = results.get("metrics") if isinstance(results, dict) else None
    if not isinstance(protocols, dict) or protocols.keys() != set(PARTS) or not isinstance(metrics, dict):
        raise InputError(f"{run} has no scored answers (protocols: {protocols}); give an evaluation of answers.")
    named = {PARTS[part]: name for part, name in protocols.items()}
    variant = metrics.get("meteor_variant")
    return Scoring(**named, **({"meteor_variant": variant} if variant else {}))


def score_run(
    run: Path, folder: Path, scoring: Scoring, record: dict[str, Any], judging: Judging | None = None,
    output: Path | None = None, judge_again: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Score the answers of a finished evaluation again, into `folder`.

    Its clinical scores are kept, except those that `scoring` names, and so are judged answers where the protocol stays.

    Args:
        output: place of the finished folder, beside which the judges' cache lies; by default `run`.
        judge_again: let the judges grade answers that were judged before.

    Returns:
        The content of results.json: the run's with new metrics; "scored_before" holds the earlier protocols.

    Raises:
        InputError: files of `run` are missing, broken, or changed since it finished.
    """
    if missing := [name for name in (QUESTIONS, "predictions.jsonl") if not (run / name).exists()]:
        raise InputError(f"{run} has no {missing[0]}; give a finished evaluation.")
    before = read_json(run / "results.json")
    check_digests(run, before, ("questions", "predictions"))
    shutil.copyfile(run / QUESTIONS, folder / QUESTIONS)
    facts = {name: before.get(name) for name in ("name", "command", "versions", "protocols")}
    marked, judging = credentialed.first([before]), judging or Judging()
    with credentialed.hiding_cells(marked is not None):
        answered = joined(folder / QUESTIONS, run / "predictions.jsonl", scoring)
    sent = judging.consent(marked, len(answered))
    kept = _clinical(run, before, scoring.clinical)
    verdicts = None if judge_again or scoring.vqa_protocol != judged.NAME else _judged(run, before)
    stays = kept and clinical.JUDGED in kept.names
    stale = () if verdicts else (*judged.RECORDS, *(() if stays else ("judges", "calls")))
    before = {name: value for name, value in before.items() if name not in stale}
    with judging.open(output or run, marked is not None) as judges:
        results = {**before, **record, **sent, "scored_before": facts}
        return finish(folder, answered, scoring, results, judges, kept, verdicts)


def _judged(run: Path, before: dict[str, Any]) -> judged.Found | None:
    """Return the verdicts of judges that a finished evaluation has; None for another protocol."""
    if before["protocols"]["med_vqa"] != judged.NAME:
        return None
    check_digests(run, before, ("scores",))
    lines = [line for line in read_by_id(run / "scores.jsonl")[0].values() if line["task"] != "report"]
    return judged.Found(
        [{key: line[key] for key in judged.KEYS} for line in lines], before["metrics"]["med_vqa_definition"]
    )


def _clinical(run: Path, before: dict[str, Any], but: Sequence[str]) -> clinical.Found | None:
    """Return the clinical scores that a finished evaluation has, without those in `but`; None for none."""
    metrics = before["metrics"]
    if not any(f"{name}_definition" in metrics for name in clinical.NAMES if name not in but):
        return None
    judged = f"{clinical.JUDGED}_definition" in metrics
    check_digests(run, before, ("scores", *(["errors"] if judged else [])))
    lines = read_by_id(run / "scores.jsonl")[0].values()
    errors = [row for _, row in read_lines(run / "errors.jsonl")] if judged else []
    return clinical.kept([*lines], metrics, errors, but)


@contextmanager
def with_clinical(runs: Sequence[Path], names: Sequence[str], judging: Judging) -> Iterator[list[Path]]:
    """Yield the runs with these clinical scores; those that lack some are scored in a temporary folder.

    Raises:
        InputError: as `main`.
    """
    chosen = clinical.names_in(names)
    refuse(Scoring(clinical=chosen).judges_fault(judging.judges))
    with TemporaryDirectory() as working:
        found = []
        for number, run in enumerate(runs):
            metrics = (read_object(run / "results.json").get("metrics") or {}) if chosen else {}
            lacking = [name for name in chosen if f"{name}_definition" not in metrics]
            if lacking:
                folder = Path(working) / str(number)
                folder.mkdir()
                before = read_object(run / "results.json")
                record = {name: before.get(name) for name in ("name", "command")}
                own = judging if clinical.JUDGED in lacking else Judging()
                score_run(run, folder, replace(scoring_of(run), clinical=lacking), record, own)
                run = folder
            found.append(run)
        yield found


def score_predictions(
    asked: QuestionSet, predictions: Path, folder: Path, scoring: Scoring, record: dict[str, Any],
    judges: Judges | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score a file of predictions, of a layout of `joining`, into an evaluation folder.

    Returns:
        The content of results.json, without a model.

    Raises:
        InputError: predictions that do not match the questions, or are not strings; all are listed.
    """
    digest = keep(asked.rows(), folder / QUESTIONS)
    with credentialed.hiding_cells(asked.marked):
        answered = joined(folder / QUESTIONS, predictions, scoring)
    return finish(folder, answered, scoring, {
        "format": formats.RESULTS, **record, **asked.record, "questions_sha256": digest, "model": None,
        "adapter": None, "predictions": portable(str(predictions)),
        "predictions_sha256": sha256(predictions),
    }, judges)  # fmt: skip
