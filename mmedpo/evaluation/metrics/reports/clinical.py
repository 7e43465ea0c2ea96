"""Clinical scores of reports: RadGraph and CheXbert F1 by published weights, severity of errors by judges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmedpo.errors import InputError
from mmedpo.evaluation import require_known
from mmedpo.evaluation.metrics.reports import chexbert, radgraph, severity

if TYPE_CHECKING:
    from mmedpo.evaluation.asking import Judges

Row = dict[str, Any]
NETWORKS = {"radgraph": radgraph, "chexbert": chexbert}
JUDGED = "severity"
NAMES = (*NETWORKS, JUDGED)
HELP = "radgraph, chexbert (weights from the Hub) or severity (needs judges)"
METRICS = (*radgraph.METRICS, *chexbert.METRICS, *severity.METRICS)
KEYS = {  # in scores.jsonl, by name
    "radgraph": tuple(f"radgraph_{level}" for level in radgraph.LEVELS), "chexbert": (chexbert.KEY,),
    JUDGED: (severity.KEY,),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Clinical scores of n reports or answers.

    Attributes:
        lines: n further fields of lines of scores.jsonl; {} for an answer that is no report.
        definitions: "radgraph_definition" and so on, for results.json.
        errors: errors that judges found, lines of errors.jsonl.
    """

    lines: list[Row]
    definitions: dict[str, str] = field(default_factory=dict)
    errors: list[Row] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for name in NAMES if f"{name}_definition" in self.definitions]


def names_in(given: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a list whose entries may hold several, joined by commas; each once.

    Raises:
        InputError: an unknown name, or one string instead of a list.
    """
    if isinstance(given, str):
        raise InputError(f"clinical is one string ({given!r}); give a list of names: [{given!r}].")
    names = tuple(dict.fromkeys(name.strip() for one in given for name in one.split(",")))
    for name in names:
        require_known("clinical score", name, NAMES)
    return names


def require_reports(names: Sequence[str], tasks: Iterable[str]) -> None:
    """Raise InputError where clinical scores are asked for and no task is "report"."""
    if names and "report" not in tasks:
        raise InputError(f"Clinical scores ({', '.join(names)}) are of reports, and no question asks for one.")


def load(names: Sequence[str]) -> None:
    """Load the networks of these scores. Raises InputError where their weights are missing."""
    for name in names:
        if name in NETWORKS:
            NETWORKS[name].load()


def of_reports(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], judges: Judges | None = None,
    ids: Sequence[str] = (),
) -> Found:  # fmt: skip
    """Return the clinical scores of n pairs of raw reports.

    Args:
        names: some of `NAMES`.
        judges: chat models, which `JUDGED` needs.
        ids: n names of the reports in `errors`; by default their indices.

    Raises:
        InputError: weights are missing, or judges; a judge cannot work.
        Stopped: the judges' budget is spent.
    """
    found = Found([{} for _ in predictions])
    for name in names if predictions else ():
        if name != JUDGED:
            new, definition = NETWORKS[name].scores(predictions, references), NETWORKS[name].definition()
        elif judges is None:
            raise InputError(f"The clinical score {name} is made by chat models: name some with --judges.")
        else:
            ids = ids or [*map(str, range(len(predictions)))]
            new, errors = severity.score_all(ids, predictions, references, judges)
            found.errors.extend(errors)
            definition = severity.definition(judges.names)
        found.definitions[f"{name}_definition"] = definition
        for line, more in zip(found.lines, new, strict=True):
            line |= more
    return found


def of_answers(
    names: Sequence[str], answered: Sequence[tuple[Row, Row]], judges: Judges | None = None, kept: Found | None = None
) -> Found:
    """Return the clinical scores of those answers that are reports, beside those `kept`.

    Args:
        answered: n questions, each with its line of predictions.jsonl.

    Raises:
        InputError: as `of_reports`, or no question asks for a report.
    """
    found = kept or Found([{} for _ in answered])
    places = [place for place, (question, _) in enumerate(answered) if question["task"] == "report"]
    require_reports(names, (question["task"] for question, _ in answered))
    ids, gold = ([answered[place][0][column] for place in places] for column in ("id", "reference"))
    new = of_reports(names, [answered[place][1]["prediction"] for place in places], gold, judges, ids)
    for place, more in zip(places, new.lines, strict=True):
        found.lines[place] |= more
    return Found(found.lines, found.definitions | new.definitions, found.errors + new.errors)


def kept(lines: Sequence[Row], metrics: Mapping[str, Any], errors: Sequence[Row], but: Sequence[str]) -> Found:
    """Return the clinical scores of a finished evaluation, without those of names in `but`.

    Args:
        lines: of its scores.jsonl.
        metrics: of its results.json.
        errors: of its errors.jsonl.
    """
    names = [name for name in NAMES if f"{name}_definition" in metrics and name not in but]
    keys = [key for name in names for key in KEYS[name]]
    own = [{key: line[key] for key in keys if key in line} for line in lines]
    definitions = {key: metrics[key] for key in (f"{name}_definition" for name in names)}
    return Found(own, definitions, [*errors] if JUDGED in names else [])
