"""The floating-point environment of this thread, read through the C library."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import struct

libm = ctypes.CDLL(ctypes.util.find_library("m"))


def environment():
    """The whole floating-point environment, for `libm.fesetenv`."""
    saved = ctypes.create_string_buffer(64)
    assert libm.fegetenv(saved) == 0
    return saved


def state():
    """The control bits and the exception flags of the environment.

    On x86 the address of the last x87 instruction is left out: a processor may lose it at any context switch.
    """
    if platform.machine() == "aarch64":
        return environment().raw
    return struct.unpack_from("<H2xH2xH18xI", environment())


def control():
    """The control bits: rounding mode, exception masks, flush-to-zero; without the exception flags."""
    if platform.machine() == "aarch64":
        return struct.unpack_from("<I", environment())
    word, mxcsr = struct.unpack_from("<H26xI", environment())
    return word, mxcsr & ~0x3F
