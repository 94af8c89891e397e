"""Programs that listen and knock where they should hear and find nothing, for hosts of tests."""

from __future__ import annotations

#: Notes all that an interface carries.
SNIFFER = """if True:
    import socket, sys
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
    heard.bind((sys.argv[1], 0))
    with open(sys.argv[2], "wb", buffering=0) as notes:
        while True:
            notes.write(heard.recv(65536))
"""
#: Tells whether anything but an end comes back: from a port, when llama.cpp's hello is sent to it.
STRANGER = """if True:
    import socket, sys
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3) as there:
            there.sendall(bytes([14, 24]) + bytes(31))
            print("got", there.recv(100).hex())
    except OSError as error:
        print("error", type(error).__name__)
"""
