"""OpenAI's requests and answers as jobs and their results: pure translation, for the gateway and for bulk files.

body ──parse_call──▶ Call(specs) ──one job each──▶ results ──call.form──▶ body, or chunks of a stream
"""

from packtrain.client.openai.calls import Call, parse_call
from packtrain.client.openai.faults import Fault, fault_of
from packtrain.client.openai.forms import Form, Stamp, StreamForm

__all__ = ["Call", "Fault", "Form", "Stamp", "StreamForm", "fault_of", "parse_call"]
