/* The handshake of a websocket (RFC 6455, section 4.2). */
#ifndef HANDSHAKE_H
#define HANDSHAKE_H

#include <stddef.h>

enum { ANSWER_BYTES = 160 };

/* Find the path in a complete request, which ends with a zero byte.
 *
 * Returns the path, which ends with a zero byte, too, after a write into the request; NULL if the
 * request is no GET.
 */
char *handshake_path(char *request);

/* Write the answer that accepts the request into `answer`; returns its length, or 0 if the request
 * has no key.
 */
size_t handshake_answer(const char *request, char answer[ANSWER_BYTES]);

#endif
