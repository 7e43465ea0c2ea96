"""Localizers: boxes, masks and heat maps of the data, real (tiny, random) models, and the offline stand-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medklip_files import blank_tensors, random_tensors, write_folder, write_text_encoder
from PIL import Image

from mmedpo.curation.localize import FORMS, NOT_FOUND, Detector, MedKLIPLocalizer, Region, bounded, open_localizer
from mmedpo.curation.noise import pack_mask
from mmedpo.curation.query import Query, modality
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data import loading
from mmedpo.data.samples import Box, Sample, SampleImage
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError
from mmedpo.quickstart import phantom

MakeSource = Callable[..., Path]


@pytest.fixture(scope="module")
def reports(corpus: Path) -> list[Sample]:
    """One sample for each phantom, with the boxes of all its lesions."""
    return [sample for sample in read_source(corpus).samples if sample.task == "report"]


@pytest.fixture(scope="module")
def zero_shot_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OWL-ViT whose tokenizer knows single letters."""
    import torch
    from transformers import (
        CLIPTokenizer,
        OwlViTConfig,
        OwlViTForObjectDetection,
        OwlViTImageProcessorPil,
        OwlViTProcessor,
    )

    folder = tmp_path_factory.mktemp("detector") / "owlvit"
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    # OWL-ViT takes a query whose first token is 0 for padding.
    tokens = ["!", "<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OwlViTConfig(
        text_config={
            **narrow, "vocab_size": len(tokens), "max_position_embeddings": 16,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        vision_config={**narrow, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = OwlViTForObjectDetection(config)
    for parameter in [*model.box_head.parameters(), *model.class_head.parameters()]:
        parameter.data *= 0.1  # untrained heads of this width saturate: boxes without area, confidence 0
    model.save_pretrained(folder)
    image_processor = OwlViTImageProcessorPil(size={"height": 64, "width": 64})
    OwlViTProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """20 x 10 pixels of chance, none of them black."""
    pixels = np.random.default_rng(0).integers(1, 256, (10, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def about(image: Path, **more: Any) -> Sample:
    """A question about `image`, with further fields."""
    whole: dict[str, Any] = {
        "id": "q", "question": "What is seen?", "answer": "a nodule", "task": "open_vqa",
        "patient_id": None, "split": "train", "source": "s", "license": "l",
    }  # fmt: skip
    marks = {name: more.pop(name) for name in ("boxes", "masks", "heatmap", "confidence") if name in more}
    return Sample(images=(SampleImage(image, image.name, **marks),), **{**whole, **more})


def picture(file: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(file)
    return file


def saved(file: Path, heat: np.ndarray) -> Path:
    np.save(file, heat)
    return file


def only(localizer: Any, sample: Sample) -> Region:
    return localizer.find(sample)


# Regions and their bound.


@pytest.mark.parametrize(
    "region",
    [
        Region(),
        Region(reason="no lesion was found", query="disease"),
        Region((Box("mass", 1, 2.5, 3, 4, 0.5), Box("", 0, 0, 1, 1)), confidence=0.5, query="mass", coverage=0.25),
        Region((Box("heat", 0, 0, 2, 2, 1),), pack_mask(np.eye(3, 2, dtype=bool)), 1.0, None, None, 1 / 3),
    ],
)
def test_region_survives_its_record_as_json(region: Region) -> None:
    again = Region.read(json.loads(json.dumps(region.record())))
    assert again == region
    assert np.array_equal(again.pixels(3, 2), region.pixels(3, 2))


def test_region_within_the_bound_gets_its_coverage(image: Path) -> None:
    half = Region((Box("", 0, 0, 10, 10),), confidence=0.5)
    assert bounded(half, about(image), 0.5) == Region(half.boxes, confidence=0.5, coverage=0.5)  # the bound is in


EMPTY, SMALL = np.zeros((10, 20), bool), np.ones((10, 10), bool)


@pytest.mark.parametrize(
    ("region", "most", "reason"),
    [
        (Region((Box("", 0, 0, 10, 10),)), 0.499, "the lesion covers more than 49.9% of the image"),
        (Region((Box("", 0, 0, 2, 1),)), 0.005, "the lesion covers more than 0.5% of the image"),
        (Region(mask=pack_mask(~EMPTY)), 0.6, "the lesion covers more than 60% of the image"),
        (Region((Box("", 20, 0, 5, 5),)), 0.6, "the lesion lies outside the image"),
        (Region(mask=pack_mask(SMALL)), 0.6, "the mask is not of the image's size"),
        (Region(mask=pack_mask(EMPTY)), 0.6, NOT_FOUND),
        (Region(), 0.6, NOT_FOUND),
        (Region(reason="another"), 0.6, "another"),
    ],
)
def test_region_that_cannot_be_used_has_its_reason(image: Path, region: Region, most: float, reason: str) -> None:
    found = bounded(region, about(image), most)
    assert (found.reason, found.coverage) == (reason, 0)
    assert (found.boxes, found.mask) == (region.boxes, region.mask)  # for whoever looks into the ledger


# What a tool is asked for.


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("X-Ray", "xray"),
        ("CXR", "xray"),
        ("Chest X-ray, PA view", "xray"),
        ("Computed Radiography", "xray"),
        ("CT(Computed Tomography)", "ct"),
        ("abdominal computed tomography", "ct"),
        ("MR (Magnetic Resonance Imaging)", "mri"),
        ("T2-weighted MRI", "mri"),
        ("Ultrasound", "ultrasound"),
        ("PET/CT", "ct"),
        ("X-ray CT", None),  # two
        ("Fundus photography", None),
        ("", None),
        (None, None),
    ],
)
def test_modality_is_read_however_the_table_spells_it(image: Path, said: str | None, expected: str | None) -> None:
    assert modality(about(image, modality=said)) == expected


@pytest.mark.parametrize(
    ("spec", "said", "expected"),
    [
        ("disease", "CT", "disease"),
        ("a lung opacity", None, "a lung opacity"),
        ("xray=opacity,ct=liver lesion", "X-Ray", "opacity"),
        ("xray=opacity,ct=liver lesion", "CT scan", "liver lesion"),
        ("xray=opacity, ct=liver lesion", "CT", "liver lesion"),
        ("xray=opacity,ct=liver lesion", "MRI", "disease"),
        ("xray=opacity,ct=liver lesion", None, "disease"),
        ("question", "CT", "What is seen?"),
        ("ct=question", "CT", "What is seen?"),
        ("ct=question", "X-Ray", "disease"),
    ],
)
def test_query_is_one_text_or_one_a_modality_or_the_question(
    image: Path, spec: str, said: str | None, expected: str
) -> None:
    assert Query(spec)(about(image, modality=said)) == expected


@pytest.mark.parametrize("spec", ["", "  ", "xray=", "=opacity", "pet=lesion", "xray=opacity,ct", "xray=opacity,"])
def test_query_that_cannot_be_read_is_refused_with_the_modalities(spec: str) -> None:
    with pytest.raises(InputError) as raised:
        open_localizer("boxes", query=spec)
    assert repr(spec) in str(raised.value) and "xray, ct, mri, ultrasound" in str(raised.value)


@pytest.mark.parametrize(
    "spec", ["", "box", "boxes:all", "mask", "detector", "detector:", "medklip:", "standin:asymmetry", "org/detector"]
)
def test_unknown_localizer_lists_the_forms(spec: str) -> None:
    with pytest.raises(InputError) as raised:
        open_localizer(spec)
    assert repr(spec) in str(raised.value) and FORMS in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "mean"}, "mask rule 'mean' is unknown; use one of: quantile"),
        ({"rule": "fixed:2"}, "mask rule 'fixed:2' is unknown"),
    ],
)
def test_bad_option_is_refused_whatever_the_localizer(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_localizer("boxes", **options)


# Boxes, masks and heat maps of the data.


def test_confidence_of_given_boxes_is_that_of_the_surest(image: Path) -> None:
    sample = about(image, boxes=(Box("", 0, 0, 1, 1, 0.3), Box("", 4, 4, 1, 1, 0.7)))
    assert only(open_localizer("boxes"), sample).confidence == 0.7


def test_no_localizer_looks_for_nothing(image: Path) -> None:
    assert only(open_localizer("none"), about(image)) == Region(reason=NOT_FOUND, confidence=1.0)


def test_masks_of_an_image_are_joined_and_any_colour_counts(image: Path, tmp_path: Path) -> None:
    grey, colour = np.zeros((10, 20), np.uint8), np.zeros((10, 20, 3), np.uint8)
    grey[2:4, 3:9] = 1  # a label, almost black
    colour[8, 12] = 0, 0, 255
    files = (picture(tmp_path / "grey.png", grey), picture(tmp_path / "colour.png", colour))
    region = only(open_localizer("masks"), about(image, masks=files))
    assert np.array_equal(region.pixels(10, 20), grey.astype(bool) | colour.any(axis=2))
    assert region.boxes == (Box("mask", 3, 2, 10, 7, 1.0),)  # columns 3 .. 12, rows 2 .. 8
    assert (region.confidence, region.reason, region.query) == (1.0, None, None)
    assert bounded(region, about(image), 0.6).coverage == 13 / 200


def test_confidence_of_masks_is_the_tables_where_it_has_one(image: Path, tmp_path: Path) -> None:
    file = picture(tmp_path / "mask.png", np.eye(10, 20, dtype=bool))
    assert only(open_localizer("masks"), about(image, masks=(file,), confidence=0.25)).confidence == 0.25


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([], NOT_FOUND),
        ([(10, 20)], NOT_FOUND),  # black
        ([(10, 20), (20, 10)], "the masks of the image differ in size"),
    ],
)
def test_masks_without_a_lesion_have_their_reason(
    image: Path, tmp_path: Path, shapes: list[tuple[int, int]], reason: str
) -> None:
    files = tuple(picture(tmp_path / f"{i}.png", np.zeros(shape, np.uint8)) for i, shape in enumerate(shapes))
    assert only(open_localizer("masks"), about(image, masks=files)).reason == reason


RAMP = np.arange(200).reshape(10, 20) / 199


@pytest.mark.parametrize(
    ("rule", "heat", "expected"),
    [
        ("quantile:0.8", RAMP, RAMP * 199 > 0.8 * 199),
        ("quantile:0.95", RAMP, RAMP * 199 > 0.95 * 199),
        ("fixed:0.5", RAMP / 2, RAMP > 0.5),  # half of the hottest value, whatever that is
        ("otsu", np.where(RAMP > 0.9, 0.7, 0.1) + RAMP / 100, RAMP > 0.9),  # two heaps
    ],
)
def test_heat_map_becomes_a_mask_by_the_named_rule(
    image: Path, tmp_path: Path, rule: str, heat: np.ndarray, expected: np.ndarray
) -> None:
    sample = about(image, heatmap=saved(tmp_path / "heat.npy", heat))
    region = only(open_localizer("heatmap", rule=rule), sample)
    assert np.array_equal(region.pixels(10, 20), expected)
    assert bounded(region, sample, 0.6).coverage == expected.mean()
    assert [box.label for box in region.boxes] == ["heat"] and region.query is None


def test_heat_map_may_be_a_picture_or_coarser_than_its_image(image: Path, tmp_path: Path) -> None:
    heat = np.array([[0, 0], [0, 102]], np.uint8)  # hot at the lower right
    array = saved(tmp_path / "heat.npy", heat / 255)
    drawn = picture(tmp_path / "heat.png", heat)
    localizer = open_localizer("heatmap", rule="fixed:0.5")
    first, second = (only(localizer, about(image, heatmap=file)) for file in (array, drawn))
    assert first == second and first.confidence == 102 / 255
    # Bilinear between the centres of the cells, at (2.5, 5) and (7.5, 15): hottest behind the last one.
    mask = first.pixels(10, 20)
    assert mask[8:, 15:].all() and not mask[:5].any() and not mask[:, :10].any()


@pytest.mark.parametrize(
    ("scale", "column", "confidence"),
    [
        (1.0, None, 1.0),
        (0.3, None, 0.3),  # the hottest value
        (0.3, 0.9, 0.9),  # the table's word
        (255, 0.9, 0.9),
        (255, 0.0, 0.0),
    ],
)
def test_confidence_of_a_heat_map_is_the_tables_or_the_hottest_value(
    image: Path, tmp_path: Path, scale: float, column: float | None, confidence: float
) -> None:
    sample = about(image, heatmap=saved(tmp_path / "heat.npy", RAMP * scale), confidence=column)
    region = only(open_localizer("heatmap"), sample)
    assert region.confidence == pytest.approx(confidence) and region.reason is None


@pytest.mark.parametrize(
    ("heat", "reason"),
    [
        (None, NOT_FOUND),
        (RAMP * 255, "the heat map has no confidence and is not scaled to [0, 1]"),
        (np.zeros((4, 4)), NOT_FOUND),
        (np.full((4, 4), 0.5), NOT_FOUND),
    ],
)
def test_heat_map_without_a_lesion_has_its_reason(
    image: Path, tmp_path: Path, heat: np.ndarray | None, reason: str
) -> None:
    file = None if heat is None else saved(tmp_path / "heat.npy", heat)
    assert only(open_localizer("heatmap"), about(image, heatmap=file)).reason == reason


# Detectors.


def wide(sample: Sample, tmp_path: Path) -> Sample:
    """The sample with its image stretched to 96 x 48 pixels."""
    Image.open(sample.images[0].file).resize((96, 48)).save(tmp_path / "wide.png")
    return replace(sample, images=(replace(sample.images[0], file=tmp_path / "wide.png"),))


def check_boxes(boxes: tuple[Box, ...], labels: set[str], width: int, height: int) -> None:
    assert boxes
    for box in boxes:
        assert box.label in labels
        assert 0 < box.confidence <= 1
        # the centre is in the image and the size is in its pixels, not in those the model saw
        assert 0 <= box.x + box.width / 2 <= width and 0 <= box.y + box.height / 2 <= height
        assert 0 < box.width <= width and 0 < box.height <= height


def test_detector_reports_its_own_labels_in_pixels(detector: Path, reports: list[Sample], tmp_path: Path) -> None:
    localizer = open_localizer(f"detector:{detector}", threshold=0.0)
    region = only(localizer, wide(reports[0], tmp_path))
    assert region.query is None  # a detector with labels of its own is asked nothing
    assert len(region.boxes) == 5
    check_boxes(region.boxes, {"mass", "fluid"}, 96, 48)
    assert region.confidence == max(box.confidence for box in region.boxes)


def test_zero_shot_detector_is_asked_the_query(zero_shot_detector: Path, reports: list[Sample], tmp_path: Path) -> None:
    localizer = open_localizer(f"detector:{zero_shot_detector}", query="xray=opacity,ct=lesion", threshold=0.0)
    sample = wide(reports[0], tmp_path)
    for said, query in (("CT", "lesion"), ("X-Ray", "opacity"), (None, "disease")):
        region = only(localizer, replace(sample, modality=said))
        assert region.query == query
        check_boxes(region.boxes, {query}, 96, 48)


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Is there a mass?", "Is there a mass?"),
        ("Is there a mass in the left lung?", "Is there a mass in"),  # 16 tokens: two marks and 14 letters
        ("a" * 50, "a" * 14),  # not a word to be cut at
    ],
)
def test_question_too_long_for_the_detector_is_cut(
    zero_shot_detector: Path, image: Path, question: str, asked: str
) -> None:
    localizer = open_localizer(f"detector:{zero_shot_detector}", query="question", threshold=0.0)
    region = only(localizer, about(image, question=question))
    assert region.query == asked and {box.label for box in region.boxes} == {asked}


def test_image_is_detected_once_for_each_query(zero_shot_detector: Path, image: Path, tmp_path: Path) -> None:
    localizer = Detector(str(zero_shot_detector), Query("ct=lesion"), threshold=0.0)
    runs: list[Any] = []
    localizer.pipeline.model.register_forward_hook(lambda *_: runs.append(1))
    other = picture(tmp_path / "other.png", np.full((9, 9), 7, np.uint8))
    samples = [about(image, id=str(i), modality=said) for i, said in enumerate(["CT", "CT", None, "MRI", "CT"])]
    first, *_ = found = [localizer.find(sample) for sample in (*samples, about(other))]
    assert [region.query for region in found] == ["lesion", "lesion", "disease", "disease", "lesion", "disease"]
    assert found[4] == first and len(runs) == 3
    assert [localizer.find(sample) for sample in samples] == found[:5] and len(runs) == 3


def test_detections_below_the_threshold_are_left_out(detector: Path, reports: list[Sample]) -> None:
    everything = only(open_localizer(f"detector:{detector}", threshold=0.0), reports[0]).boxes
    middle = sorted(box.confidence for box in everything)[2]
    kept = only(open_localizer(f"detector:{detector}", threshold=middle), reports[0]).boxes
    assert kept == tuple(box for box in everything if box.confidence > middle) and len(kept) < 5
    assert only(open_localizer(f"detector:{detector}", threshold=1.0), reports[0]) == Region(reason=NOT_FOUND)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_tiniest_and_thinnest_images_stop_no_detector(detector: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """Scaled to a longest side of 64, an image of 1 x 500 has no width: the processor refuses it."""
    sample = about(picture(tmp_path / "odd.png", np.full(size, 7, np.uint8)))
    region = bounded(only(open_localizer(f"detector:{detector}", threshold=0.0), sample), sample, 0.6)
    assert region.reason and (region.reason == "the detector refused the image") is (size != (1, 1))


def test_model_that_detects_nothing_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"bert' is a 'bert' model, not a detector"):
        open_localizer(f"detector:{tmp_path / 'bert'}")


def test_missing_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The detector .*nowhere' cannot be loaded"):
        open_localizer(f"detector:{tmp_path / 'nowhere'}")


def respoil(folder: Path, to: Path, spoil: Callable[[dict[str, Any]], object]) -> Path:
    """Copy a model's folder, with other tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    spoil(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("head", ["class_labels_classifier", "bbox_predictor"])
def test_detector_that_computes_nan_is_refused(detector: Path, image: Path, tmp_path: Path, head: str) -> None:
    """NaN is above no threshold, so that each image would have "no lesion"."""

    def spoil(tensors: dict[str, Any]) -> None:
        tensors[f"{head}.layers.0.weight"][:] = np.nan

    spoilt = respoil(detector, tmp_path / "spoilt", spoil)
    with pytest.raises(InputError, match="spoilt' computes NaN or infinite values"):
        only(open_localizer(f"detector:{spoilt}"), about(image))


def test_detector_without_some_weights_is_refused(detector: Path, zero_shot_detector: Path, tmp_path: Path) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        del tensors[next(name for name in tensors if "class" in name and name.endswith("weight"))]

    for folder in (detector, zero_shot_detector):
        cut_off = respoil(folder, tmp_path / folder.name, cut)
        with pytest.raises(InputError, match=r"incomplete: 1 tensor .* missing"):
            open_localizer(f"detector:{cut_off}")


def test_detector_with_torn_weights_is_refused(detector: Path, tmp_path: Path) -> None:
    shutil.copytree(detector, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"The detector .*torn' cannot be loaded"):
        open_localizer(f"detector:{tmp_path / 'torn'}")


# MedKLIP.


@pytest.fixture(scope="module")
def medklip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint that knows normal, pneumonia, disease and mass, with its text encoder beside it."""
    folder = write_folder(tmp_path_factory.mktemp("medklip") / "random", random_tensors())
    write_text_encoder(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def medklip(medklip_folder: Path) -> MedKLIPLocalizer:
    """It is asked the sample's question; the text encoder is not looked for on the Hub, which tests cannot reach."""
    return MedKLIPLocalizer(medklip_folder, Query("question"), "quantile:0.75")


def test_medklip_gives_its_attention_as_mask_and_its_probability_as_confidence(
    medklip: MedKLIPLocalizer, reports: list[Sample]
) -> None:
    sample = replace(reports[0], question="Is there a mass?")
    region = only(medklip, sample)
    [(heat, confidence)] = medklip.model.observe([Image.open(sample.images[0].file)], "mass")
    assert region.confidence == pytest.approx(confidence, abs=1e-6) and region.query == "mass"
    assert region.boxes[0].label == "mass" and region.boxes[0].confidence == region.confidence
    mask = region.pixels(phantom.SIZE, phantom.SIZE)
    assert mask.mean() == pytest.approx(0.25, abs=0.01)
    row, column = (np.array(np.unravel_index(heat.argmax(), heat.shape)) + 0.5) * phantom.SIZE / 14
    assert mask[int(row), int(column)]


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Is there a mass or a pneumonia?", "mass"),  # the first
        ("PNEUMONIA on the left?", "pneumonia"),
        ("Is this image normal?", "disease"),  # an observation, but no lesion
        ("Is there an effusion?", "disease"),  # a lesion, but no observation of this file
        ("What is seen?", "disease"),
    ],
)
def test_medklip_is_asked_for_the_lesion_that_the_question_names(
    medklip: MedKLIPLocalizer, image: Path, question: str, asked: str
) -> None:
    assert only(medklip, about(image, question=question)).query == asked


def test_medklip_looks_once_at_an_image_for_each_observation(medklip: MedKLIPLocalizer, tmp_path: Path) -> None:
    runs: list[Any] = []
    hook = medklip.model._network.register_forward_hook(lambda *_: runs.append(1))
    file = picture(tmp_path / "new.png", np.random.default_rng(1).integers(0, 256, (30, 30), dtype=np.uint8))
    questions = ["Is there a mass?", "What is seen?", "Where is the mass?", "Is it healthy?"]
    first, second, third, fourth = (only(medklip, about(file, question=question)) for question in questions)
    hook.remove()
    assert (first, second) == (third, fourth) and first != second
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, None),
        ({"modality": "X-Ray", "organ": "Lung"}, None),
        ({"modality": "Chest X-ray, PA", "organ": "CHEST"}, None),
        ({"organ": "Chest_heart"}, None),  # as SLAKE has it
        ({"modality": "CT", "organ": "Lung"}, "a chest X-ray tool does not read CT"),
        ({"modality": "MRI"}, "a chest X-ray tool does not read MRI"),
        ({"modality": "CT scan"}, "a chest X-ray tool does not read CT scan"),
        ({"modality": "Fundus photography"}, "a chest X-ray tool does not read Fundus photography"),
        ({"organ": "ABD"}, "a chest X-ray tool does not read images of: ABD"),
        ({"modality": "X-Ray", "organ": "HEAD"}, "a chest X-ray tool does not read images of: HEAD"),
    ],
)
def test_medklip_leaves_out_what_the_table_calls_something_else(
    medklip: MedKLIPLocalizer, image: Path, said: dict[str, str], reason: str | None
) -> None:
    assert only(medklip, about(image, **said)).reason == reason


@pytest.mark.parametrize(
    ("query", "unknown"), [("liver", "'liver'"), ("xray=mass,ct=cyst,mri=cyst2", "'cyst', 'cyst2'")]
)
def test_observation_that_medklip_does_not_have_is_refused_when_it_is_opened(
    medklip_folder: Path, query: str, unknown: str
) -> None:
    with pytest.raises(InputError, match=f"no observation {unknown}; it has normal, pneumonia, disease, mass"):
        open_localizer(f"medklip:{medklip_folder}", query=query)


def test_questions_need_an_observation_for_those_that_name_no_lesion(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "medklip", blank_tensors())
    write_text_encoder(folder / "text_encoder")
    (folder / "observation explanation.json").write_text(json.dumps({"mass": "a white spot"}))
    with pytest.raises(InputError, match="no observation 'disease'; it has mass"):
        open_localizer(f"medklip:{folder}", query="question")
    open_localizer(f"medklip:{folder}", query="Mass")


# The offline stand-in.


def test_centre_is_the_middle_half_of_any_image(reports: list[Sample], tmp_path: Path) -> None:
    localizer = open_localizer("standin:centre")
    assert localizer.name == "standin:centre"
    found = [only(localizer, sample) for sample in (reports[0], wide(reports[1], tmp_path))]
    quarter = phantom.SIZE / 4
    assert [region.boxes for region in found] == [
        (Box("centre", quarter, quarter, 2 * quarter, 2 * quarter, 0.5),),
        (Box("centre", 24, 12, 48, 24, 0.5),),
    ]


# Whole curations.


@pytest.fixture
def marked(make_source: MakeSource, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A source of three images of 40 x 30 pixels with a mask and a heat map each, and the masks that they mean."""
    rng, rows, masks = np.random.default_rng(0), [], {}
    folder = make_source()
    for number, confidence in enumerate((0.2, 0.5, None)):
        mask = np.zeros((30, 40), bool)
        mask[5 + number : 15, 8:20], mask[16, 30] = True, True
        picture(folder / f"{number}.png", rng.integers(0, 256, (30, 40), dtype=np.uint8))
        picture(folder / f"mask-{number}.png", mask)
        saved(folder / f"heat-{number}.npy", np.where(mask, 0.8, 0.1))
        masks[str(number)] = mask
        rows.append({
            "id": str(number), "image": f"{number}.png", "question": "Where is the mass?", "answer": "on the left",
            "masks": [f"mask-{number}.png"], "heatmap": f"heat-{number}.npy", "confidence": confidence,
            "modality": "X-Ray", "organ": "Chest",
        })  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, masks


def check_noise(row: dict[str, Any], mask: np.ndarray) -> None:
    """The noised image differs inside the mask alone, and the provenance has the mask's box and share."""
    before, after = (np.asarray(row[side][0]) for side in ("images", "rejected_images"))
    assert np.array_equal(before[~mask], after[~mask]) and np.mean(before[mask] != after[mask]) > 0.9
    made, (rows, columns) = row["provenance"], np.nonzero(mask)
    (box,) = made["boxes"]
    assert (box["x"], box["y"]) == (columns.min(), rows.min())
    assert (box["x"] + box["width"], box["y"] + box["height"]) == (columns.max() + 1, rows.max() + 1)
    assert made["mask_coverage"] == pytest.approx(mask.mean())


@pytest.mark.parametrize(
    ("localizer", "rule", "last"), [("masks", None, 1.0), ("heatmap", "otsu", 0.8), ("heatmap", "fixed:0.5", 0.8)]
)
def test_curation_noises_the_given_mask_and_records_it(
    marked: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, localizer: str, rule: str | None, last: float
) -> None:
    source, masks = marked
    settings = Settings(source, chat="none", localizer=localizer, mask_rule=rule or "otsu", weights="none")
    (tmp_path / "out").mkdir()
    manifest = curate_folder(settings, tmp_path / "out")
    dataset = loading.load(str(tmp_path / "out"))
    assert [row["provenance"]["sample_id"] for row in dataset] == list(masks)
    for row in dataset:
        check_noise(row, masks[row["provenance"]["sample_id"]])
        made = row["provenance"]
        assert (made["localizer"], made["mask_rule"], made["query"]) == (localizer, rule, None)
    assert dataset["clinical_relevance"] == pytest.approx([0.2, 0.5, last])
    assert manifest is not None and manifest["mask_rule"] == rule
    shares = [mask.mean() for mask in masks.values()]
    assert manifest["mask_coverage"] == pytest.approx({"mean": np.mean(shares), "max": max(shares), "bound": 0.6})


def test_curation_with_medklip_records_query_and_rule_and_leaves_out_other_organs(
    marked: tuple[Path, dict[str, np.ndarray]], medklip_folder: Path, tmp_path: Path
) -> None:
    source, _ = marked
    table = source / "samples.jsonl"
    table.write_text(table.read_text().replace("Chest", "Abdomen", 1))
    settings = Settings(
        source, chat="none", localizer=f"medklip:{medklip_folder}", query="xray=mass", mask_rule="quantile:0.9"
    )
    (tmp_path / "out").mkdir()
    manifest = curate_folder(settings, tmp_path / "out")
    dataset = loading.load(str(tmp_path / "out"))
    localizer = open_localizer(f"medklip:{medklip_folder}", "xray=mass", "quantile:0.9")
    samples = {sample.id: sample for sample in read_source(source).samples}
    assert [row["provenance"]["sample_id"] for row in dataset] == ["1", "2"]
    for row in dataset:
        region = only(localizer, samples[row["provenance"]["sample_id"]])
        check_noise(row, region.pixels(30, 40))
        made = row["provenance"]
        assert (made["localizer"], made["mask_rule"], made["query"]) == ("medklip:random", "quantile:0.9", "mass")
        assert made["boxes"] == [pytest.approx(asdict(box)) for box in region.boxes]
        assert row["clinical_relevance"] == pytest.approx(region.confidence)
    assert manifest is not None and manifest["query"] == "xray=mass"
    assert manifest["rejects"] == {"a chest X-ray tool does not read images of: Abdomen": 1}
