"""Images come from the public internet alone, whatever a URL, a name server or a redirect says; and in time."""

import io
import ipaddress
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image
import pytest

from transformers_owl import MplugOwlImageProcessor
from transformers_owl.mplug_owl import download_mplug_owl
from transformers_owl.mplug_owl.download_mplug_owl import download, is_public


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (0, 255, 0)).save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        name, _, argument = self.path.strip("/").partition("?")
        statuses = {"redirect": 302, "loop": 301, "nowhere.png": 404, "lost": 302}
        overloaded = name == "busy" and len(self.server.asked) < int(argument)
        self.send_response(503 if overloaded else statuses.get(name, 200))
        if name in ("redirect", "loop"):
            self.send_header("Location", argument or "/loop")
        if name == "claims":
            self.send_header("Content-Length", str(2**40))
        self.end_headers()
        if name in ("slow", "large"):
            self.write_until_closed(pause=0.05 if name == "slow" else 0)
        else:
            self.wfile.write(b"hello" if name == "page" else png())

    def write_until_closed(self, pause: float):
        try:
            for _ in range(1000):
                self.wfile.write(b"x" if pause else b"x" * 2**16)
                time.sleep(pause)
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def url(server):
    server.asked.clear()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def allowed(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_OWL_ALLOW_INTERNAL_URLS", "1")


@pytest.fixture
def loopback_is_public(monkeypatch):
    """As if this server stood on the internet: 127.0.0.1 counts as public, every other address as it is."""
    monkeypatch.setattr(download_mplug_owl, "is_public", lambda address: address == "127.0.0.1" or is_public(address))


def test_an_image_by_its_url(url, allowed):
    for source in (f"{url}/green.png", f"{url}/a%20b/\u00fc c.png?x=1&y=\u00fc", f"{url}/redirect?/green.png"):
        pixels = MplugOwlImageProcessor(do_rescale=False, do_normalize=False)(source, return_tensors="np")
        assert np.unique(pixels["pixel_values"]).tolist() == [0, 255]


def test_the_server_gets_the_path_and_the_host_as_written(server, url, allowed):
    download(f"{url}/a%20b/\u00fc c.png?x=1&y=%2F#part")
    assert server.asked == [("/a%20b/%C3%BC%20c.png?x=1&y=%2F", f"127.0.0.1:{server.server_port}")]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere.png", "HTTP Error 404: Not Found"),
        ("lost", "HTTP Error 302"),
        ("page", "cannot identify image"),
        ("loop", "more than 5 redirects"),
        ("large", "larger than 32 MiB"),
        ("redirect?file:///etc/passwd", "'file:///etc/passwd' is not an http or https URL"),
        ("redirect?ftp://example.org/a.png", "is not an http or https URL"),
        ("redirect?//[", "Invalid IPv6 URL"),
        ("redirect?http://user@example.org/", "user name"),
    ],
)
def test_what_cannot_be_read_says_why(url, allowed, path, reason):
    with pytest.raises(ValueError, match=rf"^The image '{url}/\S+' cannot be read: .*{reason}"):
        MplugOwlImageProcessor()(f"{url}/{path}")


def test_no_more_than_the_limit_is_read(url, allowed, monkeypatch):
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_BYTES", len(png()))
    assert download(f"{url}/green.png") == png()
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_BYTES", len(png()) - 1)
    with pytest.raises(ValueError, match="larger than"):
        download(f"{url}/green.png")


@pytest.mark.parametrize("answered", range(1, 6))
def test_a_busy_server_is_asked_three_times(server, url, allowed, monkeypatch, answered):
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_PAUSE", 0.01)
    if answered <= 3:
        assert download(f"{url}/busy?{answered}") == png()
    else:
        with pytest.raises(OSError, match=r"HTTP Error 503: .*\(3 of 3 attempts\)"):
            download(f"{url}/busy?{answered}")
    assert len(server.asked) == min(answered, 3)


def test_a_page_that_is_not_there_is_asked_for_once(server, url, allowed):
    with pytest.raises(ValueError, match="HTTP Error 404"):
        download(f"{url}/nowhere.png")
    assert len(server.asked) == 1


def test_a_server_that_trickles_is_left(url, allowed, monkeypatch):
    """Every read is quick, the whole is not."""
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_TIMEOUT", 0.5)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"slow' cannot be read: (timed out|not read within 0.5 seconds)"):
        MplugOwlImageProcessor()(f"{url}/slow")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("greeting", [b"", b"H", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nA", b"\xff" * 70_000])
def test_servers_that_speak_something_else(greeting, allowed, monkeypatch):
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(greeting)
            time.sleep(1)
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ValueError, match=r"cannot be read: (the server's answer|timed out|not read within)"):
            MplugOwlImageProcessor()(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "169.254.169.254", "10.0.0.1",
        "192.168.1.1", "172.16.0.1", "100.64.0.1", "[fe80::1]", "[fd00::1]", "[fec0::1]", "[2002:7f00:1::]",
        "224.0.0.1", "240.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_internal_hosts_are_refused_before_anything_is_sent(server, url, host):
    source = f"http://{host}:{server.server_port}/green.png"
    with pytest.raises(ValueError, match=r"has the internal address .*TRANSFORMERS_OWL_ALLOW_INTERNAL_URLS=1"):
        MplugOwlImageProcessor()(source)
    assert server.asked == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("http://user:secret@127.0.0.1/", "user name"),
        ("http://example.org@127.0.0.1/", "user name"),
        ("http://127.0.0.1:99999/", "Port out of range"),
        ("http://127.0.0.1:x/", "Port could not be cast"),
        ("http:///green.png", "not an http or https URL with a host"),
        ("https://[::1", "Invalid IPv6 URL"),
        ("http://\ud800/", ""),
        ("http://a\0b/", ""),
        ("http://" + "a" * 300 + "/", ""),
        ("HTTP://127.0.0.1/", "internal address"),
    ],
)
def test_odd_urls_are_refused(source, reason):
    with pytest.raises(ValueError, match=f"cannot be read: .*{reason}"):
        MplugOwlImageProcessor()(source)


@pytest.mark.parametrize("target", ["127.0.0.2", "[::1]", "169.254.169.254", "2130706434"])
def test_redirects_to_internal_hosts_are_refused(server, url, loopback_is_public, target):
    with pytest.raises(ValueError, match="has the internal address"):
        MplugOwlImageProcessor()(f"{url}/redirect?http://{target}:{server.server_port}/green.png")
    assert [path.partition("?")[0] for path, _ in server.asked] == ["/redirect"]


def test_a_name_is_looked_up_once(server, url, loopback_is_public, monkeypatch):
    """A name server that says a public address first and an internal one then gains nothing."""
    lookups = []
    library = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host != "rebinding.test":
            return library(host, *args, **kwargs)
        lookups.append(host)
        return library("127.0.0.1" if len(lookups) == 1 else "127.0.0.2", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert download(f"http://rebinding.test:{server.server_port}/green.png") == png()
    assert lookups == ["rebinding.test"]
    assert server.asked == [("/green.png", f"rebinding.test:{server.server_port}")]


def test_one_internal_address_of_a_name_is_enough_to_refuse(server, monkeypatch):
    library = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        return [entry for address in ("8.8.8.8", "127.0.0.1") for entry in library(address, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ValueError, match=r"'mixed.test' has the internal address 127.0.0.1"):
        download(f"http://mixed.test:{server.server_port}/green.png")


def test_the_next_address_is_tried(server, allowed, monkeypatch):
    library = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        addresses = ("127.0.0.2", "127.0.0.1") if host == "two.test" else (host,)
        return [entry for address in addresses for entry in library(address, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert download(f"http://two.test:{server.server_port}/green.png") == png()


def test_public_addresses():
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert is_public(address), address


@pytest.mark.parametrize("block", ["2002::/16", "3fff::/20", "192.88.99.0/24", "64:ff9b::c058:6300/120"])
def test_blocks_that_lead_nowhere_are_not_public(block):
    network = ipaddress.ip_network(block)
    for address in (network[0], network[1], network[network.num_addresses // 2], network[-1]):
        assert not is_public(str(address)), address
    assert is_public("192.88.98.255") and is_public("192.88.100.0")


def test_a_file_that_broke_off_is_no_whole_one(server, url, allowed, monkeypatch):
    monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_PAUSE", 0)
    before = len(server.asked)
    with pytest.raises(OSError, match=rf"connection closed after {len(png())} of {2**40} bytes \(3 of 3 attempts\)"):
        download(url + "/claims")
    assert len(server.asked) == before + 3


def test_https_never_falls_back_to_plain_text(url, allowed):
    with pytest.raises(ValueError, match=r"cannot be read: .*SSL"):
        MplugOwlImageProcessor()(f"{url.replace('http', 'https')}/green.png")
