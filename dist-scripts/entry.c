/*
 * The program of an app directory that was made from an OCI image: becomes what the image's
 * configuration says. dist-scripts/image.py writes that into settings.h:
 *
 *     program       the file to execute
 *     entrypoint    its first arguments, its name included; NULL at the end
 *     command       the arguments behind them if krunclient was given none; NULL at the end
 *     environment   NAME=VALUE; NULL at the end
 *     directory     the working directory
 *     groups        the supplementary groups, and one more at the end that does not count
 *     user, group   numbers
 *
 * A variable that krunclient sets goes before the image's, but for PATH and HOME, which are the
 * image's own matter.
 */

#include "start.h"

#include "settings.h"

enum { O_WRONLY = 1, AT_FDCWD = -100 };

static const char PORTS[] = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

static u32 count(char *const *words)
{
    u32 words_before_null = 0;
    while (words[words_before_null])
        words_before_null++;
    return words_before_null;
}

static int same_name(const char *one, const char *other)
{
    while (*one == *other && *one != '=' && *one)
        one++, other++;
    return *one == '=' && *other == '=';
}

static int has(char *const *variables, const char *variable)
{
    while (*variables && !same_name(*variables, variable))
        variables++;
    return *variables != 0;
}

static int is_the_images(const char *variable)
{
    return same_name(variable, "PATH=") || same_name(variable, "HOME=");
}

static void set_up(long result, const char *what)
{
    if (result < 0)
        fail("the image's configuration can't be followed", what, NO_SET_UP);
}

__attribute__((noreturn, used)) void begin(long *stack)
{
    char **given = (char **)(stack + 1), **given_variables = given + stack[0] + 1;
    char *const *behind = stack[0] > 1 ? given + 1 : command;
    char *arguments[count(entrypoint) + count(behind) + 1];
    char *variables[count(given_variables) + count(environment) + 1];
    char **at = arguments;
    for (char *const *word = entrypoint; *word; word++)
        *at++ = *word;
    for (char *const *word = behind; *word; word++)
        *at++ = *word;
    *at = 0;
    at = variables;
    for (char *const *variable = given_variables; *variable; variable++)
        if (!is_the_images(*variable) || !has(environment, *variable))
            *at++ = *variable;
    *at = 0;
    for (char *const *variable = environment; *variable; variable++)
        if (is_the_images(*variable) || !has(given_variables, *variable))
            *at++ = *variable;
    *at = 0;
    /* As in a container, a port below 1024 is for every user. */
    long ports = call(SYS_openat, AT_FDCWD, (long)PORTS, O_WRONLY, 0, 0);
    call(SYS_write, ports, (long)"0", 1, 0, 0);
    call(SYS_close, ports, 0, 0, 0, 0);
    u32 number_of_groups = sizeof groups / sizeof *groups - 1;
    if ((user | group | number_of_groups) != 0) {  /* the guest's root is the image's */
        set_up(call(SYS_setgroups, number_of_groups, (long)groups, 0, 0, 0), "its groups");
        set_up(call(SYS_setgid, group, 0, 0, 0, 0), "its group");
        set_up(call(SYS_setuid, user, 0, 0, 0, 0), "its user");
    }
    set_up(call(SYS_chdir, (long)directory, 0, 0, 0, 0), directory);
    become(program, arguments, variables);
}
