"""Localizers: boxes of the data, real (tiny, random) detection models, and the offline stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mmedpo import phantom
from mmedpo.curation.localize import FORMS, CentreStandIn, open_localizer
from mmedpo.errors import InputError
from mmedpo.sources import Box, Sample, read_source


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


def test_given_boxes_are_the_sources_own(reports: list[Sample]) -> None:
    localizer = open_localizer("boxes")
    assert (localizer.name, localizer.query) == ("boxes", None)
    assert localizer.locate(reports) == [list(sample.boxes) for sample in reports]
    assert any(sample.boxes for sample in reports) and not all(sample.boxes for sample in reports)


@pytest.mark.parametrize(
    "spec", ["", "box", "boxes:all", "detector", "detector:", "standin:", "standin:asymmetry", "org/detector"]
)
def test_unknown_localizer_lists_the_forms(spec: str) -> None:
    with pytest.raises(InputError) as raised:
        open_localizer(spec)
    assert repr(spec) in str(raised.value) and FORMS in str(raised.value)


def wide(sample: Sample, tmp_path: Path) -> Sample:
    """The sample with its image stretched to 96 x 48 pixels."""
    Image.open(sample.image).resize((96, 48)).save(tmp_path / "wide.png")
    return Sample(**{**vars(sample), "image": tmp_path / "wide.png"})


def check_boxes(boxes: list[Box], labels: set[str], width: int, height: int) -> None:
    assert boxes
    for box in boxes:
        assert box.label in labels
        assert 0 < box.confidence <= 1
        # the centre is in the image and the size is in its pixels, not in those the model saw
        assert 0 <= box.x + box.width / 2 <= width and 0 <= box.y + box.height / 2 <= height
        assert 0 < box.width <= width and 0 < box.height <= height


def test_detector_reports_its_own_labels_in_pixels(detector: Path, reports: list[Sample], tmp_path: Path) -> None:
    localizer = open_localizer(f"detector:{detector}", threshold=0.0)
    assert localizer.query is None  # a detector with labels of its own is asked nothing
    (boxes,) = localizer.locate([wide(reports[0], tmp_path)])
    assert len(boxes) == 5
    check_boxes(boxes, {"mass", "fluid"}, 96, 48)


def test_zero_shot_detector_is_asked_the_query(zero_shot_detector: Path, reports: list[Sample], tmp_path: Path) -> None:
    localizer = open_localizer(f"detector:{zero_shot_detector}", query="disease", threshold=0.0)
    assert localizer.query == "disease"
    (boxes,) = localizer.locate([wide(reports[0], tmp_path)])
    check_boxes(boxes, {"disease"}, 96, 48)


def test_detections_below_the_threshold_are_left_out(detector: Path, reports: list[Sample]) -> None:
    everything = open_localizer(f"detector:{detector}", threshold=0.0).locate(reports[:1])[0]
    middle = sorted(box.confidence for box in everything)[2]
    kept = open_localizer(f"detector:{detector}", threshold=middle).locate(reports[:1])[0]
    assert kept == [box for box in everything if box.confidence > middle] and len(kept) < 5
    assert open_localizer(f"detector:{detector}", threshold=1.0).locate(reports[:2]) == [[], []]


def test_detector_is_deterministic(detector: Path, reports: list[Sample]) -> None:
    first, again = (open_localizer(f"detector:{detector}", threshold=0.0).locate(reports[:2]) for _ in range(2))
    assert first == again


def test_model_that_detects_nothing_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"bert' is a 'bert' model, not a detector"):
        open_localizer(f"detector:{tmp_path / 'bert'}")


def test_vision_language_model_is_refused_as_a_detector(tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"tiny' is a '.+' model, not a detector: it gives no boxes"):
        open_localizer(f"detector:{tiny_model}")


def test_missing_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The detector .*nowhere' cannot be loaded"):
        open_localizer(f"detector:{tmp_path / 'nowhere'}")


def test_centre_is_the_middle_half_of_any_image(reports: list[Sample], tmp_path: Path) -> None:
    localizer = open_localizer("standin:centre")
    assert isinstance(localizer, CentreStandIn)
    assert (localizer.name, localizer.query) == ("standin:centre", None)
    found = localizer.locate([reports[0], wide(reports[1], tmp_path)])
    quarter = phantom.SIZE / 4
    assert found == [
        [Box("centre", quarter, quarter, 2 * quarter, 2 * quarter, 0.5)],
        [Box("centre", 24, 12, 48, 24, 0.5)],
    ]


def test_centre_of_a_turned_photograph_is_that_of_the_upright_one(reports: list[Sample], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (96, 48)).save(tmp_path / "turned.png", exif=exif)
    sample = Sample(**{**vars(reports[0]), "image": tmp_path / "turned.png"})
    assert CentreStandIn().locate([sample]) == [[Box("centre", 12, 24, 24, 48, 0.5)]]
