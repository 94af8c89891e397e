"""How another machine comes into the fleet: by a code that people pass on, or by a token.

    head                                          the other machine
    packtrain up --listen ADDRESS                 packtrain node
      pairing service, announced by mDNS  ◄─find──  discovery
    packtrain invite  → 482-915-306               asks for the code
      service  ◄──────────── exchange ───────────►  guest
                                                  <home>/joined.json, and the agent starts

The code never crosses the network, nor does anything from which it could be tried out (SPAKE2, RFC 9382): who listens
learns nothing, who asks gets one guess for each of the few tries.
"""
