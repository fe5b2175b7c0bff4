/* Shifts the wall clock of a process by the seconds that stand in the file $CLOCK_SHIFT, which may change while it runs.
 * The monotonic clock is left alone: no kernel lets that jump.
 * cc -shared -fPIC -O2 clock_shift.c -o clock_shift.so */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long long *shift;

static long long shifted(void) {
  if (!shift) {
    const char *path = getenv("CLOCK_SHIFT");
    long descriptor = path ? syscall(SYS_open, path, O_RDONLY | O_CLOEXEC, 0) : -1;
    void *found = descriptor < 0 ? MAP_FAILED : mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, (int)descriptor, 0);
    static const long long none = 0;
    shift = found == MAP_FAILED ? &none : found;
    if (descriptor >= 0) syscall(SYS_close, descriptor);
  }
  return *shift;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  long done = syscall(SYS_clock_gettime, clock, now);
  if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shifted();
  return (int)done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec fine;
  if (clock_gettime(CLOCK_REALTIME, &fine)) return -1;
  now->tv_sec = fine.tv_sec, now->tv_usec = fine.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *kept) {
  struct timespec fine;
  clock_gettime(CLOCK_REALTIME, &fine);
  if (kept) *kept = fine.tv_sec;
  return fine.tv_sec;
}
