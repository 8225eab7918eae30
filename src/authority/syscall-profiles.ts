/**
 * The system calls that a contract's profile stands for, by their x86-64 names. A call that a 64-bit ARM lacks (open, fork)
 * has no number there and the filter leaves it out.
 */

/**
 * What any program may call at any moment: its loader, allocator, threads, signals, clock, standard streams and end. A narrowed
 * contract keeps them all, so that no job breaks because a lock was contended on one run and not on another.
 * Opening files for reading belongs here too: what may be opened is the filesystem's grant.
 */
const STRICT = words(`
  brk mmap munmap mremap mprotect madvise msync mincore membarrier pkey_alloc pkey_free pkey_mprotect
  rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack
  kill tkill tgkill pause restart_syscall
  clone fork vfork execve exit exit_group wait4 waitid
  set_tid_address set_robust_list get_robust_list futex futex_waitv rseq arch_prctl prctl
  sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min getcpu
  getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups
  setpgid setsid umask getcwd uname sysinfo getrlimit prlimit64 getrusage times getpriority getrandom capget
  clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getitimer setitimer alarm
  timer_create timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime
  read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek close close_range dup dup2 dup3 fcntl ioctl pipe pipe2
  poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4
  open openat stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents getdents64 statfs fstatfs
  readahead fadvise64
  landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp
`)

/**
 * What compilers, shells, git, node, python, tar, curl, package managers and the databases of test suites call beyond that.
 * Left out on purpose: everything that makes or joins namespaces, mounts, looks into other processes, loads code into the kernel,
 * sets its clocks or keys, and io_uring, whose work neither the filter nor the evidence would see.
 */
const BUILD_MORE = words(`
  creat mkdir mkdirat mknod mknodat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
  chdir fchdir truncate ftruncate fallocate flock fsync fdatasync sync syncfs sync_file_range copy_file_range sendfile splice tee vmsplice
  chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat
  setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr
  inotify_init inotify_init1 inotify_add_watch inotify_rm_watch name_to_handle_at memfd_create cachestat
  socket socketpair bind listen accept accept4 connect getsockname getpeername setsockopt getsockopt shutdown
  sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
  execveat pidfd_open pidfd_send_signal personality
  setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
  setrlimit setpriority ioprio_get ioprio_set sched_setparam sched_setscheduler sched_setattr sched_getattr sched_rr_get_interval
  mlock mlock2 mlockall munlock munlockall
  shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
  mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
  get_thread_area set_thread_area map_shadow_stack futex_wake futex_wait futex_requeue
`)

/**
 * What a server calls beyond `strict`: sockets, its data and log files, an identity to step down to. It may start workers, and
 * programs that `exec` lists. Left out of `build`: links and device nodes, extended attributes, memory files, message queues and
 * semaphores, scheduling, personalities. Which program uses more grants it by name.
 */
const SERVICE_MORE = words(`
  socket socketpair bind listen accept accept4 connect getsockname getpeername setsockopt getsockopt shutdown
  sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg sendfile splice tee
  creat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 truncate ftruncate fallocate flock fsync fdatasync sync_file_range
  chdir fchdir chmod fchmod fchmodat fchmodat2 utimensat
  inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
  setuid setgid setreuid setregid setresuid setresgid setgroups capset setrlimit
  pidfd_open pidfd_send_signal
`)

export const PROFILES = {
  strict: new Set(STRICT) as ReadonlySet<string>,
  build: new Set([...STRICT, ...BUILD_MORE]) as ReadonlySet<string>,
  'network-service': new Set([...STRICT, ...SERVICE_MORE]) as ReadonlySet<string>,
} as const
export type Profile = keyof typeof PROFILES

/**
 * In no profile, and refused with EPERM: every kernel has them, and programs expect that as the answer to one without
 * the right. A contract can grant one by name.
 */
export const PRIVILEGED = words(`
  ptrace process_vm_readv process_vm_writev kcmp
  mount umount2 pivot_root chroot unshare setns
  bpf perf_event_open userfaultfd init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff
  settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname syslog acct quotactl vhangup iopl ioperm
  add_key request_key keyctl open_by_handle_at fanotify_init fanotify_mark
`)

/** In no profile either, and absent (ENOSYS): programs look whether the kernel has them and do without. Can be granted by name, too. */
const OPTIONAL = words(`
  open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr quotactl_fd
  io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
  pidfd_getfd process_madvise process_mrelease memfd_secret remap_file_pages modify_ldt
  mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages move_pages
  lookup_dcookie nfsservctl uselib ustat sysfs _sysctl
`)

/** What no contract can grant, with the reason. */
export const NEVER: ReadonlyMap<string, string> = new Map([
  ['openat2', 'its mode lies in memory, where the filter cannot see whether it makes a set-user-id file; programs fall back to openat'],
  ['clone3', 'its flags lie in memory, where the filter cannot see whether it makes namespaces; C libraries fall back to clone'],
  ...['io_uring_setup', 'io_uring_enter', 'io_uring_register'].map(name => [name, 'what is asked through a ring passes neither the filter nor the evidence'] as const),
])

/** Every call that a contract may name. */
export const NAMES: ReadonlySet<string> = new Set([...PROFILES.build, ...PRIVILEGED, ...OPTIONAL])

/**
 * Calls that do the same by another name: which of them a program uses depends on its C library's version and on chance,
 * so a narrowed contract keeps the whole family, as far as it was declared.
 */
export const FAMILIES: readonly (readonly string[])[] = [
  'open openat creat',
  'stat lstat fstat newfstatat statx',
  'mkdir mkdirat', 'mknod mknodat', 'rmdir unlink unlinkat', 'rename renameat renameat2', 'link linkat', 'symlink symlinkat',
  'chdir fchdir', 'truncate ftruncate fallocate', 'fsync fdatasync sync syncfs sync_file_range', 'copy_file_range sendfile splice',
  'chmod fchmod fchmodat fchmodat2', 'chown fchown lchown fchownat', 'utime utimes futimesat utimensat',
  'setxattr lsetxattr fsetxattr', 'getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr', 'removexattr lremovexattr fremovexattr',
  'inotify_init inotify_init1 inotify_add_watch inotify_rm_watch',
  'bind listen accept accept4 getsockname getpeername setsockopt getsockopt shutdown',
  'connect getsockname getpeername setsockopt getsockopt shutdown',
  'sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg',
  'setuid setreuid setresuid setfsuid', 'setgid setregid setresgid setfsgid setgroups',
  'execve execveat', 'pidfd_open pidfd_send_signal', 'setrlimit prlimit64', 'mlock mlock2 mlockall munlock munlockall',
  'shmget shmat shmctl shmdt', 'semget semop semtimedop semctl', 'msgget msgsnd msgrcv msgctl',
  'mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr',
  'io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents',
  'futex_wake futex_wait futex_requeue', 'ioprio_get ioprio_set', 'sched_setparam sched_setscheduler sched_setattr sched_getattr sched_rr_get_interval',
].map(words)

function words(text: string): string[] {
  return text.trim().split(/\s+/)
}
