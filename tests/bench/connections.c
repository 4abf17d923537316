/*
 * What becomes of many connections to a server: `connections PORT COUNT AT_ONCE RESETS_EVERY`.
 *
 * Each sends a request and waits for its answer. Every RESETS_EVERY-th asks for /large instead, and
 * resets the connection in the middle of the answer. Of the others is counted how many were
 *
 *     answered   in time
 *     closed     by the server, or reset, before the first byte of an answer
 *     late       answered only after another connection had been made, when it had waited for long
 *     lost       not even then
 *
 * Status 0, if it could count.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PATIENCE_MS = 20000, LATE_MS = 5000 };
static const char REQUEST[] = "GET / HTTP/1.0\r\n\r\n";
static const char LARGE_REQUEST[] = "GET /large HTTP/1.0\r\n\r\n";

static int port, resets_every;
static atomic_int left, answered, closed, late, lost, were_reset;

static int asked(const char *request)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && !connect(fd, (void *)&to, sizeof(to))
        && send(fd, request, strlen(request), MSG_NOSIGNAL) > 0)
        return fd;
    close(fd);
    return -1;
}

static int has_something(int fd, int milliseconds)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, milliseconds) == 1;
}

static void ask_and_reset(void)
{
    struct linger at_once = {.l_onoff = 1};
    int fd = asked(LARGE_REQUEST);

    if (fd < 0)
        return;
    has_something(fd, PATIENCE_MS);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(fd);
    were_reset++;
}

static void ask(void)
{
    int fd = asked(REQUEST), is_late = 0;
    char byte;

    if (fd >= 0 && !has_something(fd, PATIENCE_MS)) {
        is_late = 1;
        close(asked(REQUEST));
    }
    if (fd < 0)
        closed++;
    else if (is_late && !has_something(fd, LATE_MS))
        lost++;
    else if (recv(fd, &byte, 1, 0) != 1)
        closed++;
    else if (is_late)
        late++;
    else
        answered++;
    close(fd);
}

static void *work(void *unused)
{
    int number;

    while ((number = atomic_fetch_sub(&left, 1)) > 0)
        if (resets_every && number % resets_every == 0)
            ask_and_reset();
        else
            ask();
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t threads[64];
    int at_once = argc == 5 ? atoi(argv[3]) : 0;

    if (at_once < 1 || at_once > 64)
        return 64;
    port = atoi(argv[1]);
    left = atoi(argv[2]);
    resets_every = atoi(argv[4]);
    for (int i = 0; i < at_once; i++)
        if (pthread_create(&threads[i], NULL, work, NULL))
            return 70;
    for (int i = 0; i < at_once; i++)
        pthread_join(threads[i], NULL);
    printf("answered %d, closed %d, late %d, lost %d, reset %d\n", answered, closed, late, lost,
           were_reset);
    return 0;
}
