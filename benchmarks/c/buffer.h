/* A byte buffer that grows. */
#ifndef BUFFER_H
#define BUFFER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct buffer {
    char *data;
    size_t used, room;
};

/* Make room for `more` bytes behind those in use. */
static inline void buffer_reserve(struct buffer *buffer, size_t more) {
    if (buffer->room - buffer->used >= more)
        return;
    while (buffer->room - buffer->used < more)
        buffer->room = buffer->room ? buffer->room * 2 : 256;
    buffer->data = realloc(buffer->data, buffer->room);
    if (!buffer->data) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
}

static inline void buffer_append(struct buffer *buffer, const void *data, size_t size) {
    buffer_reserve(buffer, size);
    memcpy(buffer->data + buffer->used, data, size);
    buffer->used += size;
}

/* Remove bytes from the start. */
static inline void buffer_discard(struct buffer *buffer, size_t size) {
    buffer->used -= size;
    memmove(buffer->data, buffer->data + size, buffer->used);
}

static inline void buffer_free(struct buffer *buffer) {
    free(buffer->data);
    *buffer = (struct buffer){0};
}

#endif
