"""Gradients of the networks' layers: pwconv against torch's own kernel, which its autograd calls.

    python benchmarks/backward.py [--layout NHWC] [--threads N] [--layers resnet50] [--need x,weight,bias]

needs torch. Both compute the same arrays, and are checked to agree, in rotating order; medians of the rounds count. The
share is pwconv's of the FMA peak.
"""

import argparse
import statistics
import sys

import numpy as np

import pwconv
from pwconv import runtime
from pwconv.arguments import GRADIENTS
from pwconv.commands.limits import measure
from pwconv.commands.peers import Call, Operands
from pwconv.commands.race import elsewhere, race
from pwconv.commands.workloads import LAYOUTS, NETWORKS, select

ROUNDS = 3


def main() -> int:
    """Print a table and return the exit status."""
    parser = argparse.ArgumentParser(description="Race gradients against torch.")
    parser.add_argument("--layout", choices=LAYOUTS, default="NCHW")
    parser.add_argument("--threads", type=int, default=pwconv.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--layers", metavar="NAMES", help="as of `python -m pwconv bench` (default: the networks')")
    parser.add_argument("--need", default=",".join(GRADIENTS), help="(default: %(default)s)")
    options = parser.parse_args()
    status = elsewhere([sys.executable, *sys.argv], options.threads, runtime.engine.isa_active())
    if status is not None:
        return status
    need = options.need.split(",")
    peak = measure(runtime.engine.isa_active(), options.threads).peak
    print(f"{runtime.config()['cpu']}, {options.layout}, threads: {options.threads}, gradients of {', '.join(need)}")
    print(f"FMA peak: {peak:.0f} GFLOP/s\n")
    print(f"{'':<26}{'pwconv':>12}{'torch':>12}{'':>9}{'share':>7}")
    ratios = []
    for workload in select(options.layers.split(",")) if options.layers else NETWORKS:
        calls = contenders(Operands(workload, options.layout), need)
        times = race(calls, rounds=ROUNDS, threads=options.threads)
        seconds = {name: statistics.median(rounds) for name, rounds in times.items()}
        ratios.append(seconds["torch"] / seconds["pwconv"])
        share = workload.flops * len({"x", "weight"}.intersection(need)) / seconds["pwconv"] * 1e-9 / peak
        row = "".join(f"{s * 1e6:>9.0f} us" for s in seconds.values())
        print(f"{workload!s:<26}{row}{ratios[-1]:>8.2f}x{share:>7.0%}", flush=True)
    print(f"{'geometric mean':<50}{statistics.geometric_mean(ratios):>8.2f}x")
    return 0


def contenders(o: Operands, need: list[str]) -> dict[str, Call]:
    """Return both calls. Raises RuntimeError if they disagree."""
    import torch

    torch.set_num_threads(pwconv.get_num_threads())
    workload = o.workload
    grad_y = np.random.default_rng(2).standard_normal(o.out.shape, np.float32)
    kernel = torch.from_numpy(o.weight)[:, :, None, None]
    maps = [torch.from_numpy(array) for array in (grad_y, o.x)]
    if o.layout == "NHWC":
        maps = [map_.permute(0, 3, 1, 2) for map_ in maps]
        kernel = kernel.contiguous(memory_format=torch.channels_last)
    stride, needed = [workload.stride] * 2, [name in need for name in GRADIENTS]
    backward = torch.ops.aten.convolution_backward
    calls = {
        "pwconv": lambda: pwconv.pointwise_conv_backward(
            grad_y, o.x, o.weight, stride=workload.stride, layout=o.layout, need=need
        ),
        "torch": lambda: backward(
            *maps, kernel, [workload.out_channels], stride, [0, 0], [1, 1], False, [0, 0], 1, needed
        ),
    }
    for ours, theirs in zip(*(call() for call in calls.values()), strict=True):
        if ours is not None:
            expected = (
                theirs.permute(0, 2, 3, 1) if theirs.ndim == 4 and ours.ndim == 4 and o.layout == "NHWC" else theirs
            )
            scale = float(np.abs(ours).max())
            if not np.allclose(ours, expected.numpy().reshape(ours.shape), atol=1e-4 * scale, rtol=0):
                raise RuntimeError(f"pwconv and torch disagree about {workload} in {o.layout}")
    return calls


if __name__ == "__main__":
    sys.exit(main())
