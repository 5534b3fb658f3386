"""``python -m smartclip_det VERB``."""

from smartclip_det.cli import main

if __name__ == "__main__":
    main()
