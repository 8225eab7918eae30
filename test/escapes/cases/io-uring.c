/* SPDX-License-Identifier: Apache-2.0 */
/* A ring opens a file: the work is done by the kernel, where neither a filter of calls nor a tracer of them sees it. */
#include "../attack.h"
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  struct io_uring_params params = {0};
  int ring = syscall(SYS_io_uring_setup, 4, &params);
  if (ring < 0) {
    int error = errno;
    /* Each call by itself: one that was forgotten would do for a ring that someone else hands over. */
    long entered = syscall(SYS_io_uring_enter, 2, 0, 0, 0, 0, 0), asked = errno, registered = syscall(SYS_io_uring_register, -1, IORING_REGISTER_PROBE, 0, 0);
    held("io_uring_setup: %s; io_uring_enter: %s; io_uring_register: %s", error_name(error), entered < 0 ? error_name(asked) : "done", registered < 0 ? error_name(errno) : "done");
  }
  char *submissions = mmap(0, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
  char *completions = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
  struct io_uring_sqe *entries = mmap(0, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
  if (submissions == MAP_FAILED || completions == MAP_FAILED || entries == MAP_FAILED) held("mapping the ring: %s", error_name(errno));
  entries[0] = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (unsigned long)"/", .open_flags = O_RDONLY | O_DIRECTORY};
  ((unsigned *)(submissions + params.sq_off.array))[0] = 0;
  __atomic_store_n((unsigned *)(submissions + params.sq_off.tail), 1, __ATOMIC_RELEASE);
  if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) held("io_uring_enter: %s", error_name(errno));
  int result = ((struct io_uring_cqe *)(completions + params.cq_off.cqes))[0].res;
  result < 0 ? held("the open in the ring: %s", error_name(-result)) : worked("a directory was opened through a ring");
}
