/* Prints one line for each signal that it gets: its
 * number. Nothing is lost but what the kernel itself merges: all signals are blocked and taken one
 * by one. SIGUSR2 ends it. With an argument it first puts itself into a process group of its own. */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    sigset_t all;
    siginfo_t info;

    (void)argv;
    if (argc > 1 && setpgid(0, 0) != 0)
        return 1;

    sigfillset(&all);
    if (sigprocmask(SIG_SETMASK, &all, NULL) != 0)
        return 1;
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    puts("ready");
    do {
        if (sigwaitinfo(&all, &info) > 0)
            printf("%d\n", info.si_signo);
    } while (info.si_signo != SIGUSR2);
    return 0;
}
