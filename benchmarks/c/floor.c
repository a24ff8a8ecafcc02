/* The floor: how little a websocket server for fan-out can cost.
 *
 * One thread on epoll. The path of a socket names its channels; the server subscribes to them at
 * the broker. A batch is what one read from the broker returns. The frame of a message is made
 * once in a batch, and each socket gets all its frames of the batch in one write.
 *
 * It leaves out what every real server needs: it ignores everything that a client sends after the
 * handshake (pings, the closing handshake, data), never pings a client, has no compression, TLS,
 * origin check or shutdown, does not unsubscribe, ends with its broker connection, and skips
 * checks of what the broker sends.
 *
 *     BENCH_BROKER_URL=redis://127.0.0.1:<port> floor <port>
 */
#define _GNU_SOURCE
#include "clients.h"
#include "handshake.h"
#include "resp.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum {
    READ_BYTES = 64 * 1024,
    MAX_REQUEST_BYTES = 8 * 1024,
    EVENTS = 512,
    BUCKETS = 1 << 17,
    BACKLOG = 4096,
};

struct channel {
    struct channel *next;
    struct list members;
    bool acknowledged;
    size_t name_size;
    char name[];
};

static int listener, broker;
static bool greets;
static struct channel *channels[BUCKETS];
static struct buffer from_broker, to_broker, frames;

/* -- Channels --------------------------------------------------------------------------------- */

static void client_greet(struct client *client) {
    static char greeting[] = "\x81\x08\"joined\"";
    if (greets)
        client_write(client, greeting, sizeof greeting - 1);
}

/* The channel of a name; a new one is subscribed at the broker. */
static struct channel *channel_of(const char *name, size_t size) {
    uint32_t hash = 2166136261; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)name[i]) * 16777619;
    struct channel **place = &channels[hash % BUCKETS];
    for (; *place; place = &(*place)->next)
        if ((*place)->name_size == size && !memcmp((*place)->name, name, size))
            return *place;
    struct channel *channel = calloc(1, sizeof *channel + size);
    if (!channel)
        die("calloc");
    channel->name_size = size;
    memcpy(channel->name, name, size);
    *place = channel;
    char head[64];
    int length = snprintf(head, sizeof head, "*2\r\n$9\r\nSUBSCRIBE\r\n$%zu\r\n", size);
    buffer_append(&to_broker, head, (size_t)length);
    buffer_append(&to_broker, name, size);
    buffer_append(&to_broker, "\r\n", 2);
    return channel;
}

static void client_join(struct client *client, const char *name, size_t size) {
    struct channel *channel = channel_of(name, size);
    list_append(&channel->members, client);
    list_append(&client->memberships, &channel->members);
    client->unacknowledged += !channel->acknowledged;
}

/* `room-7` is one channel; `room-/100/30` are thirty channels, beginning with room-100. */
static void client_join_path(struct client *client, const char *path) {
    const char *numbers = strchr(path, '/');
    if (!numbers) {
        client_join(client, path, strlen(path));
    } else {
        int prefix = (int)(numbers - path);
        char *end;
        long first = strtol(numbers + 1, &end, 10);
        long count = *end == '/' ? strtol(end + 1, NULL, 10) : 0;
        for (long number = first; number < first + count; number++) {
            char name[256];
            int size = snprintf(name, sizeof name, "%.*s%ld", prefix, path, number);
            client_join(client, name, (size_t)size);
        }
    }
    if (!client->unacknowledged)
        client_greet(client);
}

/* -- Reading ---------------------------------------------------------------------------------- */

static void client_handshake(struct client *client) {
    char answer[ANSWER_BYTES];
    size_t size = handshake_answer(client->request.data, answer);
    char *path = handshake_path(client->request.data);
    if (!size || !path || send(client->fd, answer, size, MSG_NOSIGNAL) != (ssize_t)size) {
        client_close(client);
        return;
    }
    client->open = true;
    client_join_path(client, path);
    buffer_free(&client->request);
}

static void client_read(struct client *client) {
    char data[4096];
    ssize_t size = recv(client->fd, data, sizeof data, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        client_close(client);
        return;
    }
    if (client->open)
        return;
    buffer_append(&client->request, data, (size_t)size);
    buffer_append(&client->request, "", 1);
    client->request.used--; /* The next read replaces the zero byte. */
    if (strstr(client->request.data, "\r\n\r\n"))
        client_handshake(client);
    else if (client->request.used > MAX_REQUEST_BYTES)
        client_close(client);
}

static void accept_all(void) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
        client_open(fd);
}

/* Make the frame of a message, once for all members (RFC 6455, section 5.2). */
static void deliver(struct channel *channel, struct item payload) {
    unsigned char head[10] = {0x81};
    size_t size = payload.size, head_size = size < 126 ? 2 : size < 65536 ? 4 : 10;
    head[1] = (unsigned char)(size < 126 ? size : size < 65536 ? 126 : 127);
    for (size_t i = head_size - 1; i > 1; i--, size >>= 8)
        head[i] = (unsigned char)size;
    char *frame = frames.data + frames.used;
    buffer_append(&frames, head, head_size);
    buffer_append(&frames, payload.data, payload.size);
    /* Backwards, because a client that is closed meanwhile is replaced by the last one. */
    for (size_t i = channel->members.count; i--;)
        client_write(channel->members.items[i], frame, head_size + payload.size);
}

static void acknowledge(struct channel *channel) {
    if (channel->acknowledged)
        return;
    channel->acknowledged = true;
    for (size_t i = channel->members.count; i--;) {
        struct client *client = channel->members.items[i];
        if (!--client->unacknowledged)
            client_greet(client);
    }
}

static void read_broker(void) {
    buffer_reserve(&from_broker, READ_BYTES);
    ssize_t size = recv(broker, from_broker.data + from_broker.used, READ_BYTES, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0)
        die("the broker has closed the connection");
    from_broker.used += (size_t)size;
    /* A frame is smaller than the broker's message: the buffer does not move in this batch. */
    frames.used = 0;
    buffer_reserve(&frames, from_broker.used);
    size_t parsed = 0;
    long used;
    struct item items[3];
    while ((used = resp_parse(from_broker.data + parsed, from_broker.used - parsed, items)) > 0) {
        parsed += (size_t)used;
        struct channel *channel = channel_of(items[1].data, items[1].size);
        if (*items[0].data == 'm')
            deliver(channel, items[2]);
        else
            acknowledge(channel);
    }
    if (used < 0) {
        fputs("the broker sent something else than a message\n", stderr);
        exit(1);
    }
    buffer_discard(&from_broker, parsed);
}

/* -- The event loop --------------------------------------------------------------------------- */

static int listening(uint16_t port) {
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, BACKLOG))
        die("listen");
    return fd;
}

/* A connection that blocks when it is written to. */
static int connected(uint16_t port) {
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        die("the broker");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    return fd;
}

static void handle(struct epoll_event event) {
    struct client *client = event.data.ptr;
    if (event.data.ptr == &listener)
        accept_all();
    else if (event.data.ptr == &broker)
        read_broker();
    else if (client->fd >= 0) {
        if (event.events & EPOLLOUT)
            client_write_pending(client);
        if (client->fd >= 0 && event.events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            client_read(client);
    }
}

static void end_turn(void) {
    clients_end_turn();
    for (size_t sent = 0; sent < to_broker.used;) {
        ssize_t size = send(broker, to_broker.data + sent, to_broker.used - sent, MSG_NOSIGNAL);
        if (size < 0)
            die("the broker");
        sent += (size_t)size;
    }
    to_broker.used = 0;
}

int main(int count, char **arguments) {
    const char *url = getenv("BENCH_BROKER_URL");
    const char *port = url ? strrchr(url, ':') : NULL;
    if (count != 2 || !port) {
        fputs("usage: BENCH_BROKER_URL=redis://127.0.0.1:<port> floor <port>\n", stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    greets = !getenv("BENCH_SILENT");
    poll_fd = epoll_create1(0);
    broker = connected((uint16_t)atoi(port + 1));
    listener = listening((uint16_t)atoi(arguments[1]));
    watch(EPOLL_CTL_ADD, broker, EPOLLIN, &broker);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poll_fd, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++)
            handle(events[i]);
        end_turn();
    }
}
