# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tests in this folder run in guests only: ``make lab``."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("EXS_LAB") else ["test_*.py"]
