"""Content of a publication: the files of a folder that its kind names, and its card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmedpo.data import licenses, safe_paths
from mmedpo.data.burnt_text import said
from mmedpo.data.images import is_embedded
from mmedpo.data.origin import trained_datasets
from mmedpo.errors import Fault, InputError
from mmedpo.hub import cards, results
from mmedpo.hub.publish import burnt_text, picture
from mmedpo.hub.publish.card import CARD, Conflict, read_text, with_local_edits
from mmedpo.hub.publish.files import File
from mmedpo.report import curves
from mmedpo.report.audit import audit
from mmedpo.runs.json_files import json_text, read_object

PICTURE = "audit.png"
SHARD = re.compile(r"(?P<split>\w[\w.]*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
ADAPTER_FILES = (
    *("adapter_config.json", "adapter_model*.safetensors", "adapter_model.safetensors.index.json"),
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("training.json", "trainer_state.json", "recipe.yaml", curves.PICTURE),
    *(cards.COMPARISON, ".eval_results/*.yaml"),
)
WEIGHTS = ("adapter_model*.safetensors", "model*.safetensors")
METRIC_FILES = ("*.py", "requirements.txt", "*.json")
# Files that a publication owns: those of an earlier version are deleted if this version lacks them.
OWN_FILES = {
    "dataset": ("data/*.parquet", "manifest.json", "audit.json", PICTURE), "model": ADAPTER_FILES, "space": METRIC_FILES
}  # fmt: skip
RECORDS = {"dataset": "manifest.json", "model": "training.json"}  # records of a content's origin
IMAGES = ("images", "rejected_images")
NOTES = "is no PNG or JPEG file without metadata (EXIF, alpha, ...); write it with `mmedpo.data.images.embedded`"
SECRETS = ("MMEDPO_API_KEY", "HF_TOKEN")  # prefixes of environment variables
SECRET_LENGTH = 8  # least characters; keys such as "EMPTY" of local servers are no secrets
USERINFO = re.compile(r"://[^\s/:@\"]+:[^\s/@\"]+@")
TEXTS = (".json", ".jsonl", ".md", ".yaml", ".txt", ".jinja", ".py")


@dataclass(frozen=True)
class Content:
    """Content that one folder publishes.

    Attributes:
        files: by name in the repository, without the card.
        card: with the edits of the folder's README.md.
        generated: the card without edits.
        records: of the data that an adapter was trained on.
        notices: for the person who publishes.
        question: a person must agree to it first.
        said: for restricted data sent whole, its source and the parts sent.
        barred: file names that no version of the repository may hold.
    """

    type: str
    files: Mapping[str, File]
    card: str
    generated: str
    records: Sequence[Mapping[str, Any]] = ()
    conflicts: Sequence[Conflict] = field(default=())
    notices: Sequence[str] = ()
    question: str = ""
    said: tuple[str, str] | None = None
    barred: Sequence[str] = ()

    @property
    def record(self) -> dict[str, Any] | None:
        """The record of the content's origin; None for a metric."""
        file = self.files.get(RECORDS.get(self.type, ""))
        return json.loads(file.read()) if file else None


def dataset(folder: Path, repo_id: str) -> Content:
    """Return the content of a dataset folder: shards, manifest, audit (recomputed from the rows) and picture.

    Raises:
        InputError: the dataset is unfinished, its rows break the schema, or images are not inside.
    """
    plain = cards.dataset_card(folder)
    shards, found = checked(folder)
    data = {split: [File(file) for file in files] for split, files in shards.items()}
    manifest = read_object(folder / "manifest.json")
    text = burnt_text.found(manifest, shards)
    about = cards.Published(repo_id, PICTURE, configs(data), info(data), text)
    generated = cards.dataset_card(folder, audit=found, published=about)
    texts, conflicts = with_local_edits(folder, plain, generated)
    files = {f"data/{file.name}": File(file) for part in shards.values() for file in part}
    files["manifest.json"] = File(folder / "manifest.json")
    files["audit.json"] = File(json_text(found).encode())
    files[PICTURE] = File(picture.draw(found))
    notices = [f"Image files hold pixels alone. {said(text)} {burnt_text.LOOK}", *licenses.notices(manifest["source"])]
    question = burnt_text.question(manifest, text)
    return Content("dataset", files, texts, generated, conflicts=conflicts, notices=notices, question=question)


def checked(folder: Path) -> tuple[dict[str, list[Path]], dict[str, Any]]:
    """Return a dataset folder's Parquet files by split, and its recomputed audit.

    Raises:
        InputError: the dataset is unfinished, its rows break the schema, or images are not inside.
    """
    shards = finished_shards(folder)
    found, faults = _audited(folder, shards)
    faults += [fault for files in shards.values() for file in files for fault in _image_faults(file)]
    if faults:
        raise InputError(f"{folder} is not published: its rows break the preference schema.", faults)
    return shards, found


def adapter(folder: Path, repo_id: str) -> Content:
    """Return the content of a training folder: adapter or whole model, processor and training records.

    Raises:
        InputError: the training is unfinished, or there are no weights.
    """
    # Keep the generated card: its dataset may have moved, and a new card would lack its facts.
    kept = folder / cards.GENERATED
    generated = read_text(kept) if kept.exists() else cards.adapter_card(folder)
    files = _allowed(folder, ADAPTER_FILES)
    if cards.COMPARISON in files:  # compare's own file has texts of test questions
        files[cards.COMPARISON] = File(results.record(read_object(folder / cards.COMPARISON)).encode())
    if not any(Path(name).match(pattern) for name in files for pattern in WEIGHTS):
        raise InputError(f"{folder} has no weights ({' or '.join(WEIGHTS)}). Give the folder of a finished training.")
    texts, conflicts = with_local_edits(folder, generated, generated)
    return Content("model", files, texts, generated, [read_object(folder / "training.json")], conflicts)


def metric(folder: Path, repo_id: str) -> Content:
    """Return the content of a metric folder for `evaluate.load`, published as a Space.

    Raises:
        InputError: it is no metric folder, or its script and the repository differ in name, which `evaluate` needs
            equal.
    """
    name = repo_id.split("/")[-1]
    if not (folder / f"{name}.py").is_file() or not (folder / CARD).is_file():
        scripts = sorted(path.stem for path in folder.glob("*.py") if path.name != "app.py")
        raise InputError(
            f"{folder} has no {CARD} or no {name}.py: evaluate.load({repo_id!r}) looks for a script of that "
            f"name. Scripts here: {', '.join(scripts) or 'none'}."
        )
    text = read_text(folder / CARD)
    return Content("space", _allowed(folder, METRIC_FILES), text, text)


def origin(type: str, record: Any) -> str:
    """Return the origin of a dataset or a model in words, by its record; empty if not recorded."""
    record = record if isinstance(record, Mapping) else {}
    if type == "model":
        found = [(one.get("name"), _source(one.get("manifest")).get("name")) for one in trained_datasets(record)]
        data = ", ".join(f"{name} ({source})" if source else str(name) for name, source in found)
        return f"weights of {record['model']} trained on {data}" if record.get("model") else ""
    source = _source(record)
    return f"pairs from {source['name']} ({licenses.names(source)})" if source.get("name") else ""


def _source(manifest: Any) -> Mapping[str, Any]:
    found = manifest.get("source") if isinstance(manifest, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def refuse_links(folder: Path, kind: str) -> None:
    """Raise InputError if a file that is published, or read for it, is a link that leads out of the folder."""
    named = (*OWN_FILES[REPO_TYPES[kind]], CARD, cards.GENERATED)
    found = {path for pattern in named for path in folder.glob(pattern)}
    if outside := sorted(path.name for path in found if not safe_paths.is_inside(path, [folder])):
        raise InputError(
            f"{folder} is not published: {', '.join(outside)} is a link to a file elsewhere. Put a copy of that file "
            "in its place."
        )


KINDS = {"dataset": dataset, "adapter": adapter, "metric": metric}
REPO_TYPES = {"dataset": "dataset", "adapter": "model", "metric": "space"}


def refuse_private_words(content: Content, token: str | None) -> None:
    """Raise InputError if a text or a row contains private words.

    These are paths of the home or current folder, the token, keys of endpoints, and passwords in URLs.
    """
    words = {f"{path}/": f"{path}/" for path in (Path.home(), Path.cwd()) if len(path.parts) > 1}
    secrets = {key.strip(): f"the value of {name}" for name, key in os.environ.items() if name.startswith(SECRETS)}
    secrets |= {token or "": "the token"}
    words |= {word: what for word, what in secrets.items() if len(word) >= SECRET_LENGTH}
    spelt = {form: what for word, what in words.items() for form in (word, json.dumps(word)[1:-1], quote(word))}
    for name, file in {**content.files, CARD: File(content.card.encode())}.items():
        for place, text, remedy in _texts(name, file):
            found = [what for form, what in spelt.items() if form in text]
            if found or (found := ["a user and a password of a URL"] * bool(USERINFO.search(text))):
                raise InputError(f"{place} contains {found[0]}. {remedy} before publishing.")


def _texts(name: str, file: File) -> Iterator[tuple[str, str, str]]:
    """Yield place, text and remedy for each text of a file; Parquet gives one text per row, without images."""
    if Path(name).suffix in TEXTS:
        yield name, file.read().decode("utf-8", "replace"), "Remove it"
    elif Path(name).suffix == ".parquet":
        for row in file.rows(but=IMAGES):
            yield (
                f"{name}, row {row['id']},",
                json.dumps(row, ensure_ascii=False),
                "Remove it from the source and curate again",
            )


def _allowed(folder: Path, patterns: Iterable[str]) -> dict[str, File]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): File(path) for path in sorted(found)}


def finished_shards(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files by split; raise InputError if there are none or some are missing."""
    shards: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("data/*.parquet")):
        found = SHARD.fullmatch(file.name)
        if found is None:
            raise InputError(f"{file} is not named SPLIT-00000-of-00001.parquet. Write datasets with `mmedpo curate`.")
        shards.setdefault(found["split"], []).append(file)
    torn = [split for split, files in shards.items() if any(_count(file) != len(files) for file in files)]
    if torn or not shards or folder.resolve().name.endswith(".partial"):
        what = f"lacks shards of {', '.join(torn)}" if torn else "is no finished dataset"
        raise InputError(f"{folder} {what}. Finish or repeat the run that writes it, then publish.")
    return shards


def _count(file: Path) -> int:
    found = SHARD.fullmatch(file.name)
    return int(found["count"]) if found else 0


def _audited(folder: Path, shards: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Return the audit of the first split (train if present), and the faults of all."""
    recorded = folder / "audit.json"
    name = (read_object(recorded).get("dataset") if recorded.exists() else None) or folder.resolve().name
    first, *others = sorted(shards, key=lambda split: (split != "train", split))
    found = audit(str(folder), first, name)
    faults = [*found["faults"], *(fault for split in others for fault in audit(str(folder), split)["faults"])]
    return found, [Fault(**fault) for fault in faults]


def _image_faults(file: Path) -> list[Fault]:
    """Return faults of images that are not embedded, hold more than pixels, or are named by a path."""
    faults = []
    for row in File(file).rows():
        for column in IMAGES:
            for image in row.get(column) or []:
                if image["bytes"] is None:
                    faults.append(Fault(row["id"], column, "is not inside the Parquet file; embed it"))
                elif not is_embedded(image["bytes"]):
                    faults.append(Fault(row["id"], column, NOTES))
                if image["path"] and re.search(r"[/\\]", image["path"]):
                    faults.append(Fault(row["id"], column, "has a path as its name; keep the file name only"))
    return faults


def configs(shards: Mapping[str, Any]) -> list[dict[str, Any]]:
    files = [{"split": split, "path": f"data/{split}-*"} for split in shards]
    return [{"config_name": "default", "data_files": files}]


def info(shards: Mapping[str, Sequence[File]]) -> dict[str, Any]:
    """Return the card's `dataset_info`: columns, rows and bytes of each split, download and memory size."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo

    splits = SplitDict()
    opened = {split: [file.parquet() for file in files] for split, files in shards.items()}
    for split, tables in opened.items():
        read = [table.metadata for table in tables]
        size = sum(part.row_group(group).total_byte_size for part in read for group in range(part.num_row_groups))
        splits.add(SplitInfo(split, num_bytes=size, num_examples=sum(part.num_rows for part in read)))
    described = DatasetInfo(
        features=Features.from_arrow_schema(next(iter(opened.values()))[0].schema_arrow),
        splits=splits,
        download_size=sum(file.size for files in shards.values() for file in files),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )
    return dict(described._to_yaml_dict())  # as `push_to_hub` of datasets writes it
