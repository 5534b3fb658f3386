"""A generated, licence-free world of drawn shapes, written in standard dataset formats.

It is used to test claims cheaply: scenes of one to five objects with exact boxes and masks, base and novel shapes, long
and short captions, referring expressions.
"""

from smartclip_det.datasets.toy_world.scenes import ToyWorld, WorldConfig
from smartclip_det.datasets.toy_world.writers import write_world

__all__ = ["ToyWorld", "WorldConfig", "write_world"]
