"""The test files of pydicom and `pydicom-data` (both MIT): read where they are installed, never copied."""

from __future__ import annotations

import functools
import importlib.util
from itertools import product
from pathlib import Path
from string import ascii_uppercase, digits

import numpy as np
import pydicom
import pydicom.data
import pytest

from mmedpo.data.dicom import is_dicom
from mmedpo.data.images import UnusableImage, open_rgb

SHIPPED = Path(pydicom.data.__file__).parent
MORE = importlib.util.find_spec("data_store")  # the module of pydicom-data
FOLDERS = {
    "test_files": SHIPPED / "test_files",
    "dicomdirtests": SHIPPED / "test_files/dicomdirtests",
    "charset_files": SHIPPED / "charset_files",
    "palettes": SHIPPED / "palettes",
    "pydicom-data": Path(MORE.origin or "").parent / "data" if MORE else None,
}
REFUSED = {  # files by the words of why; all others are pictures
    "test_files": {
        "is not a picture (RT Plan Storage)": "rtplan rtplan_truncated",
        "is not a picture (RT Ion Plan Storage)": "ExplVR_BigEndNoMeta ExplVR_LitEndNoMeta",
        "is not a picture (RT Structure Set Storage)": "rtstruct",
        "is not a picture (RT Dose Storage)": "badVR rtdose rtdose_1frame rtdose_expb rtdose_expb_1frame rtdose_rle "
        "rtdose_rle_1frame",
        "is not a picture (Segmentation Storage)": "liver_1frame liver_expb_1frame",
        "is not a picture (Basic Text SR Storage)": "reportsi reportsi_with_empty_number_tags",
        "is not a picture (Comprehensive SR Storage)": "test-SR",
        "is not a picture (12-lead ECG Waveform Storage)": "waveform_ecg",
        "has no pixels": "UN_sequence empty_charset_LEI meta_missing_tsyntax nested_priv_SQ "
        "no_meta_group_length priv_SQ",
        "frames; export the one": "SC_rgb_rle_16bit_2frame SC_rgb_rle_2frame SC_rgb_rle_32bit_2frame "
        "examples_ybr_color",
        "do not fit its header or are damaged": "MR_truncated",
        "pixels have another size": "JPEG2000-embedded-sequence-delimiter",
        "pylibjpeg and pylibjpeg-libjpeg (GPL-3.0)": "JPEG-lossy JPGExtended",
        "python-gdcm (Apache-2.0)": "SC_rgb_jpeg_gdcm",
        "pyjpegls (MIT)": "JPEGLSNearLossless_08 JPEGLSNearLossless_16 MR_small_jpeg_ls_lossless "
        "SC_rgb_jls_lossy_line SC_rgb_jls_lossy_sample",
    },
    "dicomdirtests": {
        "is not a picture (Media Storage Directory Storage)": "DICOMDIR DICOMDIR-bigEnd DICOMDIR-empty "
        "DICOMDIR-implicit DICOMDIR-nooffset DICOMDIR-nopatient DICOMDIR-reordered",
        "has no pixels": " ".join(
            f"IM0000{a}{b}" for a, b in product("01", digits + ascii_uppercase) if f"{a}{b}" <= "1D"
        ),
        "one colour everywhere": "17166 17196",  # all above the window
    },
    "charset_files": {
        "has no pixels": "chrJapMulti chrJapMultiExplicitIR6 chrKoreanMulti chrSQEncoding chrSQEncoding1",
    },
    "palettes": {
        "is not a picture (Color Palette Storage)": "fall hotiron hotmetalblue pet pet20step spring summer winter",
    },
    "pydicom-data": {
        "is not a picture (Segmentation Storage)": "liver liver_expb",
        "has no pixels": "emri_small_jpeg_2k_lossless_too_short",
        "frames; export the one": "OBXXXX1A_2frame OBXXXX1A_expb_2frame OBXXXX1A_rle_2frame SC_rgb_16bit_2frame "
        "SC_rgb_2frame SC_rgb_32bit_2frame SC_rgb_expb_16bit_2frame SC_rgb_expb_2frame SC_rgb_expb_32bit_2frame "
        "color3d_jpeg_baseline eCT_Supplemental emri_small emri_small_RLE emri_small_big_endian "
        "emri_small_jpeg_2k_lossless emri_small_jpeg_ls_lossless",
        "python-gdcm (Apache-2.0)": "JPEG-LL JPGLosslessP14SV1_1s_1f_8b bad_sequence",
    },
}  # fmt: skip
LICENSED = ("pylibjpeg and pylibjpeg-libjpeg (GPL-3.0)", "python-gdcm (Apache-2.0)", "pyjpegls (MIT)")
EXACT = {  # compressed lossless, other byte order, encoding, depth or layout: the same pixels
    "MR_small": "MR_small_RLE MR_small_bigendian MR_small_expb MR_small_implicit MR_small_jp2klossless "
    "MR_small_jpeg_ls_lossless MR_small_padded",
    "SC_rgb_rle": "SC_rgb SC_rgb_16bit SC_rgb_32bit SC_rgb_expb SC_rgb_expb_16bit SC_rgb_expb_32bit SC_rgb_gdcm_KY "
    "SC_rgb_gdcm2k_uncompressed SC_rgb_jpeg_gdcm SC_rgb_rle_16bit SC_rgb_rle_32bit",
    "SC_rgb_small_odd": "SC_rgb_small_odd_big_endian",
    "693_UNCR": "693_J2KR", "MR2_UNCR": "MR2_J2KR", "RG1_UNCR": "RG1_J2KR", "RG3_UNCR": "RG3_J2KR",
    "US1_UNCR": "US1_J2KR examples_jpeg2k",
    "OBXXXX1A": "OBXXXX1A_expb OBXXXX1A_rle", "gdcm-US-ALOKA-16": "gdcm-US-ALOKA-16_big", "color-pl": "color-px",
    # Lossy ones, decompressed by another program.
    "693_UNCI": "693_J2KI", "MR2_UNCI": "MR2_J2KI", "RG1_UNCI": "RG1_J2KI", "RG3_UNCI": "RG3_J2KI",
    "US1_UNCI": "US1_J2KI", "JPEG2000_UNC": "JPEG2000",
    "SC_rgb_jpeg_dcmd": "SC_rgb_jpeg SC_jpeg_no_color_transform",
    "SC_rgb_jpeg_app14_dcmd": "SC_jpeg_no_color_transform_2",
    **{f"SC_rgb_dcmtk_eb{kind.replace('+', '')}_dcmd": f"SC_rgb_dcmtk_+eb{kind}"
       for kind in ("+cr", "+cy+n1", "+cy+n2", "+cy+np", "+cy+s2", "+cy+s4")},
}  # fmt: skip
LOSSY = {  # as above, with the most that a channel may differ by and on average: chroma is stored coarser
    "SC_rgb_rle": [("SC_rgb_jls_lossy_line", 2, 1.0), ("SC_rgb_jls_lossy_sample", 2, 1.0),
                   ("SC_rgb_jpeg_dcmtk", 6, 1.0), ("SC_ybr_full_uncompressed", 6, 1.0),
                   ("SC_ybr_full_422_uncompressed", 6, 1.0), ("SC_rgb_jpeg_lossy_gdcm", 80, 3.0)],
    "SC_rgb_small_odd": [("SC_rgb_small_odd_jpeg", 4, 3.0)],
}  # fmt: skip
TWINS = [
    *((one, other, 0, 0.0) for one, others in EXACT.items() for other in others.split()),
    *((one, *other) for one, others in LOSSY.items() for other in others),
]


def files(folder: str) -> list[Path]:
    home = FOLDERS[folder]
    if home is None:
        pytest.skip("pydicom-data is not installed")
    nested = folder == "dicomdirtests"
    found = sorted(path for path in (home.rglob("*") if nested else home.iterdir()) if path.is_file())
    return [path for path in found if is_dicom(path.read_bytes()[:132])]


@functools.cache
def shown(path: Path) -> np.ndarray | str:
    """The picture, or the fault's sentence as a row of a source has it."""
    try:
        return np.asarray(open_rgb(path, allow_flat=False))
    except UnusableImage as error:
        return error.sentence


def find(name: str) -> Path:
    path = FOLDERS["test_files"] / f"{name}.dcm"  # type: ignore[operator]
    more = FOLDERS["pydicom-data"]
    if not path.exists() and more is None:
        pytest.skip("pydicom-data is not installed")
    return path if path.exists() else more / f"{name}.dcm"  # type: ignore[operator]


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_file_is_a_picture_or_says_in_one_sentence_why_not(
    folder: str,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = {name: why for why, names in REFUSED[folder].items() for name in names.split()}
    found = files(folder)
    for path in found:
        picture, why = shown(path), expected.get(path.stem, "")
        if isinstance(picture, str):
            assert why and why in picture and "\n" not in picture and len(picture) < 220, (path.name, picture)
        else:
            assert not why or why in LICENSED, path.name  # a package that decodes it may be installed
    assert {path.stem for path in found} >= expected.keys()
    assert capfd.readouterr() == ("", "") and not recwarn.list and not caplog.records


@pytest.mark.parametrize(("first", "other", "most", "mean"), TWINS)
def test_twins_show_the_same_picture(first: str, other: str, most: int, mean: float) -> None:
    one, two = shown(find(first)), shown(find(other))
    assert not isinstance(one, str)
    if isinstance(two, str) and two.startswith("no installed package decodes"):
        pytest.skip(two)
    assert not isinstance(two, str), two
    apart = np.abs(one.astype(int) - two)
    assert apart.max() <= most and apart.mean() <= mean


@pytest.mark.parametrize("folder", ["test_files", "pydicom-data"])
def test_greys_and_palettes_are_those_of_pydicoms_own_functions(folder: str) -> None:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    compared = 0
    for path in files(folder):
        picture = shown(path)
        if isinstance(picture, str):
            continue
        header = pydicom.dcmread(path, force=True)
        kind = header.PhotometricInterpretation
        # pydicom swaps the bytes of palettes in big-endian files. One file names no transfer syntax.
        if kind == "PALETTE COLOR" and header.original_encoding[1] and path.stem != "OT-PAL-8-face":
            right = apply_color_lut(header.pixel_array, header)
            assert np.array_equal(picture, right >> 8), path.name
        elif kind.startswith("MONOCHROME"):
            right = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header)
            # pydicom stretches a window to other ends; polarity and shape of the curve are compared.
            likeness = np.corrcoef(picture[..., 0].ravel(), right.ravel())[0, 1]
            assert likeness * (-1 if kind == "MONOCHROME1" else 1) > 0.999, (path.name, likeness)
        compared += 1
    assert compared > 10
