"""Bounds the cost of parsing and validating a JSON body, while its bytes arrive.

Validation takes up to 60 us per list item in the event loop, and several errors per invalid item.
These limits keep the worst body below a second. The scan takes linear time and constant memory,
and stops at the first limit.
"""

from __future__ import annotations

import re
import string

MAX_DEPTH = 100
MAX_LIST_ITEMS = 6_000
MAX_NUMBERS = 200_000
MAX_MEMBERS = 100_000
# Bytes of any string that count as text; only the rest of it can count as media.
LONG_STRING = 64 << 10
# Characters outside base64 that a media string may hold, as in `data:video/mp4;base64,`.
MEDIA_PREFIX = 256

MEDIA_KEYS = frozenset(
    b"url data image_url video_url audio_url file_data image_embeds video_embeds audio_embeds "
    b"prompt_embeds".split()
)
# Keys of token id lists, which may be long because integers are cheap to validate.
TOKEN_KEYS = frozenset(b"prompt tokens token_ids prompt_token_ids input_ids".split())
_LONGEST_KEY = max(map(len, MEDIA_KEYS | TOKEN_KEYS))
# A comma separates the frames of a list; JSON may write a slash as `\/`.
_BASE64 = (string.ascii_letters + string.digits + "+/-_=,\\").encode()
_TOKEN_IDS = b"0123456789, \t\r\n"
_BRACKETS = re.compile(rb"[\[\]{}]")
_REST_OF_STRING = re.compile(rb'(?:[^"\\]|\\.)*+', re.DOTALL)
_BACKSLASH = 0x5C
_BOMS = (b"\xff\xfe", b"\xfe\xff")


class ScanError(Exception):
    """A body over a limit; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 413) -> None:
        super().__init__(message)
        self.status = status


class JsonScan:
    """The scan of one body. It does not detect malformed JSON; the parser does."""

    def __init__(self, max_text: int, max_items: int = MAX_LIST_ITEMS) -> None:
        self._max_text = max_text
        self._max_items = max_items
        self._total_bytes = self._media_bytes = 0
        self._items = self._numbers = self._members = 0
        # For every open container: whether it is a list, and whether a list of token ids.
        self._open: list[tuple[bool, bool]] = []
        self._head = b""
        self._in_string = self._odd_backslash = False
        self._start = b""  # of the current string, or of the last one
        self._length = self._non_base64 = 0
        self._key = b""

    @property
    def text_bytes(self) -> int:
        """Bytes so far that count as text."""
        return self._total_bytes - self._media_bytes - self._media_in_string()

    def feed(self, data: bytes) -> None:
        """The next bytes of the body. Raises ScanError."""
        if len(self._head) < 4:
            self._check_encoding(data)
        self._total_bytes += len(data)
        position = 0
        while position < len(data):
            if self._in_string:
                position = self._scan_string(data, position)
            else:
                position = self._scan_structure(data, position)
        if self._max_text and self.text_bytes > self._max_text:
            raise ScanError(
                f"The request has more than {self._max_text} bytes of text besides its media "
                "(--metok-max-text-bytes)."
            )

    def _check_encoding(self, data: bytes) -> None:
        # Python's parser also accepts UTF-16 and UTF-32, which this scan cannot read.
        self._head += data[: 4 - len(self._head)]
        if b"\0" in self._head or self._head.startswith(_BOMS):
            raise ScanError("The body is not JSON in UTF-8.", 400)

    def _scan_string(self, data: bytes, position: int) -> int:
        start, position = position, position + self._odd_backslash
        end, closed = self._end_of_string(data, position)
        if len(self._start) <= _LONGEST_KEY:
            self._start += data[start : min(end, start + _LONGEST_KEY + 1)]
        self._length += end - start
        if self._key in MEDIA_KEYS:
            self._non_base64 += len(data[start:end].translate(None, _BASE64))
        if not closed:
            return end
        self._media_bytes += self._media_in_string()
        self._in_string = False
        self._length = self._non_base64 = 0
        return end + 1

    def _end_of_string(self, data: bytes, position: int) -> tuple[int, bool]:
        """Where the current string ends in `data`, and whether that is its closing quote."""
        self._odd_backslash = False
        quote = data.find(b'"', position)
        if quote > position and data[quote - 1] == _BACKSLASH:
            matched = _REST_OF_STRING.match(data, position)
            assert matched is not None, "the pattern also matches an empty string"
            quote = matched.end() if data[matched.end() : matched.end() + 1] == b'"' else -1
        if quote >= 0:
            return quote, True
        first = len(data)
        while first > position and data[first - 1] == _BACKSLASH:
            first -= 1
        self._odd_backslash = bool((len(data) - first) % 2)
        return len(data), False

    def _media_in_string(self) -> int:
        """Bytes of the current string that count as media."""
        if self._key not in MEDIA_KEYS or self._non_base64 > MEDIA_PREFIX:
            return 0
        return max(0, self._length - LONG_STRING)

    def _scan_structure(self, data: bytes, position: int) -> int:
        quote = data.find(b'"', position)
        end = len(data) if quote < 0 else quote
        for bracket in _BRACKETS.finditer(data, position, end):
            self._count_separators(data, position, bracket.start())
            self._open_or_close(bracket[0])
            position = bracket.end()
        self._count_separators(data, position, end)
        if quote < 0:
            return end
        self._in_string, self._start = True, b""
        self._count_members(1)
        if self._open and self._open[-1][1]:
            self._count_item()
        return end + 1

    def _count_separators(self, data: bytes, start: int, end: int) -> None:
        """Count the commas and colons between two brackets or strings."""
        if start == end:
            return
        commas = data.count(b",", start, end)
        if self._open and self._open[-1][0]:
            if self._open[-1][1]:
                self._numbers += commas
                # Anything but a token id costs as much as an invalid list item.
                self._count_item(len(data[start:end].translate(None, _TOKEN_IDS)))
            else:
                self._count_item(commas)
        else:
            self._count_members(commas)
            if data.find(b":", start, end) >= 0:
                self._key = self._start if len(self._start) <= _LONGEST_KEY else b""
        if self._numbers > MAX_NUMBERS:
            raise ScanError(f"The request has more than {MAX_NUMBERS} token ids.")

    def _open_or_close(self, bracket: bytes) -> None:
        if bracket in b"]}":
            if self._open:
                self._open.pop()
            return
        inside_tokens = bool(self._open) and self._open[-1][1]
        is_list = bracket == b"["
        self._count_item()
        named = self._key in TOKEN_KEYS and not (self._open and self._open[-1][0])
        self._open.append((is_list, is_list and (inside_tokens or named)))
        if len(self._open) > MAX_DEPTH:
            raise ScanError(f"The JSON is nested more than {MAX_DEPTH} levels deep.", 400)

    def _count_members(self, count: int) -> None:
        self._members += count
        if self._members > MAX_MEMBERS:
            raise ScanError(f"The request has more than {MAX_MEMBERS} names and values.")

    def _count_item(self, count: int = 1) -> None:
        self._items += count
        if self._items > self._max_items:
            raise ScanError(f"The request has more than {self._max_items} list items and objects.")
