"""``python -m patch_diffusion`` is the command ``patch-diffusion``."""

import sys

from patch_diffusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
