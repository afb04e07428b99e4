"""The numbers of system calls, kept apart from the table that they are to check. Knows no filter.

As libseccomp 2.5 resolves the names for x86_64 and for aarch64; "-": there is no such call there. A test holds them
against the libseccomp and the headers of the machine it runs on, where these are.
"""

from __future__ import annotations

from collections.abc import Mapping

_NUMBERS = """
acct 163 89; add_key 248 217; adjtimex 159 171; bpf 321 280; chmod 90 -; chown 92 -; chroot 161 51;
clock_adjtime 305 266; clock_settime 227 112; clone 56 220; clone3 435 435; close 3 57; connect 42 203;
delete_module 176 106; dup3 292 24; epoll_pwait 281 22; epoll_wait 232 -; execve 59 221; exit_group 231 94;
fanotify_init 300 262; fanotify_mark 301 263; fchmod 91 52; fchmodat 268 53; fchmodat2 452 452; fchown 93 55;
fchownat 260 54; finit_module 313 273; fork 57 -; fremovexattr 199 16; fsconfig 431 431; fsetxattr 190 7;
fsmount 432 432; fsopen 430 430; fspick 433 433; futex 202 98; futex_requeue 456 456; futimesat 261 -;
getrandom 318 278; init_module 175 105; inotify_add_watch 254 27; inotify_init 253 -; inotify_init1 294 26;
io_uring_enter 426 426; io_uring_register 427 427; io_uring_setup 425 425; ioctl 16 29; ioperm 173 -; iopl 172 -;
ioprio_set 251 30; kcmp 312 272; kexec_file_load 320 294; kexec_load 246 104; keyctl 250 219; kill 62 129;
lchown 94 -; lookup_dcookie 212 18; lremovexattr 198 15; lsetxattr 189 6; memfd_create 319 279;
memfd_secret 447 447; migrate_pages 256 238; mmap 9 222; modify_ldt 154 -; mount 165 40; mount_setattr 442 442;
move_mount 429 429; move_pages 279 239; mq_open 240 180; mq_unlink 241 181; msgctl 71 187; msgget 68 186;
msgrcv 70 188; msgsnd 69 189; name_to_handle_at 303 264; open_by_handle_at 304 265; open_tree 428 428;
openat 257 56; perf_event_open 298 241; personality 135 92; pidfd_getfd 438 438; pipe2 293 59; pivot_root 155 41;
prlimit64 302 261; process_madvise 440 440; process_mrelease 448 448; process_vm_readv 310 270;
process_vm_writev 311 271; ptrace 101 117; quotactl 179 60; quotactl_fd 443 443; read 0 63; reboot 169 142;
remap_file_pages 216 234; removexattr 197 14; request_key 249 218; rt_sigaction 13 134; sched_setaffinity 203 122;
sched_setattr 314 274; sched_setparam 142 118; sched_setscheduler 144 119; seccomp 317 277; semctl 66 191;
semget 64 190; semop 65 193; semtimedop 220 192; setdomainname 171 162; sethostname 170 161; setns 308 268;
setpriority 141 140; settimeofday 164 170; setxattr 188 5; shmat 30 196; shmctl 31 195; shmdt 67 197;
shmget 29 194; socket 41 198; socketpair 53 199; swapoff 168 225; swapon 167 224; syslog 103 116; umount2 166 39;
unshare 272 97; userfaultfd 323 282; utime 132 -; utimensat 280 88; utimes 235 -; vfork 58 -; vhangup 153 58;
vmsplice 278 75; write 1 64;
fallocate 285 47; fcntl 72 25; io_cancel 210 3; io_destroy 207 1; io_getevents 208 4; io_pgetevents 333 292;
io_setup 206 0; io_submit 209 2;
landlock_add_rule 445 445; landlock_create_ruleset 444 444; landlock_restrict_self 446 446;
sendmmsg 307 269; sendmsg 46 211; setsockopt 54 208; sync 162 81; syncfs 306 267;
"""


def _read(column: int) -> dict[str, int | None]:
    rows = [entry.split() for entry in _NUMBERS.replace("\n", " ").split(";") if entry.strip()]
    return {row[0]: None if row[column] == "-" else int(row[column]) for row in rows}


NUMBERS: Mapping[str, Mapping[str, int | None]] = {"x86_64": _read(1), "aarch64": _read(2)}
"""Machine -> name -> number."""
