"""A tunnel: bytes of one TCP connection from a node to another, encrypted, between two ends that know each other.

    certificate   what a node proves itself with, made by itself
    handshake     TLS in which each side takes exactly one certificate of the other
    forward       connections led from one side to the other
    process       one end as its agent holds it

`tunnel_main` is the process of one end. llama.cpp's RPC goes through it, for that has neither keys nor secrets.
"""
