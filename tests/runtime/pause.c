/* What a sandbox runs: it holds the pod's namespaces until it is told to end. As the first process
   of its PID namespace it must ask for the signals, which are ignored otherwise, and reap orphans. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static void end(int signal) { _exit(128 + signal); }

int main(void) {
    struct sigaction reap = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
    sigaction(SIGCHLD, &reap, NULL);
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;) pause();
}
