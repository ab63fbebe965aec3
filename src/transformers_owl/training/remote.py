"""Tar shards at URLs, read as a stream with time-outs and retries."""

import io
import itertools
import logging
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any


TIMEOUT = 60  # seconds without a byte
TRIES = 5
PAUSE = 1.0  # seconds before the second try, twice as long before each further one


class RemoteFile(io.RawIOBase):
    """
    A file at a URL, read once from the start. A broken or stalled connection is reopened at the same byte, and logs a
    warning.

    Raises:
        OSError: for a file that does not exist, and after five tries without a byte.
    """

    def __init__(self, url: str):
        self.url = url
        self.place = 0
        self.length: int | None = None
        self.response: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        for number in itertools.count(1):
            try:
                data = self._read(len(buffer))
                buffer[: len(data)] = data
                self.place += len(data)
                return len(data)
            except (OSError, HTTPException) as error:
                self._drop()
                code = error.code if isinstance(error, urllib.error.HTTPError) else None
                if number == TRIES or code in (401, 403, 404, 410):
                    raise OSError(f"{self.url}, byte {self.place}: {error} (try {number} of {TRIES})") from error
                logging.getLogger(__name__).warning(f"{self.url}: {error}; try {number + 1} of {TRIES}.")
                time.sleep(PAUSE * 2 ** (number - 1))
        raise AssertionError

    def _read(self, size: int) -> bytes:
        if self.length is not None and self.place == self.length:
            return b""
        if self.response is None:
            self.response = self._open()
        data = self.response.read(size)
        if not data and self.length is not None and self.place < self.length:
            raise OSError(f"the connection closed {self.length - self.place} bytes too early")
        return data

    def _open(self):
        headers = {"Range": f"bytes={self.place}-"} if self.place else {}
        response = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT)
        length = response.headers.get("Content-Length")
        skipped = 0 if response.status == 206 else self.place
        if length is not None:
            self.length = int(length) + self.place - skipped
        while skipped:
            passed = response.read(min(skipped, 2**20))
            if not passed:
                raise OSError("the connection closed before the byte to resume at")
            skipped -= len(passed)
        return response

    def _drop(self) -> None:
        if self.response is not None:
            self.response.close()
            self.response = None

    def close(self) -> None:
        self._drop()
        super().close()
