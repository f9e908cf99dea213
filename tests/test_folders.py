"""The user's data as folders of images: settings, labels, and every way in which they may be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from feeds import (
    F32,
    IMAGE,
    IMAGENETTE,
    ROWS,
    U8,
    everything,
    formula,
    paint,
    refused,
)
from PIL import Image

from onnx_amc.errors import DataError
from onnx_amc.run.data import InputSpec, load


def album(root: Path, counts: Mapping[str, int], size: tuple[int, int] = (6, 4)) -> np.ndarray:
    """A folder with a sub-folder per class; the pixels in the order of the names."""
    names = [root / name / f"{i:02}.png" for name, n in counts.items() for i in range(n)]
    return np.stack([paint(path, seed, size) for seed, path in enumerate(names)])


def settings(folder: Path, **values: object) -> None:
    (folder / "preprocess.json").write_text(json.dumps(values))


def test_folder_with_a_sub_folder_per_class(tmp_path: Path) -> None:
    x = album(tmp_path, {"ant": 4, "bee": 5})
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    data = load(tmp_path, IMAGE, classes=2)
    np.testing.assert_array_equal(data.labels, [0] * 4 + [1] * 5)
    assert data.arrays["input"].dtype == np.uint8
    np.testing.assert_allclose(everything(data)["input"], np.moveaxis(x / 255, 3, 1), rtol=0, atol=1e-6)


def test_folder_labels_by_classes_json_and_settings_from_above(tmp_path: Path) -> None:
    x = album(tmp_path / "search", {"ant": 4, "bee": 5})
    (tmp_path / "classes.json").write_text(json.dumps({"bee": {"index": 7, "name": "a bee"}, "ant": 9, "cat": 1}))
    settings(tmp_path, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], layout="NCHW", color="RGB", size=[6, 4], crop=None)
    data = load(str(tmp_path / "search"), IMAGE, classes=10)
    np.testing.assert_array_equal(data.labels, [9] * 4 + [7] * 5)
    z = {"x": x, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    np.testing.assert_allclose(everything(data)["input"], formula(z), rtol=0, atol=2e-6)
    settings(tmp_path / "search", scale=1, mean=100, std=None)
    near = everything(load(tmp_path / "search", IMAGE))["input"]
    np.testing.assert_array_equal(near, np.moveaxis(x.astype(np.float32) - 100, 3, 1))
    refused(tmp_path / "search", IMAGE, "label 9 at index 0", "classes.json", classes=9)


def test_images_without_sub_folders_have_no_labels(tmp_path: Path) -> None:
    for i in range(9):
        paint(tmp_path / f"{i}.png", i)
    data = load(tmp_path, IMAGE)
    assert data.labels is None
    assert len(data) == 9


def test_colours_and_layout(tmp_path: Path) -> None:
    x = album(tmp_path, {"a": 8})
    settings(tmp_path, color="BGR", layout="NHWC", scale=1)
    last = [InputSpec("i", F32, (None, 6, 4, 3))]
    np.testing.assert_array_equal(everything(load(tmp_path, last))["i"], x[..., ::-1])
    settings(tmp_path, scale=1)
    np.testing.assert_array_equal(everything(load(tmp_path, last))["i"], x)  # the layout is the model's
    grey = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in x])
    for given in ({"color": "L"}, {}):
        settings(tmp_path, scale=1, **given)
        fed = everything(load(tmp_path, [InputSpec("i", F32, (None, 1, 6, 4))]))["i"]
        np.testing.assert_array_equal(fed[:, 0], grey)


def test_grey_images_for_a_model_of_three_channels(tmp_path: Path) -> None:
    grey = np.stack([paint(tmp_path / f"{i}.png", i, mode="L") for i in range(8)])
    fed = everything(load(tmp_path, IMAGE))["input"]
    np.testing.assert_allclose(fed, np.repeat(grey[:, None] / 255, 3, axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "resized"),
    [
        ({"size": 8, "crop": 6}, (8, 16)),
        ({"size": [7, 9], "crop": [6, 6]}, (7, 9)),
        ({"size": 6}, (6, 12)),
        ({"size": [6, 6]}, (6, 6)),
        ({"crop": 6}, (20, 40)),
        ({}, (6, 12)),
    ],
)
def test_resize_then_crop(tmp_path: Path, given: dict[str, object], resized: tuple[int, int]) -> None:
    """A square cut out of 20 x 40 images, across and upright, held against PIL by hand."""
    for i in range(8):
        paint(tmp_path / "a" / f"{i}.png", i, (20, 40) if i < 4 else (40, 20))
    settings(tmp_path, scale=1, **given)
    fed = everything(load(tmp_path, [InputSpec("i", F32, (None, 3, 6, 6))]))["i"].transpose(0, 2, 3, 1)
    for i, got in enumerate(fed):
        with Image.open(tmp_path / "a" / f"{i}.png") as image:
            h, w = resized if i < 4 or isinstance(given.get("size"), list) else resized[::-1]
            small = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR))
        top, left = round((h - 6) / 2), round((w - 6) / 2)
        np.testing.assert_array_equal(got, small[top : top + 6, left : left + 6])


def test_images_of_the_right_size_are_left_alone(tmp_path: Path) -> None:
    x = album(tmp_path, {"a": 8}, (6, 6))
    settings(tmp_path, size=8, crop=6, scale=1)
    fed = everything(load(tmp_path, [InputSpec("i", F32, (None, 3, 6, 6))]))["i"]
    np.testing.assert_array_equal(fed, x.transpose(0, 3, 1, 2))


def test_images_of_different_sizes_for_a_model_of_any_size(tmp_path: Path) -> None:
    free = [InputSpec("i", F32, (None, 3, None, None))]
    album(tmp_path, {"a": 8})
    assert everything(load(tmp_path, free))["i"].shape == (8, 3, 6, 4)
    paint(tmp_path / "a" / "99.png", 0, (5, 4))
    refused(tmp_path, free, "99.png", "(5, 4, 3)", "(6, 4, 3)", '"size"')


def test_settings_that_do_not_fit_the_model(tmp_path: Path) -> None:
    album(tmp_path, {"a": 8})
    settings(tmp_path, size=[4, 4])
    refused(tmp_path, IMAGE, "the images", "(8, 3, 4, 4)", "(N, 3, 6, 4)", "preprocess.json")
    settings(tmp_path, size=[4, 4], crop=[6, 5])
    refused(tmp_path, IMAGE, "00.png", "4 x 4", "crop of 6 x 5")
    settings(tmp_path, size=[6, 4], crop=[6, 5])
    refused(tmp_path, IMAGE, "00.png", "6 x 4", "crop of 6 x 5")
    refused(tmp_path, ROWS, "one input of four axes", "'a' (N, 5)")
    refused(tmp_path, [*IMAGE, *ROWS], "'input' (N, 3, 6, 4), 'a' (N, 5)")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sice": 3}, ("unknown setting 'sice'", "color, crop, layout")),
        ({"size": "big"}, ("'size' is 'big'",)),
        ({"size": [1, 2, 3]}, ("'size' is [1, 2, 3]", "[HEIGHT, WIDTH]")),
        ({"crop": 0}, ("'crop' is 0",)),
        ({"crop": True}, ("'crop' is True",)),
        ({"color": "CMYK"}, ("'color' is 'CMYK'", "RGB, BGR, L")),
        ({"layout": "CHW"}, ("'layout' is 'CHW'", "NCHW, NHWC")),
        ({"scale": 0}, ("'scale' is 0",)),
        ({"scale": "1/255"}, ("'scale' is '1/255'", "0.0039")),
        ({"mean": [1, 2]}, ("'mean' has 2 values", "3 channels")),
        ({"std": [1, 1, -1]}, ("'std' is [1, 1, -1]", "positive")),
        ({"mean": {}}, ("'mean' is {}",)),
    ],
)
def test_wrong_settings(tmp_path: Path, given: dict[str, object], words: tuple[str, ...]) -> None:
    album(tmp_path, {"a": 8})
    assert len(load(tmp_path, IMAGE)) == 8
    settings(tmp_path, **given)
    refused(tmp_path, IMAGE, "preprocess.json", *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("no JSON",)),
        ("[1]", ("holds a list",)),
        ("{}", ("'a' is not in it", '"a": {"index": LABEL')),
        ('{"a": {"name": "x"}}', ("no index", "'a'")),
        ('{"a": {"index": "1"}}', ("no index", "'a'")),
    ],
)
def test_wrong_classes_json(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    album(tmp_path, {"a": 8})
    (tmp_path / "classes.json").write_text(text)
    refused(tmp_path, IMAGE, "classes.json", *words)


@pytest.mark.parametrize("damage", [b"no image at all", None])
def test_broken_image(tmp_path: Path, damage: bytes | None) -> None:
    album(tmp_path, {"a": 8}, (64, 64))
    path = tmp_path / "a" / "03.png"
    path.write_bytes(damage or path.read_bytes()[:4000])
    refused(tmp_path, [InputSpec("i", F32, (None, 3, 64, 64))], "03.png", "cannot be decoded", "remove")


def test_no_images(tmp_path: Path) -> None:
    refused(tmp_path, IMAGE, "holds no images", str(tmp_path))
    album(tmp_path / "top", {"a": 8})
    (tmp_path / "top" / "b").mkdir()
    refused(tmp_path / "top", IMAGE, "class folder 'b' holds no images", "remove the empty folder")
    refused(tmp_path, IMAGE, "'top' holds no images, only folders", f"give {tmp_path / 'top'} itself")
    (tmp_path / "classes.json").write_text("{}")
    refused(tmp_path, IMAGE, "'top' holds no images, only folders")
    (tmp_path / "classes.json").unlink()
    (tmp_path / "top" / "b").rmdir()
    assert len(load(tmp_path / "top", IMAGE)) == 8
    paint(tmp_path / "top" / "stray.png", 0)
    refused(tmp_path / "top", IMAGE, "1 images, such as stray.png", "beside the 1 class folders")


def test_images_for_a_model_of_uint8_input(tmp_path: Path) -> None:
    x = album(tmp_path, {"a": 8})
    spec = [InputSpec("i", U8, (None, 6, 4, 3))]
    np.testing.assert_array_equal(everything(load(tmp_path, spec))["i"], x)
    settings(tmp_path, scale=1)
    refused(tmp_path, spec, "scale given", "uint8 pixels as they are")
    refused(tmp_path, [InputSpec("i", np.dtype(bool), (None, 6, 4, 3))], "takes bool")


def test_imagenette(tmp_path: Path) -> None:
    if not IMAGENETTE.is_dir():
        pytest.skip(f"no {IMAGENETTE} here")
    for name in ("classes.json", "preprocess.json"):
        shutil.copyfile(IMAGENETTE / name, tmp_path / name)
    for folder in sorted((IMAGENETTE / "search").iterdir())[:3]:
        (tmp_path / "search" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:4]:
            shutil.copyfile(file, tmp_path / "search" / folder.name / file.name)
    data = load(tmp_path / "search", [InputSpec("input", F32, (None, 3, 224, 224))], classes=1000)
    np.testing.assert_array_equal(data.labels, [0] * 4 + [217] * 4 + [482] * 4)
    fed = everything(data)["input"]
    assert fed.shape == (12, 3, 224, 224)
    np.testing.assert_allclose(
        fed, np.moveaxis(data.arrays["input"][np.arange(len(data))] / 127.5 - 1, 3, 1), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused(mode: str, tmp_path: Path) -> None:
    ramp = Image.fromarray(np.linspace(0, 65_535, 64).reshape(8, 8).astype(np.uint16)).convert(mode)
    ramp.save(tmp_path / ("a.png" if mode == "I;16" else "a.tif"))
    with pytest.raises(DataError, match="more than 8 bits"):
        load(tmp_path, [InputSpec("x", np.dtype(np.float32), (None, 1, 8, 8))])
