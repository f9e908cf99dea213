"""Make the three small digit classifiers that the tests and the tour compress, and Plain-20, which the paper's table needs.

Each is trained on 1000 of scikit-learn's 1797 bundled digits and written as NAME.onnx. NAME.npz beside it is what
`onnx-amc compress NAME.onnx` calibrates on and takes its reward from; digits_test.npz is only ever reported on. None of
these images was trained on: a network knows its training images by heart, and a reward measured on them hides the harm
that a cut does.

    python models/make.py [--out DIR]
    python models/make.py --cifar FOLDER [--out DIR]     only Plain-20, from FOLDER/train.zip and FOLDER/search.npz

Plain-20 is the 20-layer network without shortcuts of He et al. 2016 on CIFAR-10. An interrupted training goes on where it was.

Everything is seeded and runs on one thread: on one machine a second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows it by

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 0
N_TRAIN, N_SIDECAR = 1000, 500
EPOCHS, BATCH, PEAK_LR, WEIGHT_DECAY, LABEL_SMOOTHING = 60, 50, 4e-3, 1e-2, 0.1
OPSET = 17
CLASSES = 10
METADATA = {"license": "MIT"}
DIGITS = "Trained by models/make.py of onnx-amc on 1000 of the UCI optical digits bundled with scikit-learn."
CIFAR = "Trained by models/make.py of onnx-amc on 45000 images of CIFAR-10, as JPEG of quality 75."


@dataclass(frozen=True)
class Images:
    """Labelled images and how the network is to be fed with them.

    Args:
        x: uint8 (N,H,W,C), 0..255.
        y: int64 (N,), the class.
        mean: float32 (C,), of x/255 over the training images.
        std: float32 (C,), likewise.

    """

    x: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def normalised(self) -> np.ndarray:
        """Return what the network is fed: (x/255 - mean)/std as float32 (N,C,H,W)."""
        x = (self.x.astype(np.float32) / 255 - self.mean) / self.std
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))

    def save(self, path: Path) -> None:
        """Write as a sidecar, the form that `onnx-amc compress` finds by itself."""
        np.savez_compressed(path, x=self.x, y=self.y, mean=self.mean, std=self.std)


def digits() -> tuple[Images, Images, Images]:
    """Split the digits, stratified by class: to train on, to calibrate and reward on, to report on."""
    x, y = load_digits(return_X_y=True)
    x = np.rint(x.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    y = y.astype(np.int64)
    train, held_out = train_test_split(np.arange(len(y)), train_size=N_TRAIN, stratify=y, random_state=SEED)
    sidecar, test = train_test_split(held_out, train_size=N_SIDECAR, stratify=y[held_out], random_state=SEED)
    seen = x[train].astype(np.float64) / 255
    mean, std = (moment((0, 1, 2)).astype(np.float32) for moment in (seen.mean, seen.std))

    def part(rows: np.ndarray) -> Images:
        return Images(x[rows], y[rows], mean, std)

    return part(train), part(sidecar), part(test)


def conv(n_in: int, n_out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Pair a padded convolution with the BatchNormalization that the export folds into it."""
    convolution = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out))


def head(width: int) -> nn.Sequential:
    """Global average pooling and the classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class Residual(nn.Module):
    """The basic block of ResNet; its shortcut is a 1x1 convolution only where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(n_in, n_out, 3, stride), nn.ReLU(), conv(n_out, n_out, 3))
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Sequential() if same else conv(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of body plus shortcut."""
        return F.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Sequential:
    """Three stages, the second and third strided: channels tied across identity shortcuts and through 1x1 ones."""
    return nn.Sequential(
        *(conv(1, 16, 3), nn.ReLU()),
        *(Residual(16, 16), Residual(16, 16)),
        *(Residual(16, 32, stride=2), Residual(32, 32)),
        Residual(32, 48, stride=2),
        head(48),
    )


def separable(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """MobileNet's block: depthwise 3x3, then pointwise."""
    depthwise, pointwise = conv(n_in, n_in, 3, stride, groups=n_in), conv(n_in, n_out, 1)
    return nn.Sequential(depthwise, nn.ReLU6(), pointwise, nn.ReLU6())


def mobilenet() -> nn.Sequential:
    """Five separable blocks: a depthwise channel lives and dies with the one that feeds it."""
    return nn.Sequential(
        *(conv(1, 16, 3), nn.ReLU6()),
        *(separable(16, 32), separable(32, 48)),
        *(separable(48, 64, stride=2), separable(64, 64), separable(64, 96)),
        head(96),
    )


def mlp() -> nn.Sequential:
    """Four linear layers on the flattened image."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, 160), nn.ReLU()),
        *(nn.Linear(160, 96), nn.ReLU()),
        *(nn.Linear(96, 48), nn.ReLU()),
        nn.Linear(48, CLASSES),
    )


def plain20() -> nn.Sequential:
    """ResNet-20 for CIFAR-10 without its shortcuts: 19 convolutions of 3x3, in three stages of 16, 32 and 64 channels."""
    widths = [16] * 7 + [32] * 6 + [64] * 6
    layers: list[nn.Module] = []
    for n_in, n_out in zip([3, *widths], widths, strict=False):
        layers += [conv(n_in, n_out, 3, stride=1 if n_in in {3, n_out} else 2), nn.ReLU()]
    return nn.Sequential(*layers, head(64))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "digits_resnet": resnet,
    "digits_mobilenet": mobilenet,
    "digits_mlp": mlp,
}


def shifted(x: Tensor, background: float) -> Tensor:
    """Each image of x (N,1,H,W) moved by up to one pixel each way, at random."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), value=background)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(3, (2, len(x)))
    return windows[torch.arange(len(x)), :, down, right]


def train(network: nn.Module, images: Images) -> None:
    """Fit with AdamW on one cycle of the learning rate, and leave the network in evaluation mode."""
    x, y = torch.from_numpy(images.normalised()), torch.from_numpy(images.y)
    background = float(-images.mean[0] / images.std[0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(y)), BATCH):
            logits = network(shifted(x[chosen], background))
            loss = F.cross_entropy(logits, y[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    network.eval()


def cifar(folder: Path) -> tuple[Images, Images]:
    """The images of train.zip, and those of search.npz with the normalisation that both share."""
    with np.load(folder / "search.npz") as file:
        search = Images(file["x"], file["y"], file["mean"], file["std"])
    pixels, labels = [], []
    with zipfile.ZipFile(folder / "train.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        for name in names:
            pixels.append(np.asarray(Image.open(BytesIO(archive.read(name)))))
            labels.append(classes.index(name.split("/")[-2]))
    return Images(np.stack(pixels), np.array(labels), search.mean, search.std), search


def varied(images: Images, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Some of the images, each mirrored or not and moved by up to four pixels each way, normalised, as float32 (N,C,H,W)."""
    height, width = images.x.shape[1:3]
    padded = np.pad(images.x[chosen], ((0, 0), (4, 4), (4, 4), (0, 0)))
    moves, mirror = rng.integers(9, size=(len(chosen), 2)), rng.random(len(chosen)) < 0.5
    moved = np.stack([p[top : top + height, left : left + width] for p, (top, left) in zip(padded, moves, strict=True)])
    moved[mirror] = moved[mirror, :, ::-1]
    return torch.from_numpy(Images(moved, images.y[chosen], images.mean, images.std).normalised())


def train_cifar(network: nn.Module, images: Images, state: Path, epochs: int = 64, batch: int = 128) -> None:
    """Fit with SGD on one cycle of the learning rate; after each epoch all that is needed to go on is written down.

    On a GPU if there is one. Minutes there, two hours and a half on one core.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(images.y) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps, pct_start=0.2)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if state.exists():
        known = torch.load(state, map_location=device, weights_only=True)
        done = known.pop("epochs")
        for name, part in parts.items():
            part.load_state_dict(known[name])
    for epoch in range(done, epochs):
        network.train()
        rng, total = np.random.default_rng([SEED, epoch]), 0.0
        for chosen in np.split(rng.permutation(len(images.y))[: steps * batch], steps):
            x = varied(images, chosen, rng).to(device, memory_format=torch.channels_last)
            loss = F.cross_entropy(network(x), torch.from_numpy(images.y[chosen]).to(device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        torch.save({"epochs": epoch + 1, **{name: part.state_dict() for name, part in parts.items()}}, state)
        print(f"epoch {epoch + 1}/{epochs}, loss {total / steps:.4f}", flush=True)
    network.cpu().eval()


def export(network: nn.Module, example: Tensor, path: Path, provenance: str) -> None:
    """Write the trained network as an ONNX graph that takes any number of images."""
    with warnings.catch_warnings():
        # The tracing exporter is deprecated, but its graphs are the plain ones most users have.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, METADATA | {"provenance": provenance})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def accuracy(path: Path, images: Images) -> float:
    """Top-1 of the written file, as onnxruntime runs it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": images.normalised()})
    return float((logits.argmax(1) == images.y).mean())


def parameters(path: Path) -> int:
    """Elements of all float initializers."""
    tensors = onnx.load(path).graph.initializer
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type == onnx.TensorProto.FLOAT)


def make(name: str, out: Path, images: Images, sidecar: Images) -> Path:
    """Train one network and write NAME.onnx and NAME.npz."""
    torch.manual_seed(SEED)  # anew for each, so that no network depends on those made before it
    network, path = NETWORKS[name](), out / f"{name}.onnx"
    train(network, images)
    export(network, torch.from_numpy(images.normalised()[:1]), path, DIGITS)
    sidecar.save(path.with_suffix(".npz"))
    return path


def make_plain20(folder: Path, out: Path) -> int:
    """Train Plain-20, write it, and print what became of it."""
    torch.manual_seed(SEED)
    images, search = cifar(folder)
    network, path = plain20(), out / "plain20_cifar10.onnx"
    train_cifar(network, images, path.with_suffix(".state"))
    export(network, torch.from_numpy(search.normalised()[:1]), path, CIFAR)
    print(f"{path}: {accuracy(path, search):.2%} of search.npz, {parameters(path):,} parameters")
    return 0


def main() -> int:
    """Make all three and print what became of them."""
    parser = argparse.ArgumentParser(description="Make the digit classifiers, or Plain-20.")
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here, help="folder to write to (default: beside make.py)")
    parser.add_argument(
        "--cifar", type=Path, help="make Plain-20 instead, from the train.zip and search.npz in this folder"
    )
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    if args.cifar:
        return make_plain20(args.cifar, out)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    images, sidecar, test = digits()
    test.save(out / "digits_test.npz")
    print(f"{'network':<18}{'test':>8}{'sidecar':>9}{'params':>9}{'bytes':>9}")
    for name in NETWORKS:
        path = make(name, out, images, sidecar)
        scores = f"{accuracy(path, test):8.2%}{accuracy(path, sidecar):9.2%}"
        print(f"{name:<18}{scores}{parameters(path):9,}{path.stat().st_size:9,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
