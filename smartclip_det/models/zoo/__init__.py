"""Weights by name: what is known of them (``registry.json``), and how they come to this machine."""

from smartclip_det.models.zoo.fetching import Fetched, fetch, held
from smartclip_det.models.zoo.names import Source, Weights, find, is_name, no_such_file, registry

__all__ = ["Fetched", "Source", "Weights", "fetch", "find", "held", "is_name", "no_such_file", "registry"]
