"""The processes of a sweep that train, from Linux's list of processes."""

from pathlib import Path


def workers(workdir: Path) -> list[int]:
    """The processes that train trials of a sweep."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"experiments.sweeps.worker" in words and f"--workdir={workdir}".encode() in words:
            found.append(int(path.name))
    return found


def parent(process: int) -> int:
    """The process that started another one."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
