/* Runs a program on a kernel that seems to lack something: `without CALL[,CALL...] PROGRAM [ARG...]`.
 *
 * System calls fail with ENOSYS, and F_SETSIG with EINVAL, in the program and all its descendants. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_SETSIG
#define F_SETSIG 10
#endif

/* Of the second argument only the lower half, the first one in memory where bytes are ordered so. */
#define SECOND_ARGUMENT (offsetof(struct seccomp_data, args[1]) + \
                         (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0))

static const struct {
    const char *name;
    unsigned number;
} calls[] = {
    {"clone3", SYS_clone3},
    {"close_range", SYS_close_range},
    {"mlockall", SYS_mlockall},
    {"pidfd_open", SYS_pidfd_open},
    {"pidfd_send_signal", SYS_pidfd_send_signal},
    {"timer_create", SYS_timer_create},
    {"wait4", SYS_wait4},
};

int main(int argc, char **argv)
{
    struct sock_filter filter[64];
    unsigned short length = 0;

    if (argc < 3)
        return 2;
    filter[length++] = (struct sock_filter)
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (char *name = strtok(argv[1], ","); name; name = strtok(NULL, ",")) {
        size_t at = 0;
        if (!strcmp(name, "F_SETSIG")) {
            filter[length++] = (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 4);
            filter[length++] = (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SECOND_ARGUMENT);
            filter[length++] = (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETSIG, 0, 1);
            filter[length++] = (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL);
            filter[length++] = (struct sock_filter)
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
            continue;
        }
        while (at < sizeof calls / sizeof *calls && strcmp(calls[at].name, name))
            at++;
        if (at == sizeof calls / sizeof *calls) {
            fprintf(stderr, "without: %s is not known\n", name);
            return 2;
        }
        filter[length++] = (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[at].number, 0, 1);
        filter[length++] = (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS);
    }
    filter[length++] = (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);

    struct sock_fprog program = {length, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("without");
        return 2;
    }
    execvp(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
