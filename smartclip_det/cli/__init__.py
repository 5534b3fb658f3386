"""Command-line interface ``smartclip-det``: one module per verb, which parses arguments, calls ``apis`` and prints.

No module here imports torch before the arguments are parsed.
"""

from smartclip_det.cli.dispatch import main, parser_of, run_verb

__all__ = ["main", "parser_of", "run_verb"]
