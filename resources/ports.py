"""Ports of the servers that run beside the platform on this machine."""

import socket

from ftaas_pipelines.errors import InputInvalid


def require_free(name: str, port: int) -> None:
    """Make sure that a server can have its port: some would move to the next one and say so nowhere.

    Args:
        name: of its setting, without `FTAAS_PORT_`.

    Raises:
        InputInvalid: it belongs to someone else.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputInvalid(
                "the port is in use",
                f"FTAAS_PORT_{name}",
                str(port),
                f"stop what holds it, or set FTAAS_PORT_{name}",
            ) from None
