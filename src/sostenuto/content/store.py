"""Content of items as it was built: opened memory-mapped, read by row or handed to a ranker as tensors."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.data.content_folder import FOLDER, LAST_LAYER_FILE, read_content_manifest
from sostenuto.schema.errors import DataError
from sostenuto.schema.features import CONTENT_KINDS, ContentField

if TYPE_CHECKING:
    from torch import Tensor

    from sostenuto.data.prepared import PreparedData
    from sostenuto.schema.content import ItemContent

Array = npt.NDArray[Any]


class ContentStore:
    """One `content/<name>/` of a prepared folder. Nothing is read before it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").is_file():
            raise DataError(
                f"content must hold manifest.json, {self.folder} does not; build it with `sostenuto content build`"
            )
        self.manifest = read_content_manifest(self.folder)

    @property
    def sizes(self) -> ContentField:
        """Widths, and which kinds of content there are."""
        return self.manifest.sizes

    @property
    def nbytes(self) -> int:
        """Bytes on disk, and in memory once every page was read."""
        return self.manifest.bytes

    def array(self, name: str) -> Array:
        """Open one array memory-mapped; writing into it changes memory, never the file."""
        path = self.folder / f"{name}.npy"
        try:
            found: Array = np.load(path, mmap_mode="c")
        except (OSError, ValueError) as error:
            raise DataError(f"content must be whole, {path} cannot be read ({error}); build it again") from error
        return found

    @cached_property
    def vectors(self) -> Array:
        """(num_items, W) float16, or int8 codes."""
        found = self.array("vectors")
        wanted = (self.manifest.num_items, self.sizes.vector_dim)
        if found.shape != wanted or str(found.dtype) != self.manifest.dtype:
            raise DataError(
                f"vectors.npy must be {wanted} of {self.manifest.dtype} as the manifest says, {self.folder} holds "
                f"{found.shape} of {found.dtype}; build the content again"
            )
        return found

    @cached_property
    def scale(self) -> Array | None:
        """(num_items,) float32 beside codes, else None."""
        return self.array("scale") if self.manifest.dtype == "int8" else None

    @cached_property
    def known(self) -> Array:
        """(num_items,) bool, the item has content."""
        return self.array("known")

    def rows(self, index: Array | slice) -> Array:
        """Return (N, W) float32 vectors of (N,) item indices or a range; zero where an item has no content."""
        rows = np.asarray(self.vectors[index], np.float32)
        return rows if self.scale is None else rows * self.scale[index][:, None]

    def tensor(self, dtype: Any = None) -> Tensor:
        """Return all (num_items, W) vectors, dequantised; float32 unless another floating type is named."""
        import torch

        out = torch.empty(self.vectors.shape, dtype=dtype or torch.float32)
        for start in range(0, len(out), 65_536):  # bounds what lies in memory twice
            piece = np.arange(start, min(start + 65_536, len(out)))
            out[start : start + len(piece)] = torch.from_numpy(self.rows(piece))
        return out

    def content(self, kinds: Collection[str] = CONTENT_KINDS) -> ItemContent:
        """Return what a ranker is handed; parts that belong to none of `kinds` stay out."""
        import torch

        from sostenuto.schema.content import ItemContent

        wanted = self.sizes.kinds & set(kinds)
        names = ["vectors", "known", *(["scale"] if self.manifest.dtype == "int8" else [])]
        if wanted & {"tokens", "states"}:
            names += ["tokens", "token_vectors", "text_row"]
        last_layer: dict[str, Tensor] = {}
        if "states" in wanted:
            from safetensors.torch import load_file

            names.append("states")
            last_layer = load_file(self.folder / LAST_LAYER_FILE)
        arrays = {name: self.vectors if name == "vectors" else self.array(name) for name in names}
        return ItemContent(
            name=self.sizes.name,
            arrays_hash=self.manifest.arrays_hash,
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            last_layer=last_layer,
            heads=self.manifest.heads if last_layer else 0,
        )


def open_content(
    data: PreparedData, wanted: Collection[ContentField], kinds: Collection[str] = CONTENT_KINDS
) -> dict[str, ItemContent]:
    """Open the content that a ranker was built for, by name; tensors are memory-mapped.

    Args:
        data:   prepared folder.
        wanted: `FeatureSpec.content` of the ranker.
        kinds:  what it reads (`ModelEntry.content`).

    Raises:
        DataError: some content is not there, or has other sizes.
    """
    there = data.content()
    opened = {}
    for sizes in wanted:
        folder = data.folder / FOLDER / sizes.name
        if sizes.name not in there:
            raise DataError(
                f"content {sizes.name!r} must be in the prepared folder, {folder} is not there; "
                f"build it with `sostenuto content build {data.folder} --name {sizes.name}`"
            )
        store = ContentStore(folder)
        if store.sizes != sizes:
            raise DataError(
                f"content {sizes.name!r} must have the sizes that the ranker was built with ({sizes}), {folder} has "
                f"{store.sizes}; build it as it was, or train anew"
            )
        opened[sizes.name] = store.content(kinds)
    return opened


__all__ = ["ContentStore", "open_content"]
