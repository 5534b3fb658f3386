"""Saved embeddings of a retrieval test: one safetensors file with everything that scoring needs.

Shape letters: I images, K texts, D joint embedding.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.formats.caption_groups import by_image
from smartclip_det.formats.captions import read_caption_records
from smartclip_det.utils.safe_load import safe_safetensors_load

_FORMAT = "smartclip_det.retrieval/1"


@dataclass
class RetrievalVectors:
    """Embeddings of a set of images and texts.

    Attributes:
        images: ``[I, D]``, not normalised.
        texts: ``[K, D]``.
        owner: ``[K]`` index of each text's image.
        masks: ``[K, D]`` hard masks, or None.
        image_ids: I ids.
        sentences: K texts; mask controls are seeded by them.
        stamp: facts of the protocol and the model.
    """

    images: Tensor
    texts: Tensor
    owner: Tensor
    masks: Tensor | None
    image_ids: list[str]
    sentences: list[str]
    stamp: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write ``image_embeds``, ``text_embeds``, ``image_of_text`` and, with a mask network, ``text_masks``."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"image_embeds": self.images, "text_embeds": self.texts, "image_of_text": self.owner}
        if self.masks is not None:
            tensors["text_masks"] = self.masks.to(torch.uint8)
        header = {
            "format": _FORMAT,
            "image_ids": json.dumps(self.image_ids),
            "texts": json.dumps(self.sentences),
            "stamp": json.dumps(self.stamp, default=str),
        }
        part = path.with_name(path.name + ".part")
        save_file({k: v.contiguous() for k, v in tensors.items()}, str(part), metadata=header)
        part.replace(path)
        return path

    @staticmethod
    def load(path: str | Path) -> RetrievalVectors:
        """Read a file; another format or mismatched shapes are a :class:`UserError`."""
        tensors, header = safe_safetensors_load(path)
        missing = {"image_embeds", "text_embeds", "image_of_text"} - set(tensors)
        if missing:
            raise UserError(f"{path} is not a retrieval vectors file: it lacks {', '.join(sorted(missing))}.")
        images, texts, owner = tensors["image_embeds"], tensors["text_embeds"], tensors["image_of_text"].long()
        masks = tensors.get("text_masks")
        if images.dim() != 2 or texts.dim() != 2 or images.shape[1] != texts.shape[1] or len(owner) != len(texts):
            shapes = ", ".join(
                f"{k} {list(tensors[k].shape)}" for k in ("image_embeds", "text_embeds", "image_of_text")
            )
            raise UserError(f"{path}: shapes do not match: {shapes}.")
        if len(owner) and (int(owner.min()) < 0 or int(owner.max()) >= len(images)):
            raise UserError(f"{path}: image_of_text has indices outside the {len(images)} images.")
        ids = json.loads(header.get("image_ids", "null")) or [str(n) for n in range(len(images))]
        sentences = json.loads(header.get("texts", "null")) or [str(n) for n in range(len(texts))]
        return RetrievalVectors(
            images,
            texts,
            owner,
            None if masks is None else masks.float(),
            ids,
            sentences,
            json.loads(header.get("stamp", "{}")),
        )

    def check_against(self, ann: str | Path) -> None:
        """Raise an error if a caption file lacks images or texts of the vectors (extra texts per image are fine)."""
        images = by_image(read_caption_records(ann)[0])
        which = str(self.stamp.get("texts_taken", "all"))
        joined = set(self.stamp.get("joined_ids", ()))
        named = {i.id: len(i.texts(which)) for i in images if i.texts(which)}
        unknown = [i for i in self.image_ids if i not in named]
        if unknown:
            raise UserError(
                f"{len(unknown)} of {len(self.image_ids)} images of the vectors are not in {ann}, e.g. {unknown[0]}."
            )
        missing = set(named) - set(self.image_ids) - joined
        if missing:
            raise UserError(f"{len(missing)} of {len(named)} images of {ann} have no vectors.")
        own = Counter(self.image_ids[i] for i in self.owner.tolist())
        fewer = [] if joined else [i for i in named if own[i] > named[i]]
        if fewer:
            raise UserError(
                f"{len(fewer)} images have more texts in the vectors than in {ann}, e.g. {fewer[0]}: "
                f"{own[fewer[0]]} and {named[fewer[0]]}."
            )
