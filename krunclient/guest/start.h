/*
 * What a program of ours in a guest starts from: it has no C library and no headers, so that any C
 * compiler makes the same of it. It defines begin(), which gets the stack as execve(2) leaves it: the
 * number of arguments, the arguments, NULL, the environment, NULL.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

enum { ENOENT = 2, NO_SET_UP = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

#if defined(__x86_64__)
enum {
    SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_ioctl = 16, SYS_nanosleep = 35,
    SYS_socket = 41, SYS_connect = 42, SYS_clone = 56, SYS_execve = 59, SYS_exit = 60,
    SYS_wait4 = 61, SYS_chdir = 80, SYS_setuid = 105, SYS_setgid = 106, SYS_setsid = 112,
    SYS_setgroups = 116, SYS_prctl = 157, SYS_openat = 257
};
static long call(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#elif defined(__aarch64__)
enum {
    SYS_read = 63, SYS_write = 64, SYS_close = 57, SYS_ioctl = 29, SYS_nanosleep = 101,
    SYS_socket = 198, SYS_connect = 203, SYS_clone = 220, SYS_execve = 221, SYS_exit = 93,
    SYS_wait4 = 260, SYS_chdir = 49, SYS_setuid = 146, SYS_setgid = 144, SYS_setsid = 157,
    SYS_setgroups = 159, SYS_prctl = 167, SYS_openat = 56
};
static long call(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}
__asm__(".globl _start\n_start: mov x29, #0\n mov x0, sp\n bl begin\n");
#endif

/* A compiler puts calls of these two in by itself. */
void *memset(void *to, int byte, unsigned long size)
{
    for (volatile u8 *at = to; size--; at++)
        *at = (u8)byte;
    return to;
}

void *memcpy(void *to, const void *from, unsigned long size)
{
    volatile u8 *at = to;
    for (const u8 *source = from; size--;)
        *at++ = *source++;
    return to;
}

static __attribute__((noreturn)) void end(int status)
{
    for (;;)
        call(SYS_exit, status, 0, 0, 0, 0);
}

static void say(const char *text)
{
    long size = 0;
    while (text[size])
        size++;
    call(SYS_write, 2, (long)text, size, 0, 0);
}

static __attribute__((noreturn)) void fail(const char *what, const char *why, int status)
{
    say("krunclient: error: ");
    say(what);
    say(": ");
    say(why);
    say("\n");
    end(status);
}

/* Becomes a program. What can't be is told, with the status that a shell gives it. */
static __attribute__((noreturn)) void become(const char *program, char **arguments, char **variables)
{
    long error = call(SYS_execve, (long)program, (long)arguments, (long)variables, 0, 0);
    fail("the app can't be executed", program, error == -ENOENT ? NOT_FOUND : NOT_EXECUTABLE);
}
