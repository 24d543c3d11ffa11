"""``python -m fastgan`` is the command ``fastgan``."""

import sys

from fastgan.cli import main

sys.exit(main())
