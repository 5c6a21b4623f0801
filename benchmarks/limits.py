"""This machine's limits: the FMA peak of each instruction set, and the bandwidth of each cache level and of memory.

python benchmarks/limits.py [--threads N]
"""

import argparse

import pwconv
from pwconv import runtime
from pwconv.commands.limits import measure


def main() -> None:
    """Print a table for each instruction set."""
    parser = argparse.ArgumentParser(description="Measure the FMA peak and the bandwidth of caches and memory.")
    parser.add_argument("--threads", type=int, default=pwconv.get_num_threads(), help="at once (default: %(default)s)")
    threads = parser.parse_args().threads
    print(f"{runtime.config()['cpu']}, threads: {threads}")
    for isa in runtime.engine.isa_supported():
        machine = measure(isa, threads)
        print(f"\n{isa}: {machine.peak:.0f} GFLOP/s of FMAs\n{'GB/s':<8}{'read':>8}{'write':>8}{'copy':>8}")
        for level in machine.levels:
            print(f"{level.name:<8}{level.read:>8.0f}{level.write:>8.0f}{level.copy:>8.0f}")


if __name__ == "__main__":
    main()
