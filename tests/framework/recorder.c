/*
 * A test part: a library with libkrun's symbols that records what it was called with.
 *
 * It stands in for libkrun only where the thing under test is the caller. GENERATION says which
 * symbols it has: 109, 113, 116, 117, 118, 119 for 1.9 to 1.19, 120 for upstream's main, 200 for 2.x. A file of its own
 * name and ".settings" says where each call is written to as a line, the status that
 * krun_start_enter ends the process with, and, if any, the function that shall fail.
 *
 * A call of krun_start_enter is preceded by the time of CLOCK_MONOTONIC in ns, as "entered".
 *
 * A test that needs a VMM that a guest has taken over defines taken_over(), which krun_start_enter
 * runs behind all walls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* What a launcher looks for to find the libkrunfw that belongs to this library. */
__attribute__((used)) static const char krunfw_name[] = "libkrunfw.so.5";

/* And which init is inside: in C, or in Rust. */
#ifndef INIT
#define INIT (GENERATION < 120 ? "Error parsing config file" : "serde_json /.krun_config.json")
#endif
__attribute__((used)) static const char *init(void)
{
    return INIT;
}

static FILE *record;
static char failing[64];
static int status;

/* Read at load, from a file beside this one: a launcher has wiped its environment by then. */
__attribute__((constructor)) static void read_settings(void)
{
    char path[4096] = "";
    __attribute__((unused)) Dl_info self;
    FILE *settings;

#ifdef SETTINGS  /* a copy of this library may be anywhere */
    settings = fopen(SETTINGS, "r");
#else
    if (!dladdr((void *)read_settings, &self))
        return;
    snprintf(path, sizeof(path), "%s.settings", self.dli_fname);
    settings = fopen(path, "r");
#endif
    if (!settings)
        return;
    if (fscanf(settings, "%4095s %d %63s", path, &status, failing) >= 2)
        record = fopen(path, "a");
    fclose(settings);
}

__attribute__((weak)) void taken_over(void);

static int call(const char *name, const char *format, ...)
{
    va_list arguments;

    if (record) {
        fprintf(record, "%s", name);
        va_start(arguments, format);
        vfprintf(record, format, arguments);
        va_end(arguments);
        fputc('\n', record);
        fflush(record);
    }
    return strcmp(name, failing) ? 0 : -EINVAL;
}

static void strings(const char *name, const char *const list[])
{
    for (int i = 0; list && list[i]; i++)
        call(name, "[%d] %s", i, list[i]);
}

int32_t krun_create_ctx(void)
{
    int result = call("krun_create_ctx", "");
    return result ? result : 7;
}

int32_t krun_set_vm_config(uint32_t ctx, uint8_t vcpus, uint32_t ram)
{
    return call("krun_set_vm_config", " %u %u %u", ctx, vcpus, ram);
}

int32_t krun_set_rlimits(uint32_t ctx, const char *const limits[])
{
    strings("krun_set_rlimits", limits);
    return call("krun_set_rlimits", " %u", ctx);
}

int32_t krun_set_port_map(uint32_t ctx, const char *const map[])
{
    strings("krun_set_port_map", map);
    return call("krun_set_port_map", " %u", ctx);
}

int32_t krun_set_exec(uint32_t ctx, const char *path, const char *const argv[],
                      const char *const envp[])
{
    return call("krun_set_exec", " %u %s %d %d", ctx, path, argv != NULL, envp != NULL);
}

int32_t krun_start_enter(uint32_t ctx)
{
    extern char **environ;
    struct timespec now;
    int result;

    clock_gettime(CLOCK_MONOTONIC, &now);
    call("entered", " %ld%09ld", (long)now.tv_sec, now.tv_nsec);
    strings("environ", (const char *const *)environ);
    result = call("krun_start_enter", " %u", ctx);
    if (result)
        return result;
    if (taken_over)
        taken_over();
    _exit(status);
}

#if GENERATION < 200
int32_t krun_set_root(uint32_t ctx, const char *path)
{
    return call("krun_set_root", " %u %s", ctx, path);
}
#endif

#if GENERATION >= 113
int32_t krun_init_log(int fd, uint32_t level, uint32_t style, uint32_t options)
{
    return call("krun_init_log", " %d %u %u %u", fd, level, style, options);
}
#endif

#if GENERATION >= 116
int32_t krun_add_net_unixstream(uint32_t ctx, const char *path, int fd, uint8_t *const mac,
                                uint32_t features, uint32_t flags)
{
    return call("krun_add_net_unixstream", " %u %s %d %02x%02x %u %u", ctx, path ? path : "NULL", fd,
                mac[0], mac[5], features, flags);
}

int32_t krun_add_virtio_console_default(uint32_t ctx, int in, int out, int err)
{
    return call("krun_add_virtio_console_default", " %u %d %d %d", ctx, in, out, err);
}
#if GENERATION < 200
int32_t krun_disable_implicit_console(uint32_t ctx)
{
    return call("krun_disable_implicit_console", " %u", ctx);
}
#endif
#endif

#if GENERATION >= 117
int32_t krun_add_vsock(uint32_t ctx, uint32_t features)
{
    return call("krun_add_vsock", " %u %u", ctx, features);
}
#if GENERATION < 200
int32_t krun_disable_implicit_vsock(uint32_t ctx)
{
    return call("krun_disable_implicit_vsock", " %u", ctx);
}
#endif
#endif

#if GENERATION >= 118
int32_t krun_add_virtiofs3(uint32_t ctx, const char *tag, const char *path, uint64_t shm, bool ro)
{
    return call("krun_add_virtiofs3", " %u %s %s %lu %d", ctx, tag, path, (unsigned long)shm, ro);
}
#endif

#if GENERATION >= 119
int32_t krun_fs_add_overlay_file(uint32_t ctx, const char *tag, const char *path,
                                 const uint8_t *data, size_t size, uint32_t mode, bool once)
{
    return call("krun_fs_add_overlay_file", " %u %s %s %o %d %.*s", ctx, tag, path, mode, once,
                (int)size, (const char *)data);
}
#endif

#if GENERATION >= 200
int32_t krun_set_egress_policy(uint32_t ctx, const char *const cidrs[], const char *const hosts[],
                               const char *const resolvers[])
{
    strings("krun_set_egress_policy", cidrs);
    return call("krun_set_egress_policy", " %u %d %d", ctx, hosts != NULL, resolvers != NULL);
}
#endif
