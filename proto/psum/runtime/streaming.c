/* Copies memory without bringing the target into the processor's caches.

A processor that stores to memory outside its caches first reads what it will overwrite, unless the store is a streaming
one. glibc uses streaming stores for copies that are larger than a part of the last cache. On a virtual machine with few
processors it takes the whole cache of the host for theirs, so hardly any copy is large enough.

Needs only SSE2, which every x86-64 processor has. */

#include <emmintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LINE 64
#define PAGE 4096
#define PAGES 2 /* Copied side by side: each of them is a stream of its own to the memory. */
#define TURN (2 * LINE)

static inline void copy_line(char *to, const char *from) {
    __m128i a = _mm_loadu_si128((const __m128i *)from);
    __m128i b = _mm_loadu_si128((const __m128i *)(from + 16));
    __m128i c = _mm_loadu_si128((const __m128i *)(from + 32));
    __m128i d = _mm_loadu_si128((const __m128i *)(from + 48));
    _mm_stream_si128((__m128i *)to, a);
    _mm_stream_si128((__m128i *)(to + 16), b);
    _mm_stream_si128((__m128i *)(to + 32), c);
    _mm_stream_si128((__m128i *)(to + 48), d);
}

/* The areas must not overlap. */
void psum_streaming_copy(char *to, const char *from, size_t size) {
    size_t lead = -(uintptr_t)to & (LINE - 1);
    if (lead > size)
        lead = size;
    memcpy(to, from, lead);
    to += lead, from += lead, size -= lead;
    for (; size >= PAGES * PAGE; to += PAGES * PAGE, from += PAGES * PAGE, size -= PAGES * PAGE)
        for (size_t begin = 0; begin < PAGE; begin += TURN)
            for (size_t page = begin; page < PAGES * PAGE; page += PAGE)
                for (size_t at = page; at < page + TURN; at += LINE) {
                    /* The next pages' line. Prefetching past the end of mapped memory does nothing. */
                    _mm_prefetch(from + at + PAGES * PAGE, _MM_HINT_T0);
                    copy_line(to + at, from + at);
                }
    memcpy(to, from, size);
    _mm_sfence();
}
