/*
 * The executable of a node without Python: hands the call to the agent and does what the answer says. An agent
 * that is away for a moment is waited for. docs/wire.md says how each of this is done, and why;
 * shim/build builds it and says what SOCKET and MARKER are.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_STDIN (4 * 1024 * 1024 + 1) /* one byte past what a configuration may have */
#define HEAD 20                         /* magic, version, number, two sizes */
#define GRACE 120                       /* seconds that an agent may be away, and the node is still ready */
#define PATIENCE 10                     /* seconds that a call waits for an agent that is away */
#define PAUSE 20                        /* milliseconds from one try to the next */
#define BOOT_ID 36                      /* characters of a boot id */
/* By this the program knows its own executables, and runs their work in process; the version is for people. */
__attribute__((used)) static const char marker[] = MARKER;

static void write_all(int fd, const char *text, size_t size)
{
	for (ssize_t done; size > 0 && (done = write(fd, text, size)) > 0; size -= done)
		text += done;
}

static int fail(int code, const char *subject, const char *found)
{
	dprintf(1, "{\n    \"cniVersion\": \"1.1.0\",\n    \"code\": %d,\n    \"msg\": \"%s%s\"\n}\n",
		code, subject, found);
	return 1;
}

static int is_command(const char *wanted)
{
	const char *command = getenv("CNI_COMMAND");

	return command && strcmp(command, wanted) == 0;
}

static long seconds_of_boot(void)
{
	struct sysinfo now; /* clock_gettime() would bring the reading of the vDSO with it */

	sysinfo(&now);
	return now.uptime;
}

static int read_text(const char *path, char *to, size_t room)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = read(file, to, room - 1);

	close(file);
	to[size < 0 ? 0 : size] = '\0';
	return size > BOOT_ID;
}

/* Whether an agent has been away for less than GRACE: it writes the boot's id and the boot's seconds. */
static int is_away_for_a_moment(void)
{
	char seen[64], boot[64];

	if (!read_text(SOCKET ".seen", seen, sizeof seen) ||
	    !read_text("/proc/sys/kernel/random/boot_id", boot, sizeof boot) || memcmp(seen, boot, BOOT_ID) != 0)
		return 0;
	return (unsigned long)(seconds_of_boot() - atol(seen + BOOT_ID)) < GRACE;
}

/* Answer as a plugin that cannot work now: try again later, or for STATUS not available. */
static int lack_agent(const char *found)
{
	return fail(is_command("STATUS") ? 50 : 11, "podwire agent at " SOCKET ": wanted an answer, found ", found);
}

static void put(char *at, unsigned number)
{
	unsigned ordered = htonl(number);
	memcpy(at, &ordered, sizeof ordered);
}

static unsigned get(const char *at)
{
	unsigned ordered;
	memcpy(&ordered, at, sizeof ordered);
	return ntohl(ordered);
}

static size_t copy_strings(char *to, const char *program)
{
	char *end = stpcpy(to, program);

	for (char **each = environ; *each; each++)
		end = stpcpy(end + 1, *each);
	return end - to;
}

static ssize_t read_stdin(char *to)
{
	ssize_t size = 0, done = 0;

	if (isatty(0))
		return 0; /* it would never end */
	while (size < MAX_STDIN && (done = read(0, to + size, MAX_STDIN - size)) > 0)
		size += done;
	return done < 0 ? -1 : size;
}

/* Send the request, and with its first byte the descriptor when there is one; tell whether all of it was
 * taken. What an error means is the reply's to say: an agent that refuses answers before it has read everything. */
static int send_request(int agent, char *request, size_t size, int netns)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof netns)];
	} control = {.align = {.cmsg_len = CMSG_LEN(sizeof netns),
			       .cmsg_level = SOL_SOCKET,
			       .cmsg_type = SCM_RIGHTS}};
	struct iovec whole = {.iov_base = request, .iov_len = size};
	struct msghdr message = {.msg_iov = &whole, .msg_iovlen = 1};

	if (netns >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof control.space;
		memcpy(CMSG_DATA(&control.align), &netns, sizeof netns);
	}
	for (ssize_t done; whole.iov_len > 0; message.msg_control = NULL, message.msg_controllen = 0) {
		done = sendmsg(agent, &message, MSG_NOSIGNAL);
		if (done < 0)
			return 0;
		whole.iov_base = (char *)whole.iov_base + done;
		whole.iov_len -= done;
	}
	return 1;
}

/* End with the agent's answer, or return what was found instead. An agent that ends with some of a request
 * unread resets the connection: it has not begun the call. */
static const char *ask(char *request, size_t size, int netns, int *begun)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
	int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char head[HEAD];

	*begun = 0;
	if (agent < 0 || connect(agent, (struct sockaddr *)&address, sizeof address) < 0) {
		const char *found = strerror(errno);

		close(agent);
		return found;
	}
	int sent = send_request(agent, request, size, netns);
	ssize_t got = recv(agent, head, HEAD, MSG_WAITALL);
	*begun = sent && !(got < 0 && errno == ECONNRESET);
	if (got == HEAD && memcmp(head, "podw", 4) == 0) {
		size_t out = get(head + 12), err = get(head + 16);

		/* Never freed: free() alone would be a third of this program. */
		char *reply = malloc(out + err + 1);

		if (reply && recv(agent, reply, out + err, MSG_WAITALL) == (ssize_t)(out + err)) {
			write_all(1, reply, out);
			write_all(2, reply + out, err);
			exit(get(head + 8));
		}
	}
	close(agent);
	return "the connection closed; it may have been killed";
}

/* Ask until there is an answer, as long as the agent is away for no more than a moment. */
static int hand_over(char *request, size_t size, int netns)
{
	int begun;

	for (long end = 0;; poll(NULL, 0, PAUSE)) {
		const char *found = ask(request, size, netns, &begun);

		end = end ? end : seconds_of_boot() + PATIENCE;
		/* An ADD is made once: the runtime's DEL comes first. Every other verb may be repeated. */
		if (!is_away_for_a_moment() || (begun && is_command("ADD")))
			return lack_agent(found);
		if (is_command("STATUS"))
			return 0;
		if (seconds_of_boot() >= end)
			return lack_agent(found);
	}
}

int main(int argc, char **argv)
{
	int has_stdin = fcntl(0, F_GETFD) >= 0; /* if not, a descriptor of ours may become descriptor 0 */
	const char *program = argc > 0 ? argv[0] : "podwire", *path = getenv("CNI_NETNS");
	size_t room = HEAD + MAX_STDIN + strlen(program) + 1;

	if (argc > 1 && !getenv("CNI_COMMAND")) {
		dprintf(2, "podwire: this executable has no commands: run `podwire %s` where its agent runs\n", argv[1]);
		return 2;
	}
	for (char **each = environ; *each; each++)
		room += strlen(*each) + 1;
	char *request = malloc(room);
	if (!request)
		return lack_agent(strerror(errno));
	int netns = open(path ? path : "", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int number = netns < 0 ? errno : 0;
	size_t strings = copy_strings(request + HEAD, program);
	ssize_t stdin_size = has_stdin ? read_stdin(request + HEAD + strings) : 0;
	if (stdin_size < 0)
		return fail(5, "stdin: ", strerror(errno));
	memcpy(request, "podw", 4);
	put(request + 4, 1);
	put(request + 8, number);
	put(request + 12, strings);
	put(request + 16, stdin_size);
	return hand_over(request, HEAD + strings + stdin_size, netns);
}
