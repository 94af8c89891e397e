"""What runs beside the weights: the node agent, its instances, and in each instance one engine.

Never imports `packtrain.client`. Only `backends/llama_cpp*` imports llama_cpp: the agent does not carry an engine.
"""
