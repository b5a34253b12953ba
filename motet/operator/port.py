"""The port: bound before models are loaded, so that a busy one is told at once. `starting.py` answers on it until they
are."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from motet.operator.file import ConfigError
from motet.operator.settings import ServerConfig


def bind(config: ServerConfig) -> socket.socket:
    """A socket that is bound and does not listen yet.

    Raises:
        ConfigError: the address is taken, not of this machine, or not allowed.
    """
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError([f"server.host: {config.host!r} is no address of this machine: {error.strerror}."]) from error
    # of a name with both kinds of address (localhost) the one that clients fall back to
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    try:
        _bind(bound, address)
    except (OSError, OverflowError) as error:
        bound.close()
        raise ConfigError([_problem(config, error)]) from error
    return bound


def _bind(bound: socket.socket, address: object) -> None:
    """First without SO_REUSEADDR, so that another server which still loads its models holds the port against us; with
    it where only connections of a server that has ended are left."""
    try:
        bound.bind(address)  # type: ignore[arg-type]
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)  # type: ignore[arg-type]


def _problem(config: ServerConfig, error: Exception) -> str:
    where = f"{config.host}:{config.port}"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"server.port: {where} is in use: stop what listens there, or choose another port (--port)."
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return f"server.port: {where} is not allowed to this user; ports from 1024 on are."
    return f"server.host: {where} cannot be listened on: {getattr(error, 'strerror', None) or error}."


def release(bound: socket.socket) -> socket.socket:
    """The same socket, ready to listen; connections that it leaves will not keep its successor from the port."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return bound


def url(config: ServerConfig, bound: socket.socket) -> str:
    """Where the server answers; the port is the one that the system chose where the file says 0."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{bound.getsockname()[1]}"


def exposed(config: ServerConfig) -> list[str]:
    """What the operator may not have meant about who is let in."""
    if config.api_keys:
        return []
    said: list[str] = []
    if not _is_loopback(config.host):
        said.append(
            f"server: {config.host or 'every address'} can be reached by other machines, and without server.api_keys "
            "everybody there is let in."
        )
    limits = [name for name in type(config).model_fields if name.endswith("_per_key") and getattr(config, name)]
    said += [f"server.{name}: without server.api_keys there is no key to count for." for name in limits]
    return said


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
