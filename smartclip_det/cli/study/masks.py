r"""What a checkpoint's masks do: use of dimensions, prefixes, set algebra, an atlas of words. One page with pictures.

    smartclip-det study masks --encoder smartclip_b16.pt --vocabulary names.txt
    smartclip-det study masks --encoder smartclip_b16.pt --captions share-captioner.json --limit 1000
    smartclip-det study masks --encoder work_dirs/toy/smartclip/epoch_3.pth --captions \
        data/toy/annotations/share_captions_val.json --texts "heart" "star" "ring" "hexagon"

--texts and --vocabulary are words or short phrases: occupancy, set algebra ("a X and a Y"), atlas.
--kinds are words by kind: how much masks of one kind share, and masks of different kinds.
--captions are long captions of any readable layout: occupancy by length, prefixes inside whole captions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smartclip_det.cli.options import Old, add_device, add_encoder, encoder_source
from smartclip_det.core.errors import UserError
from smartclip_det.core.vocabularies import VOCABULARIES

OLD = (Old("--checkpoint", "--encoder"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add_encoder(parser, what="towers with a mask network")
    add("--texts", nargs="+", default=[], help="words or phrases")
    add("--vocabulary", help="names as well: a known name (coco_80, ...), .txt or .json")
    add("--template", default="{article} {}", help="text of a word")
    add(
        "--kinds",
        nargs="+",
        default=[],
        metavar="KIND=WORD,WORD",
        help="words by kind, e.g. colour=red,blue shape=heart,star: how much their masks share",
    )
    add("--captions", help="caption file of any layout")
    add("--limit", type=int, default=1000, help="captions read")
    add("--pairs", type=int, default=200, help="pairs of words for set algebra")
    add("--seed", type=int, default=0, help="of the pairs")
    add_device(parser)
    add("--out", type=Path, default=Path("work_dirs/masks"), help="folder of masks.html and masks.json; or a .json")


def kinds_of(given: Sequence[str]) -> dict[str, list[str]]:
    """``colour=red,blue shape=star`` as words by kind.

    Raises:
        UserError: for other forms, a kind that comes twice, and words that do.
    """
    kinds: dict[str, list[str]] = {}
    for entry in given:
        kind, _, listed = entry.partition("=")
        words = [w.strip() for w in listed.split(",")]
        if not kind or not all(words):
            raise UserError(f"--kinds takes KIND=WORD,WORD, e.g. colour=red,blue; given {entry!r}.")
        if kind in kinds:
            raise UserError(f"--kinds has {kind!r} twice. Join its words by commas.")
        kinds[kind] = words
    every = [w for words in kinds.values() for w in words]
    twice = sorted({w for w in every if every.count(w) > 1})
    if twice:
        raise UserError(f"--kinds has {', '.join(twice)} twice: a word shares all with itself.")
    return kinds


def run(args: argparse.Namespace) -> None:
    """Look, and say what was written."""
    from smartclip_det.models.vocabulary import resolve_names
    from smartclip_det.studies.masks import MaskOptions, look_at_masks

    texts, vocabulary = args.texts, args.vocabulary
    if len(texts) == 1 and (texts[0] in VOCABULARIES or texts[0].endswith((".txt", ".json"))):
        print(f"note: --texts {texts[0]} is now --vocabulary {texts[0]}.", file=sys.stderr)
        texts, vocabulary = [], texts[0]
    texts = [*texts, *(resolve_names(vocabulary) if vocabulary else [])]
    results, page = look_at_masks(
        MaskOptions(
            towers=encoder_source(args),
            texts=texts,
            template=args.template,
            kinds=kinds_of(args.kinds),
            captions=args.captions,
            limit=args.limit,
            pairs=args.pairs,
            seed=args.seed,
            device=args.device,
            out=args.out,
        )
    )
    print(f"written: {results} and {page}")
