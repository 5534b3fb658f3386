"""Names of the ways in which a text's mask is used. No torch: the command line lists them."""

from __future__ import annotations

#: Of retrieval, by the mask mode of each: the published score, CLIP's, and the two controls.
SCORINGS = {"masked": "hard", "plain": "off", "random": "random", "shuffled": "shuffled"}
