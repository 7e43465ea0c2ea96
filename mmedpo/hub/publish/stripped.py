"""Published form of restricted data: ids, weights, scores and settings, without texts and images.

`mmedpo rejoin` rebuilds the pairs where the data is, and compares each row's digest. A digest covers texts and pixels
together: pixels are random enough that nobody finds a short answer by trying.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.data import consent, credentialed, images
from mmedpo.data.text import number_of
from mmedpo.hub import cards
from mmedpo.hub.publish import content
from mmedpo.hub.publish.content import RECORDS, Content
from mmedpo.hub.publish.files import File
from mmedpo.runs import hosts, options
from mmedpo.runs.json_files import json_text, read_json
from mmedpo.runs.provenance import portable

if TYPE_CHECKING:
    from datasets import Features

COLUMNS = ("id", "weight", "clinical_relevance", "dispreference", "task", "source", "license")
# Columns of the provenance, without candidates and without the query, which may be the question.
PROVENANCE = (
    *(
        "sample_id",
        "image_id",
        "patient_id",
        "rejected_by",
        "revision",
        "prompt_version",
        "seed",
        "judgements",
        "agreed",
    ),
    *("localizer", "boxes", "mask_rule", "noise", "noise_step", "noise_edge", "noise_pixels", "noise_per"),
    "mask_coverage",
)
TOOLS = ("detector:", "medklip:")  # localizers that are models; boxes of others belong to the data
PARTS = {"judgements": ("round", "judge", "score"), "boxes": ("x", "y", "width", "height", "confidence")}
NOTICE = (
    "{} is restricted data: ids, weights, scores and settings are published, and no text and no image. "
    "`mmedpo rejoin {}` rebuilds the pairs on a machine that has the data."
)
WHOLE = {"dataset": "its texts and images, whole", "model": "a model that was trained on its texts and images"}
PASSED_ON = f"""
**Passed on with consent.** {{}} is restricted data. It was published with `{options.FLAG}`.
"""
QUESTION = (
    "{} is restricted data. Everybody who may read {}, now or later, gets {}. Its terms forbid that unless all of "
    "them have agreed to the terms, for which you are responsible. Publish it?"
)


def whole(content: Content, source: str, repo_id: str) -> Content:
    """Return restricted content to send whole, with question and notices, and with consent recorded in it."""
    parts, name, known = WHOLE[content.type], RECORDS[content.type], content.record or {}
    notice = f"{source} is restricted data: {repo_id} gets {parts}, as {options.FLAG} allows."
    before = known.get(consent.KEY) or {}
    known |= {consent.KEY: {**before, "to": sorted({*before.get("to", ()), hosts.HUB})}}
    rows = sum((known.get("counts") or known.get("rows") or {}).values())
    passed_on = PASSED_ON.format(cards.cell(source))
    question = f"{QUESTION.format(source, repo_id, parts)}\n{content.question}".rstrip()
    return replace(
        content, question=question, notices=[*content.notices, notice],
        said=(source, f"{parts} ({number_of(rows, 'pairs')})"),
        files={**content.files, name: File(json_text(known).encode())},
        card=content.card + passed_on, generated=content.generated + passed_on,
    )  # fmt: skip


def features(several: bool = False) -> Features:
    """Return the columns of the published form; with `several` images a question, `schema.SEVERAL` too."""
    from datasets import Features, List, Value

    full = schema.FEATURES
    made = {name: full["provenance"][name] for name in PROVENANCE}
    for name, parts in PARTS.items():
        made[name] = List({part: made[name].feature[part] for part in parts})
    made |= {name: List(Value("int32")) for name in schema.SEVERAL if several}
    return Features({**{name: full[name] for name in COLUMNS}, "provenance": made, schema.DIGEST: Value("string")})


def row(full: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published form of a row with undecoded images; model names lose folders of this machine."""
    known = full["provenance"]
    made = {name: known.get(name) for name in (*PROVENANCE, *(name for name in schema.SEVERAL if name in known))}
    if not (made["localizer"] or "").startswith(TOOLS):
        made |= {name: None for name in ("boxes", *schema.SEVERAL) if name in made}
    for name, parts in PARTS.items():
        made[name] = made[name] and [{part: one[part] for part in parts} for one in made[name]]
    for one in made["judgements"] or []:
        one["judge"] = one["judge"] and portable(one["judge"])
    made["rejected_by"] = made["rejected_by"] and portable(made["rejected_by"])
    made["localizer"] = made["localizer"] and portable(made["localizer"])
    return {**{name: full[name] for name in COLUMNS}, "provenance": made, schema.DIGEST: digest(full)}


def digest(full: Mapping[str, Any]) -> str:
    """Return a SHA-256 over a row's question, both answers and the pixels of both sides."""
    seen = {
        side: full[side] and [images.digest(images.open_rgb(image["bytes"])) for image in full[side]]
        for side in ("images", "rejected_images")
    }
    said = {side: schema.message_text(full[side]) for side in ("prompt", "chosen", "rejected")}
    return hashlib.sha256(json.dumps({**seen, **said}, sort_keys=True).encode()).hexdigest()


def dataset(folder: Path, repo_id: str, source: str) -> Content:
    """Return the published form of a restricted dataset folder of `mmedpo curate`.

    The card ignores edits of the folder's README.md, which may quote the data.

    Raises:
        InputError: as `content.checked`; no cell is quoted.
    """
    with credentialed.hiding_cells(True):
        shards, _ = content.checked(folder)
    data = {split: [_table(files)] for split, files in shards.items()}
    about = cards.Published(repo_id, "", content.configs(data), content.info(data))
    sent = {f"data/{split}-00000-of-00001.parquet": file for split, (file,) in data.items()}
    card = cards.stripped_card(folder, about)
    manifest = read_json(folder / "manifest.json")
    for key in ("notices", "split_rows"):  # they quote the table's columns and splits
        manifest["source"].pop(key, None)
    manifest["rejects"] = {"left out": sum(manifest.get("rejects", {}).values())}  # reasons may quote the table
    manifest.pop("rejects_by_task", None)
    sent["manifest.json"] = File(json_text(manifest).encode())
    notices, barred = [NOTICE.format(source, repo_id)], ("audit.json", content.PICTURE)
    return Content("dataset", sent, card, card, notices=notices, barred=barred)


def _table(files: Sequence[Path]) -> File:
    """Return the published form of the rows of some Parquet files as one file in memory."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    made = [row(full) for file in files for full in File(file).rows()]
    written, several = io.BytesIO(), any(name in one["provenance"] for one in made for name in schema.SEVERAL)
    parquet.write_table(pa.Table.from_pylist(made, schema=features(several).arrow_schema), written)
    return File(written.getvalue())
