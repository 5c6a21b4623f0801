# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, binding=True
"""The compiled engine: buffers in, a plan, blocked loops over all threads, a NumPy array out.

A call whose arguments need no checking stays in this module from argument to kernel (the fast path). All other calls go
to pwconv.arguments, which raises an error or returns the arguments in the form that the fast path takes.
"""

import os
import time

import numpy

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release
from cpython.exc cimport PyErr_Clear
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cython.parallel cimport parallel, prange
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strchr

from c_kernels cimport *
from c_machine cimport *


cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    # Returns -1 with an exception set, and does not raise it.
    int PyObject_GetBuffer(object exporter, Py_buffer* view, int flags)
    unsigned long PyThread_get_thread_ident()


# The parts are included into this one module, and not compiled as modules of their own, so that the compiler inlines
# across them and one shared object holds all. Each part uses only names of parts above it, but for functions.

# Planning: from arrays to records, then the choice of tiles and tasks.
include "feature_map.pxi"
include "plan.pxi"
include "cost_model.pxi"
include "schedule.pxi"
include "choices.pxi"

# Running: walks a plan without the GIL and without any choice.
include "program.pxi"
include "pack.pxi"
include "weights.pxi"
include "store.pxi"
include "stream.pxi"
include "special_values.pxi"
include "heads.pxi"
include "walk.pxi"

# The interface to Python: memory, arguments, layers, calls.
include "machine.pxi"
include "arrays.pxi"
include "run.pxi"
include "layer.pxi"
include "step.pxi"
include "call.pxi"
include "several.pxi"
include "report.pxi"
include "sums.pxi"


start_up()
