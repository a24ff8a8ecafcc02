#include "clients.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_PENDING_BYTES = 64 * 1024 * 1024 }; /* A client that has more to read is disconnected. */

int poll_fd;

static struct list to_flush, closed;

void die(const char *what) {
    perror(what);
    exit(1);
}

void watch(int operation, int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(poll_fd, operation, fd, &event) < 0)
        die("epoll_ctl");
}

void client_open(int fd) {
    struct client *client = calloc(1, sizeof *client);
    if (!client)
        die("calloc");
    client->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    watch(EPOLL_CTL_ADD, fd, EPOLLIN, client);
}

void client_close(struct client *client) {
    if (client->fd < 0)
        return;
    close(client->fd);
    client->fd = -1;
    for (size_t i = 0; i < client->memberships.count; i++)
        list_remove(client->memberships.items[i], client);
    list_append(&closed, client);
}

static void client_free(struct client *client) {
    buffer_free(&client->request);
    buffer_free(&client->pending);
    list_free(&client->memberships);
    free(client);
}

/* Keep what the kernel did not take; epoll reports when it takes more. */
static void client_keep(struct client *client, size_t taken) {
    if (!client->pending.used)
        watch(EPOLL_CTL_MOD, client->fd, EPOLLIN | EPOLLOUT, client);
    for (int i = 0; i < client->segment_count; i++) {
        struct iovec segment = client->segments[i];
        size_t skipped = taken < segment.iov_len ? taken : segment.iov_len;
        taken -= skipped;
        buffer_append(&client->pending, (char *)segment.iov_base + skipped,
                      segment.iov_len - skipped);
    }
}

/* Write the segments of a client, all in one system call. */
static void client_flush(struct client *client) {
    if (client->fd < 0 || !client->segment_count)
        return;
    size_t wanted = 0;
    for (int i = 0; i < client->segment_count; i++)
        wanted += client->segments[i].iov_len;
    ssize_t taken = 0;
    if (!client->pending.used) {
        taken = writev(client->fd, client->segments, client->segment_count);
        if (taken < 0 && errno != EAGAIN)
            client_close(client);
    }
    if (client->fd >= 0 && (taken < 0 || (size_t)taken < wanted))
        client_keep(client, taken < 0 ? 0 : (size_t)taken);
    if (client->pending.used > MAX_PENDING_BYTES)
        client_close(client);
    client->segment_count = 0;
}

void client_write(struct client *client, char *data, size_t size) {
    if (client->fd < 0)
        return;
    if (!client->written) {
        client->written = true;
        list_append(&to_flush, client);
    }
    if (client->segment_count) {
        struct iovec *last = &client->segments[client->segment_count - 1];
        if ((char *)last->iov_base + last->iov_len == data) {
            last->iov_len += size;
            return;
        }
    }
    if (client->segment_count == MAX_SEGMENTS)
        client_flush(client);
    client->segments[client->segment_count++] = (struct iovec){data, size};
}

void client_write_pending(struct client *client) {
    ssize_t taken = write(client->fd, client->pending.data, client->pending.used);
    if (taken < 0) {
        if (errno != EAGAIN)
            client_close(client);
        return;
    }
    buffer_discard(&client->pending, (size_t)taken);
    if (!client->pending.used) {
        buffer_free(&client->pending);
        watch(EPOLL_CTL_MOD, client->fd, EPOLLIN, client);
    }
}

void clients_end_turn(void) {
    for (size_t i = 0; i < to_flush.count; i++) {
        struct client *client = to_flush.items[i];
        client->written = false;
        client_flush(client);
    }
    to_flush.count = 0;
    for (size_t i = 0; i < closed.count; i++)
        client_free(closed.items[i]);
    closed.count = 0;
}
