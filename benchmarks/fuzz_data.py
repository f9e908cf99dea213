"""Data files for `fuzz.py` that are damaged, odd or not what they say."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_models import NUMBERS, ROOT, Draw, chance, flipped, pick


def odd_data(folder: Path, network: str, rng: Draw) -> Path:
    """What is given as the data of a shipped network: a mutation of its own file, or a folder of images."""
    path = folder / "d.npz"
    if chance(rng, 0.25):
        return pictures(folder, rng)
    match int(rng.integers(5)):
        case 0:
            path.write_bytes(flipped((ROOT / "models" / f"{network}.npz").read_bytes(), rng))
        case 1:
            odd_header(path, rng)
        case 2 if chance(rng, 0.2):
            path.write_bytes(pickle.dumps([1, 2, 3]))
        case _:
            arrays = dict(np.load(ROOT / "models" / f"{network}.npz"))
            name = pick(rng, arrays)
            arrays[name] = odd_array(arrays[name], rng)
            if chance(rng, 0.2):
                del arrays[pick(rng, arrays)]
            if chance(rng, 0.2):
                arrays[pick(rng, ("labels", "y", "input", "a/b", "../x"))] = odd_array(np.arange(400), rng)
            with warnings.catch_warnings(action="ignore"):
                (np.savez_compressed if chance(rng, 0.5) else np.savez)(path, **arrays)
    return path


def odd_array(value: np.ndarray, rng: Draw) -> np.ndarray:  # noqa: PLR0911  a list of odd things
    """Another type, shape or value."""
    match int(rng.integers(7)):
        case 0:
            return value.astype(pick(rng, ("f2", "f4", "f8", "i1", "i8", "u1", "?", "c8", "U4", "S3", "O", "M8[s]")))
        case 1:
            return value.reshape(-1)[: int(rng.integers(value.size + 1))]
        case 2:
            return value[..., None]
        case 3:
            return np.asarray(pick(rng, NUMBERS))
        case 4:
            return value[: int(rng.integers(len(value) + 1))] if value.ndim else value
        case 5:
            return np.zeros(value.shape, [("a", "f4"), ("b", "O" if chance(rng, 0.3) else "i4")])
        case _:
            wide = value.astype(np.float64)
            if wide.size:
                wide.flat[int(rng.integers(wide.size))] = pick(rng, (np.nan, np.inf, -1.0, 1e300))
            return wide


def odd_header(path: Path, rng: Draw) -> None:
    """An array whose header says something else than there is, compressed."""
    shape = [pick(rng, NUMBERS) for _ in range(int(rng.integers(4)))]
    descr = pick(rng, ("<f4", "|u1", "|O", "<U9", "nonsense", [("a", "<f4")], "<f4" * 99))
    text = pick(
        rng,
        (
            repr({"descr": descr, "fortran_order": False, "shape": tuple(shape)}),
            "(" * 400,
            "{'a':",
            "\n  1\n 2L",
            "-" * 9000,
        ),
    )
    head = text.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w", force_zip64=True) as member:
        version = pick(rng, (b"\1\0", b"\2\0", b"\3\0", b"\7\7"))
        member.write(b"\x93NUMPY" + version + len(head).to_bytes(2 if version[0] == 1 else 4, "little") + head)
        for _ in range(int(pick(rng, (0, 1, 8, 2000 if chance(rng, 0.1) else 2)))):
            member.write(bytes(2**20))


def pictures(folder: Path, rng: Draw) -> Path:
    """A folder of images, some broken, with settings that are odd."""
    from PIL import Image  # noqa: PLC0415

    place = folder / "images"
    for name in ("0", "1", "<b>"):
        (place / name).mkdir(parents=True)
        for i in range(4):
            side = pick(rng, (8, 8, 8, 1, 30, 3000))
            picture = io.BytesIO()
            Image.fromarray(np.zeros((side, 8), np.uint8)).save(
                picture, pick(rng, ("PNG", "BMP", "GIF", "TIFF", "JPEG"))
            )
            data = flipped(picture.getvalue(), rng) if chance(rng, 0.1) else picture.getvalue()
            (place / name / f"{i}.png").write_bytes(data)
    values: tuple[Any, ...] = (
        *NUMBERS,
        None,
        True,
        "x",
        [],
        [8],
        [8, 8],
        [-1, 8],
        {},
        1e400,
        1e-400,
        "RGB",
        "L",
        "NCHW",
        [0.5, "a"],
    )
    keys = ("size", "crop", "color", "layout", "scale", "mean", "std", "more")
    odd = {key: pick(rng, values) for key in rng.choice(keys, int(rng.integers(4)), replace=False)}
    odd = odd if chance(rng, 0.9) else pick(rng, values)
    text = json.dumps(odd)
    (place / "preprocess.json").write_bytes(flipped(text.encode(), rng) if chance(rng, 0.2) else text.encode())
    if chance(rng, 0.3):
        classes = {
            name: pick(rng, [{"index": v, "name": v} for v in values] + list(values)) for name in ("0", "1", "<b>")
        }
        (place / "classes.json").write_text(json.dumps(classes))
    return place
