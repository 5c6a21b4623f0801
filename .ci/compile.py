"""Compiles the C files for other platforms: python .ci/compile.py

zig's package brings a Clang with the headers of macOS, of Windows (MinGW's) and of musl. Nothing is linked or run.
"""

import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from machine_code import build_settings  # noqa: E402

SYSTEMS = {"x86_64": ("macos", "linux-musl", "windows-gnu"), "aarch64": ("macos", "linux-musl")}


WARNINGS = ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-ignored-optimization-argument"]


def main() -> None:
    settings = build_settings()
    for machine, sets in settings["INSTRUCTION_SETS"].items():
        sources = {"pyx/machine/cpu.c": ["-include", "machine/threads.h"], **sets}
        for system, (source, flags) in product(SYSTEMS[machine], sources.items()):
            compiler = [sys.executable, "-m", "ziglang", "cc", f"--target={machine}-{system}"]
            with tempfile.TemporaryDirectory() as folder:
                files = ["-c", source, "-o", str(Path(folder, "object"))]
                # zig names a processor with -mcpu, where other compilers name an architecture with -march.
                flags = [flag.replace("-march=armv8.2-a", "-mcpu=generic") for flag in flags]
                command = [*compiler, *settings["COMMON_FLAGS"], "-O1", *WARNINGS, *flags, *files]
                subprocess.run(command, cwd=ROOT, check=True)
            print(f"{machine}-{system}: {source}")


if __name__ == "__main__":
    main()
