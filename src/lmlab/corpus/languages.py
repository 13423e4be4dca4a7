"""What a file of code says of itself: its language by its name, whether a person wrote it, and its licence."""

from __future__ import annotations

import re

LANGUAGES = {
    "python": "py pyi", "c": "c h", "c++": "cc cpp cxx hpp hh", "cuda": "cu", "c#": "cs", "java": "java",
    "kotlin": "kt", "scala": "scala", "javascript": "js jsx mjs", "typescript": "ts tsx", "go": "go", "rust": "rs",
    "ruby": "rb", "php": "php", "perl": "pl pm", "lua": "lua", "r": "r", "julia": "jl", "swift": "swift",
    "objective-c": "m mm", "haskell": "hs", "ocaml": "ml mli", "elixir": "ex exs", "erlang": "erl", "clojure": "clj",
    "shell": "sh bash zsh", "powershell": "ps1", "sql": "sql", "vim": "vim", "lisp": "el lisp", "scheme": "scm",
    "fortran": "f f90 f95", "assembly": "asm s", "verilog": "v sv", "vhdl": "vhd", "zig": "zig", "nim": "nim",
    "dart": "dart", "cmake": "cmake", "make": "mk", "protobuf": "proto",
}  # fmt: skip
NAMES = frozenset(LANGUAGES)
_BY_ENDING = {ending: name for name, endings in LANGUAGES.items() for ending in endings.split()}
CODE = frozenset(_BY_ENDING)
_BY_NAME = {"makefile": "make", "gnumakefile": "make", "cmakelists.txt": "cmake", "rakefile": "ruby", "gemfile": "ruby"}


def language(path: str) -> str | None:
    """The programming language that a file's name tells."""
    name = path.rsplit("/", 1)[-1].lower()
    return _BY_NAME.get(name) or (_BY_ENDING.get(name.rsplit(".", 1)[-1]) if "." in name else None)


_GENERATED_NAME = re.compile(
    r"(_pb2(_grpc)?\.pyi?|\.pb\.(go|cc|h)|\.g\.dart|\.freezed\.dart|\.designer\.cs|\.g\.cs|_generated\.\w+"
    r"|\.generated\.\w+|[.-]bundle\.js)$|(^|/)(node_modules|bower_components|__generated__)/",
    re.IGNORECASE,
)
_MINIFIED_NAME = re.compile(r"[.-]min\.(js|mjs|css)$", re.IGNORECASE)
MINIFIED_LINE = 110
"""Average bytes in a line from which JavaScript counts as minified (GitHub's Linguist: 110)."""


def unwritten(path: str, text: str) -> str | None:
    """Why a file is not what a person wrote: its name, or lines as only a minifier makes them. None if it seems written.
    (Words such as "do not edit" at its top are a rule of the step `code_rules`.)"""
    if found := _GENERATED_NAME.search(path):
        return f"generated: named {found.group(0).strip('/')}"
    if _MINIFIED_NAME.search(path):
        return "minified: its name says so"
    if language(path) in ("javascript", "typescript") and len(text) > MINIFIED_LINE * (text.count("\n") + 1):
        return f"minified: lines of over {MINIFIED_LINE} characters on average"
    return None


PERMISSIVE = frozenset([
    "mit", "mit-0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0", "0bsd", "zlib", "bsl-1.0",
    "python-2.0", "psf-2.0", "ncsa", "postgresql", "blueoak-1.0.0", "wtfpl", "upl-1.0",
])  # fmt: skip
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([^\n*]+)")
# What tells a licence's text from the others', in order: the first that fits is the one.
_TEXTS: tuple[tuple[str, str], ...] = (
    ("agpl-3.0", r"GNU AFFERO GENERAL PUBLIC LICENSE"),
    ("lgpl-3.0", r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3"),
    ("lgpl-2.1", r"GNU (LESSER|LIBRARY) GENERAL PUBLIC LICENSE"),
    ("gpl-3.0", r"GNU GENERAL PUBLIC LICENSE\s+Version 3"),
    ("gpl-2.0", r"GNU GENERAL PUBLIC LICENSE"),
    ("mpl-2.0", r"Mozilla Public License,?\s+Version 2\.0"),
    ("epl-2.0", r"Eclipse Public License\s*-?\s*v? ?2\.0"),
    ("apache-2.0", r"Apache License,?\s+Version 2\.0"),
    ("cc0-1.0", r"CC0 1\.0 Universal"),
    ("unlicense", r"This is free and unencumbered software released into the public domain"),
    ("bsl-1.0", r"Boost Software License\s*-?\s*Version 1\.0"),
    ("mit", r"Permission is hereby granted, free of charge, to any person obtaining a copy"),
    (
        "isc",
        r"Permission to use, copy, modify, and(/or)? distribute this software for any\s+purpose with or without fee",
    ),
    ("bsd-3-clause", r"Redistribution and use in source and binary forms(?s:.*)Neither the name"),
    ("bsd-2-clause", r"Redistribution and use in source and binary forms"),
    ("python-2.0", r"PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"),
    ("zlib", r"This software is provided 'as-is', without any express or implied"),
)
_COMPILED = [(name, re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)) for name, pattern in _TEXTS]
LICENSE_FILE = re.compile(r"^(un)?licen[sc]e([.-].*)?$|^copying([.-].*)?$|^mit-license.*$", re.IGNORECASE)


def spdx(text: str) -> str | None:
    """What the SPDX line at the top of a file says."""
    found = _SPDX.search(text[:4096])
    return found.group(1).strip(" \t\r-/#>").lower() if found else None


def license_of(text: str) -> str | None:
    """The SPDX identifier of a licence's text, in lower case; None where it is not one of the common ones."""
    return next((name for name, pattern in _COMPILED if pattern.search(text[:65536])), None)


def allowed(licence: str, wanted: frozenset[str]) -> bool:
    """Is an SPDX identifier or expression among those that are wanted? `A OR B` is if one is, `A AND B` if both are."""
    text = licence.lower().strip()
    text = text[1:-1] if text.startswith("(") and text.endswith(")") else text
    if " or " in text:
        return any(allowed(part, wanted) for part in text.split(" or "))
    return all(part.strip("() ") in wanted for part in text.split(" and "))


def wanted_licenses(names: list[str]) -> frozenset[str]:
    """The identifiers that a list of licences stands for, in lower case, `permissive` written out."""
    wanted = {name.lower() for name in names}
    return frozenset((wanted | PERMISSIVE) - {"permissive"} if "permissive" in wanted else wanted)
