# The records and functions of kernels/kernels.h.

from libc.stdint cimport int32_t, uint32_t


cdef extern from "kernels/kernels.h" nogil:
    enum:
        SUM_BLOCK
        MAX_MR
        MAX_VECTORS
        MAX_NR
        ROWS_VECTORS
        FEW_OUTS
        PACKED_AT_ONCE
        SHARED_RUN
        HIGHEST
        HIGH
        MEDIUM
        ACT_NONE
        ACT_CLIP
        LINK_SOFTMAX
        LINK_ONE_VS_REST
        LINK_MODIFIED_HUBER
        LINK_MULTILABEL
        KIND_FLOAT32
        KIND_UINT8
        KIND_INT8
        KIND_UINT16
        KIND_INT16
        KIND_FLOAT16
        KIND_BFLOAT16
        KIND_SWAPPED

    ctypedef struct activation_t:
        int code
        float low, high

    ctypedef struct tile_t:
        const char* a
        const char* b
        Py_ssize_t a_step, b_step, a_term, b_term, mr, steps
        bint first, last, pixels_have_one_term
        float* partial
        const char* prefetch
        Py_ssize_t prefetch_step
        bint prefetch_whole_row
        Py_ssize_t more, a_next, partial_next, prefetch_next, prefetch_repeats
        char* y
        Py_ssize_t y_step, nr
        const float* bias
        bint channels_in_b
        float low, high

    ctypedef struct split_t:
        const char* src
        Py_ssize_t step, channel_step, columns, k
        bint k_contiguous
        char* dst
        Py_ssize_t k_interleave, column_stride, k_stride, term_stride, padded_k
        uint32_t* special

    ctypedef struct pack_t:
        const char* src
        int kind
        Py_ssize_t step, channel_step, count, k
        float* dst
        Py_ssize_t width, panel, at
        const float* scale
        const float* shift
        activation_t activation

    ctypedef struct unpack_t:
        const float* src
        Py_ssize_t pitch, channels, pixels
        char* y
        int kind
        Py_ssize_t step, channel_step
        bint far

    ctypedef struct stream_t:
        const char* x
        int x_kind, y_kind
        Py_ssize_t x_channel_step, first_k, k, all_k
        bint x_far
        const char* next
        Py_ssize_t next_rows, next_row_step, next_bytes
        const float* weights
        Py_ssize_t outs, tiles, pixels
        char* sums
        Py_ssize_t sums_channel_step
        char* y
        Py_ssize_t y_channel_step
        bint y_far, y_gathered
        const float* bias
        float low, high

    ctypedef struct adjacent_t:
        const char* x
        int x_kind
        Py_ssize_t x_step, k, outs, pixels
        const float* weights
        const float* bias
        float low, high
        char* y
        int y_kind
        Py_ssize_t y_step
        bint planes
        Py_ssize_t y_channel_step
        bint far, stores_wait, slack

    ctypedef struct epilogue_t:
        float* sum
        Py_ssize_t rows, vectors, pitch
        const float* bias
        const float* scale
        bint channels_in_b
        const float* residual
        activation_t activation

    ctypedef struct head_t:
        float* logits
        Py_ssize_t pitch, classes, pixels, k
        int link, binary
        int32_t* labels
        float* values
        uint32_t* counts
        int32_t fill_label
        float fill

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
        bint fills
        int32_t fill_label

    ctypedef void (*micro_kernel_t)(const tile_t*) noexcept nogil

    ctypedef struct kernel_set_t:
        const char* name
        int terms, lanes, k_step, prefetches
        int k_interleave[2]
        int half_cycles, broadcast_half_cycles
        int mr[7]
        micro_kernel_t micro_kernel[2][7][33]
        void (*split)(const split_t*) noexcept nogil
        void (*enter)() noexcept nogil
        void (*leave)() noexcept nogil

    ctypedef struct isa_t:
        kernel_set_t float32
        void (*pack)(const pack_t*) noexcept nogil
        void (*pack_rows)(const pack_t*) noexcept nogil
        void (*epilogue)(const epilogue_t*) noexcept nogil
        void (*best)(const head_t*) noexcept nogil
        void (*indicate)(const head_t*) noexcept nogil
        void (*probabilities)(const head_t*) noexcept nogil
        void (*best_resized)(const resize_t*) noexcept nogil
        void (*discount_nan)(const head_t*) noexcept nogil
        void (*fill_uncounted)(const head_t*) noexcept nogil
        void (*unpack)(const unpack_t*) noexcept nogil
        void (*stream)(const stream_t*) noexcept nogil
        void (*multiply_adjacent)(const adjacent_t*) noexcept nogil
        int stream_mr
        unsigned int quad_outs
        void (*add_sums)(double*, const float*, Py_ssize_t, bint) noexcept nogil
        void (*add_totals)(double*, const double*, Py_ssize_t) noexcept nogil
        void (*pack_columns)(float*, Py_ssize_t, const char*, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                             Py_ssize_t) noexcept nogil
        void (*store_sums)(char*, Py_ssize_t, Py_ssize_t, const float*, Py_ssize_t, Py_ssize_t,
                           Py_ssize_t) noexcept nogil
        void (*store_totals)(char*, Py_ssize_t, Py_ssize_t, const double*, Py_ssize_t, Py_ssize_t,
                             Py_ssize_t) noexcept nogil
        void (*sum_panel)(double*, const float*, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*centre)(float*, Py_ssize_t, Py_ssize_t, const float*, const uint32_t*) noexcept nogil
        double (*fma_chain)(long) noexcept nogil
        double (*sweep)(int, char*, const char*, size_t) noexcept nogil
