"""TLS: the context that the --ssl-* options ask for, and certificates that are renewed while the server runs."""

import asyncio
import logging
import ssl
from pathlib import Path

from headrace.config import ServerOptions
from headrace.errors import ConfigError

logger = logging.getLogger(__name__)
LOOK_SECONDS = 2.0  # between two looks at the files


def tls_context(server: ServerOptions) -> ssl.SSLContext | None:
    """None without a certificate. Raises ``ConfigError`` if one of the files or options can't be used."""
    if server.ssl_certfile is None:
        return None
    if server.ssl_cert_reqs and server.ssl_ca_certs is None:
        raise ConfigError("--ssl-cert-reqs needs --ssl-ca-certs: the certificates that clients' are checked with.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.VerifyMode(server.ssl_cert_reqs)
    try:
        load_files(context, server)
    except OSError as error:
        raise ConfigError(f"--ssl-certfile, --ssl-keyfile or --ssl-ca-certs can't be used: {error}.") from None
    if server.ssl_ciphers is not None:
        try:
            context.set_ciphers(server.ssl_ciphers)
        except ssl.SSLError:
            raise ConfigError(
                f"--ssl-ciphers {server.ssl_ciphers} names no cipher; `openssl ciphers` lists them."
            ) from None
    return context


def load_files(context: ssl.SSLContext, server: ServerOptions) -> None:
    assert server.ssl_certfile is not None  # there is no context without
    context.load_cert_chain(server.ssl_certfile, server.ssl_keyfile, password="")  # never asked for on the terminal
    if server.ssl_ca_certs is not None:
        context.load_verify_locations(server.ssl_ca_certs)


async def refresh(context: ssl.SSLContext | None, server: ServerOptions) -> None:
    """With --enable-ssl-refresh, have new connections use the files' new contents; broken ones change nothing."""
    known = versions(server)
    while context is not None and server.enable_ssl_refresh:
        await asyncio.sleep(LOOK_SECONDS)
        if (now := versions(server)) == known:
            continue
        known = now
        try:
            load_files(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server)  # half of a pair must not get into use
            load_files(context, server)
            logger.info("The TLS certificate was read anew.")
        except OSError as error:
            logger.warning("The new TLS certificate can't be used, so the old one stays: %s", error)


def versions(server: ServerOptions) -> list[tuple[int, int] | None]:
    """When each file was last written, and its bytes: those of half a file may be as new as all. None without one."""
    paths = [name for name in (server.ssl_certfile, server.ssl_keyfile, server.ssl_ca_certs) if name]
    return [version(Path(name)) for name in paths]


def version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:  # it is not there at the moment
        return None
    return found.st_mtime_ns, found.st_size
