"""Versioned names of adapters: ``live@v12`` is version 12 of ``live``.

A name is used once: servers keep the keys and values of prompts by it, and would mix those of two adapters. The
``@`` keeps them apart from models that have a number of their own in their name, as ``llama-3`` has.
"""

from __future__ import annotations

import re

VERSIONED = re.compile(r".+@v(\d{1,18})")


def versioned_name(name: str, version: int) -> str:
    return f"{name}@v{version}"


def version_in(name: str) -> int | None:
    """The policy version in a versioned name; None in another."""
    match = VERSIONED.fullmatch(name)
    return int(match[1]) if match else None
