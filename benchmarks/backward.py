"""Gradients of the networks' layers: pwconv against torch's own kernel, which its autograd calls.

    python benchmarks/backward.py [--layout NHWC] [--threads N] [--layers resnet50] [--need x+weight+bias,weight,x]

needs torch. Both compute the same arrays, and are checked to agree, in rotating order; medians of the rounds count. For
the forward pass (a layer with packed weights, bias and ReLU) and for each set of gradients, the table has pwconv's
GFLOP/s; for gradients also the share of the forward pass's, and how many times as fast as torch pwconv is. Gradients of
x and of the weights have as many operations as the forward pass each; those of the bias are not counted.

The last columns are the largest error of each gradient against float64, as a share of its largest value, each beside
that of NumPy's float32 product or sum of the same arrays.
"""

import argparse
import statistics
import sys

import numpy as np
from numpy.typing import NDArray

import pwconv
from pwconv import runtime
from pwconv.arguments import GRADIENTS
from pwconv.commands.limits import measure
from pwconv.commands.peers import Call, Operands, pwconv_ways
from pwconv.commands.race import elsewhere, race
from pwconv.commands.workloads import LAYOUTS, NETWORKS, select

ROUNDS = 3


def main() -> int:
    """Print a table and return the exit status."""
    parser = argparse.ArgumentParser(description="Race gradients against torch.")
    parser.add_argument("--layout", choices=LAYOUTS, default="NCHW")
    parser.add_argument("--threads", type=int, default=pwconv.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--layers", metavar="NAMES", help="as of `python -m pwconv bench` (default: the networks')")
    parser.add_argument("--need", default="x+weight+bias,weight,x", help="sets of gradients (default: %(default)s)")
    options = parser.parse_args()
    status = elsewhere([sys.executable, *sys.argv], options.threads, runtime.engine.isa_active())
    if status is not None:
        return status
    needs = [need.split("+") for need in options.need.split(",")]
    peak = measure(runtime.engine.isa_active(), options.threads).peak
    print(f"{runtime.config()['cpu']}, {options.layout}, threads: {options.threads}, FMA peak: {peak:.0f} GFLOP/s\n")
    print(
        f"{'GFLOP/s':<26}{'forward':>8}"
        + "".join(f"{'+'.join(need):>16}{'share':>7}{'torch':>7}" for need in needs)
        + "".join(f"{'error of ' + name:>16}{'NumPy':>9}" for name in GRADIENTS)
    )
    rows, worst = [], []
    for workload in select(options.layers.split(",")) if options.layers else NETWORKS:
        operands = Operands(workload, options.layout)
        calls = {"forward": pwconv_ways(operands)["pwconv"]}
        for need in needs:
            calls |= {("+".join(need), name): call for name, call in contenders(operands, need).items()}
        times = race(calls, rounds=ROUNDS, threads=options.threads)
        seconds = {name: statistics.median(rounds) for name, rounds in times.items()}
        row = [workload.flops / seconds["forward"] * 1e-9]
        for need in needs:
            ours, theirs = (seconds["+".join(need), name] for name in ("pwconv", "torch"))
            rate = workload.flops * len({"x", "weight"}.intersection(need)) / ours * 1e-9
            row += [rate, rate / row[0], theirs / ours]
        rows.append(row)
        worst.append(errors(operands))
        print_row(str(workload), row, worst[-1])
    print_row(
        "geometric mean",
        *([statistics.geometric_mean(column) for column in zip(*table, strict=True)] for table in (rows, worst)),
    )
    return 0


def print_row(name: str, row: list[float], errors: list[float]) -> None:
    """Print the forward pass's rate; for each set of gradients the rate, its share, the ratio to torch; and errors."""
    sets = (row[i : i + 3] for i in range(1, len(row), 3))
    columns = "".join(f"{rate:>16.1f}{share:>7.0%}{ratio:>6.2f}x" for rate, share, ratio in sets)
    columns += "".join(f"{ours:>16.1e}{numpys:>9.1e}" for ours, numpys in zip(errors[::2], errors[1::2], strict=True))
    print(f"{name:<26}{row[0]:>8.1f}{columns}", flush=True)


def errors(o: Operands) -> list[float]:
    """Return the largest errors of each gradient, of pwconv and of NumPy's products, as shares of the largest value."""
    grad_y = gradient(o)
    ours = pwconv.pointwise_conv_backward(grad_y, o.x, o.weight, stride=o.workload.stride, layout=o.layout)
    axis = o.layout.index("C")
    steps = slice(None, None, o.workload.stride)
    selected = [slice(None) if letter in "NC" else steps for letter in o.layout]
    y, x, grad_x = (
        np.moveaxis(map_, axis, -1).reshape(-1, map_.shape[axis])
        for map_ in (grad_y, o.x[*selected], ours[0][*selected])
    )
    results = []
    for result, a, b in ((grad_x, y, o.weight), (ours[1], y.T, x), (ours[2], np.ones((1, len(y)), np.float32), y)):
        exact = a.astype(np.float64) @ b.astype(np.float64)
        largest = np.abs(exact).max()
        for product in (result, a @ b if len(a) > 1 else y.sum(axis=0)):
            # A product of few terms may be exact, and the mean is geometric.
            results.append(max(float(np.abs(product - exact).max() / largest), 1e-9))
    return results


def gradient(o: Operands) -> NDArray[np.float32]:
    """Return a gradient of the layer's result."""
    return np.random.default_rng(2).standard_normal(o.out.shape, np.float32)


def contenders(o: Operands, need: list[str]) -> dict[str, Call]:
    """Return both calls. Raises RuntimeError if they disagree."""
    import torch

    torch.set_num_threads(pwconv.get_num_threads())
    workload = o.workload
    grad_y = gradient(o)
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
