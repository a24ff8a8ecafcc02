#define _GNU_SOURCE
#include "resp.h"

#include <string.h>

/* Parse `<mark><number>\r\n`. Returns the position after it; NULL if it is not complete. */
static const char *number(const char *at, const char *end, long *value) {
    const char *line_end = memmem(at, (size_t)(end - at), "\r\n", 2);
    if (!line_end)
        return NULL;
    *value = 0;
    for (at++; at < line_end; at++)
        *value = *value * 10 + (*at - '0');
    return line_end + 2;
}

long resp_parse(const char *data, size_t size, struct item items[3]) {
    const char *at = data, *end = data + size;
    long value;
    if (at == end)
        return 0;
    if (*at != '*')
        return -1;
    if (!(at = number(at, end, &value)))
        return 0;
    if (value != 3)
        return -1;
    for (int i = 0; i < 3; i++) {
        if (at == end)
            return 0;
        char mark = *at;
        items[i].data = at + 1;
        if (!(at = number(at, end, &value)))
            return 0;
        if (mark == ':') {
            items[i].size = (size_t)(at - 2 - items[i].data);
        } else if (mark == '$') {
            if (end - at < value + 2)
                return 0;
            items[i] = (struct item){at, (size_t)value};
            at += value + 2;
        } else {
            return -1;
        }
    }
    return at - data;
}
