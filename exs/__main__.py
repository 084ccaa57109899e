# SPDX-License-Identifier: MIT OR Apache-2.0
"""``python -m exs`` is the command ``exs``."""

import sys

from exs.cli import main

sys.exit(main())
