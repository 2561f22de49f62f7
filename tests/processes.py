"""What a test asks of other processes, any of which may end while it asks."""

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """The words it was started with; none once it has ended (a zombie has no command line to read)."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
