"""The arguments of several layers in one pass: chains and branches."""

from collections.abc import Mapping, Sequence
from typing import Any

from pwconv.arguments.arrays import maps_of
from pwconv.arguments.call import Call, parse_num_threads, receiver_of, residual_of, resolve_shapes
from pwconv.arguments.layouts import NAMED_LAYOUTS
from pwconv.arguments.memory import check_result, check_size
from pwconv.arguments.spec import Spec, resolve_rank
from pwconv.scalars import integer, type_name


def parse_layers(layers: Any, layer_type: type, branched: bool) -> tuple[Any, ...]:
    """Check that layers fit together.

    In a chain each layer takes the result of the layer before it; branches all take the same input.
    """
    if not isinstance(layers, list | tuple):
        raise TypeError(f"layers must be a list of layers, got {type_name(layers)}")
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    for i, layer in enumerate(layers):
        if not isinstance(layer, layer_type):
            raise TypeError(f"layers[{i}] must be a {layer_type.__name__}, got {type_name(layer)}")
    # Where no layer fixes the rank, layers that fit together at one rank do so at every rank: 4 stands for all.
    ndim = next(filter(None, (_known_rank(layer.spec) for layer in layers)), 4)
    wanted: tuple[int, str, tuple[int, ...]] | None = None
    for i, layer in enumerate(layers):
        try:
            layout, out_layout, stride = resolve_rank(layer.spec, ndim)
        except ValueError as error:
            raise ValueError(f"layers[{i}] must fit the others: {error}") from None
        given = (layer.in_channels, layout, stride)
        if wanted not in (None, given):
            raise ValueError(
                f"layers[{i}] must have in_channels, layout and stride {wanted} to "
                f"{'share the input of layers[0]' if branched else f'take the result of layers[{i - 1}]'}, got {given}"
            )
        wanted = given if branched else (layer.out_channels, out_layout, (1,) * len(stride))
    return tuple(layers)


def _known_rank(spec: Spec) -> int | None:
    """Return the number of axes of a layer's maps; None if the layer takes maps of any rank."""
    for layout in (spec.layout, spec.out_layout):
        if layout is not None and layout not in NAMED_LAYOUTS:
            return len(layout)
    return None if isinstance(spec.stride, int) else 2 + len(spec.stride)


def check_chain(
    layers: tuple[Any, ...],
    x: Any,
    residual: Any = None,
    keep: Any = (),
    out: Any = None,
    num_threads: Any = None,
) -> tuple[tuple[Call, ...], tuple[int, ...]]:
    """Check a call of a chain: return a call for each layer (only the first has an `x`), and the layers to keep."""
    count = len(layers)
    if not isinstance(residual, Mapping | None):
        raise TypeError(f"residual must be a dict from numbers of layers to arrays, got {type_name(residual)}")
    if not isinstance(keep, list | tuple):
        raise TypeError(f"keep must be a tuple of numbers of layers, got {type_name(keep)}")
    residuals = {integer(i, "a key of residual", 0, count - 1): array for i, array in (residual or {}).items()}
    kept = tuple(integer(i, "a layer of keep", 0, count - 1) for i in keep)
    threads = parse_num_threads(num_threads)
    maps = maps_of(x)
    readable: dict[str, Any] = dict(maps.named)
    source: Any = maps.source
    shapes = maps.shapes
    calls: list[Call] = []
    for i, layer in enumerate(layers):
        resolved = resolve_shapes(layer.spec, layer.matrix.shape, shapes)
        name = f"residual[{i}]"
        array = readable[name] = residual_of(residuals.get(i), name, resolved)
        last_out = receiver_of(out, "out", resolved, layer.spec) if i == count - 1 else None
        calls.append(Call(source, *resolved, residual=array, out=last_out, num_threads=threads))
        source, shapes = None, (resolved.out_shape,)
        if i in kept:
            check_size(resolved.out_shape)
    check_result(calls[-1].out, out, "out", calls[-1].out_shape, readable, in_place=f"residual[{count - 1}]")
    return tuple(calls), kept


def check_branches(layers: tuple[Any, ...], x: Any, out: Any = None, num_threads: Any = None) -> tuple[Call, ...]:
    """Check a call of branches and return a call for each of them."""
    if isinstance(out, list | tuple):
        if len(out) != len(layers):
            raise ValueError(f"out must hold an array for each of {len(layers)} branches, got {len(out)}")
        outs: Sequence[Any] = out
    else:
        if not isinstance(out, str | None):
            raise TypeError(f"out must be None, a tuple of arrays or 'concat', got {type_name(out)}")
        if out not in (None, "concat"):
            raise ValueError(f"out must be None, a tuple of arrays or 'concat', got {out!r}")
        outs = (None,) * len(layers)
    dtypes = sorted({layer.spec.out_dtype for layer in layers})
    if isinstance(out, str) and len(dtypes) > 1:
        raise ValueError(f"out='concat' needs branches of one out_dtype, got {' and '.join(dtypes)}")
    threads = parse_num_threads(num_threads)
    maps = maps_of(x)
    readable: dict[str, Any] = dict(maps.named)
    calls: list[Call] = []
    for i, layer in enumerate(layers):
        resolved = resolve_shapes(layer.spec, layer.matrix.shape, maps.shapes)
        out_layout = calls[0].out_layout if calls else resolved.out_layout
        if isinstance(out, str) and resolved.out_layout != out_layout:
            raise ValueError(
                f"out='concat' needs branches of one out_layout, got {out_layout!r} and {resolved.out_layout!r}"
            )
        name = f"out[{i}]"
        array = receiver_of(outs[i], name, resolved, layer.spec)
        check_result(array, outs[i], name, resolved.out_shape, readable)
        readable[name] = array
        calls.append(Call(maps.source, *resolved, out=array, num_threads=threads))
    return tuple(calls)
