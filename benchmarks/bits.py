"""How many different results do libraries have for one layer?    python benchmarks/bits.py

Each library computes one layer for the same numbers with one thread and with several, in NCHW and in NHWC, for one
image and for four, with AVX2 and with the machine's best instruction set: up to 16 ways. The script prints the number
of ways in which a library ran, and the number of different results, compared bit by bit.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict

import numpy as np

from pwconv import runtime
from pwconv.commands.peers import PEERS, Operands, installed, pwconv_ways
from pwconv.commands.race import race_environment
from pwconv.commands.workloads import LAYOUTS, Workload, select


def operands(workload: Workload, layout: str, images: int) -> Operands:
    """The workload for a number of images; the first image is the same for all layouts and numbers of images."""
    first, several = Operands(workload, "NCHW"), Operands(workload._replace(images=images), layout)
    x = np.concatenate([first.x] * images)
    several.x = np.ascontiguousarray(x if layout == "NCHW" else np.moveaxis(x, 1, -1))
    several.weight, several.bias = first.weight, first.bias
    return several


def results(workload: Workload, isa: str) -> dict[str, list[str]]:
    """Each library's digests of the first image's results, with this process's threads and instruction set."""
    digests: dict[str, list[str]] = defaultdict(list)
    limited = isa != runtime.engine.isa_supported()[-1]
    for layout in LAYOUTS:
        names = [name for name in installed(layout) if not PEERS[name].obstacle(layout, limited)]
        for images in (1, 4):
            several = operands(workload, layout, images)
            calls = {"pwconv": pwconv_ways(several)["pwconv"]}
            calls |= {name: next(iter(PEERS[name].ways(several).values())) for name in names}
            for name, call in calls.items():
                y = np.asarray(call()).reshape(several.out.shape)[0]
                digests[name].append(
                    hashlib.sha256(y if layout == "NCHW" else np.moveaxis(y, -1, 0).copy()).hexdigest()
                )
    return digests


def main() -> None:
    """Run each setting in a process of its own, since libraries read their settings when they are loaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="1x28x28x600x70", help="as in bench --layers, of one image (%(default)s)")
    parser.add_argument("--within", metavar="ISA", help=argparse.SUPPRESS)
    options = parser.parse_args()
    (workload,) = select([options.layer])
    if options.within:
        print(json.dumps(results(workload, options.within)))
        return
    digests: dict[str, list[str]] = defaultdict(list)
    supported = runtime.engine.isa_supported()
    isas = list(dict.fromkeys(["avx2" if "avx2" in supported else supported[-1], supported[-1]]))
    for isa in isas:
        for threads in sorted({1, runtime.get_num_threads()}):
            command = [sys.executable, __file__, "--layer", options.layer, "--within", isa]
            done = subprocess.run(
                command, env=race_environment(os.environ, threads, isa), stdout=subprocess.PIPE, check=True
            )
            for name, found in json.loads(done.stdout).items():
                digests[name] += found
    print(f"{'library':<24}{'ways':>6}{'results':>9}    of {workload.name}, {', '.join(isas)}")
    for name, found in digests.items():
        version = f" {PEERS[name].version}" if name in PEERS else ""
        print(f"{name + version:<24}{len(found):>6}{len(set(found)):>9}")


if __name__ == "__main__":
    main()
