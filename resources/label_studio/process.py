"""Runs the server, and ends it when the process that started it is gone.

Executed by path with the Python of Label Studio's own environment, which knows nothing of this package.
"""

import os
import signal
import sys
import threading
import time


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv.pop(1)),), daemon=True).start()
    from label_studio.server import main  # pyright: ignore

    sys.exit(main())
