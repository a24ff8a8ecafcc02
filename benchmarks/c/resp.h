/* What the broker sends to a subscriber: arrays of three items (RESP 2). */
#ifndef RESP_H
#define RESP_H

#include <stddef.h>

struct item {
    const char *data;
    size_t size;
};

/* Parse one array `kind, channel, payload`. The payload of an acknowledgement is a number.
 *
 * Returns the number of bytes of the array; 0 if it is not complete; -1 if it is something else.
 */
long resp_parse(const char *data, size_t size, struct item items[3]);

#endif
