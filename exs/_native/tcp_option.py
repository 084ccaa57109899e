# SPDX-License-Identifier: MIT OR Apache-2.0
"""The program that writes the TCP option of SMC-R: one object, for as long as it is attached."""

from __future__ import annotations

import os

from exs._exs import ffi, lib
from exs._native.process import check
from exs.errors import from_errno

__all__ = ["ANSWERED", "PORT", "WANTED", "OptionProgram"]

WANTED: int = lib.EXSI_SMC_OPTION_WANTED
ANSWERED: int = lib.EXSI_SMC_OPTION_ANSWERED
PORT: int = lib.EXSI_SMC_OPTION_PORT
"""With a port number the key of a listener, beside its cookie."""


class OptionProgram:
    """The program, attached to a control group until :meth:`close`, or until the process ends.

    Args:
        folder: Of the control group.

    Raises:
        exs.Error: It cannot be; the text says why.
    """

    def __init__(self, folder: str) -> None:
        map_fd, link_fd, why = ffi.new("int *"), ffi.new("int *"), ffi.new("char[160]")
        code = lib.exsi_smc_option_attach(os.fsencode(folder), map_fd, link_fd, why)
        if code < 0:
            raise from_errno(code, ffi.string(why).decode("utf-8", "replace"))
        self._map: int = map_fd[0]
        self._link: int = link_fd[0]

    def set(self, key: int, state: int) -> None:
        """Note a state under a key; 0 takes it out."""
        check(lib.exsi_smc_option_set(self._map, key, state))

    def get(self, key: int) -> int:
        """The state under a key; 0 if there is none."""
        state = ffi.new("uint32_t *")
        return int(state[0]) if lib.exsi_smc_option_get(self._map, key, state) == 0 else 0

    def close(self) -> None:
        """Detach it."""
        os.close(self._link)
        os.close(self._map)
