"""Attacks on the disk: files, inodes and directories without end, also where nobody can see them.

Every one of them is bounded by itself as well, so that a fence that fails costs this machine little.
"""

from __future__ import annotations

import re

from victim import BOUNDED, KILLED, MIB, WAIT, Victim, at_every_tier, victim

# Directories on the host's own disk that hold files which the kernel writes, as expressions of its code.
KEEP = "os.path.dirname(get_ipython().kernel.checkpoint._path)"
SOCKETS = "os.path.dirname(get_ipython().kernel.parent.connection_file)"


def _write_files(directory: str, *, count: int, mebibytes: float) -> str:
    """A cell that writes files of a size, as many as it can, waits for its punishment if it could, and removes them."""
    return f"""
import glob
try:
    for number in range({count}):
        with open(os.path.join({directory}, f"file-{{number}}"), "wb") as file:
            file.write(bytes({int(mebibytes * MIB)}))
    time.sleep({WAIT})
    print("wrote them all")
except OSError as error:
    print(errno.errorcode[error.errno])
finally:
    for path in glob.glob(os.path.join({directory}, "file-*")): os.unlink(path)
"""


@at_every_tier
def test_filling_scratch(bounded: Victim) -> None:
    told = bounded.fate(_write_files("'.'", count=30, mebibytes=1))
    if bounded.tier.letter == "N":
        assert told == "ENOSPC"
    else:
        assert re.search(rf"{KILLED} its files take [\d.]+ MiB; 8[.0]* MiB are allowed", told), told
    bounded.run("with open('after', 'wb') as file: file.write(b'there is room again')")


@at_every_tier
def test_one_file_larger_than_scratch(bounded: Victim) -> None:
    told = bounded.fate(_write_files("'.'", count=1, mebibytes=20))
    # On a disk of the host's it has written all that is allowed by then, and the watchdog may see it before it is gone.
    seen = bounded.tier.letter == "L" and f"{KILLED} its files take" in told
    assert seen or told in ("ENOSPC", "EFBIG"), told


@at_every_tier
def test_a_file_with_a_hole_that_is_filled_later(bounded: Victim) -> None:
    told = bounded.fate("""
with open("hole", "wb") as file:
    print(attempt(os.ftruncate, file.fileno(), 2**40))
    print(attempt(os.posix_fallocate, file.fileno(), 0, 64 * 2**20))
os.unlink("hole")
""")
    assert all(said in ("EFBIG", "ENOSPC", "EINVAL") for said in told.split()), told


@at_every_tier
def test_filling_tmp(bounded: Victim) -> None:
    told = bounded.fate(_write_files("'/tmp'", count=20, mebibytes=7))
    assert told in ("ENOSPC", "EACCES", "EPERM")


@at_every_tier
def test_filling_shared_memory_files(bounded: Victim) -> None:
    told = bounded.fate(_write_files("'/dev/shm'", count=20, mebibytes=7))
    assert told in ("ENOSPC", "EACCES", "EPERM", "ENOENT")


def _fill_inodes(directory: str) -> str:
    return f"""
try:
    for number in range(11_000):
        os.symlink("x", f"{directory}/link-{{number}}")
    time.sleep({WAIT})
    print("made them all")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@at_every_tier
def test_filling_inodes_of_scratch(bounded: Victim) -> None:
    told = bounded.dies(_fill_inodes("."))
    assert f"{KILLED} it made more than 10000 files" in told


@at_every_tier
def test_filling_inodes_of_shared_memory_files(bounded: Victim) -> None:
    told = bounded.fate(_fill_inodes("/dev/shm"))
    assert f"{KILLED} it made more than 10000 files" in told or told in ("EACCES", "ENOENT"), told


@at_every_tier
def test_making_files_where_the_host_keeps_its_own(bounded: Victim) -> None:
    for directory in (KEEP, SOCKETS):
        assert bounded.fate(_write_files(directory, count=1, mebibytes=1)) in ("EROFS", "EACCES")


@at_every_tier
def test_filling_the_files_that_the_host_made_for_it(bounded: Victim) -> None:
    told = bounded.dies(f"""
places = [os.path.join({KEEP}, name) for name in ("checkpoint.0", "checkpoint.1")]
for path in [*places, os.path.join({SOCKETS}, "transcript"), os.path.join({SOCKETS}, "progress")]:
    with open(path, "r+b", buffering=0) as file:
        print(attempt(os.posix_fallocate, file.fileno(), 0, 2**30), attempt(file.write, bytes(6 * 2**20)))
time.sleep({WAIT})
""")
    assert f"{KILLED} its files take" in told


def _hide(how: str) -> str:
    """A cell that writes files without a name, tries to hide them, and waits for its punishment if it could."""
    return f"""
import array
one, other = socket.socketpair()
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
def open_still(fd): return None
def on_their_way(fd):
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    os.close(fd)
def mapped(fd):
    libc.mmap(None, ctypes.c_size_t(4096), 1, 2, fd, ctypes.c_long(0))
    os.close(fd)
try:
    for number in range(40):
        fd = os.open(f"hidden-{{number}}", os.O_RDWR | os.O_CREAT)
        os.unlink(f"hidden-{{number}}")
        os.write(fd, bytes(2**20))
        {how}(fd)
    time.sleep({WAIT})
    print("unseen")
except OSError as error:
    print(errno.errorcode[error.errno])
finally:
    one.close(), other.close()
"""


@at_every_tier
def test_hiding_files_that_have_no_name(bounded: Victim) -> None:
    for how in ("open_still", "on_their_way", "mapped"):
        with victim(bounded.tier, BOUNDED) as one:
            told = one.fate(_hide(how))
            if bounded.tier.letter == "N":
                assert told == "ENOSPC", how
            elif how == "on_their_way":
                assert told == "EPERM", how
            else:
                assert f"{KILLED} its files take" in told or "which hides the file's size" in told, (how, told)
            one.assert_works()


@at_every_tier
def test_hiding_files_in_a_directory_that_nobody_may_read(bounded: Victim) -> None:
    told = bounded.fate(f"""
os.makedirs("shut")
try:
    for number in range(30):
        with open(os.path.join("shut", str(number)), "wb") as file: file.write(bytes(2**20))
    print(attempt(os.chmod, "shut", 0))
    time.sleep({WAIT})
    print("unseen")
except OSError as error:
    print(errno.errorcode[error.errno])
finally:
    import shutil
    shutil.rmtree("shut", ignore_errors=True)
""")
    assert told == "ENOSPC" if bounded.tier.letter == "N" else KILLED in told, told


@at_every_tier
def test_a_tree_of_directories_deeper_than_anybody_follows(bounded: Victim) -> None:
    if bounded.tier.letter == "N":
        return  # it has none on a disk of the host's
    told = bounded.dies(f"""
for _ in range(500):
    os.mkdir("d")
    os.chdir("d")
time.sleep({WAIT})
print("unseen")
""")
    assert f"{KILLED} it made directories more than" in told
    bounded.assert_works()
    assert "d" not in bounded.host("import os; result = os.listdir(directory(session) + '/scratch')")
