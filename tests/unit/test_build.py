# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the build refuses, and in which words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_free_threaded_python_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "mesonbuild.mesonmain", "setup", tmp_path / "build", ROOT],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "exs does not support free-threaded Python; use one with the global interpreter lock" in done.stdout
