# SPDX-License-Identifier: Apache-2.0
"""Downloads for programs that take URLs from strangers: they give no access to the machine's own network."""

import base64
import http.client
import io
import ipaddress
import os
import socket
import ssl
import string
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult


DOWNLOAD_BYTES = 32 * 2**20  # the largest file
VIDEO_BYTES = 256 * 2**20  # the largest video
DOWNLOAD_TIMEOUT = 20  # seconds for everything, redirects included
DOWNLOAD_REDIRECTS = 5
DOWNLOAD_ATTEMPTS = 3
DOWNLOAD_PAUSE = 0.5  # seconds before the second attempt, and twice as long before the third
PASSING = (429, 500, 502, 503, 504)  # answers of a server that may give another one soon
# Set to 1 in the environment, it allows addresses of the machine itself and of its own network.
ALLOW_INTERNAL = "TRANSFORMERS_OWL_ALLOW_INTERNAL_URLS"

# IPv6 addresses on the public internet, blocks that lead elsewhere or nowhere (not all of which Python knows), and
# addresses behind which a network keeps the whole of IPv4.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
RESERVED = [ipaddress.ip_network(block) for block in ("2002::/16", "3fff::/20", "192.88.99.0/24")]
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def download(url: str, kind: str = "image") -> bytes:
    """
    Downloads an "image" or a "video" from an http(s) URL, through the proxies of the environment (`HTTP_PROXY`,
    `HTTPS_PROXY`, `NO_PROXY`) except within [`without_proxies`]. A proxy resolves host names itself, so behind one only
    numeric addresses are checked.

    Raises:
        ValueError: for another scheme, also of a proxy, an internal address (also after a redirect), a file larger than
            `DOWNLOAD_BYTES` or `VIDEO_BYTES`, and an HTTP status other than 200.
        OSError: if `DOWNLOAD_ATTEMPTS` fail because of the connection or an overloaded server, and after
            `DOWNLOAD_TIMEOUT` seconds.
    """
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            return _download(url, kind, deadline)
        except OSError as error:
            if attempt == DOWNLOAD_ATTEMPTS or time.monotonic() + DOWNLOAD_PAUSE * attempt > deadline:
                raise OSError(f"{error or type(error).__name__} ({attempt} of {DOWNLOAD_ATTEMPTS} attempts)") from error
            time.sleep(DOWNLOAD_PAUSE * attempt)
    raise AssertionError("the last attempt returns or raises")


def _download(url: str, kind: str, deadline: float) -> bytes:
    for _ in range(DOWNLOAD_REDIRECTS + 1):
        parts = _read_url(url)
        proxy = _proxy_of(parts)
        try:
            with _connect(parts, proxy, deadline) as connection:
                response = _ask(connection, parts, proxy, kind, deadline)
                location = response.getheader("Location")
                if response.status not in (301, 302, 303, 307, 308) or location is None:
                    return _read(response, DOWNLOAD_BYTES if kind == "image" else VIDEO_BYTES)
        except http.client.HTTPException as error:
            raise ValueError(f"the server's answer is not HTTP ({error!r})") from error
        url = urllib.parse.urljoin(url, location)
    raise ValueError(f"more than {DOWNLOAD_REDIRECTS} redirects")


def _read_url(url: str) -> SplitResult:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r:.200} is not an http or https URL with a host")
    if parts.username is not None:
        raise ValueError("URLs with a user name are not fetched: download the file yourself")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or {"http": 80, "https": 443}[parts.scheme]


_takes_proxies = True


@contextmanager
def without_proxies() -> Iterator[None]:
    """
    Within it all threads connect to servers directly, so that the checked address is the one that is read: for
    programs that take URLs from strangers.
    """
    global _takes_proxies
    before, _takes_proxies = _takes_proxies, False
    try:
        yield
    finally:
        _takes_proxies = before


def _proxy_of(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment sets for a server, if there is one."""
    proxies = urllib.request.getproxies() if _takes_proxies else {}
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named or urllib.request.proxy_bypass(f"{parts.hostname}:{_port(parts)}"):
        return None
    proxy = urllib.parse.urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise ValueError(
            f"the environment sets a proxy {proxy.scheme}://, but it must be http://HOST:PORT: change "
            f"{parts.scheme.upper()}_PROXY, or exempt {parts.hostname} by NO_PROXY"
        )
    return proxy


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    known = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(known.encode()).decode()}"}


def _connect(parts: SplitResult, proxy: SplitResult | None, deadline: float) -> socket.socket:
    """Connects to a server at a checked address, or through a proxy."""
    host, port = parts.hostname or "", _port(parts)
    if proxy is None:
        connection = _first_connection(_checked_addresses(host, port), port, deadline)
    else:
        with suppress(socket.gaierror):  # a name, which the proxy looks up
            _checked_addresses(host, port, socket.AI_NUMERICHOST)
        way = http.client.HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=_time_left(deadline))
        if parts.scheme == "https":
            way.set_tunnel(host, port, _authorization(proxy))
        way.connect()
        connection = way.sock
    if parts.scheme == "https":
        connection.settimeout(_time_left(deadline))
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    return connection


def _checked_addresses(host: str, port: int, flags: int = 0) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    internal = [address for address in addresses if not is_public(address)]
    if internal and os.environ.get(ALLOW_INTERNAL) != "1":
        raise ValueError(
            f"the host {host!r} has the internal address {internal[0]}; to allow it, set {ALLOW_INTERNAL}=1 in the "
            "environment"
        )
    return addresses


def _first_connection(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """Tries one address after the other until the deadline."""
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), timeout=_time_left(deadline) / 2)
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), timeout=_time_left(deadline))


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not on this machine or its network, and not reserved."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None and ip not in NAT64:
            return ip.is_global and ip in GLOBAL_UNICAST and not any(ip in block for block in RESERVED)
        ip = ipaddress.IPv4Address(int(ip) % 2**32)
    return ip.is_global and not ip.is_multicast and not any(ip in block for block in RESERVED)


def _ask(
    connection: socket.socket, parts: SplitResult, proxy: SplitResult | None, kind: str, deadline: float
) -> http.client.HTTPResponse:
    """Sends the request; the headers of the response are read, its content is not."""
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    headers = {"User-Agent": "transformers-owl", "Accept": f"{kind}/*", "Connection": "close"}
    if proxy is not None and parts.scheme == "http":
        target = f"http://{parts.netloc.encode('idna').decode()}{target}"
        headers |= _authorization(proxy)
    request = http.client.HTTPConnection(parts.netloc)
    request.sock = connection
    connection.settimeout(_time_left(deadline))
    request.request(
        "GET",
        urllib.parse.quote(target, safe=string.punctuation),
        headers=headers,
    )
    response = http.client.HTTPResponse(_Timed(connection, deadline), method="GET")  # type: ignore[arg-type]
    response.begin()
    return response


class _Timed(io.RawIOBase):
    """The bytes of a connection until a deadline, since a slow server would pass a time-out per read."""

    def __init__(self, connection: socket.socket, deadline: float):
        self.connection = connection
        self.deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.connection.settimeout(_time_left(self.deadline))
        return self.connection.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)


def _time_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"not read within {DOWNLOAD_TIMEOUT} seconds")
    return left


def _read(response: http.client.HTTPResponse, largest: int) -> bytes:
    if response.status in PASSING:
        raise OSError(f"HTTP Error {response.status}: {response.reason}")
    if response.status != 200:
        raise ValueError(f"HTTP Error {response.status}: {response.reason}")
    content = response.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"the file is larger than {largest // 2**20} MiB")
    promised = response.getheader("Content-Length", "")
    if promised.isdigit() and len(content) < int(promised):
        raise OSError(f"the connection closed after {len(content)} of {promised} bytes")
    return content
