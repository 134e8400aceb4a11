"""The project as a whole: what is packaged, what is exported, which way the rooms look."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import selfplay_ray

ROOT = Path(__file__).parent.parent
NEEDS_VERIFIERS = tuple(f"selfplay_ray.integrations.verifiers_{name}" for name in ("harness", "sums"))
ROOMS = {"actors": "selfplay_ray/actors", "jobs": "selfplay_ray/jobs"}
REGISTRY = re.compile(
    r"https?://[\w.-]*(?:pypi|pythonhosted|npmjs|anaconda|conda|ghcr|docker)\b[\w.-]*", re.IGNORECASE
)


def build(kind: str, source: Path, target: Path) -> Path:
    """Call the build backend as pip does, in ``source``; the archive it made."""
    script = f"from hatchling.build import build_{kind}; print(build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


def modules_as_packaged() -> set[str]:
    """Every module of the three rooms, under the path it has once installed."""
    core = (p for p in (ROOT / "selfplay_ray").rglob("*.py") if p.relative_to(ROOT).parts[1] not in ROOMS)
    paths = {str(path.relative_to(ROOT)) for path in core}
    for room, packaged in ROOMS.items():
        paths |= {f"{packaged}/{path.relative_to(ROOT / room)}" for path in (ROOT / room).rglob("*.py")}
    return paths


def check_wheel(wheel: Path) -> None:
    names = Counter(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert set(names.values()) == {1}
    assert packaged == modules_as_packaged() | {"selfplay_ray/py.typed"}


def test_the_wheel_has_every_module_once_and_nothing_else(tmp_path: Path):
    check_wheel(build("wheel", ROOT, tmp_path))


def test_the_sdist_builds_the_same_wheel(tmp_path: Path):
    with tarfile.open(build("sdist", ROOT, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("selfplay_ray-*/")
    check_wheel(build("wheel", source, tmp_path))


def test_the_rooms_are_one_and_the_same_through_their_symlinks():
    for room, packaged in ROOMS.items():
        assert (ROOT / packaged).is_symlink()
        assert (ROOT / packaged).resolve() == ROOT / room


def test_every_exported_name_is_there():
    assert sorted(selfplay_ray.__all__) == sorted(set(selfplay_ray.__all__))
    for name in selfplay_ray.__all__:
        assert getattr(selfplay_ray, name) is not None
        assert name in dir(selfplay_ray)


def test_type_checkers_and_users_see_the_same_names():
    """The names under TYPE_CHECKING, in __all__ and in the lazy table are written down three times."""
    tree = ast.parse(Path(selfplay_ray.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    for_checkers = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {
        (f"selfplay_ray.{module}", name) for module, names in selfplay_ray._MODULES.items() for name in names
    }
    assert for_checkers == lazy
    assert {name for _, name in lazy} | {"__version__"} == set(selfplay_ray.__all__)


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Arean'"):
        _ = selfplay_ray.Arean


def test_every_core_module_imports_without_ray():
    """The linter sees import statements; this sees what they come to."""
    modules = [
        ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(modules_as_packaged())
        if path.split("/")[1] not in (*ROOMS, "__main__.py", "cli.py")
    ]
    if find_spec("verifiers") is None:  # an extra that the tests do without
        modules = [name for name in modules if not name.startswith(NEEDS_VERIFIERS)]
    script = (
        f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "module",
    [
        "selfplay_ray",
        "selfplay_ray.arena",
        "selfplay_ray.scheduling.coordinator",
        "selfplay_ray.actors.spec",  # whoever has handles of all actors has their modules
        "selfplay_ray.jobs.train_proposer_solver",  # and its configuration comes from here
    ],
)
def test_what_needs_no_model_loads_none(module: str):
    script = f"import sys, {module}; print({{'mlx.core', 'transformers', 'openai'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_command_has_an_entry_point():
    assert import_module("selfplay_ray.cli").main is not None
    for path in sorted((ROOT / "jobs").glob("train_*.py")):
        assert callable(import_module(f"selfplay_ray.jobs.{path.stem}").main), path


def test_no_file_names_a_package_registry():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]
    assert len(files) > 20
    found = {
        str(path): match.group()
        for path in files
        if (match := REGISTRY.search(path.read_text(errors="replace")))
    }
    assert not found


def test_the_registry_pattern_catches_one():
    assert REGISTRY.search("see https:" + "//pypi.org/simple")
