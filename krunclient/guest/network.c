/*
 * The guest's half of `--network passt`: sets the network card up, then becomes the app.
 *
 * libkrun's init runs it in the app's place:
 *
 *     network "PORT ADDRESS GATEWAY NEWS ROUTE/PREFIX..." APP ARGUMENT...
 *
 * A process of its own stays behind. It tells the host whether the guest listens on PORT, by the
 * first packet of a connection to NEWS: to port 1 when it does, to port 2 when it no longer does.
 * The host refuses both. A guest that lies about it opens or closes its own port alone.
 *
 * Structures and numbers are those of the kernel's <linux/if.h>, <linux/route.h>,
 * <linux/sockios.h>.
 */

#include "start.h"

enum { O_RDONLY = 0, O_CLOEXEC = 02000000, AT_FDCWD = -100, SIGCHLD = 17, PR_SET_NAME = 15 };
enum { EEXIST = 17 };
enum { AF_INET = 2, SOCK_STREAM = 1, SOCK_DGRAM = 2, SOCK_NONBLOCK = 04000 };
enum {
    SIOCADDRT = 0x890B, SIOCSIFFLAGS = 0x8914, SIOCSIFADDR = 0x8916, SIOCSIFNETMASK = 0x891C,
    SIOCSIFMTU = 0x8922, IFF_UP = 1, RTF_UP = 1, RTF_GATEWAY = 2
};
enum { MTU = 65520, LISTENS = 1, NO_LONGER = 2, TCP_LISTEN = 0x0A };
enum { LOOK_UNTIL_IT_LISTENS_MS = 20, LOOK_MS = 500 };

struct sockaddr_in { u16 family, port; u32 address; u8 zero[8]; };
struct ifreq { char name[16]; union { struct sockaddr_in address; int mtu; short flags; u8 all[24]; }; };
struct rtentry {
    unsigned long pad1;
    struct sockaddr_in destination, gateway, mask;
    u16 flags;
    short pad2;
    unsigned long pad3;
    void *pad4;
    short metric;
    char *device;
    unsigned long mtu, window;
    u16 initial_rtt;
};
struct timespec { long seconds, nanoseconds; };

static void set_up(long result, const char *what)
{
    if (result < 0)
        fail("the guest's network can't be set up", what, NO_SET_UP);
}

/* The next number of the settings; the character behind it is passed over. */
static u32 number(const char **at)
{
    u32 value = 0;
    while (**at >= '0' && **at <= '9')
        value = value * 10 + (u32)(*(*at)++ - '0');
    if (**at)
        (*at)++;
    return value;
}

static u32 in_network_order(u32 value)
{
    return __builtin_bswap32(value);
}

static struct sockaddr_in at(u32 address, u16 port)
{
    struct sockaddr_in sockaddr = { AF_INET, __builtin_bswap16(port), in_network_order(address), { 0 } };
    return sockaddr;
}

static u32 address(const char **settings)
{
    u32 value = 0;
    for (int part = 0; part < 4; part++)
        value = value << 8 | number(settings);
    return value;
}

static void set(int socket, const char *name, int request, struct ifreq what, const char *thing)
{
    for (int position = 0; name[position]; position++)
        what.name[position] = name[position];
    set_up(call(SYS_ioctl, socket, request, (long)&what, 0, 0), thing);
}

static void add_route(int socket, u32 to, u32 prefix, u32 gateway)
{
    static char card[] = "eth0";
    struct rtentry route = { 0 };
    route.destination = at(to, 0);
    route.gateway = at(gateway, 0);
    route.mask = at(prefix ? ~0u << (32 - prefix) : 0, 0);
    route.flags = RTF_UP | (gateway ? RTF_GATEWAY : 0);
    route.device = card;
    long result = call(SYS_ioctl, socket, SIOCADDRT, (long)&route, 0, 0);
    set_up(result == -EEXIST ? 0 : result, "a route");
}

static void set_the_card_up(u32 own, u32 gateway, u32 news, const char *routes)
{
    int socket = (int)call(SYS_socket, AF_INET, SOCK_DGRAM | O_CLOEXEC, 0, 0, 0);
    set_up(socket, "no socket");
    set(socket, "lo", SIOCSIFFLAGS, (struct ifreq){ .flags = IFF_UP }, "the loopback device");
    set(socket, "eth0", SIOCSIFADDR, (struct ifreq){ .address = at(own, 0) }, "its address");
    set(socket, "eth0", SIOCSIFNETMASK, (struct ifreq){ .address = at(~0u, 0) }, "its netmask");
    set(socket, "eth0", SIOCSIFMTU, (struct ifreq){ .mtu = MTU }, "its MTU");
    set(socket, "eth0", SIOCSIFFLAGS, (struct ifreq){ .flags = IFF_UP }, "the card");
    add_route(socket, gateway, 32, 0);
    add_route(socket, news, 32, gateway);
    while (*routes) {
        u32 to = address(&routes);
        add_route(socket, to, number(&routes), gateway);
    }
    call(SYS_close, socket, 0, 0, 0, 0);
}

static int hex(char digit)
{
    return digit <= '9' ? digit - '0' : digit - 'A' + 10;
}

/*
 * Whether a table of the kernel's, by its proc_net_tcp.rst, has a socket that listens on a port, on all
 * addresses or on the card's:
 *
 *       0: 0100007F:0050 00000000:0000 0A ...
 */
static int has_listener(const char *table, u32 port, u32 own)
{
    static char data[4096];
    enum { NUMBER, LOCAL, REMOTE, STATE, REST } field = NUMBER;
    int blank = 1, found = 0;
    u32 value = 0, local = 0, any = 0, reachable = 0;
    long size, descriptor = call(SYS_openat, AT_FDCWD, (long)table, O_RDONLY | O_CLOEXEC, 0, 0);
    while ((size = call(SYS_read, descriptor, (long)data, sizeof data, 0, 0)) > 0 && !found)
        for (long position = 0; position < size; position++) {
            char one = data[position];
            if (one == '\n') {
                field = NUMBER;
                blank = 1;
                any = reachable = 0;
            } else if (one == ' ') {
                if (!blank) {
                    found |= field == STATE && value == TCP_LISTEN && local == port && reachable;
                    local = field == LOCAL ? value : local;
                    field += field != REST;
                }
                blank = 1;
                value = 0;
            } else {
                /* Behind the colon of a local end stands its port, before it the address: of an
                   IPv6 one, the last word counts. */
                if (one == ':' && field == LOCAL)
                    reachable = !any || value == in_network_order(own);
                if (field == LOCAL && one != ':')
                    any |= (u32)hex(one);
                value = one == ':' ? 0 : value << 4 | (u32)(hex(one) & 15);
                blank = 0;
            }
        }
    call(SYS_close, descriptor, 0, 0, 0, 0);
    return found;
}

static __attribute__((noreturn)) void tell_whether_it_listens(u32 port, u32 own, u32 news)
{
    int listened = 0;
    long socket = -1;
    call(SYS_setsid, 0, 0, 0, 0, 0);
    call(SYS_prctl, PR_SET_NAME, (long)"krunclient-net", 0, 0, 0);
    for (int descriptor = 0; descriptor < 3; descriptor++)
        call(SYS_close, descriptor, 0, 0, 0, 0);
    for (;;) {
        int listens = has_listener("/proc/net/tcp", port, own)
                      || has_listener("/proc/net/tcp6", port, own);
        if (listens != listened) {
            struct sockaddr_in to = at(news, listens ? LISTENS : NO_LONGER);
            /* The socket of earlier news is closed only now: till then its packet is sent again. */
            call(SYS_close, socket, 0, 0, 0, 0);
            socket = call(SYS_socket, AF_INET, SOCK_STREAM | SOCK_NONBLOCK | O_CLOEXEC, 0, 0, 0);
            if (socket >= 0) {
                call(SYS_connect, socket, (long)&to, sizeof to, 0, 0);
                listened = listens;
            }
        }
        struct timespec pause = { 0, (listened ? LOOK_MS : LOOK_UNTIL_IT_LISTENS_MS) * 1000000L };
        call(SYS_nanosleep, (long)&pause, 0, 0, 0, 0);
    }
}

/* As a grandchild, which init takes over: the app finds no child that it did not start. */
static void leave_one_behind(u32 port, u32 own, u32 news)
{
    long child = call(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    set_up(child, "no process");
    if (child == 0) {
        if (call(SYS_clone, SIGCHLD, 0, 0, 0, 0) == 0)
            tell_whether_it_listens(port, own, news);
        end(0);
    }
    call(SYS_wait4, child, 0, 0, 0, 0);
}

__attribute__((noreturn, used)) void begin(long *stack)
{
    char **arguments = (char **)(stack + 1);
    char **variables = arguments + stack[0] + 1;
    if (stack[0] < 3)
        fail("the guest's network can't be set up", "settings and a program are needed", NO_SET_UP);
    const char *settings = arguments[1];
    u32 port = number(&settings);
    u32 own = address(&settings);
    u32 gateway = address(&settings);
    u32 news = address(&settings);
    set_the_card_up(own, gateway, news, settings);
    leave_one_behind(port, own, news);
    become(arguments[2], arguments + 2, variables);
}
