"""A model over several machines: shards hold some of its layers, each on its node, and a head computes the rest.

    split      which layers lie where, as a head is told it
    hello      asking a port whether a shard answers there, before llama.cpp does, which would end the process
    sandbox    the least rights that Linux gives a process without root
    process    a shard as its agent holds it
    cache      the tensors that a shard keeps on disk, so that the next load need not send them

`shard_main` is the process of a shard.
"""
