"""The inner loops simulated by llvm-mca on other cores, compared with each core's FMA bound.

    python benchmarks/machine_code.py [--tiles PATTERN] [--llvm-mca PROGRAM] [--save FOLDER]

compiles pyx/kernels/*.c as setup.py does, takes the loop with the most FMAs from each register tile's function, and
lets llvm-mca simulate it, as if all loads hit L1. A core whose compiler is missing is skipped with a message. Models
differ between versions of LLVM, and some are wrong: the script warns if a model starts fewer FMAs in a cycle than the
core does.
"""

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Core(NamedTuple):
    """A core that starts two vector FMAs in a cycle."""

    name: str
    cpu: str  # for llvm-mca
    machine: str
    isa: str
    fma: str  # the instruction, as a pattern
    example: str  # one that adds to register {}


FMAS_PER_CYCLE = 2
CORES = (
    Core("Haswell", "haswell", "x86_64", "avx2", r"vfmadd\d+ps", "vfmadd231ps %ymm15, %ymm14, %ymm{}"),
    Core("Zen 3", "znver3", "x86_64", "avx2", r"vfmadd\d+ps", "vfmadd231ps %ymm15, %ymm14, %ymm{}"),
    Core("Skylake-X", "skylake-avx512", "x86_64", "avx512", r"vfmadd\d+ps", "vfmadd231ps %zmm15, %zmm14, %zmm{}"),
    Core("Neoverse N1", "neoverse-n1", "aarch64", "neon", "fmla", "fmla v{}.4s, v14.4s, v15.4s"),
)


def main() -> int:
    """Print a table for each core and return the exit status."""
    parser = argparse.ArgumentParser(description="Simulate the inner loops on other cores with llvm-mca.")
    parser.add_argument("--tiles", metavar="PATTERN", help="like 'rowwise_*x2' (default: the tallest of each width)")
    parser.add_argument("--llvm-mca", default="llvm-mca", metavar="PROGRAM", help="like llvm-mca-19")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the loops' assembly, one file for each")
    options = parser.parse_args()
    program = options.llvm_mca
    if not shutil.which(program):
        print(f"{program} is not installed; it comes with LLVM.", file=sys.stderr)
        return 1
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    print(f"{program}: {re.search('LLVM version.*', version)[0]}\n")
    for core in CORES:
        try:
            loops = dict(inner_loops(assembly(core), core.fma))
        except RuntimeError as error:
            print(f"{core.name} is skipped: {error}.\n")
            continue
        print(f"{core.name} ({core.isa})")
        rate = 10 / simulate(program, core, [core.example.format(register) for register in range(10)])
        if rate < 0.95 * FMAS_PER_CYCLE:
            print(f"This model starts {rate:.2f} FMAs in a cycle, the core {FMAS_PER_CYCLE}: try another version.")
        print(f"{'tile':<16}{'FMAs':>6}{'cycles':>9}{'bound':>7}{'share':>7}{'stack':>7}")
        for tile in chosen(list(loops), options.tiles):
            fmas = occurrences(loops[tile], core.fma)
            cycles, bound = simulate(program, core, loops[tile]), fmas / FMAS_PER_CYCLE
            spills = sum(bool(STACK.search(line)) for line in loops[tile])
            print(f"{tile:<16}{fmas:>6}{cycles:>9.2f}{bound:>7.1f}{bound / cycles:>7.0%}{spills:>7}")
            if options.save:
                options.save.mkdir(parents=True, exist_ok=True)
                (options.save / f"{core.cpu}_{tile}.s").write_text("\n".join(loops[tile]) + "\n")
        print()
    return 0


def chosen(tiles: Sequence[str], pattern: str | None) -> list[str]:
    """Return the tiles that match a pattern, or the tallest of each kind and width, which do nearly all the work."""
    if pattern is not None:
        return [tile for tile in tiles if fnmatchcase(tile, pattern)]
    tallest: dict[tuple[str, str], tuple[int, str]] = {}
    for tile in tiles:
        kind, rows, vectors = re.split("[_x]", tile)
        tallest[kind, vectors] = max(tallest.get((kind, vectors), (0, "")), (int(rows), tile))
    return [tile for _, tile in tallest.values()]


def simulate(program: str, core: Core, loop: Sequence[str], iterations: int = 200) -> float:
    """Return llvm-mca's estimate of the cycles of one iteration."""
    command = [program, f"-mtriple={core.machine}-linux-gnu", f"-mcpu={core.cpu}", f"-iterations={iterations}"]
    done = subprocess.run(command, input="\n".join(loop) + "\n", capture_output=True, text=True, check=True)
    return int(re.search(r"^Total Cycles:\s+(\d+)", done.stdout, re.MULTILINE)[1]) / iterations


# From source to loops -------------------------------------------------------------------------------------------------


def assembly(core: Core) -> str:
    """Compile an instruction set's file for a core's machine. Raises RuntimeError where that cannot be done."""
    settings = build_settings()
    source = f"pyx/kernels/{core.isa}.c"
    flags = [*settings["COMMON_FLAGS"], *settings["INSTRUCTION_SETS"][core.machine][source]]
    compiler = compiler_for(core.machine)
    if not shutil.which(compiler[0]):
        raise RuntimeError(f"{compiler[0]} is not installed")
    command = [*compiler, *flags, "-S", "-o", "-", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(compiler)} says {done.stderr.strip().splitlines()[0]}")
    return done.stdout


def build_settings() -> dict[str, Any]:
    """Return the constants of setup.py, which builds when it is imported."""
    settings = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                settings[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:  # not a constant
                continue
    return settings


def compiler_for(machine: str) -> list[str]:
    """Return the command of this machine's compiler, or of the cross compiler as Debian and its kin call it."""
    return shlex.split(os.environ.get("CC", "cc")) if machine == os.uname().machine else [f"{machine}-linux-gnu-gcc"]


FUNCTION = re.compile(r"^tile_(\w+):\n(.*?)^\s*\.size\s+tile_\1", re.MULTILINE | re.DOTALL)
LABEL = re.compile(r"^(\.L\w+):")
JUMP = re.compile(r"^\s+(?:j\w+|b(?:\.?\w\w)?|cbn?z\s+\w+,|tbn?z\s+\w+,.*,)\s+(\.L\w+)")
STACK = re.compile(r"\(%rsp|\[sp")


def inner_loops(text: str, fma: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each tile's name, like "panel_14x2", and of its innermost loops the one with the most FMAs."""
    for name, body in FUNCTION.findall(text):
        lines = [line for line in body.splitlines() if LABEL.match(line) or not line.lstrip().startswith((".", "#"))]
        labels = {found[1]: number for number, line in enumerate(lines) if (found := LABEL.match(line))}
        loops = [
            range(labels[found[1]], number + 1)
            for number, line in enumerate(lines)
            if (found := JUMP.match(line)) and labels.get(found[1], number) < number
        ]
        innermost = [loop for loop in loops if not any(set(other) < set(loop) for other in loops)]
        yield name, max(([lines[n] for n in loop] for loop in innermost), key=lambda loop: occurrences(loop, fma))


def occurrences(loop: Sequence[str], instruction: str) -> int:
    """Return how often an instruction occurs."""
    return sum(bool(re.match(rf"\s+{instruction}\b", line)) for line in loop)


if __name__ == "__main__":
    sys.exit(main())
