/*
 * A guest that tries what it should not. `probe COMMAND ARGUMENT...` prints one line: the command
 * line and what came of it, "ok" or the name of the errno.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static socklen_t address(const char *ip, const char *port, struct sockaddr_storage *to)
{
    struct sockaddr_in *four = (void *)to;
    struct sockaddr_in6 *six = (void *)to;

    memset(to, 0, sizeof(*to));
    if (inet_pton(AF_INET, ip, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(atoi(port));
        return sizeof(*four);
    }
    if (inet_pton(AF_INET6, ip, &six->sin6_addr) != 1)
        exit(3);
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(atoi(port));
    return sizeof(*six);
}

static int wait_for(int fd, short events, int milliseconds)
{
    struct pollfd one = {.fd = fd, .events = events};
    return poll(&one, 1, milliseconds) == 1;
}

/* Connect, send a line, and see whether anything comes back. */
static int connect_once(const char *ip, const char *port, int seconds)
{
    struct sockaddr_storage to;
    socklen_t size = address(ip, port, &to);
    int fd = socket(to.ss_family, SOCK_STREAM, 0);
    struct timeval patience = {.tv_sec = seconds};
    char answer[64];

    if (fd >= 0 && seconds)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (fd < 0 || connect(fd, (void *)&to, size) < 0)
        return -1;
    if (write(fd, "ping\n", 5) != 5)
        return -1;
    if (!wait_for(fd, POLLIN, 5000)) {
        errno = ENODATA;
        return -1;
    }
    return read(fd, answer, sizeof(answer)) > 0 ? 0 : -1;
}

/*
 * libkrun's own network may leave a connection without its answer: once more then, as a client
 * should, and on a line of its own.
 */
static int try_connect(const char *ip, const char *port)
{
    int result = connect_once(ip, port, 0);

    if (result == 0 || errno != ENODATA)
        return result;
    printf("connect %s %s: no answer\n", ip, port);
    return connect_once(ip, port, 0);
}

static int try_udp(const char *ip, const char *port)
{
    struct sockaddr_storage to;
    socklen_t size = address(ip, port, &to);
    int fd = socket(to.ss_family, SOCK_DGRAM, 0);
    char answer[64];

    if (fd < 0 || sendto(fd, "ping", 4, 0, (void *)&to, size) < 0)
        return -1;
    if (!wait_for(fd, POLLIN, 700)) {
        errno = ETIMEDOUT;
        return -1;
    }
    return recv(fd, answer, sizeof(answer), 0) > 0 ? 0 : -1;
}

static int try_ping(const char *ip)
{
    static const char echo_request[] = "\x08\0\xf7\xfe\0\0\0\1raw packet";
    struct sockaddr_storage to;
    socklen_t size = address(ip, "0", &to);
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);

    if (fd < 0 || sendto(fd, echo_request, sizeof(echo_request), 0, (void *)&to, size) < 0)
        return -1;
    return 0;
}

/* A frame on the first interface that is not lo, which has the index 1. */
static int try_frame(void)
{
    static const char frame[60] = "raw packet";
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = 2, .sll_halen = 6};
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));

    return fd < 0 || sendto(fd, frame, sizeof(frame), 0, (void *)&to, sizeof(to)) < 0 ? -1 : 0;
}

/* Listen in a child that stays. */
static int try_listen(const char *ip, const char *port, int kind)
{
    struct sockaddr_storage at;
    socklen_t size = address(ip, port, &at);
    int fd = socket(at.ss_family, kind, 0);

    if (fd < 0 || bind(fd, (void *)&at, size) < 0)
        return -1;
    if (kind == SOCK_STREAM && listen(fd, 16) < 0)
        return -1;
    if (fork() == 0) {
        for (;;) {
            if (kind == SOCK_STREAM) {
                int connection = accept(fd, NULL, NULL);
                if (connection >= 0 && write(connection, "pong\n", 5) > 0)
                    close(connection);
            } else {
                pause();
            }
        }
    }
    return 0;
}

static void *accept_one(void *listener)
{
    accept(*(int *)listener, NULL, NULL);
    return NULL;
}

static int listen_on(const char *ip, const char *port)
{
    struct sockaddr_storage at;
    socklen_t size = address(ip, port, &at);
    int fd = socket(at.ss_family, SOCK_STREAM, 0);

    return fd < 0 || bind(fd, (void *)&at, size) < 0 || listen(fd, 16) < 0 ? -1 : fd;
}

/* Whether shutdown wakes a thread that waits in accept. */
static int try_shutdown(const char *ip, const char *port)
{
    int fd = listen_on(ip, port);
    pthread_t thread;

    if (fd < 0)
        return -1;
    pthread_create(&thread, NULL, accept_one, &fd);
    sleep(1);
    shutdown(fd, SHUT_RDWR);
    return pthread_join(thread, NULL);
}

/* Whether a listener can be given up by who waits for it in poll. */
static int try_poll(const char *ip, const char *port)
{
    int fd = listen_on(ip, port);

    return fd < 0 || wait_for(fd, POLLIN, 500) ? -1 : close(fd);
}

static int try_bind_as(const char *user, const char *port)
{
    struct sockaddr_storage at;
    socklen_t size = address("0.0.0.0", port, &at);

    if (setuid(atoi(user)) < 0)
        return -1;
    return bind(socket(AF_INET, SOCK_STREAM, 0), (void *)&at, size);
}

static int try_handle(const char *path)
{
    struct {
        struct file_handle head;
        unsigned char bytes[128];
    } handle = {.head.handle_bytes = 128};
    int mount, fd = open("/", O_RDONLY | O_DIRECTORY);

    /* The inode of a file system's root is 2 or 1 in most; the kind is that of ext4 and others. */
    if (name_to_handle_at(AT_FDCWD, path, &handle.head, &mount, 0) < 0)
        return -1;
    memset(handle.bytes, 0, sizeof(handle.bytes));
    handle.bytes[0] = 2;
    handle.head.handle_bytes = 8;
    handle.head.handle_type = 1;
    return open_by_handle_at(fd, &handle.head, O_RDONLY) < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    const char *one = argc > 2 ? argv[2] : "";
    const char *two = argc > 3 ? argv[3] : "";
    int result = -1;

    errno = 0;
    if (!strcmp(what, "connect"))
        result = try_connect(one, two);
    else if (!strcmp(what, "reach")) /* with little patience, from a network card */
        result = connect_once(one, two, 1);
    else if (!strcmp(what, "udp"))
        result = try_udp(one, two);
    else if (!strcmp(what, "listen"))
        result = try_listen(one, two, SOCK_STREAM);
    else if (!strcmp(what, "listen-udp"))
        result = try_listen(one, two, SOCK_DGRAM);
    else if (!strcmp(what, "ping"))
        result = try_ping(one);
    else if (!strcmp(what, "frame"))
        result = try_frame();
    else if (!strcmp(what, "mknod"))
        result = mknod(one, S_IFCHR | 0600, makedev(1, 5));
    else if (!strcmp(what, "shutdown"))
        result = try_shutdown(one, two);
    else if (!strcmp(what, "poll"))
        result = try_poll(one, two);
    else if (!strcmp(what, "bind-as"))
        result = try_bind_as(one, two);
    else if (!strcmp(what, "rename"))
        result = rename(one, two);
    else if (!strcmp(what, "tmpfile"))
        result = open(one, O_TMPFILE | O_RDWR, 0600) < 0 ? -1 : 0;
    else if (!strcmp(what, "open"))
        result = open(one, O_WRONLY) < 0 ? -1 : 0;
    else if (!strcmp(what, "handle"))
        result = try_handle(one);
    for (int i = 1; i < argc; i++)
        printf("%s%s", i > 1 ? " " : "", argv[i]);
    printf(": %s\n", result == 0 ? "ok" : errno ? strerrorname_np(errno) : "EOF");
    fflush(stdout);
    return 0;
}
