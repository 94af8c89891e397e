"""Backends: what computes tokens. `llama_cpp_backend` is the real one, `scripted` a model whose answers are known."""
