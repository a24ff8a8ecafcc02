/* The connections to clients: what is written to them, in one system call for each turn. */
#ifndef CLIENTS_H
#define CLIENTS_H

#include "buffer.h"
#include "list.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { MAX_SEGMENTS = 16 };

struct client {
    int fd;
    bool open;                /* The handshake is complete. */
    bool written;             /* It is in `to_flush`. */
    unsigned unacknowledged;  /* Number of its channels that the broker has not acknowledged. */
    int segment_count;        /* What it gets at the end of the batch. */
    struct iovec segments[MAX_SEGMENTS];
    struct buffer request;
    struct buffer pending;    /* What the kernel has not taken. */
    struct list memberships;  /* The lists of members that it is in. */
};

extern int poll_fd;

/* Print the error of a system call, and exit. */
void die(const char *what);

/* Call epoll_ctl. */
void watch(int operation, int fd, uint32_t events, void *data);

/* A client on a connection; epoll reports it with a pointer to it. */
void client_open(int fd);

/* Close a client. Its memory is freed at the end of the turn, because events may refer to it. */
void client_close(struct client *client);

/* Queue data, which must remain valid until the end of the turn. Adjacent data is one segment. */
void client_write(struct client *client, char *data, size_t size);

/* Write what the kernel did not take before. */
void client_write_pending(struct client *client);

/* End a turn of the event loop: write to each client what was queued, and free closed clients. */
void clients_end_turn(void);

#endif
