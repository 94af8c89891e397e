"""What stands between clients and nodes: job records, leases, streams, routing, registry, placement, coordinator.

Imports neither `packtrain.client` nor `packtrain.workers`; both of them meet here.
"""
