"""Text burnt into images: found by OCR on the CPU, sorted into kinds by rules, blacked out.

Names, dates and numbers of patients stand in the pixels of ultrasounds, secondary captures and scanned films, where
removing headers does not reach them. The OCR (rapidocr, `pip install 'mmedpo[text]'`) needs no network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from mmedpo.data.images import Source, digest, open_rgb
from mmedpo.data.samples import Box
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.runs.ledger import Ledger

INSTALL = "Text in images is found with rapidocr: pip install 'mmedpo[text]' ({})."
ENLARGED, LONGEST = 2, 2600  # small print is found in an image of twice its size, up to this longer side in pixels
DETECTED, READ = 0.4, 0.5  # least confidence that a box is text, and that its text was read (docs/results.md)
SHORT, READ_SHORT = 2, 0.8  # most letters of a short text, which anatomy often looks like, and its least confidence
GAP = 6  # widest gap inside a line that is blacked out too, in heights of the line
BORDER = 0.05  # share of the image's height at top and bottom, where gaps of any width are: captions, and no anatomy
MARGIN = 0.15  # of a box's height, on each side: letters reach a little beyond their box

NAME, DATE, IDENTIFIER, MARKER, OTHER = KINDS = ("name", "date", "identifier", "marker", "other")
PRIVATE = (NAME, DATE, IDENTIFIER)

MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
DATES = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|(?<![\d.:])(19|20)\d\d(?![\d.])|(?<!\d)(19|20)\d\d[01]\d[0-3]\d(?!\d)"
    rf"|\d{{1,4}}[ .-]?{MONTH}[ .,-]?\d{{1,4}}|{MONTH}[ .]?\d{{1,2}},? ?\d{{4}}|(?<!\d)\d{{1,2}}:[0-5]\d(?!\d)",
    re.IGNORECASE,
)
IDENTIFIERS = re.compile(
    r"\d(?:[ -]?\d){5}|\b(mrn|acc|accession|pid|ssn|id|no)\b ?[.:#]* ?\d\d|(?=[a-f]*\d)[\da-f]{4,}-[\da-f]{3}"
    r"|(?<![\da-z])(?=[\da-f]*\d)(?=[\da-f]*[a-f])[\da-f]{7,}",
    re.IGNORECASE,
)
NAMING = re.compile(r"\b(name|patient|pat|dr|doctor|physician|referring|operator|uploader|source)\b ?[.:] ?\w", re.I)
WATERMARK = re.compile("medpix", re.IGNORECASE)  # of a public archive, on every image of VQA-RAD
SURNAME = re.compile(r"\b[A-Z][A-Za-z'-]{2,}(\^[A-Za-z]|, ?[A-Z](?![a-z]?\d))")
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # OCR loses spaces: JaneDoe is two words
SIDES = re.compile(r"[RLAPHFSI]{1,2}")  # right, left, anterior, posterior, head, foot, superior, inferior
MARKER_WORDS = """
ap decub decubitus erect expiration inspiration lat lateral left lt pa port portable prone right rt semi semierect
semiupright sitting standing supine upright
"""
MARKERS = frozenset(MARKER_WORDS.split())
# Words of viewers and reports: two of them in capitals are no name.
VIEWER_WORDS = """
abdomen abdominal acq angle ankle aorta axial bladder body bone brain breast cardiac cervical chest clip cm compressed
contrast coronal cor delayed depth distance doppler dose dynamic echo elbow exam exposure eye fat field flair flip foot
frame freq gain gallbladder general hand head heart hip image images kidney knee length lens liver long loss lossless
lossy lumbar lung mag map material mode mri neck non order page pancreas pelvis phase plane post pre prediction
protocol pulse recon ref report sag sagittal sat scale scan scout screen sequence series shoulder size skull slice soft
spine spleen stomach study system thickness thoracic tilt time tissue trans transverse ultrasound uterus vein venous
view width window wrist wl ww with without zoom
"""
KNOWN = MARKERS.union(VIEWER_WORDS.split())


class Finder:
    """Finder of text in images: one OCR engine a process, one thread, each image read once.

    Args:
        found: ledger of earlier results by digest of the pixels; without one they are kept in memory.

    Raises:
        InputError: rapidocr is not installed.
    """

    def __init__(self, found: Ledger | None = None) -> None:
        self._engine, self._ledger = _engine(), found
        self._known: dict[str, Any] = {}

    def __call__(self, image: Source, known_digest: str = "") -> tuple[Box, ...]:
        """Return the text of an image, a box for each line: `label` is the text, whole pixels, origin top left.

        Args:
            known_digest: `images.digest` of the image, if already computed.

        Raises:
            UnusableImage, InputError: as `images.open_rgb`.
        """
        key = known_digest or digest(open_rgb(image))
        found = self._known.get(key) if self._ledger is None else self._ledger.get(key)
        if found is None:
            found = _read(self._engine, np.asarray(open_rgb(image)))
            if self._ledger is None:
                self._known[key] = found
            else:
                self._ledger.put(key, found)
        return tuple(Box(*values) for values in found)


@cache
def _engine() -> Any:
    try:
        import cv2
        from rapidocr_onnxruntime import RapidOCR
    except (ImportError, OSError) as error:  # OpenCV may lack a library of the system
        raise InputError(INSTALL.format(error)) from None
    cv2.setNumThreads(1)
    return RapidOCR(
        intra_op_num_threads=1, inter_op_num_threads=1, use_cls=False, max_side_len=LONGEST, text_score=READ,
        det_box_thresh=DETECTED,
    )  # fmt: skip


def is_installed() -> bool:
    """Return whether text can be looked for."""
    try:
        _engine()
    except InputError:
        return False
    return True


def _read(engine: Any, rgb: np.ndarray) -> list[list[Any]]:
    """Return [text, x, y, width, height, confidence] of each line in a uint8 H x W x 3 image."""
    from PIL import Image

    height, width = rgb.shape[:2]
    share = min(ENLARGED, LONGEST / max(height, width))
    size = max(round(width * share), 1), max(round(height * share), 1)
    enlarged = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    lines, _ = engine(np.ascontiguousarray(enlarged[..., ::-1]))
    found = []
    for corners, text, confidence in lines or []:
        (left, top), (right, bottom) = (edge(np.array(corners) / share, axis=0) for edge in (np.min, np.max))
        edge = max(MARGIN * (bottom - top), 1)
        x, y = max(int(left - edge), 0), max(int(top - edge), 0)
        right, bottom = min(int(np.ceil(right + edge)), width), min(int(np.ceil(bottom + edge)), height)
        sure = confidence >= (READ if len(text.strip()) > SHORT else READ_SHORT)
        if text.strip() and sure and x < right and y < bottom:
            found.append([text.strip(), x, y, right - x, bottom - y, round(float(confidence), 3)])
    return found


def kind(text: str) -> str:
    """Return the likely kind of a text, one of `KINDS`: rules, and no proof in either direction.

    | kind | rule, the first that holds |
    |---|---|
    | name | a word such as `Name:` or `Dr.` before more; `Doe, J` or `DOE^JANE`; two capitalised words side by side, \
an initial between them allowed, that are no words of viewers (`KNOWN`) |
    | date | a date in digits or with a month's name, a year, a time of day |
    | identifier | six digits in a row, a number after `ID` or `MRN`, a piece of a hexadecimal id |
    | marker | sides, views and positions alone: `L`, `RIGHT`, `AP`, `PORTABLE` |
    | other | all else |
    """
    text = WATERMARK.sub("", text)
    if NAMING.search(text) or SURNAME.search(text) or _has_two_names(text):
        return NAME
    if DATES.search(text):
        return DATE
    if IDENTIFIERS.search(text):
        return IDENTIFIER
    letters = [word for word in re.split(r"[^A-Za-z0-9]+", text) if word]
    if letters and all(SIDES.fullmatch(word) or word.lower() in MARKERS for word in letters):
        return MARKER
    return OTHER


def _has_two_names(text: str) -> bool:
    last = None
    for found in WORDS.finditer(text):
        word = found[0]
        if len(word) == 1 and last is not None:
            continue  # an initial
        if not word[0].isupper() or len(word) < 3 or word.lower() in KNOWN:
            last = None
        elif last is not None and re.fullmatch(r"[ .,A-Z]{0,4}", text[last : found.start()]):
            return True
        else:
            last = found.end()
    return False


def masked(boxes: Iterable[Box]) -> list[Box]:
    """Return the boxes to black out: all but markers, which questions about sides need and which name nobody."""
    return [box for box in boxes if kind(box.label) != MARKER]


def blacked_out(pixels: np.ndarray, boxes: Iterable[Box]) -> np.ndarray:
    """Return a copy of uint8 H x W (x 3) pixels with the boxes black, and gaps of a line between two of them.

    The OCR often reads a long line in pieces. Gaps are filled up to `GAP`, in captions (`BORDER`) of any width.
    """
    made, every = pixels.copy(), list(boxes)
    gaps = [gap for box in every for other in every if (gap := _gap(box, other, len(pixels)))]
    for box in (*every, *gaps):
        made[int(box.y) : int(box.y + box.height), int(box.x) : int(box.x + box.width)] = 0
    return made


def _gap(left: Box, right: Box, height: int) -> Box | None:
    """Return the gap between two pieces of one line in an image of `height` pixels, if it is to be filled."""
    top, bottom = min(left.y, right.y), max(left.y + left.height, right.y + right.height)
    line, width = max(left.height, right.height), right.x - left.x - left.width
    is_line = abs(left.y + left.height / 2 - right.y - right.height / 2) < line / 3
    is_caption = not BORDER * height < (top + bottom) / 2 < (1 - BORDER) * height
    is_filled = is_line and width > 0 and (is_caption or width <= GAP * line)
    return Box("", left.x + left.width, top, width, bottom - top) if is_filled else None


def counts(found: Iterable[tuple[Box, ...]]) -> dict[str, Any]:
    """Return {"found_by", "images" looked at, "with_text", "kinds": boxes by likely kind}, from the text of each image.

    Texts themselves are in no record: it may be published.
    """
    every = list(found)
    kinds = Counter(kind(box.label) for boxes in every for box in boxes)
    return {
        "found_by": f"rapidocr-onnxruntime {version('rapidocr-onnxruntime')}", "images": len(every),
        "with_text": sum(map(bool, every)), "kinds": {name: kinds[name] for name in KINDS if kinds[name]},
    }  # fmt: skip


def said(record: Mapping[str, Any] | None) -> str:
    """Return what was found and done, by the "burnt_text" of a manifest or an audit; None: nobody looked."""
    if not record:
        return "Names, dates and other text in the pixels were not looked for."
    kinds = ", ".join(f"{name} {count:,}" for name, count in record["kinds"].items())
    of = f", a sample of {record['of']:,}," if record.get("of") else ""
    found = f"{record['with_text']:,} of {number_of(record['images'], 'images')}{of} carry text in their pixels"
    sentence = f"{found} ({record['found_by']}{'; boxes by likely kind: ' if kinds else ''}{kinds})."
    if not record.get("masked"):
        return f"{sentence} It was left there." if kinds else sentence
    done = f"{number_of(record['masked_boxes'], 'boxes')} in {number_of(record['masked_images'], 'images')}"
    sentence += f" It is black on both sides: {done}; markers of sides and views stay."
    if record["lesions_under_text"]:
        sentence += f" {number_of(record['lesions_under_text'], 'lesion boxes')} overlap with masked text."
    return f"{sentence} OCR overlooks text."


def overlap(box: Box, other: Box) -> bool:
    """Return whether two boxes share area."""
    return (
        box.x < other.x + other.width and other.x < box.x + box.width
        and box.y < other.y + other.height and other.y < box.y + box.height
    )  # fmt: skip
