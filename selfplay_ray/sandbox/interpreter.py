"""What a Python interpreter needs of the file system to run its standard library, wherever it is installed."""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from selfplay_ray.errors import ConfigError

SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/gnu/store")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The ``executable`` beneath any virtual environment, the folders of libraries it ``reads``, and those in them
    where third-party ``packages`` lie, which programs shall not see."""

    executable: str
    reads: tuple[str, ...]
    packages: tuple[str, ...]

    @classmethod
    def running(cls) -> Interpreter:
        """The one this process runs on.

        Raises:
            ConfigError: it isn't where its own prefix says.
        """
        base = Path(sys.base_prefix)
        executable = base / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        if not executable.is_file():
            raise ConfigError(
                f"there is no Python interpreter at {executable} to run programs in a sandbox with"
            )
        libraries = [base / "lib", base / "lib64", Path(sysconfig.get_path("stdlib"))]
        reads = dict.fromkeys(
            str(path) for path in (*map(Path, SYSTEM_LIBRARIES), *libraries) if path.is_dir()
        )
        homes = {
            Path(sysconfig.get_path(name, vars={"base": str(base), "platbase": str(base)}))
            for name in ("purelib", "platlib")
        }
        homes |= {Path(folder) / "python3" / "dist-packages" for folder in reads}
        homes |= {Path(sysconfig.get_path("stdlib")) / "site-packages"}
        packages = sorted(
            str(path)
            for path in homes
            if path.is_dir()
            and not path.is_symlink()
            and any(path.is_relative_to(folder) for folder in reads)
        )
        return cls(str(executable.resolve()), tuple(reads), tuple(packages))
