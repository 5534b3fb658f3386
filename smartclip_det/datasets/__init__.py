"""Data sets; each maps names to labels by itself, never by file order."""

from smartclip_det.datasets.open_vocab_coco import OpenVocabCocoDataset, OpenVocabLVISDataset

__all__ = ["OpenVocabCocoDataset", "OpenVocabLVISDataset"]
