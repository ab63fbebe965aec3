"""Programs of a user's own fetch through the proxies that the environment names; servers ask directly."""

import base64
import io
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import PIL.Image
import pytest

from transformers_owl import MplugOwlImageProcessor
from transformers_owl.mplug_owl import download_mplug_owl
from transformers_owl.mplug_owl.download_mplug_owl import download, without_proxies


NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "green").save(file, "PNG")
    return file.getvalue()


class Site(BaseHTTPRequestHandler):
    """A server of images, which notes how it was asked."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"], self.headers["Proxy-Authorization"]))
        self.send_response(302 if "/to?" in self.path else 200)
        if "/to?" in self.path:
            self.send_header("Location", self.path.partition("?")[2])
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, *args):
        pass


class Proxy(Site):
    """Answers for any server, as [`Site`]; opens a tunnel to the one that `tunnel_to` names, whatever was asked for."""

    def do_CONNECT(self):
        self.server.asked.append((self.path, self.headers["Host"], self.headers["Proxy-Authorization"]))
        if self.server.refuses:
            return self.send_error(407)
        with socket.create_connection(self.server.tunnel_to) as other:
            self.send_response(200)
            self.end_headers()
            ends = [self.connection, other]
            while True:
                for end in select.select(ends, [], [], 5)[0]:
                    data = end.recv(2**16)
                    if not data:
                        self.close_connection = True
                        return None
                    ends[end is self.connection].sendall(data)


@pytest.fixture
def servers(monkeypatch):
    """A site and a proxy, which the environment does not name yet."""
    for name in (*NAMES, *(name.upper() for name in NAMES), download_mplug_owl.ALLOW_INTERNAL):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site, ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        for server in (site, proxy):
            server.asked, server.refuses, server.tunnel_to = [], False, site.server_address
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield site, proxy
        site.shutdown()
        proxy.shutdown()


@pytest.fixture
def site(servers):
    return servers[0]


@pytest.fixture
def proxy(servers):
    return servers[1]


def address(server, user: str = "") -> str:
    return f"http://{user}127.0.0.1:{server.server_port}"


URL = "http://images.test/a%20b/\u00fc.png?x=1"  # no name server knows it
ASKED = "http://images.test/a%20b/%C3%BC.png?x=1"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_http_goes_through_the_proxy(name, proxy, monkeypatch):
    monkeypatch.setenv(name, address(proxy))
    assert download(URL) == png()
    assert MplugOwlImageProcessor()(URL)["pixel_values"]
    assert proxy.asked == [(ASKED, "images.test", None)] * 2


def test_a_proxy_may_be_named_without_a_scheme_and_with_a_password(proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.server_port}")
    assert download(URL) == png()
    monkeypatch.setenv("http_proxy", address(proxy, "me:a%40b@"))
    assert download(URL) == png()
    known = base64.b64encode(b"me:a@b").decode()
    assert [asked[2] for asked in proxy.asked] == [None, f"Basic {known}"]


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_https_goes_through_a_tunnel(name, site, proxy, monkeypatch):
    """What comes out at the other end speaks no TLS here, and nothing is sent in the clear."""
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_ATTEMPTS", 1)
    monkeypatch.setenv(name, address(proxy, "me:secret@"))
    with pytest.raises(OSError, match="SSL"):
        download("https://images.test/a.png")
    (asked,) = proxy.asked
    assert asked[0] == "images.test:443" and asked[2] == f"Basic {base64.b64encode(b'me:secret').decode()}"
    assert site.asked == []


def test_https_is_read_from_a_tunnel(site, proxy, monkeypatch):
    class Plain:
        def wrap_socket(self, connection, server_hostname):
            assert server_hostname == "images.test"
            return connection

    monkeypatch.setattr(download_mplug_owl.ssl, "create_default_context", Plain)
    monkeypatch.setenv("https_proxy", address(proxy))
    assert download("https://images.test/a.png") == png()
    assert site.asked == [("/a.png", "images.test", None)]


def test_a_proxy_that_refuses_is_named_by_its_answer(proxy, monkeypatch):
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_ATTEMPTS", 1)
    monkeypatch.setenv("https_proxy", address(proxy))
    proxy.refuses = True
    with pytest.raises(OSError, match="Tunnel connection failed: 407"):
        download("https://images.test/a.png")


@pytest.mark.parametrize("exempt", ["*", "127.0.0.1", "127.0.0.1:{}", "example.org, 127.0.0.1"])
def test_exempt_hosts_are_asked_directly(exempt, site, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", address(proxy))
    monkeypatch.setenv("no_proxy", exempt.format(site.server_port))
    with pytest.raises(ValueError, match="has the internal address"):
        download(f"{address(site)}/a.png")
    monkeypatch.setenv(download_mplug_owl.ALLOW_INTERNAL, "1")
    assert download(f"{address(site)}/a.png") == png()
    assert len(site.asked) == 1 and proxy.asked == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1"]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_are_checked_before_the_proxy_is_asked(scheme, host, proxy, monkeypatch):
    monkeypatch.setenv(f"{scheme}_proxy", address(proxy))
    with pytest.raises(ValueError, match="has the internal address"):
        download(f"{scheme}://{host}/a.png")
    monkeypatch.setenv("http_proxy", address(proxy))
    with pytest.raises(ValueError, match="has the internal address"):
        download(f"http://images.test/to?{scheme}://{host}/a.png")
    assert [asked[0] for asked in proxy.asked] == [f"http://images.test/to?{scheme}://{host}/a.png"]


@pytest.mark.parametrize("kind", ["socks5", "https"])
def test_other_kinds_of_proxies_are_refused(kind, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", f"{kind}://me:secret@127.0.0.1:{proxy.server_port}")
    with pytest.raises(ValueError, match=rf"a proxy {kind}://, but it must be http://HOST:PORT: .* NO_PROXY") as caught:
        download(URL)
    assert "secret" not in str(caught.value)


def test_limits_hold_behind_a_proxy(proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", address(proxy))
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_BYTES", len(png()) - 1)
    with pytest.raises(ValueError, match="larger than"):
        download(URL)


def test_servers_ask_directly_in_every_thread(site, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", address(proxy))
    monkeypatch.setenv(download_mplug_owl.ALLOW_INTERNAL, "1")
    with without_proxies():
        thread = threading.Thread(target=download, args=[f"{address(site)}/a.png"])
        thread.start()
        thread.join()
        with pytest.raises(OSError):
            download(URL)
    assert len(site.asked) == 1 and proxy.asked == []
    assert download(URL) == png()
    assert len(proxy.asked) == 1
