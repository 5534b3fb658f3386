r"""Analyse a checkpoint's masks: use of dimensions, prefixes, set algebra, an atlas of words. Writes one HTML page.

    smartclip-det study masks --encoder smartclip_b16.pt --vocabulary names.txt
    smartclip-det study masks --encoder smartclip_b16.pt --captions share-captioner.json --limit 1000
    smartclip-det study masks --encoder work_dirs/toy/smartclip/epoch_3.pth --captions \
        data/toy/annotations/share_captions_val.json --texts "heart" "star" "ring" "hexagon"

--texts and --vocabulary take words or short phrases, for occupancy, set algebra ("a X and a Y") and the atlas.
--kinds takes words grouped by kind, for the overlap of masks within a kind and across kinds.
--captions takes long captions in any readable layout, for occupancy by length and prefixes of captions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smartclip_det.cli.options import Old, add_device, add_encoder, encoder_source, filled
from smartclip_det.core.errors import UserError
from smartclip_det.core.vocabularies import VOCABULARIES

OLD = (Old("--checkpoint", "--encoder"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add_encoder(parser, what="towers with a mask network")
    add("--texts", nargs="+", default=[], help="words or phrases")
    add("--vocabulary", help="also use these names: a known vocabulary (coco_80, ...), .txt or .json")
    add("--template", default="{article} {}", help="template that turns a word into a text")
    add(
        "--kinds",
        nargs="+",
        default=[],
        metavar="KIND=WORD,WORD",
        help="words by kind, e.g. colour=red,blue shape=heart,star, to compare the overlap of their masks",
    )
    add("--captions", help="caption file, any layout")
    add("--limit", type=int, default=1000, help="number of captions to read")
    add("--pairs", type=int, default=200, help="word pairs for set algebra")
    add("--seed", type=int, default=0, help="seed of the pairs")
    add_device(parser)
    add(
        "--out",
        type=Path,
        default=Path("work_dirs/masks"),
        help="output folder for masks.html and masks.json, or a .json path",
    )


def kinds_of(given: Sequence[str]) -> dict[str, list[str]]:
    """Parse ``colour=red,blue shape=star`` into words by kind.

    Raises:
        UserError: for a malformed entry, a repeated kind or a repeated word.
    """
    kinds: dict[str, list[str]] = {}
    for entry in given:
        kind, _, listed = entry.partition("=")
        words = [w.strip() for w in listed.split(",")]
        if not kind or not all(words):
            raise UserError(f"--kinds takes KIND=WORD,WORD, e.g. colour=red,blue; got {entry!r}.")
        if kind in kinds:
            raise UserError(f"--kinds has {kind!r} twice. Join its words with commas.")
        kinds[kind] = words
    every = [w for words in kinds.values() for w in words]
    twice = sorted({w for w in every if every.count(w) > 1})
    if twice:
        raise UserError(
            f"--kinds has {', '.join(twice)} twice. Give each word once: its mask overlaps fully with itself."
        )
    return kinds


def run(args: argparse.Namespace) -> None:
    """Analyse the masks and print the output paths."""
    from smartclip_det.models.vocabulary import resolve_names
    from smartclip_det.studies.masks import MaskOptions, analyse_masks

    texts, vocabulary = args.texts, args.vocabulary
    if len(texts) == 1 and (texts[0] in VOCABULARIES or texts[0].endswith((".txt", ".json"))):
        print(f"note: --texts {texts[0]} is now --vocabulary {texts[0]}.", file=sys.stderr)
        texts, vocabulary = [], texts[0]
    texts = [*texts, *(resolve_names(vocabulary) if vocabulary else [])]
    options = filled(MaskOptions, args, towers=encoder_source(args), texts=texts, kinds=kinds_of(args.kinds))
    results, page = analyse_masks(options)
    print(f"written: {results} and {page}")
