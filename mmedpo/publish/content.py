"""What is published of a folder: named kinds of files, never whatever else lies in it, and its card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmedpo import cards, results
from mmedpo.audit import audit
from mmedpo.errors import Fault, InputError
from mmedpo.publish import picture
from mmedpo.publish.card import CARD, Conflict, with_local_edits
from mmedpo.publish.remote import File
from mmedpo.workdir import json_text, read_json

PICTURE = "audit.png"
SHARD = re.compile(r"(?P<split>\w[\w.]*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
ADAPTER_FILES = (
    *("adapter_config.json", "adapter_model*.safetensors", "adapter_model.safetensors.index.json"),
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("training.json", "trainer_state.json", "recipe.yaml", cards.PICTURE),
    *(cards.COMPARISON, ".eval_results/*.yaml"),
)
WEIGHTS = ("adapter_model*.safetensors", "model*.safetensors")
METRIC_FILES = ("*.py", "requirements.txt", "cases.json")
BURNT_IN = "Headers of image files were left out; for names and dates in the pixels nobody looked: look yourself."
TEXTS = (".json", ".jsonl", ".md", ".yaml", ".txt", ".jinja", ".py")


@dataclass(frozen=True)
class Content:
    """What one folder publishes.

    Attributes:
        files: by their names in the repository, the card apart.
        card: with what a person wrote into the folder's README.md.
        generated: the card as nobody has edited it.
        replaced: patterns of files in the repository that belong to an earlier version if `files` has them not.
        records: what is recorded of where the data came from.
        notices: what who publishes it should know.
        question: what a person has to agree to before it is sent.
        barred: names of files that no version of the repository may hold.
    """

    repo_type: str
    files: Mapping[str, File]
    card: str
    generated: str
    replaced: Sequence[str] = ()
    records: Sequence[Mapping[str, Any]] = ()
    conflicts: Sequence[Conflict] = field(default=())
    notices: Sequence[str] = ()
    question: str = ""
    barred: Sequence[str] = ()


def dataset(folder: Path, repo_id: str) -> Content:
    """A dataset folder of `mmedpo curate`: its shards, manifest, audit (made anew from the rows) and picture.

    Raises:
        InputError: no finished dataset, or one whose rows break the schema or whose images are not inside.
    """
    plain = cards.dataset_card(folder)
    shards = finished_shards(folder)
    found, faults = _audited(folder, shards)
    sources: set[str] = set()
    for file in (file for part in shards.values() for file in part):
        faults += _image_faults(file, sources)
    if faults:
        raise InputError(f"{folder} is not published: its rows break the preference schema.", faults)
    generated = cards.dataset_card(
        folder, audit=found, published=cards.Published(repo_id, PICTURE, configs(shards), info(folder, shards))
    )
    texts, conflicts = with_local_edits(folder, plain, generated)
    files = {f"data/{file.name}": File(file) for part in shards.values() for file in part}
    files["manifest.json"] = File(folder / "manifest.json")
    files["audit.json"] = File(json_text(found).encode())
    files[PICTURE] = File(picture.draw(found))
    records = [read_json(folder / "manifest.json"), *({"source": {"name": name}} for name in sorted(sources))]
    return Content("dataset", files, texts, generated, ("data/*.parquet",), records, conflicts, [BURNT_IN])


def adapter(folder: Path, repo_id: str) -> Content:
    """An adapter (or whole model) of `mmedpo train` with its processor and what is recorded of its training.

    Raises:
        InputError: no finished training, or no weights.
    """
    # Not made anew where it was kept: it also says what was known of a dataset that lies elsewhere by now.
    kept = folder / cards.GENERATED
    generated = kept.read_text(encoding="utf-8") if kept.exists() else cards.adapter_card(folder)
    files = _allowed(folder, ADAPTER_FILES)
    if cards.COMPARISON in files:  # one that compare wrote for itself has texts of test questions
        files[cards.COMPARISON] = File(results.record(read_json(folder / cards.COMPARISON)).encode())
    if not any(Path(name).match(pattern) for name in files for pattern in WEIGHTS):
        raise InputError(f"{folder} has no weights ({' or '.join(WEIGHTS)}); give the folder of a finished training.")
    texts, conflicts = with_local_edits(folder, generated, generated)
    return Content("model", files, texts, generated, WEIGHTS, [read_json(folder / "training.json")], conflicts)


def metric(folder: Path, repo_id: str) -> Content:
    """A metric folder for `evaluate.load`, as a Space.

    Raises:
        InputError: no metric folder, or the repository is not called as its script, which `evaluate` looks for.
    """
    name = repo_id.split("/")[-1]
    if not (folder / f"{name}.py").is_file() or not (folder / CARD).is_file():
        scripts = sorted(path.stem for path in folder.glob("*.py") if path.name != "app.py")
        raise InputError(
            f"{folder} has no {CARD} or no {name}.py: evaluate.load({repo_id!r}) looks for a script of that "
            f"name. Scripts here: {', '.join(scripts) or 'none'}."
        )
    text = (folder / CARD).read_text(encoding="utf-8")
    return Content("space", _allowed(folder, METRIC_FILES), text, text)


KINDS = {"dataset": dataset, "adapter": adapter, "metric": metric}


def refuse_private_words(content: Content, token: str | None) -> None:
    """Raise InputError if a text to be published names the home or current folder here, or holds the token."""
    folders = {f"{path}/" for path in (Path.home(), Path.cwd()) if len(path.parts) > 1}
    words = folders | ({token} if token else set())
    for name, file in {**content.files, CARD: File(content.card.encode())}.items():
        if Path(name).suffix in TEXTS:
            text = file.read().decode("utf-8", "replace")
            if found := [word for word in sorted(words) if word in text]:
                what = "the token" if found[0] == token else found[0]
                raise InputError(f"{name} names {what}, which is nobody else's business. Remove it, then publish.")


def _allowed(folder: Path, patterns: Iterable[str]) -> dict[str, File]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): File(path) for path in sorted(found)}


def finished_shards(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files by split; raises InputError if there are none or not all."""
    shards: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("data/*.parquet")):
        found = SHARD.fullmatch(file.name)
        if found is None:
            raise InputError(f"{file} is not named SPLIT-00000-of-00001.parquet. Write datasets with `mmedpo curate`.")
        shards.setdefault(found["split"], []).append(file)
    torn = [split for split, files in shards.items() if any(_count(file) != len(files) for file in files)]
    if torn or not shards or folder.resolve().name.endswith(".partial"):
        what = f"has not all shards of {', '.join(torn)}" if torn else "is no finished dataset"
        raise InputError(f"{folder} {what}. Finish or repeat the run that writes it, then publish.")
    return shards


def _count(file: Path) -> int:
    found = SHARD.fullmatch(file.name)
    return int(found["count"]) if found else 0


def _audited(folder: Path, shards: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The audit of the first split (train if there is one), and the faults of all."""
    recorded = folder / "audit.json"
    name = read_json(recorded)["dataset"] if recorded.exists() else folder.resolve().name
    first, *others = sorted(shards, key=lambda split: (split != "train", split))
    found = audit(str(folder), first, name)
    faults = [*found["faults"], *(fault for split in others for fault in audit(str(folder), split)["faults"])]
    return found, [Fault(**fault) for fault in faults]


def _image_faults(file: Path, sources: set[str]) -> list[Fault]:
    """Images that are not inside the file, or whose name is a path; `sources` gets the sources that its rows name."""
    import pyarrow.parquet as parquet

    faults = []
    columns = ["id", "source", "images", "rejected_images"]
    for batch in parquet.ParquetFile(file).iter_batches(batch_size=32, columns=columns):
        for row in batch.to_pylist():
            sources.add(row["source"] or "")
            for column in columns[2:]:
                for image in row[column] or []:
                    if image["bytes"] is None:
                        faults.append(Fault(row["id"], column, "is not inside the file; embed it"))
                    if image["path"] and re.search(r"[/\\]", image["path"]):
                        faults.append(Fault(row["id"], column, "is named by a path; keep its last part alone"))
    return faults


def configs(shards: Mapping[str, Any]) -> list[dict[str, Any]]:
    files = [{"split": split, "path": f"data/{split}-*"} for split in shards]
    return [{"config_name": "default", "data_files": files}]


def info(folder: Path, shards: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """The `dataset_info` of the card: columns, rows and bytes of each split, and bytes to download and in memory."""
    import pyarrow.parquet as parquet
    from datasets import DatasetInfo, SplitDict, SplitInfo

    from mmedpo import schema

    splits = SplitDict()
    for split, files in shards.items():
        read = [parquet.read_metadata(file) for file in files]
        size = sum(part.row_group(group).total_byte_size for part in read for group in range(part.num_row_groups))
        splits.add(SplitInfo(split, num_bytes=size, num_examples=sum(part.num_rows for part in read)))
    described = DatasetInfo(
        features=next(iter(schema.load_splits(str(folder), streaming=True).values())).features,
        splits=splits,
        download_size=sum(file.stat().st_size for files in shards.values() for file in files),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )
    return dict(described._to_yaml_dict())  # as `push_to_hub` of datasets writes it
