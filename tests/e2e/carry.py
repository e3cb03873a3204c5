"""A `ProxyCommand` written for the tests: SSH by WebSocket, with nothing but RFC 6455 and the documentation.

python carry.py HOST PORT TOKEN
"""

from __future__ import annotations

import os
import socket
import sys
import threading


def request(host: str, token: str) -> bytes:
    lines = ["GET /api/ssh HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    return "\r\n".join([*lines, f"Authorization: Bearer {token}", "", ""]).encode()


def main(host: str, port: str, token: str) -> int:
    connection = socket.create_connection((host, int(port)))
    stream = connection.makefile("rb")
    connection.sendall(request(host, token))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            break
        head += line
    if b" 101 " not in head.split(b"\r\n")[0]:
        sys.stderr.write(f"{head.decode()}{stream.read().decode()}\n")
        return 1
    threading.Thread(target=send, args=(connection,), daemon=True).start()
    while True:
        first, second = stream.read(2)
        length = int.from_bytes(stream.read({126: 2, 127: 8}[second]), "big") if second > 125 else second
        payload = stream.read(length)
        if first & 15 == 8:
            return 0
        if first & 15 == 2:
            write_all(payload)


def write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def send(connection: socket.socket) -> None:
    """Standard input as binary messages, masked with zeros; a close frame at its end."""
    while data := os.read(0, 32768):
        size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        connection.sendall(b"\x82" + size + b"\0\0\0\0" + data)
    connection.sendall(b"\x88\x80\0\0\0\0")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
