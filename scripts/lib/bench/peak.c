/*
 * Runs a program and writes its peak memory in KiB as the last line on stderr.
 *
 * The kernel counts as a child's peak what its parent had resident when it was started (exec_mmap in fs/exec.c), so the
 * parent must be small; Python is not.
 */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct rusage usage = {0};
	int status = 0;
	pid_t child;

	if (argc < 2 || (child = fork()) < 0)
		return 2;
	if (child == 0) {
		execv(argv[1], argv + 1);
		_exit(127);
	}
	wait4(child, &status, 0, &usage);
	dprintf(2, "\n%ld\n", usage.ru_maxrss);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
