"""An invented tree in the layout of PhysioNet's MIMIC-CXR-JPG: images of chance and reports about nobody, with texts
that can be looked for in whatever leaves a machine."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chat_server import Answer, ChatServer, Received
from PIL import Image

from mmedpo import cli

SIDE = 48
PATIENT = "INVENTED^PATIENT^NAME"  # in the header of each image
FINDINGS = (
    "Invented lungs seven are clear without pneumothorax.",
    "Madeup heart eight is enlarged with congestion.",
    "Fictional pleura nine shows a small effusion.",
    "Imaginary ribs ten are broken in places.",
)
WRONG = "Unwritten lungs hold one large mass today."  # what `answer` writes
RATIONALE = "Rationale that quotes a report"


def write(root: Path) -> Path:
    """Four patients of the split train and one of test, a study and an image each."""
    split, views = ["dicom_id,study_id,subject_id,split"], ["dicom_id,ViewPosition"]
    for number, text in enumerate([*FINDINGS, FINDINGS[0]]):
        patient, study, name = 10000001 + number, 50000001 + number, f"dicom-{number}"
        folder = root / f"files/p10/p{patient}/s{study}"
        folder.mkdir(parents=True)
        (folder.parent / f"s{study}.txt").write_text(f" FINAL REPORT\n FINDINGS:   {text}\n")
        (folder / f"{name}.jpg").write_bytes(jpeg(number))
        split.append(f"{name},{study},{patient},{'test' if number == len(FINDINGS) else 'train'}")
        views.append(f"{name},PA")
    (root / "mimic-cxr-2.0.0-split.csv").write_text("\n".join(split) + "\n")
    (root / "mimic-cxr-2.0.0-metadata.csv").write_text("\n".join(views) + "\n")
    return root


def jpeg(seed: int) -> bytes:
    """A grey JPEG of chance, with a name in its EXIF header and in a comment."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = PATIENT  # ImageDescription
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, exif=exif, comment=PATIENT.encode())
    return buffer.getvalue()


def build(folder: Path) -> Path:
    """Write the tree to `folder`/tree and build `folder`/pairs from it, with a writer and a judge on this machine; the
    source is kept in `folder`/kept. Proxies are named that nobody answers at."""
    write(folder / "tree")
    with ChatServer() as server, pytest.MonkeyPatch.context() as patch:
        server.answer = answer
        patch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        patch.delenv("NO_PROXY", raising=False)
        patch.setattr(sys, "argv", ["mmedpo"])
        cli.app([
            "build", "mimic_cxr", "--source", str(folder / "tree"), "--localizer", "standin:centre", "--chat",
            f"{server.url}#penman", "--judges", f"{server.url}#judge", "--output", str(folder / "pairs"),
            "--keep-source", str(folder / "kept"), "--judges-below-bar", "go",
        ], standalone_mode=False)  # fmt: skip
        assert {received.body["model"] for received in server.received} == {"penman", "judge"}
    return folder


def answer(received: Received) -> Answer:
    """A loopback model that writes `WRONG` for every report and scores it by the length of what it is asked."""
    if received.body["model"] == "penman":
        return Answer(json.dumps({"answer": WRONG, "kind": "finding"}))
    return Answer(json.dumps({"score": len(received.text) % 10 / 10, "rationale": RATIONALE}))


def traces(root: Path) -> Iterator[bytes]:
    """What must be in nothing that leaves: texts, and pixels as files hold them and as they are decoded."""
    texts = [*FINDINGS, *(text.split(" are ")[0].split(" is ")[0] for text in FINDINGS), WRONG, RATIONALE, PATIENT]
    yield from (text.encode() for text in texts)
    yield str(root).encode()
    for file in sorted(root.rglob("*.jpg")):
        data = file.read_bytes()
        yield data[len(data) // 2 :][:24]
        yield np.asarray(Image.open(file)).tobytes()[:24]


def found(root: Path, contents: dict[str, bytes]) -> list[str]:
    """Which of `traces` are in which of the contents."""
    return [f"{name}: {trace!r}" for name, data in contents.items() for trace in traces(root) if trace in data]
