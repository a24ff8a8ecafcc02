#define _GNU_SOURCE
#include "handshake.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char MAGIC[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

enum { DIGEST_BYTES = 20, BLOCK_BYTES = 64, KEY_CHARACTERS = 24 };

static uint32_t rotate(uint32_t word, int bits) {
    return word << bits | word >> (32 - bits);
}

/* One block of SHA-1 (RFC 3174, section 6.1). */
static void sha1_block(uint32_t state[5], const unsigned char *block) {
    uint32_t words[80];
    for (int i = 0; i < 16; i++)
        words[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
                   (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 80; i++)
        words[i] = rotate(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int i = 0; i < 80; i++) {
        uint32_t mixed, constant;
        if (i < 20)
            mixed = (b & c) | (~b & d), constant = 0x5a827999;
        else if (i < 40)
            mixed = b ^ c ^ d, constant = 0x6ed9eba1;
        else if (i < 60)
            mixed = (b & c) | (b & d) | (c & d), constant = 0x8f1bbcdc;
        else
            mixed = b ^ c ^ d, constant = 0xca62c1d6;
        uint32_t next = rotate(a, 5) + mixed + e + constant + words[i];
        e = d, d = c, c = rotate(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* SHA-1 of a key and the magic string, 60 characters: with the padding two blocks. */
static void sha1_of_key(const char *key, unsigned char digest[DIGEST_BYTES]) {
    unsigned char blocks[2 * BLOCK_BYTES] = {0};
    size_t size = KEY_CHARACTERS + sizeof MAGIC - 1;
    memcpy(blocks, key, KEY_CHARACTERS);
    memcpy(blocks + KEY_CHARACTERS, MAGIC, sizeof MAGIC - 1);
    blocks[size] = 0x80;
    blocks[sizeof blocks - 2] = (unsigned char)(size * 8 >> 8);
    blocks[sizeof blocks - 1] = (unsigned char)(size * 8);
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    sha1_block(state, blocks);
    sha1_block(state, blocks + BLOCK_BYTES);
    for (int i = 0; i < DIGEST_BYTES; i++)
        digest[i] = (unsigned char)(state[i / 4] >> (24 - i % 4 * 8));
}

/* Base64 of a digest: 28 characters, of which the last is "=". */
static void base64_of_digest(const unsigned char digest[DIGEST_BYTES], char text[29]) {
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char padded[DIGEST_BYTES + 1] = {0};
    memcpy(padded, digest, DIGEST_BYTES);
    for (int i = 0; i < 7; i++) {
        const unsigned char *three = padded + 3 * i;
        uint32_t bits = (uint32_t)three[0] << 16 | (uint32_t)three[1] << 8 | three[2];
        for (int j = 0; j < 4; j++)
            text[4 * i + j] = letters[bits >> (18 - 6 * j) & 63];
    }
    text[27] = '=';
    text[28] = '\0';
}

char *handshake_path(char *request) {
    if (strncmp(request, "GET /", 5) != 0)
        return NULL;
    char *path = request + 5;
    char *end = strchr(path, ' ');
    if (!end)
        return NULL;
    *end = '\0';
    return path;
}

size_t handshake_answer(const char *request, char answer[ANSWER_BYTES]) {
    static const char header[] = "\r\nSec-WebSocket-Key:";
    const char *key = strcasestr(request, header);
    if (!key)
        return 0;
    key += sizeof header - 1;
    key += strspn(key, " ");
    if (strcspn(key, "\r") < KEY_CHARACTERS)
        return 0;
    unsigned char digest[DIGEST_BYTES];
    char accept[29];
    sha1_of_key(key, digest);
    base64_of_digest(digest, accept);
    return (size_t)snprintf(answer, ANSWER_BYTES,
                            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                            "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                            accept);
}
