# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, binding=True
"""The compiled engine: buffers in, a plan, blocked loops over all threads, a NumPy array out.

A good call stays in this module from argument to kernel. What is not plainly good goes to pwconv.arguments, which
explains what is wrong or returns the arguments in their simplest form.

The parts, from the kernels up: featuremap.pxi (arrays to records), plan.pxi (how a layer is computed), blocks.pxi
(walking a plan, OpenMP), machine.pxi (instruction sets, threads), buffers.pxi (memory and the arrays of a call),
layer.pxi (what is told once), call.pxi (one layer, once), passes.pxi (several layers in one pass, classifiers).
"""

import os
import time

import numpy

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release
from cpython.exc cimport PyErr_Clear
from cpython.long cimport PyLong_CheckExact
from cython.parallel cimport parallel, prange
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strchr


cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    # Failure is an answer here, not an exception.
    int PyObject_GetBuffer(object exporter, Py_buffer* view, int flags)


cdef extern from "isa.h" nogil:
    enum:
        SUM_BLOCK
        MAX_ROWS
        MAX_VECTORS
        MAX_LANES
        HIGHEST
        HIGH
        MEDIUM
        ACT_NONE
        ACT_CLIP
        KIND_FLOAT32
        KIND_UINT8
        KIND_INT8
        KIND_UINT16
        KIND_INT16
        KIND_FLOAT16
        KIND_BFLOAT16

    ctypedef struct activation_t:
        int code
        float low, high

    ctypedef struct tile_t:
        const char* a
        const char* b
        Py_ssize_t a_step, b_step, a_apart, b_apart, rows, steps
        bint first, last, pixels_in_one
        float* partial
        const char* ahead
        Py_ssize_t ahead_step
        bint ahead_all
        char* y
        Py_ssize_t y_step, lanes
        const float* bias
        bint bias_on_lanes
        float low, high

    ctypedef struct split_t:
        const char* src
        Py_ssize_t step, channel_step, columns, depth
        bint by_rows
        char* dst
        Py_ssize_t together, column_step, pitch, apart, room
        uint32_t* odd

    ctypedef struct pack_t:
        const char* src
        int kind
        Py_ssize_t step, channel_step, count, depth
        float* dst
        Py_ssize_t width, panel, at
        const float* scale
        const float* shift
        activation_t activation

    ctypedef struct finish_t:
        float* sum
        Py_ssize_t rows, vectors, pitch
        const float* bias
        const float* scale
        bint channels_on_lanes
        const float* residual
        activation_t activation

    ctypedef struct head_t:
        float* logits
        Py_ssize_t pitch, classes, pixels, k
        int32_t* labels
        float* values

    ctypedef struct resize_t:
        const float* above
        const float* below
        Py_ssize_t pitch, classes, width
        float down
        Py_ssize_t out_width
        const int32_t* left
        const int32_t* right
        const float* across
        float* line
        int32_t* ranks
        int32_t* labels

    ctypedef void (*tile_kernel)(const tile_t*) noexcept nogil

    ctypedef struct unit_t:
        const char* name
        int pieces, lanes, channels, fetches
        int together[2]
        int half_cycles
        int rows[7]
        tile_kernel kernel[2][7][33]
        void (*split)(const split_t*) noexcept nogil
        void (*enter)() noexcept nogil
        void (*leave)() noexcept nogil

    ctypedef struct isa_t:
        unit_t unit
        void (*pack)(const pack_t*) noexcept nogil
        void (*pack_rows)(const pack_t*) noexcept nogil
        void (*finish)(const finish_t*) noexcept nogil
        void (*best)(const head_t*) noexcept nogil
        void (*softmax)(const head_t*) noexcept nogil
        void (*best_resized)(const resize_t*) noexcept nogil
        void (*copy)(char*, Py_ssize_t, Py_ssize_t, const char*, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                     Py_ssize_t) noexcept nogil
        double (*fma_chain)(long) noexcept nogil
        double (*sweep)(int, char*, const char*, size_t) noexcept nogil


cdef extern from "cpu.h" nogil:
    ctypedef struct cpu_facts_t:
        uint32_t leaf1_ecx, leaf7_ebx, leaf7_edx, leaf7_1_eax
        uint64_t xcr0

    cpu_facts_t pwconv_cpu_facts()
    int pwconv_isa_count()
    const char* pwconv_isa_name(int index)
    const isa_t* pwconv_isa(int index)
    const unit_t* pwconv_unit(int index, int precision)
    bint pwconv_isa_supported(int index, const cpu_facts_t* facts)
    size_t pwconv_cache_bytes(int level)
    uint64_t pwconv_float_enter()
    void pwconv_float_leave(uint64_t before)
    const char* pwconv_compiler()


cdef extern from "threads.h" nogil:
    int PWCONV_OPENMP
    int omp_get_max_threads()
    int omp_get_thread_num()
    ctypedef void (*work_t)(void*) noexcept nogil
    int pwconv_startable(int threads, bint anew)
    void pwconv_let_workers_sleep()
    bint pwconv_run_aside(work_t work, void* argument)


include "featuremap.pxi"
include "plan.pxi"
include "blocks.pxi"
include "machine.pxi"
include "buffers.pxi"
include "layer.pxi"
include "call.pxi"
include "passes.pxi"


start_up()
