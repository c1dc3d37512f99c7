"""Starts one container: joins its pod's network, gives it processes and files of its own, drops all power, becomes its command.

Runs as `python -S -I container.py` below a kubelet, which writes the order as JSON to standard input; nothing of it reaches a
disk or an argument list, since environments hold secrets. The command is process 1 of the container, as under a real runtime: it
gets no default action for SIGTERM, and its end ends all others. This process waits for it and ends with its exit code.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWPID: Final = 0x20000000
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITIES: Final = 64
# what container runtimes leave to root by default: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
# net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap
DEFAULT_CAPABILITIES: Final = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
NOT_STARTED: Final = 128

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError."""
    arguments = [(text.encode() if text else None) for text in (source, target, kind)]
    _call("mount", *arguments, ctypes.c_ulong(flags), options.encode() if options else None)


def unmount(target: str) -> None:
    """umount2(2), lazily. Raises OSError."""
    _call("umount2", target.encode(), 2)


def _bind(source: str, target: str, *, read_only: bool) -> None:
    here, there = Path(source), Path(target)
    there.parent.mkdir(parents=True, exist_ok=True)
    if here.is_symlink():
        there.symlink_to(os.readlink(here))
        return
    if here.is_dir():
        there.mkdir(exist_ok=True)
    elif not there.exists():
        there.touch()
    mount(source, target, flags=MS_BIND)
    if read_only:
        mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def _files(order: dict[str, Any]) -> None:
    """All that the container sees, and then only that."""
    root: str = order["root"]
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    os.makedirs(root, exist_ok=True)
    mount("tmpfs", root, "tmpfs", options="mode=755,size=512m")
    for folder, mode in (("tmp", 0o1777), ("run", 0o755), ("var", 0o755), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755)):
        (Path(root) / folder).mkdir()
        (Path(root) / folder).chmod(mode)
    mount("proc", f"{root}/proc", "proc")
    mount("/sys", f"{root}/sys", flags=MS_BIND | MS_REC)
    mount("", f"{root}/sys", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    _devices(Path(root) / "dev")
    for item in order["mounts"]:  # sorted by target, so that what is inside another comes after it
        _bind(item["source"], root + item["target"], read_only=item["readOnly"])
    if order["readOnlyRoot"]:
        mount("", root, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    os.chroot(root)
    os.chdir(order["cwd"])


def _devices(dev: Path) -> None:
    for name in DEVICES:
        _bind(f"/dev/{name}", str(dev / name), read_only=False)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / name).symlink_to(target)
    (dev / "shm").mkdir()
    mount("tmpfs", str(dev / "shm"), "tmpfs", MS_NOSUID, "mode=1777,size=64m")
    (dev / "pts").mkdir()
    mount("devpts", str(dev / "pts"), "devpts", MS_NOSUID, "newinstance,ptmxmode=0666,mode=620")
    (dev / "ptmx").symlink_to("pts/ptmx")


def _power(order: dict[str, Any]) -> None:
    """Give up what the container may not have."""
    keep = DEFAULT_CAPABILITIES if order["uid"] == 0 and not order["dropAll"] else frozenset[int]()
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(min(last + 1, CAPABILITIES)):
        if capability not in keep:
            _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    for stream in (1, 2):
        os.fchown(stream, order["uid"], -1)  # so that it can be opened again by its name below /proc
    os.setgroups(order["groups"])
    os.setgid(order["gid"])
    os.setuid(order["uid"])
    if order["noNewPrivileges"]:
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _become(order: dict[str, Any]) -> None:
    """In the container's process 1."""
    try:
        os.setsid()
        os.umask(0o022)
        _files(order)
        _power(order)
        nothing = os.open("/dev/null", os.O_RDONLY)
        os.dup2(nothing, 0)
        os.closerange(3, 256)
        os.execvpe(order["argv"][0], order["argv"], order["env"])
    except BaseException as error:
        print(f"container cannot start: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(NOT_STARTED)


def main() -> None:
    """Tells the kubelet the pid of process 1, in the kubelet's numbering, on the descriptor that it has opened for that."""
    order = json.load(sys.stdin)
    for space in ("net", "ipc", "uts"):
        fd = os.open(f"/proc/{order['sandbox']}/ns/{space}", os.O_RDONLY)
        _call("setns", fd, 0)
        os.close(fd)
    _call("unshare", CLONE_NEWNS | CLONE_NEWPID)
    first = os.fork()
    if first == 0:
        _become(order)
    os.write(order["answer"], f"{first}\n".encode())
    os.close(order["answer"])
    _, status = os.waitpid(first, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
