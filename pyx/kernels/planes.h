/* Rectangles of feature maps of any element type to float32 and back: which strides are one element picks the loop. */

enum { BLOCK_FLOATS = 2048, BLOCK_CHANNELS = 128 }; /* float32 between a conversion and a transposition, in cache */

/* LANES pixels of up to four adjacent channels of 8 bits, as a vector for each channel of integers from 0 to 255. */
#ifdef BYTE_PLANES
enum { BYTES_SATURATE = 1 };
#else
enum { BYTES_SATURATE = 0 }; /* else store_byte_planes() stores 0 for negative integers */

/* Each pixel is an integer, of which each channel is a byte. */
INLINE ivec load_byte_pixels(const char *p, const int CHANNELS) {
    if (CHANNELS == 1) return load_bytes(p);
    if (CHANNELS == 2) return load_words(p);
    if (CHANNELS == 3) return load_pixels_3(p);
    return (ivec)load(p);
}

INLINE void store_byte_pixels(char *p, ivec x, const int CHANNELS) {
    if (CHANNELS == 1) store_bytes(p, x);
    if (CHANNELS == 2) store_words(p, x);
    if (CHANNELS == 3) store_pixels_3(p, x);
    if (CHANNELS == 4) store(p, (vec)x);
}

INLINE void load_byte_planes(const char *p, ivec *plane, const int CHANNELS) {
    const ivec pixel = load_byte_pixels(p, CHANNELS);
    UNROLL for (int c = 0; c < CHANNELS; c++) plane[c] = pixel >> 8 * c & 255;
}

INLINE void store_byte_planes(char *p, const ivec *plane, const int CHANNELS) {
    ivec pixel = splat_int(0);
    UNROLL for (int c = 0; c < CHANNELS; c++) pixel |= plane[c] << 8 * c;
    store_byte_pixels(p, pixel, CHANNELS);
}
#endif

INLINE void widen_byte_pixels_of(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t pixels, int is_signed,
                                 const int CHANNELS) {
    FOR_VECTORS(i, pixels) {
        ivec plane[4];
        load_byte_planes(src + i * CHANNELS, plane, CHANNELS);
        UNROLL for (int c = 0; c < CHANNELS; c++) {
            const ivec byte = is_signed ? sign_extended(plane[c], 8) : plane[c];
            store(dst + c * d_row + i * (ptrdiff_t)sizeof(float), vec_from_ints(byte));
        }
    }
}

INLINE void narrow_byte_pixels_of(char *dst, const char *src, ptrdiff_t s_row, ptrdiff_t pixels, int is_signed,
                                  const int CHANNELS) {
    FOR_VECTORS(i, pixels) {
        ivec plane[4];
        UNROLL for (int c = 0; c < CHANNELS; c++) {
            const vec v = load(src + c * s_row + i * (ptrdiff_t)sizeof(float));
            plane[c] = is_signed ? rounded(v, -128.0f, 127.0f) & 255 : rounded(v, 0.0f, 255.0f);
        }
        store_byte_planes(dst + i * CHANNELS, plane, CHANNELS);
    }
}

/* LANES pixels or more, whose 1 to 4 channels are all that lies between them. */
static void widen_byte_pixels(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t pixels, int is_signed,
                              ptrdiff_t channels) {
    switch (channels) {
        case 1: widen_byte_pixels_of(dst, d_row, src, pixels, is_signed, 1); break;
        case 2: widen_byte_pixels_of(dst, d_row, src, pixels, is_signed, 2); break;
        case 3: widen_byte_pixels_of(dst, d_row, src, pixels, is_signed, 3); break;
        default: widen_byte_pixels_of(dst, d_row, src, pixels, is_signed, 4); break;
    }
}

static void narrow_byte_pixels(char *dst, const char *src, ptrdiff_t s_row, ptrdiff_t pixels, int is_signed,
                               ptrdiff_t channels) {
    switch (channels) {
        case 1: narrow_byte_pixels_of(dst, src, s_row, pixels, is_signed, 1); break;
        case 2: narrow_byte_pixels_of(dst, src, s_row, pixels, is_signed, 2); break;
        case 3: narrow_byte_pixels_of(dst, src, s_row, pixels, is_signed, 3); break;
        default: narrow_byte_pixels_of(dst, src, s_row, pixels, is_signed, 4); break;
    }
}

INLINE int are_byte_pixels(int kind, ptrdiff_t step, ptrdiff_t channels, ptrdiff_t pixels) {
    return (kind == KIND_UINT8 || kind == KIND_INT8) && channels <= 4 && step == channels && pixels >= LANES;
}

/* The pixels of a block of so many channels: whole vectors. */
INLINE ptrdiff_t block_pixels(ptrdiff_t channels) {
    const ptrdiff_t room = BLOCK_FLOATS / channels;
    return room - room % LANES;
}

/* The first pixel of the next block of `room` pixels. The last block overlaps the one before rather than be shorter than
   a vector. */
INLINE ptrdiff_t next_block(ptrdiff_t at, ptrdiff_t room, ptrdiff_t pixels) {
    const ptrdiff_t next = at + room, left = pixels - next;
    return left > 0 && left < LANES ? pixels - LANES : next;
}

/* dst[channel][pixel] = src[pixel][channel], widened run by run into a block, which is deinterleaved. */
static void deinterleave_widened(int kind, char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t step,
                                 ptrdiff_t channels, ptrdiff_t pixels) {
    enum { ONE = sizeof(float) };
    const int size = element_size(kind);
    float block[BLOCK_FLOATS];
    for (ptrdiff_t channel = 0; channel < channels; channel += BLOCK_CHANNELS) {
        const ptrdiff_t some = smaller_of(channels - channel, BLOCK_CHANNELS), room = block_pixels(some);
        for (ptrdiff_t i = 0; i < pixels; i = next_block(i, room, pixels)) {
            const ptrdiff_t n = smaller_of(pixels - i, room);
            const char *from = src + channel * size + i * step;
            if (step == some * size) {
                widen_run(block, from, n * some, kind);
            } else {
                for (ptrdiff_t j = 0; j < n; j++) widen_run(block + j * some, from + j * step, some, kind);
            }
            deinterleave(dst + channel * d_row + i * ONE, d_row, (const char *)block, some * ONE, some, n);
        }
    }
}

/* dst[pixel][channel] = src[channel][pixel], interleaved into a block, which is narrowed run by run. */
static void interleave_narrowed(int kind, char *dst, ptrdiff_t step, const char *src, ptrdiff_t s_row,
                                ptrdiff_t channels, ptrdiff_t pixels) {
    enum { ONE = sizeof(float) };
    const int size = element_size(kind);
    float block[BLOCK_FLOATS];
    for (ptrdiff_t channel = 0; channel < channels; channel += BLOCK_CHANNELS) {
        const ptrdiff_t some = smaller_of(channels - channel, BLOCK_CHANNELS), room = block_pixels(some);
        for (ptrdiff_t i = 0; i < pixels; i = next_block(i, room, pixels)) {
            const ptrdiff_t n = smaller_of(pixels - i, room);
            char *to = dst + channel * size + i * step;
            interleave((char *)block, some * ONE, src + channel * s_row + i * ONE, s_row, some, n);
            if (step == some * size) {
                narrow_run(to, block, n * some, kind);
            } else {
                for (ptrdiff_t j = 0; j < n; j++) narrow_run(to + j * step, block + j * some, some, kind);
            }
        }
    }
}

/* Float32 rows from a map of any kind: dst[i][j] = src[i * s_row + j * s_lane], i < rows, j < lanes. */
static void copy_widened(int kind, char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t s_row, ptrdiff_t s_lane,
                         ptrdiff_t rows, ptrdiff_t lanes) {
    enum { ONE = sizeof(float), SIDE = 32 };
    const int size = element_size(kind);
    if (kind == KIND_FLOAT32 && (distance(s_row) == size || s_lane == size)) {
        copy(dst, d_row, ONE, src, s_row, s_lane, rows, lanes);
    } else if (s_lane == size && s_row == lanes * size && d_row == lanes * ONE) {
        widen_run((float *)dst, src, rows * lanes, kind);
    } else if (s_lane == size || rows == 1) {
        for (ptrdiff_t i = 0; i < rows; i++) widen_strided((float *)(dst + i * d_row), src + i * s_row, s_lane, lanes, kind);
    } else if (s_row == -size) { /* channels in reverse */
        copy_widened(kind, dst + (rows - 1) * d_row, -d_row, src + (rows - 1) * s_row, size, s_lane, rows, lanes);
    } else if (s_row == size && are_byte_pixels(kind, s_lane, rows, lanes)) {
        widen_byte_pixels(dst, d_row, src, lanes, kind == KIND_INT8, rows);
    } else if (s_row == size) {
        deinterleave_widened(kind, dst, d_row, src, s_lane, rows, lanes);
    } else if (distance(s_row) >= distance(s_lane)) {
        for (ptrdiff_t i = 0; i < rows; i++) widen_strided((float *)(dst + i * d_row), src + i * s_row, s_lane, lanes, kind);
    } else {
        /* Square by square, each read in the order in which it lies in memory. */
        float block[SIDE * SIDE];
        for (ptrdiff_t i = 0; i < rows; i += SIDE) {
            const ptrdiff_t height = smaller_of(rows - i, SIDE);
            for (ptrdiff_t j = 0; j < lanes; j += SIDE) {
                const ptrdiff_t width = smaller_of(lanes - j, SIDE);
                for (ptrdiff_t l = 0; l < width; l++) {
                    widen_strided(block + l * height, src + i * s_row + (j + l) * s_lane, s_row, height, kind);
                }
                copy(dst + i * d_row + j * ONE, d_row, ONE, (const char *)block, ONE, height * ONE, height, width);
            }
        }
    }
}

/* Planes of float32 into a map of any native kind and any strides. */
static void unpack_through_cache(const unpack_t *u) {
    enum { ONE = sizeof(float) };
    const int kind = u->kind, size = element_size(kind);
    const ptrdiff_t channels = u->channels, pixels = u->pixels, step = u->step;
    ptrdiff_t channel_step = u->channel_step, s_row = u->pitch * ONE;
    const char *src = (const char *)u->src;
    char *y = u->y;
    if (channel_step == -size && step != size) { /* channels in reverse */
        y += (channels - 1) * channel_step;
        src += (channels - 1) * s_row;
        s_row = -s_row;
        channel_step = size;
    }
    if (channel_step != size || step == size || channels == 1) {
        for (ptrdiff_t c = 0; c < channels; c++) {
            narrow_strided(y + c * channel_step, step, (const float *)(src + c * s_row), pixels, kind);
        }
    } else if (kind == KIND_FLOAT32) {
        interleave(y, step, src, s_row, channels, pixels);
    } else if (are_byte_pixels(kind, step, channels, pixels)) {
        narrow_byte_pixels(y, src, s_row, pixels, kind == KIND_INT8, channels);
    } else {
        interleave_narrowed(kind, y, step, src, s_row, channels, pixels);
    }
}

/* Copies a run past the caches: without reading the lines that it replaces, which saves a third of the traffic of a copy.
   Only whole cache lines are stored so: two ways of storing parts of a line would wait for each other. A load whose
   address has the low 12 bits of such a store's before it would wait for that, so lines are copied in the order in which
   none has. */
static void copy_past_caches(char *dst, const char *src, ptrdiff_t bytes) {
    enum { LINE = 64, PAGE = 4096 };
    const ptrdiff_t head = smaller_of(-(intptr_t)dst & (LINE - 1), bytes), whole = (bytes - head) / LINE * LINE;
    memcpy(dst, src, (size_t)head);
    if (((uintptr_t)dst - (uintptr_t)src) % PAGE >= PAGE / 2) {
        for (ptrdiff_t i = head; i < head + whole; i += sizeof(vec)) store_past_caches(dst + i, load(src + i));
    } else {
        for (ptrdiff_t line = head + whole - LINE; line >= head; line -= LINE) {
            UNROLL for (int i = 0; i < LINE; i += sizeof(vec)) store_past_caches(dst + line + i, load(src + line + i));
        }
    }
    memcpy(dst + head + whole, src + head + whole, (size_t)(bytes - head - whole));
}

/* A map that is far is stored in runs that were put together in cache, if its pixels or its planes have no gaps.
   pwconv_end_of_stores() has to follow before another thread reads them. */
static void unpack(const unpack_t *all) {
    enum { BYTES = 8192 };
    unpack_t rows = *all, *const u = &rows;
    const ptrdiff_t size = element_size(u->kind);
    if (u->step == size && u->channel_step == u->pixels * size && u->pitch == u->pixels) { /* planes without gaps */
        u->pixels *= u->channels;
        u->channels = 1;
    }
    const ptrdiff_t pixel_bytes = u->channels * size;
    const int pixels_adjacent = u->step == size, channels_adjacent = u->channel_step == size && u->step == pixel_bytes;
    if (!u->far || !(pixels_adjacent || channels_adjacent) || pixel_bytes > BYTES) {
        unpack_through_cache(u);
        return;
    }
    char run[BYTES] __attribute__((aligned(64)));
    unpack_t part = *u;
    part.y = run;
    if (channels_adjacent) {
        for (ptrdiff_t i = 0; i < u->pixels; i += part.pixels) {
            part.src = u->src + i;
            part.pixels = smaller_of(u->pixels - i, BYTES / pixel_bytes);
            unpack_through_cache(&part);
            copy_past_caches(u->y + i * pixel_bytes, run, part.pixels * pixel_bytes);
        }
    } else {
        part.channels = 1;
        for (ptrdiff_t c = 0; c < u->channels; c++) {
            for (ptrdiff_t i = 0; i < u->pixels; i += part.pixels) {
                const float *src = u->src + c * u->pitch + i;
                char *y = u->y + c * u->channel_step + i * size;
                part.src = src;
                part.pixels = smaller_of(u->pixels - i, BYTES / size);
                if (u->kind != KIND_FLOAT32) unpack_through_cache(&part);
                copy_past_caches(y, u->kind == KIND_FLOAT32 ? (const char *)src : run, part.pixels * size);
            }
        }
    }
}
