"""The HTTP door: programs that speak OpenAI's API reach the fleet by changing one base URL.

A gateway holds no state: each request becomes jobs (`packtrain.client.openai`), which any other gateway could read.
"""
