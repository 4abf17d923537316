/*
 * The launcher that krunclient stands in for, to measure against: what the design asks for and
 * no more, with every return code checked. Usage: launcher ROOT_PATH LOCAL_PORT
 *
 * Declarations as in libkrun's header, version 2.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int32_t krun_create_ctx(void);
int32_t krun_set_vm_config(uint32_t ctx, uint8_t vcpus, uint32_t ram_mib);
int32_t krun_add_virtiofs3(uint32_t ctx, const char *tag, const char *path, uint64_t shm, bool ro);
int32_t krun_add_virtio_console_default(uint32_t ctx, int in, int out, int err);
int32_t krun_add_vsock(uint32_t ctx, uint32_t features);
int32_t krun_set_port_map(uint32_t ctx, const char *const map[]);
int32_t krun_set_egress_policy(uint32_t ctx, const char *const cidrs[], const char *const hosts[],
                               const char *const resolvers[]);
int32_t krun_set_exec(uint32_t ctx, const char *path, const char *const argv[],
                      const char *const envp[]);
int32_t krun_start_enter(uint32_t ctx);

static int check(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "launcher: %s: %s\n", what, strerror(-result));
        exit(1);
    }
    return result;
}

static char *variable(const char *name)
{
    const char *value = getenv(name);
    char *text = malloc(strlen(name) + (value ? strlen(value) : 0) + 2);

    sprintf(text, "%s=%s", name, value ? value : "");
    return text;
}

int main(int argc, char **argv)
{
    char port[32];
    const char *const map[] = {port, NULL}, *const cidrs[] = {"127.0.0.1/32", NULL};
    const char *const arguments[] = {NULL};
    const char *const environment[] = {variable("HOST"), variable("INTERNAL_SECRET"),
                                       "PATH=/usr/bin:/bin", NULL};
    int ctx;

    if (argc != 3) {
        fprintf(stderr, "usage: launcher ROOT_PATH LOCAL_PORT\n");
        return 1;
    }
    snprintf(port, sizeof(port), "%s:80", argv[2]);
    ctx = check(krun_create_ctx(), "krun_create_ctx");
    check(krun_set_vm_config(ctx, 1, 512), "krun_set_vm_config");
    check(krun_add_virtiofs3(ctx, "/dev/root", argv[1], 0, false), "krun_add_virtiofs3");
    check(krun_add_virtio_console_default(ctx, 0, 1, 2), "krun_add_virtio_console_default");
    check(krun_add_vsock(ctx, 1), "krun_add_vsock");
    check(krun_set_port_map(ctx, map), "krun_set_port_map");
    check(krun_set_egress_policy(ctx, cidrs, NULL, NULL), "krun_set_egress_policy");
    check(krun_set_exec(ctx, "/bin/app", arguments, environment), "krun_set_exec");
    check(krun_start_enter(ctx), "krun_start_enter");
    return 1;
}
