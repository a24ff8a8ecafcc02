/* Counts the websocket frames in a buffer; the client of the benchmarks loads it.
 *
 * A client in Python needs more time for a frame than the fastest servers need to send it.
 */
#include <stddef.h>
#include <stdint.h>

struct counted {
    size_t bytes;  /* The length of the complete frames. */
    size_t frames; /* The number of data frames among them. */
    int closes;    /* The last one is a close frame. */
};

struct counted count_frames(const unsigned char *data, size_t size) {
    struct counted counted = {0, 0, 0};
    while (size - counted.bytes >= 2 && !counted.closes) {
        const unsigned char *frame = data + counted.bytes;
        size_t left = size - counted.bytes, head = 2;
        uint64_t length = frame[1] & 127;
        if (length >= 126) {
            head = length == 126 ? 4 : 10;
            if (left < head)
                break;
            length = 0;
            for (size_t i = 2; i < head; i++)
                length = length << 8 | frame[i];
        }
        if (left < head || left - head < length)
            break;
        counted.bytes += head + length;
        counted.frames += (frame[0] & 15) == 1 || (frame[0] & 15) == 2;
        counted.closes = (frame[0] & 15) == 8;
    }
    return counted;
}
