"""Builds pwconv._engine: Cython for the loops, one C file per instruction set, each compiled with its own flags.

Environment: PWCONV_OPENMP=0 builds without OpenMP (single-threaded); PWCONV_EMULATE_AMX=1 puts C in place of AMX's
instructions, to test on machines with AVX512-BF16 what uses them; CC chooses the compiler (GCC 11+ or Clang 14+; on
Windows it is clang-cl); LIBOMP_PREFIX is where macOS has libomp; CFLAGS=-g keeps what a debugger wants to know.
"""

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# Without build isolation nobody reads build-system.requires, and an older setuptools fails on pyproject.toml's license.
if int(setuptools.__version__.partition(".")[0]) < 77:
    raise SystemExit(
        f"building pwconv needs setuptools 77 or newer, but {setuptools.__version__} is installed: "
        "python -m pip install --upgrade setuptools"
    )

COMMON_FLAGS = ["-Ipyx", "-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
if os.environ.get("PWCONV_EMULATE_AMX") == "1":
    COMMON_FLAGS.append("-DPWCONV_EMULATE_AMX")

INSTRUCTION_SETS = {
    "x86_64": {
        "pyx/kernels/baseline.c": [],
        "pyx/kernels/avx2.c": ["-mavx2", "-mfma", "-mf16c"],
        "pyx/kernels/avx512.c": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
        "pyx/kernels/avx512_bf16.c": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mavx512bf16"],
        "pyx/kernels/amx.c": [
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mfma",
            "-mavx512bf16",
            "-mamx-tile",
            "-mamx-bf16",
        ],
    },
    # GCC's first scheduling pass lifts loads until registers run out, and spills sums; Clang ignores this flag.
    "aarch64": {
        "pyx/kernels/neon.c": ["-fno-schedule-insns"],
        "pyx/kernels/neon_bf16.c": ["-fno-schedule-insns", "-march=armv8.2-a+bf16"],
    },
}
WINDOWS, MACOS = os.name == "nt", sys.platform == "darwin"
# Free-threaded CPython has no limited API: its wheels are for one version each.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

if sysconfig.get_platform().endswith("universal2"):  # flags of one architecture mean nothing to the other
    os.environ["ARCHFLAGS"] = f"-arch {platform.machine()}"
    os.environ["_PYTHON_HOST_PLATFORM"] = sysconfig.get_platform().replace("universal2", platform.machine())


def instruction_sets() -> dict[str, list[str]]:
    """The files and flags for the architecture that is built for, which in a cross build is not this machine's."""
    name = sysconfig.get_platform().rpartition("-")[2]
    try:
        return INSTRUCTION_SETS[{"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)]
    except KeyError:
        raise SystemExit(f"pwconv is written for {' and '.join(INSTRUCTION_SETS)}, not for {name}") from None


def spelled(flags: list[str]) -> list[str]:
    """GCC's flags as this platform's compiler takes them."""
    return [f"/clang:{flag}" if WINDOWS else flag for flag in flags]


class BuildEngine(build_ext):
    """Compiles each instruction set's file with that set's flags and no other, and finds OpenMP if there is any."""

    def build_extension(self, ext: Extension) -> None:
        self.set_up_compiler()
        compile_flags, link_flags = self.openmp_flags()
        ext.extra_compile_args += compile_flags
        ext.extra_link_args += link_flags
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for objects in pool.map(lambda item: self.compile_apart(ext, *item), instruction_sets().items()):
                ext.extra_objects += objects
        super().build_extension(ext)

    def compile_apart(self, ext: Extension, source: str, flags: list[str]) -> list[str]:
        """Compiles the file of an instruction set; these take as long as all else together."""
        return self.compiler.compile(
            [source], output_dir=self.build_temp, depends=ext.depends, extra_postargs=spelled(COMMON_FLAGS + flags)
        )

    def set_up_compiler(self) -> None:
        """Takes clang-cl in place of cl, and leaves out -g, which is among Python's own flags: it triples the size."""
        if WINDOWS:
            self.compiler.initialize()
            self.compiler.cc = shutil.which("clang-cl")
            if self.compiler.cc is None:
                raise CompileError("pwconv is built with clang-cl, which LLVM's installer brings")
        elif "-g" not in os.environ.get("CFLAGS", "").split():
            self.compiler.compiler_so = [flag for flag in self.compiler.compiler_so if flag != "-g"]

    def openmp_flags(self) -> tuple[list[str], list[str]]:
        """The compiler's and linker's flags for OpenMP; none where a program with it does not compile and link."""
        if os.environ.get("PWCONV_OPENMP") == "0":
            return [], []
        if WINDOWS:
            flags = ["/openmp"], [f"/LIBPATH:{Path(self.compiler.cc).parents[1] / 'lib'}"]
        elif MACOS:  # Apple's Clang has OpenMP but not its library; this is where Homebrew puts that
            brew = "/opt/homebrew" if platform.machine() == "arm64" else "/usr/local"
            libomp = os.environ.get("LIBOMP_PREFIX") or f"{brew}/opt/libomp"
            flags = ["-Xpreprocessor", "-fopenmp", f"-I{libomp}/include"], [f"-L{libomp}/lib", "-lomp"]
        else:
            flags = ["-fopenmp"], ["-fopenmp"]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <omp.h>\nint probe(void) { return omp_get_max_threads(); }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags[0])
                self.compiler.link_shared_object(objects, str(Path(folder, "probe")), extra_postargs=flags[1])
            except (CompileError, LinkError) as error:
                print(f"pwconv: this compiler has no OpenMP ({error}); building for one thread", file=sys.stderr)
                return [], []
        return flags


engine = Extension(
    "pwconv._engine",
    ["pyx/engine.pyx", "pyx/machine/cpu.c"],
    depends=[str(path) for path in sorted(Path("pyx").rglob("*")) if path.suffix in (".c", ".h", ".pxi", ".pxd")],
    define_macros=[("Py_LIMITED_API", "0x030B0000"), ("CYTHON_LIMITED_API", "1")] if LIMITED_API else [],
    py_limited_api=LIMITED_API,
    extra_compile_args=spelled(COMMON_FLAGS),
    extra_link_args=[] if WINDOWS else ["-pthread"],
)

setup(
    ext_modules=cythonize([engine], language_level=3, build_dir="build/cython", include_path=["pyx"]),
    cmdclass={"build_ext": BuildEngine},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
