"""CLIP's tokenizer and image statistics, and access to open_clip's models. Only this module imports open_clip.

Shape letters: K texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError

START, END = 49406, 49407
#: Copied here (a test compares them with open_clip's), so that training does not need open_clip for them.
IMAGE_MEAN, IMAGE_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
#: Identifies vocabulary and text cleaning in cache keys and stamps.
TOKENIZER_ID = "openai-clip-bpe-49408/ftfy-html2-lower"


@lru_cache(maxsize=1)
def _bpe() -> Any:
    import regex
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    # open_clip spells the special tokens differently from OpenAI, which matters for texts that contain them literally.
    for theirs, ours in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        tokenizer.encoder[ours] = tokenizer.encoder.pop(theirs)
        tokenizer.cache.pop(theirs)
        tokenizer.cache[ours] = ours
        pattern = tokenizer.pat.pattern.replace(theirs, ours.replace("|", r"\|"))
        tokenizer.pat = regex.compile(pattern, regex.IGNORECASE)
    return tokenizer


def image_statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in [0, 1] that OpenAI CLIP was trained with."""
    return IMAGE_MEAN, IMAGE_STD


def imagenet_names() -> list[str]:
    """Names of the 1,000 ImageNet classes from open_clip (two names occur twice)."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[str, ...]:
    """CLIP's 80 ImageNet templates from open_clip, each with ``{}`` for the class name."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def open_clip_names() -> list[str]:
    """Model names that open_clip knows."""
    from open_clip import list_models

    return list(list_models())


def open_clip_pretrained(name: str) -> dict[str, dict[str, Any]]:
    """open_clip's table of pretrained weights for a model, by tag; ``timm``: whether its image tower is timm's."""
    from open_clip import get_model_config, get_pretrained_cfg, list_pretrained_tags_by_model

    timm = "timm_model_name" in (get_model_config(name) or {}).get("vision_cfg", {})
    return {t: {**get_pretrained_cfg(name, t), "timm": timm} for t in list_pretrained_tags_by_model(name)}


def open_clip_model(name: str, checkpoint: str | None, image_size: int = 0) -> Any:
    """An open_clip model in fp32 on the CPU, from a weights file or with random weights."""
    from open_clip import create_model

    return create_model(name, pretrained=checkpoint, force_image_size=image_size or None)


def open_clip_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB of a model's published weights.

    A model that open_clip builds from a file has CLIP's statistics, whatever its family; SigLIP's differ.
    """
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(name)
    published = get_pretrained_cfg(name, tags[0]) if tags else {}
    mean, std = image_statistics()
    return tuple(published.get("mean") or mean), tuple(published.get("std") or std)


def open_clip_tokenizer(name: str, folder: str | None = None) -> Any:
    """Tokenizer of a model, or one from a Hugging Face folder."""
    from open_clip import get_model_config, get_tokenizer
    from open_clip.tokenizer import HFTokenizer

    context = (get_model_config(name) or {}).get("text_cfg", {}).get("context_length", 77)
    try:
        return (
            get_tokenizer(name) if folder is None else HFTokenizer(folder, context_length=context, clean="canonicalize")
        )
    except (OSError, ImportError, ValueError) as error:
        raise UserError(
            f"The tokenizer of {name} is not available ({type(error).__name__}). Pass the folder of its Hugging Face "
            "files with tokenizer=FOLDER (--tokenizer); this needs the transformers package."
        ) from error


def encode(text: str) -> list[int]:
    """Token ids of a text of any length, without start and end."""
    ids: list[int] = _bpe().encode(text)
    return ids


def with_ends(ids: Sequence[int], context_length: int) -> list[int]:
    """Start, ids, end; longer texts are truncated and the end token put last, as in the released training."""
    full = [START, *ids, END]
    return full if len(full) <= context_length else [*full[: context_length - 1], END]


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, *, truncate: bool = False, pad_to_longest: bool = False
) -> Tensor:
    """Tokenize texts as CLIP does: start, text, end, zeros.

    Args:
        texts: one text or several.
        context_length: L, including start and end.
        truncate: truncate longer texts and put the end token last, as in the released training; otherwise they are an
            error.
        pad_to_longest: pad to the longest text instead of ``context_length``.

    Returns:
        ``[K, L]`` int64.

    Raises:
        UserError: for a text over the limit, with its length and first words.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = []
    for text in texts:
        ids = encode(text)
        if len(ids) + 2 > context_length and not truncate:
            raise UserError(
                f"A text of {len(ids) + 2} tokens is over the limit of {context_length}: {text[:60]!r}... "
                "Shorten it, use a model with a longer context, or enable truncation."
            )
        rows.append(with_ends(ids, context_length))
    length = max((len(r) for r in rows), default=0) if pad_to_longest else context_length
    out = torch.zeros(len(rows), length, dtype=torch.long)
    for i, ids in enumerate(rows):
        out[i, : len(ids)] = torch.tensor(ids)
    return out


def image_transform(size: int) -> Any:
    """CLIP's evaluation transform of a PIL image to ``[3, size, size]``.

    Bicubic resize of the shorter side, centre crop, RGB, normalise.
    """
    from open_clip import image_transform as build

    mean, std = image_statistics()
    return build(size, is_train=False, mean=mean, std=std)
