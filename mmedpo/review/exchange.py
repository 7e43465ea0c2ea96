"""Pairs for Label Studio and Argilla, and verdicts from their exports, in the JSON of their own libraries.

Label Studio: a labelling configuration, and tasks with data, predictions and annotations (label-studio-sdk 2).
Argilla: a folder for `rg.Dataset.from_disk`, and the records that `dataset.records.to_json` writes (argilla 2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from mmedpo.data import credentialed, origin
from mmedpo.errors import Fault, InputError
from mmedpo.models.chat.transport import data_url
from mmedpo.review import edits, shown
from mmedpo.review.pairs import Pairs, digest
from mmedpo.review.verdicts import DECISIONS, Verdict
from mmedpo.runs.json_files import write_json
from mmedpo.runs.run_folder import short_folder

STEPS = 10  # of clinical relevance in Argilla, whose ratings are whole numbers
MADE_BY = "the dataset"
GUIDELINES = (
    "Accept a pair whose chosen text is right and whose rejected one is wrong on its image. Reject others and say why. "
    "Correct texts where needed. Relevance: how much the error would matter clinically."
)


def export(pairs: Pairs, places: Sequence[int], tool: str, output: Path) -> None:
    """Write pairs for a tool to a new folder, images inside; of restricted data, also the file that marks it.

    Args:
        places: of the rows, in the order of the tasks.
        tool: one of `TOOLS`.

    Raises:
        InputError: an unknown tool, a row with several images, or the folder exists.
    """
    if tool not in TOOLS:
        raise InputError(f"The tool {tool!r} is unknown; use one of {', '.join(TOOLS)}.")
    with short_folder(output) as folder:
        TOOLS[tool](folder, pairs, places)
        if origin.credentialed_source(pairs.folder):
            (folder / credentialed.MARKER).touch()


def verdicts(pairs: Pairs, file: Path) -> tuple[list[Verdict], int]:
    """Return the verdicts of a tool's export, and how many annotations were skipped or have no decision.

    Which tool it was is seen by its keys.

    Raises:
        InputError: no such file, or not a list of tasks or records that `export` made.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}. Export JSON from Label Studio or Argilla.") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{file} is no list of tasks or records. Export JSON from Label Studio or Argilla.")
    given: list[Verdict | None] = []
    for number, one in enumerate(found):
        try:
            given += _of_task(pairs, one) if "data" in one else _of_record(pairs, one)
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise InputError(
                f"{file}: entry {number + 1} was not made by `mmedpo exchange` ({error}). Export whole entries."
            ) from None
    made = [one for one in given if one]
    if faults := [*_edit_faults(pairs, made)]:
        raise InputError(f"{file}: edits make no pair. Correct them in the tool, and export again:", faults)
    return made, len(given) - len(made)


def _edit_faults(pairs: Pairs, made: Sequence[Verdict]) -> Iterator[Fault]:
    for one in made:
        if one.after and one.row in pairs.place_of:
            row = pairs.read(pairs.place_of[one.row])
            if one.digest == digest(row) and (sentence := edits.fault(row, one.after)):
                yield Fault(one.row, one.reviewer, sentence)


def _read(pairs: Pairs, place: int) -> dict[str, Any]:
    row = pairs.read(place)
    if len(row["images"]) > 1:
        raise InputError(f"{row['id']} has several images, which these formats do not hold. Use `mmedpo review`.")
    return row


def _label_studio(folder: Path, pairs: Pairs, places: Sequence[int]) -> None:
    labels = dict[str, None]()
    with (folder / "tasks.json").open("w", encoding="utf-8") as file:
        for number, place in enumerate(places):
            row = _read(pairs, place)
            labels.update(dict.fromkeys(box["label"] or "lesion" for box in shown.boxes(row)))
            file.write(("[" if number == 0 else ",") + "\n" + json.dumps(_task(row), ensure_ascii=False))
        file.write("\n]\n")
    (folder / "config.xml").write_text(_config([*labels] or ["lesion"]), "utf-8")


def _task(row: Mapping[str, Any]) -> dict[str, Any]:
    width, height = shown.sides(row)[0].sizes[0]
    texts = shown.texts(row)
    text = [
        {"from_name": name, "to_name": "question", "type": "textarea", "value": {"text": [said]}}
        for name, said in texts.items()
    ]
    rectangles = [
        {
            "from_name": "boxes", "to_name": "image", "type": "rectanglelabels", "original_width": width,
            "original_height": height, "image_rotation": 0,
            "value": {
                "x": 100 * box["x"] / width, "y": 100 * box["y"] / height, "width": 100 * box["width"] / width,
                "height": 100 * box["height"] / height, "rotation": 0, "rectanglelabels": [box["label"] or "lesion"],
            },
        }
        for box in shown.boxes(row)
    ]  # fmt: skip
    first, second = shown.sides(row)
    data = {
        "row": row["id"], "digest": digest(row), "question": shown.question(row), **texts,
        "image": data_url(first.images[0]["bytes"]), "rejected_image": data_url(second.images[0]["bytes"]),
    }  # fmt: skip
    return {
        "data": data,
        "predictions": [{"model_version": MADE_BY, "result": [*text, *rectangles]}],
        "annotations": [],
    }


def _config(labels: Sequence[str]) -> str:
    boxes = "\n    ".join(f"<Label value={quoteattr(label)}/>" for label in labels)
    choices = "".join(f'<Choice value="{decision}"/>' for decision in DECISIONS)
    return f"""<View>
  <Header value="$question"/>
  <Text name="question" value="$question"/>
  <Image name="image" value="$image" zoom="true" zoomControl="true" brightnessControl="true" contrastControl="true"/>
  <Image name="rejected_image" value="$rejected_image" zoom="true" zoomControl="true"/>
  <RectangleLabels name="boxes" toName="image" canRotate="false">
    {boxes}
  </RectangleLabels>
  <Header value="Chosen"/>
  <TextArea name="chosen" toName="question" editable="true" maxSubmissions="1"/>
  <Header value="Rejected"/>
  <TextArea name="rejected" toName="question" editable="true" maxSubmissions="1"/>
  <Choices name="decision" toName="question" choice="single" required="true">{choices}</Choices>
  <Header value="Clinical relevance of the error, 0 to 1"/>
  <Number name="relevance" toName="question" min="0" max="1" step="0.1"/>
  <Header value="Reason"/>
  <TextArea name="reason" toName="question" maxSubmissions="1"/>
</View>
"""


def _of_task(pairs: Pairs, task: Mapping[str, Any]) -> Iterator[Verdict | None]:
    """Yield the verdicts of a Label Studio task, one an annotation, None where it was skipped.

    An annotation without boxes leaves them as they are, since it need not have begun from the prediction.
    """
    for given in task.get("annotations") or []:
        if given.get("was_cancelled"):
            yield None
            continue
        found: dict[str, Any] = {}
        boxes: list[dict[str, Any]] = []
        for part in given["result"]:
            value = part["value"]
            if part["type"] == "rectanglelabels":
                boxes.append(_box(part))
            elif part["type"] in ("choices", "textarea"):
                found[part["from_name"]] = value["choices" if part["type"] == "choices" else "text"][0]
            elif part["type"] == "number":
                found[part["from_name"]] = value["number"]
        by = given.get("completed_by")
        name = by.get("email") or by.get("id") if isinstance(by, Mapping) else by
        time = str(given.get("updated_at") or given.get("created_at") or "")
        yield _verdict(pairs, task["data"], f"Label Studio {name}", time, found, boxes or None, given.get("lead_time"))


def _box(part: Mapping[str, Any]) -> dict[str, Any]:
    value, width, height = part["value"], part["original_width"], part["original_height"]
    if value.get("rotation"):
        raise ValueError("a rotated box")
    return {
        "label": value["rectanglelabels"][0],
        **{name: round(value[name] * size / 100, 1) for name, size in
           (("x", width), ("y", height), ("width", width), ("height", height))},
        "confidence": 1.0,
    }  # fmt: skip


def _argilla(folder: Path, pairs: Pairs, places: Sequence[int]) -> None:
    rows = (_read(pairs, place) for place in places)
    with (folder / "records.json").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(("[" if number == 0 else ",") + "\n" + json.dumps(_record(row), ensure_ascii=False))
        file.write("\n]\n")
    (folder / ".argilla").mkdir()
    text: dict[str, Any] = {"type": "text", "use_markdown": False}
    fields = [("question", text, True), ("chosen", text, True), ("rejected", text, True)]
    fields += [("image", {"type": "image"}, True), ("rejected_image", {"type": "image"}, False)]
    choices = [{"text": one, "value": one} for one in DECISIONS]
    decision = {"type": "label_selection", "options": choices, "visible_options": len(choices)}
    rating = {"type": "rating", "options": [{"value": step} for step in range(STEPS + 1)]}
    questions: list[tuple[str, dict[str, Any], bool, str]] = [
        ("decision", decision, True, "Decision"),
        ("relevance", rating, False, "Clinical relevance of the error, 0 to 10"),
        ("reason", text, False, "Reason"),
        ("chosen_text", text, False, "Chosen, corrected"),
        ("rejected_text", text, False, "Rejected, corrected"),
    ]  # fmt: skip
    hidden = {"visible_for_annotators": False}
    write_json(folder / ".argilla" / "settings.json", {
        "guidelines": GUIDELINES,
        "fields": [
            {"name": name, "settings": of, "title": name.replace("_", " "), "required": required, "type": of["type"]}
            for name, of, required in fields
        ],
        "questions": [
            {"name": name, "settings": of, "title": title, "required": required, "type": of["type"]}
            for name, of, required, title in questions
        ],
        "metadata": [{"name": "digest", "settings": {"type": "terms", **hidden}, "title": "digest", **hidden}],
        "vectors": [], "allow_extra_metadata": True, "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    })  # fmt: skip
    write_json(folder / ".argilla" / "dataset.json", {"name": pairs.folder.resolve().name, "status": "draft"})


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    first, second = shown.sides(row)
    texts = shown.texts(row)
    fields = {"question": shown.question(row), **texts, "image": data_url(first.images[0]["bytes"])}
    if row["rejected_images"]:
        fields["rejected_image"] = data_url(second.images[0]["bytes"])
    suggestions = {f"{name}_text": {"value": said, "score": None, "agent": MADE_BY} for name, said in texts.items()}
    return {"id": row["id"], "fields": fields, "metadata": {"digest": digest(row)}, "suggestions": suggestions,
            "responses": {}, "vectors": {}}  # fmt: skip


def _of_record(pairs: Pairs, record: Mapping[str, Any]) -> Iterator[Verdict | None]:
    """Yield the verdicts of an Argilla record, one a user, None where there is no decision."""
    data, by_user = {"row": record["id"], "digest": record["metadata"]["digest"]}, dict[str, dict[str, Any]]()
    for name, given in (record.get("responses") or {}).items():
        for one in given:
            by_user.setdefault(str(one["user_id"]), {})[name.removesuffix("_text")] = one["value"]
    for user, found in by_user.items():
        if found.get("relevance") is not None:
            found["relevance"] /= STEPS
        yield _verdict(pairs, data, f"Argilla {user}", "", found) if "decision" in found else None


def _verdict(
    pairs: Pairs, data: Mapping[str, Any], reviewer: str, time: str, found: Mapping[str, Any],
    boxes: list[dict[str, Any]] | None = None, seconds: float | None = None,
) -> Verdict:  # fmt: skip
    """Return a verdict; of a row that the dataset lacks, without edits."""
    before: dict[str, Any] = {}
    if data["row"] in pairs.place_of:
        row = pairs.read(pairs.place_of[data["row"]])
        before = {**shown.texts(row), "boxes": shown.boxes(row)}
    found = {name: value for name, value in found.items() if value is not None and str(value).strip()}
    now = {**found, **({} if boxes is None or _are_close(boxes, before.get("boxes", [])) else {"boxes": boxes})}
    after = {name: now[name] for name in before if name in now and now[name] != before[name]}
    said = json.dumps([data["row"], reviewer, time, found, boxes], sort_keys=True)
    return Verdict(
        id=hashlib.sha256(said.encode()).hexdigest()[:24], row=data["row"], digest=data["digest"], reviewer=reviewer,
        time=time, decision=found["decision"], seconds=seconds, reason=found.get("reason") or "",
        relevance=found.get("relevance"), before={name: before[name] for name in after}, after=after,
    )  # fmt: skip


def _are_close(boxes: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> bool:
    """Return True where boxes are the same to a tenth of a pixel."""
    sides = ("x", "y", "width", "height")
    return len(boxes) == len(before) and all(
        abs(one[side] - other[side]) < 0.11 for one, other in zip(boxes, before, strict=True) for side in sides
    )


TOOLS: dict[str, Callable[[Path, Pairs, Sequence[int]], None]] = {"label-studio": _label_studio, "argilla": _argilla}
