# SPDX-License-Identifier: MIT OR Apache-2.0
"""exs.cdef.h is what Python sees of api/api.h, and _exs.pyi what checkers see of exs.cdef.h: the three say the same.

Layouts and constants are checked by the C compiler when the module is built.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from exs import _native
from exs._native.events import EVENT

ROOT = Path(__file__).resolve().parents[2]
API = (ROOT / "native/sock/types.h").read_text() + (ROOT / "native/api/api.h").read_text()
CDEF = (ROOT / "native/exs.cdef.h").read_text()
STUB = ast.parse((ROOT / "exs/_exs.pyi").read_text())

PROTOTYPE = re.compile(r"^(?:EXSI_MUST_CHECK )?((?:const )?\w+ [*]?)(exsi_\w+)\(([^;]*)\);", re.MULTILINE)


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))


def prototypes(text: str) -> dict[str, str]:
    found = PROTOTYPE.findall(without_comments(text))
    return {name: " ".join(f"{result}({args})".split()) for result, name, args in found}


def constants(text: str) -> set[str]:
    clean = without_comments(text)
    names = set(re.findall(r"#define (EXSI_\w+) (?:0x)?\d", clean))
    for body in re.findall(r"enum \w+ \{([^}]*)\}", clean):
        names |= {part.split("=")[0].strip() for part in body.split(",") if part.strip()}
    return names


def structs(text: str) -> dict[str, str]:
    found = re.findall(r"typedef struct \{([^}]*)\} (\w+);", without_comments(text))
    return {name: " ".join(body.split()) for body, name in found}


def stub_methods() -> dict[str, list[str]]:
    lib = next(n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == "_Lib")
    return {
        n.name: [a.arg for a in (*n.args.posonlyargs, *n.args.args)][1:]
        for n in lib.body
        if isinstance(n, ast.FunctionDef)
    }


def test_every_call_of_the_api_is_there_with_the_same_types() -> None:
    api = prototypes(API)
    assert len(api) > 30
    assert prototypes(CDEF) == api


def test_every_struct_of_the_api_is_there_with_the_same_members() -> None:
    seen = structs(CDEF)
    for name, body in structs(API).items():
        assert seen[name] == body


def test_the_stub_has_every_call_with_the_same_arguments() -> None:
    wanted = {
        name: [re.findall(r"(\w+)$", arg.strip())[0] for arg in text[text.index("(") + 1 : -1].split(",")]
        for name, text in prototypes(CDEF).items()
    }
    assert stub_methods() == wanted


def test_the_stub_has_every_constant() -> None:
    lib = next(n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == "_Lib")
    names = {n.target.id for n in lib.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert names == constants(CDEF)


@pytest.mark.parametrize("name", sorted(prototypes(CDEF)) + sorted(constants(CDEF)))
def test_the_module_has_what_the_stub_promises(name: str) -> None:
    assert hasattr(_native.lib, name)


def test_python_unpacks_the_event_that_c_packs() -> None:
    assert EVENT.size == _native.ffi.sizeof("exsi_event")
    event = _native.ffi.new("exsi_event *", {"cookie": 1, "value": 2, "extra": 3, "error": -4, "kind": 5, "flags": 6})
    assert EVENT.unpack(_native.ffi.buffer(event)) == (1, 2, 3, -4, 5, 6)
    base, length, handle = 0x7F00_0000_1000, 77, 99
    pieces = _native.Pieces.equal(base, length, 1, handle)
    piece = pieces.pointer[0]
    assert (int(_native.ffi.cast("uintptr_t", piece.base)), piece.len, piece.mr) == (base, length, handle)
