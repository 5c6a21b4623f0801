"""Which instruction set is used: what CPU and operating system both support, and what the environment allows."""

from __future__ import annotations

import platform
import struct
import sys

import process
import pytest

from pwconv import _engine as engine

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="CPUID and XCR0 are x86's")

# Bits of CPUID leaf 1 ECX, leaf 7 EBX and XCR0 (Intel's manual, volumes 1 and 2A).
FMA, OSXSAVE, AVX, F16C = 1 << 12, 1 << 27, 1 << 28, 1 << 29
AVX2, AVX512F, AVX512DQ, AVX512BW, AVX512VL = 1 << 5, 1 << 16, 1 << 17, 1 << 30, 1 << 31
AMX_BF16, AMX_TILE = 1 << 22, 1 << 24  # leaf 7 EDX
AVX512_BF16 = 1 << 5  # leaf 7.1 EAX
SSE_STATE, AVX_STATE, MASK_STATE, HIGH_STATE, MORE_STATE = 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7
TILE_SHAPES, TILES = 1 << 17, 1 << 18

LEAF_1, LEAF_7 = FMA | OSXSAVE | AVX | F16C, AVX2 | AVX512F | AVX512DQ | AVX512BW | AVX512VL
YMM = SSE_STATE | AVX_STATE
ZMM = YMM | MASK_STATE | HIGH_STATE | MORE_STATE
TMM = ZMM | TILE_SHAPES | TILES
EVERYTHING = (LEAF_1, LEAF_7, AMX_BF16 | AMX_TILE, AVX512_BF16, TMM)

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
BASELINE, UP_TO_AVX2, UP_TO_AVX512, UP_TO_BF16, ALL = (LEVELS[:n] for n in range(1, 6))
# AMX is used on Linux only, where a process has to ask for its register state.
TILED = ALL if sys.platform == "linux" else UP_TO_BF16


@x86
@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (EVERYTHING, TILED),
        ((2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**64 - 1), TILED),
        ((0, 0, 0, 0, 0), BASELINE),
        # Registers of the CPU that the operating system does not save at context switches.
        ((LEAF_1, LEAF_7, AMX_BF16 | AMX_TILE, AVX512_BF16, ZMM), UP_TO_BF16),
        ((LEAF_1, LEAF_7, AMX_BF16 | AMX_TILE, AVX512_BF16, ZMM | TILE_SHAPES), UP_TO_BF16),
        ((LEAF_1, LEAF_7, AMX_BF16 | AMX_TILE, AVX512_BF16, YMM), UP_TO_AVX2),
        ((LEAF_1, LEAF_7, 0, 0, ZMM & ~HIGH_STATE), UP_TO_AVX2),
        ((LEAF_1, LEAF_7, 0, 0, SSE_STATE), BASELINE),
        ((LEAF_1, LEAF_7, 0, 0, ZMM & ~AVX_STATE), BASELINE),
        ((LEAF_1 & ~OSXSAVE, LEAF_7, 0, 0, ZMM), BASELINE),
        # Sandy Bridge, Haswell, and the first with AVX-512, Xeon Phi, which has only a part of it; Skylake, Zen 4.
        ((OSXSAVE | AVX, 0, 0, 0, YMM), BASELINE),
        ((LEAF_1, AVX2, 0, 0, YMM), UP_TO_AVX2),
        ((LEAF_1, AVX2 | AVX512F, 0, 0, ZMM), UP_TO_AVX2),
        ((LEAF_1, LEAF_7, 0, 0, ZMM), UP_TO_AVX512),
        ((LEAF_1, LEAF_7, 0, AVX512_BF16, ZMM), UP_TO_BF16),
    ],
)
def test_supported_by_cpu_and_operating_system(facts, expected):
    assert engine.isa_supported(facts) == expected


@x86
def test_every_bit_is_needed():
    """Each single bit that is cleared removes at least one instruction set."""
    for i, word in enumerate(EVERYTHING):
        for bit in (1 << n for n in range(64) if word >> n & 1):
            facts = [*EVERYTHING]
            facts[i] = word & ~bit
            assert engine.isa_supported(tuple(facts)) in (BASELINE, UP_TO_AVX2, UP_TO_AVX512, UP_TO_BF16), (i, bit)


def test_this_machine():
    supported = engine.isa_supported()
    assert supported[0] == engine.isa_built()[0]
    assert set(supported) <= set(engine.isa_built())
    if sys.platform == "linux" and platform.machine() == "x86_64":
        with open("/proc/cpuinfo") as cpuinfo:
            flags = next(line for line in cpuinfo if line.startswith("flags")).split()
        wanted = {
            "avx2": {"avx2", "fma"},
            "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
            "avx512_bf16": {"avx512_bf16", "avx512f"},
            "amx": {"amx_tile", "amx_bf16"},
        }
        assert {name for name, needed in wanted.items() if needed <= set(flags)} == {*supported} - {"baseline"}
    if sys.platform == "linux" and platform.machine() == "aarch64":
        hwcap2, bf16 = 26, 1 << 14  # Linux's auxvec.h and AArch64's hwcap.h
        with open("/proc/self/auxv", "rb") as auxv:
            entries = dict(struct.iter_unpack("=QQ", auxv.read()))
        assert ("neon_bf16" in supported) == bool(entries[hwcap2] & bf16)


PROGRAM = """
import numpy as np, pwconv
print(pwconv.config()["isa"]["active"])
assert (pwconv.pointwise_conv(np.ones((1, 300, 9, 9), np.float32), np.ones((40, 300), np.float32)) == 300).all()
"""


def test_the_best_is_the_default():
    assert process.python(PROGRAM).strip() == engine.isa_supported()[-1]


@pytest.mark.parametrize("name", engine.isa_supported())
def test_the_environment_sets_the_highest(name):
    assert process.python(PROGRAM, PWCONV_ISA=name).strip() == name


def test_an_empty_name_is_none():
    assert process.python(PROGRAM, PWCONV_ISA="").strip() == engine.isa_supported()[-1]


ABSENT = sorted({*engine.isa_built()} - {*engine.isa_supported()})


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx512 ", *ABSENT])
def test_an_instruction_set_that_is_not_there_is_refused(name):
    with pytest.raises(AssertionError, match=f"ValueError: PWCONV_ISA must be one of .*, got {name!r}"):
        process.python(PROGRAM, PWCONV_ISA=name)


@pytest.mark.parametrize("name", ["sse9", "", None, *ABSENT])
def test_the_engine_refuses_as_well(name):
    before = engine.isa_active()
    with pytest.raises(ValueError, match="is not supported here"):
        engine.set_isa(name)
    assert engine.isa_active() == before
