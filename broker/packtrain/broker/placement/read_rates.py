"""How fast a node reads the weights of a model that never ran there. Pure.

What a model has shown on a node says most. Where none has, its agent's measurement of the type of its weights stands
in, and for each layer what a step does there besides reading: attention, norms, starting threads.
"""

from __future__ import annotations

from statistics import fmean

from packtrain.broker.beats import NodeBeat
from packtrain.broker.model_info import ModelInfo

#: Of a layer in a step of one job, besides reading it, seconds: SmolLM2-135M on one core of 4 GHz took 13.2 ms for 30
#: layers of Q8_0 that are read in 8.2, and 20 for F16 in 16.1.
LAYER_S = 0.000_15


def read_rate(node: NodeBeat, info: ModelInfo) -> float:
    """Bytes of weights that a step of one job reads a second; 0: not known."""
    if node.weights_per_s:
        return node.weights_per_s
    names = [name for name in node.read_rates if info.quantization.upper().startswith(name)]
    if not names or not info.layer_bytes:
        return 0.0
    layer = fmean(info.layer_bytes)
    return layer / (layer / node.read_rates[max(names, key=len)] + LAYER_S)
