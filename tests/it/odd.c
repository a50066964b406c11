/* Processes that are hard to end, one for each first argument. */
#define _GNU_SOURCE
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *sleep_for_ever(void *unused)
{
    for (;;)
        pause();
    return unused;
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "";

    /* The main thread ends, another goes on: /proc calls the process a zombie. */
    if (!strcmp(kind, "headless")) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, sleep_for_ever, NULL) != 0)
            return 1;
        pthread_exit(NULL);
    }
    /* A process that is stopped by its parent, which traces it. */
    if (!strcmp(kind, "traced")) {
        if (fork() == 0) {
            ptrace(PTRACE_TRACEME, 0, 0, 0);
            raise(SIGSTOP);
        }
        sleep_for_ever(NULL);
    }
    /* Everybody forks as often as they can. */
    if (!strcmp(kind, "bomb"))
        for (;;)
            fork();
    /* The same, each in a session of their own. */
    if (!strcmp(kind, "scattering-bomb"))
        for (;;)
            if (fork() == 0)
                setsid();
    /* One after the other, each in a session of their own, and none for long. If nobody ends them
     * they end after a minute. */
    if (!strcmp(kind, "chain")) {
        time_t end = time(NULL) + 60;
        while (time(NULL) < end) {
            if (fork() != 0)
                _exit(0);
            setsid();
        }
        return 0;
    }
    /* A daemon that unprivileged others can't see where /proc is mounted with hidepid. */
    if (!strcmp(kind, "hidden")) {
        setsid();
        signal(SIGTERM, SIG_IGN);
        prctl(PR_SET_DUMPABLE, 0);
        sleep_for_ever(NULL);
    }
    /* One that waits in vfork for its child, which prints a line and reads one before it executes
     * something: while it waits so, it is not seen to stop. */
    if (!strcmp(kind, "vforking")) {
        if (vfork() == 0) {
            char line;
            if (write(1, "borne\n", 6) != 6 || read(0, &line, 1) != 1)
                _exit(1);
            execlp("echo", "echo", "executed", NULL);
            _exit(1);
        }
        return wait(NULL) > 0 ? 0 : 1;
    }
    /* Root, whoever started it, if the file is root's and setuid. */
    if (!strcmp(kind, "root")) {
        if (setgroups(0, NULL) != 0 || setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0)
            return 1;
        sleep_for_ever(NULL);
    }
    return 2;
}
