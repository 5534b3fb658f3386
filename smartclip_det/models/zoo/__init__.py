"""Named weights: the registry (``registry.json``), downloads and hashes."""

from smartclip_det.models.zoo.fetching import Fetched, cached_path, fetch
from smartclip_det.models.zoo.names import Source, Weights, find, is_name, no_such_file, registry

__all__ = ["Fetched", "Source", "Weights", "cached_path", "fetch", "find", "is_name", "no_such_file", "registry"]
