"""Builds pwconv._engine: Cython for the loops, one C file per instruction set, each compiled with its own flags.

Environment: PWCONV_OPENMP=0 builds without OpenMP (single-threaded); CC chooses the compiler (GCC 11+ or Clang 14+).
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMMON_FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]

INSTRUCTION_SETS = {
    "x86_64": {
        "pyx/isa_baseline.c": [],
        "pyx/isa_avx2.c": ["-mavx2", "-mfma"],
        "pyx/isa_avx512.c": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    },
    # GCC's first scheduling pass lifts loads until registers run out, and spills sums; Clang ignores this flag.
    "aarch64": {"pyx/isa_neon.c": ["-fno-schedule-insns"]},
}
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


class BuildEngine(build_ext):
    """Compiles each instruction set's file with that set's flags and no other, and finds OpenMP if there is any."""

    def build_extension(self, ext: Extension) -> None:
        openmp = self.openmp_flags()
        ext.extra_compile_args += openmp
        ext.extra_link_args += openmp
        for source, flags in INSTRUCTION_SETS[MACHINE].items():
            ext.extra_objects += self.compiler.compile(
                [source], output_dir=self.build_temp, depends=ext.depends, extra_postargs=COMMON_FLAGS + flags
            )
        super().build_extension(ext)

    def openmp_flags(self) -> list[str]:
        """The compiler's and linker's flags for OpenMP; none where a program with it does not compile and link."""
        if os.environ.get("PWCONV_OPENMP") == "0":
            return []
        flags = ["-fopenmp"]
        command = [*self.compiler.compiler_so[:1], *flags, "-x", "c", "-", "-o"]
        with tempfile.TemporaryDirectory() as folder:
            probe = subprocess.run(
                [*command, str(Path(folder, "probe"))],
                input="#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n",
                text=True,
                capture_output=True,
                check=False,
            )
        if probe.returncode:
            print("pwconv: this compiler has no OpenMP; building for one thread", file=sys.stderr)
            return []
        return flags


engine = Extension(
    "pwconv._engine",
    ["pyx/engine.pyx", "pyx/cpu.c"],
    include_dirs=["pyx"],
    depends=[str(path) for pattern in ("*.h", "*.pxi") for path in sorted(Path("pyx").glob(pattern))],
    define_macros=[("Py_LIMITED_API", "0x030B0000"), ("CYTHON_LIMITED_API", "1")],
    py_limited_api=True,
    extra_compile_args=[*COMMON_FLAGS, "-pthread"],
    extra_link_args=["-pthread"],
)

setup(
    ext_modules=cythonize([engine], language_level=3, build_dir="build/cython"),
    cmdclass={"build_ext": BuildEngine},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
