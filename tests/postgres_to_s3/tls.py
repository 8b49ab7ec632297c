"""TLS in front of a PostgreSQL that was built without it, and certificates for it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# PostgreSQL manual, "Message Formats": the codes of SSLRequest and GSSENCRequest.
SSL_REQUEST, GSSENC_REQUEST = 80877103, 80877104


class Authority:
    """Issues certificates; its own is in the file `certificate`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        own = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate = folder / "ca.pem"
        self.certificate.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def context(self, host: str, ended: bool = False) -> ssl.SSLContext:
        """What a server of this name needs to speak TLS.

        :param ended: whether the certificate has expired.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = self._builder(subject, key, ended).add_extension(names, critical=False)
        path = self._folder / f"{host}-{ended}.pem"
        plain = serialization.NoEncryption()
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
            + certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, ended: bool = False
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=-1 if ended else 1))
        )


class TlsProxy:
    """Speaks TLS as PostgreSQL does (its manual, "SSL Session Encryption"), and passes on what is in it.

    :param server: the socket of a PostgreSQL.
    :param contexts: of the first connection, the second, …; the last one is of all further ones, too. None refuses
        TLS.
    """

    def __init__(self, server: str, contexts: Sequence[ssl.SSLContext | None]) -> None:
        self._server = server
        self._contexts = list(contexts)
        self._stop: asyncio.Event
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="tls")
        #: How many connections have asked for TLS, and for anything else.
        self.asked, self.plain = 0, 0
        #: How many have accepted the certificate, and gone on.
        self.accepted = 0
        self.port = 0
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that refuses the certificate closes the connection, in whatever state it is.
        with contextlib.suppress(OSError, ssl.SSLError, EOFError, asyncio.CancelledError), contextlib.closing(writer):
            if not await self._is_encrypted(reader, writer):
                return
            if not (startup := await reader.read(65_536)):
                return
            self.accepted += 1
            from_server, to_server = await asyncio.open_unix_connection(self._server)
            with contextlib.closing(to_server):
                to_server.write(startup)
                await asyncio.gather(self._pass(reader, to_server), self._pass(from_server, writer))

    async def _is_encrypted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        _, code = struct.unpack("!ii", await reader.readexactly(8))
        if code == GSSENC_REQUEST:
            writer.write(b"N")
            _, code = struct.unpack("!ii", await reader.readexactly(8))
        if code != SSL_REQUEST:
            self.plain += 1
            return False
        self.asked += 1
        context = self._contexts.pop(0) if len(self._contexts) > 1 else self._contexts[0]
        writer.write(b"S" if context else b"N")
        await writer.drain()
        if context is None:
            # The client may ask again in plain text.
            self.plain += bool(await reader.read(1))
            return False
        await writer.start_tls(context)
        return True

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
        target.close()


@contextlib.contextmanager
def tls_proxied(server: str, *contexts: ssl.SSLContext | None) -> Iterator[TlsProxy]:
    """A `TlsProxy` for the length of the block."""
    proxy = TlsProxy(server, contexts)
    try:
        yield proxy
    finally:
        proxy.close()
