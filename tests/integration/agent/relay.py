"""`python relay.py SOCKET`: its input and output become a connection to a Unix socket, for `sftp -D`."""

import os
import socket
import sys
import threading


def main(path: str) -> None:
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(path)

    def give() -> None:
        while data := os.read(0, 65536):
            connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)

    threading.Thread(target=give, daemon=True).start()
    while data := connected.recv(65536):
        os.write(1, data)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
