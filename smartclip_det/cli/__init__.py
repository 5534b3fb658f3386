"""The command ``smartclip-det``: a module for each verb, which parses arguments and prints; the work is elsewhere.

Nothing here imports torch before the arguments are parsed.
"""

from smartclip_det.cli.dispatch import main, parser_of, run_verb

__all__ = ["main", "parser_of", "run_verb"]
