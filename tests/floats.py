"""The floating-point state of this thread, as the C library tells it."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import struct

libm = ctypes.CDLL(ctypes.util.find_library("m"))


def environment():
    """All of it, for `libm.fesetenv`."""
    saved = ctypes.create_string_buffer(64)
    assert libm.fegetenv(saved) == 0
    return saved


def state():
    """What it says of how to compute, and of the exceptions seen so far.

    On x86 that is not all. Where the x87's last instruction lies belongs to it too, and a processor may forget this
    whenever another process has its turn.
    """
    if platform.machine() == "aarch64":
        return environment().raw
    return struct.unpack_from("<H2xH2xH18xI", environment())


def control():
    """The part of it that says how to compute."""
    if platform.machine() == "aarch64":
        return struct.unpack_from("<I", environment())
    word, mxcsr = struct.unpack_from("<H26xI", environment())
    return word, mxcsr & ~0x3F
