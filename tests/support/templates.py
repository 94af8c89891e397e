"""Chat templates in the manner of the families, as short as they can be and still carry their marks and quirks."""

from __future__ import annotations

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}CALLS{% endif %}<|im_end|>\n{% endfor %}"
)
_CHATML = _TURNS.replace(
    "CALLS",
    "{% for c in m.tool_calls %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}',
)
_TOOLS = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ '[assistant] ' }}"
HERMES = _TOOLS + _CHATML + "{{ '<|im_start|>assistant\n' }}"
QWEN = (
    HERMES
    + "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
#: Opens the reasoning in the prompt, as DeepSeek-R1 and Step do.
STEP = (
    _TOOLS.replace("tojson }}", "tojson }}\n<function=f>\n<parameter=p>")
    + _CHATML
    + "{{ '<|im_start|>assistant\n<think>\n' }}"
)
QWEN_CODER = HERMES + "{# <function=f> #}"
GLM = "{# <arg_key> <think> #}" + HERMES
DEEPSEEK = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' and m['content'] is none %}{% for c in m.tool_calls %}"
    "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>' + c['function']['name'] + '\n```json\n'"
    " + c['function']['arguments'] + '\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}{% endfor %}"
    "{% else %}<｜{{ m.role }}｜>{{ m.content }}{% endif %}{% endfor %}{{ '<｜Assistant｜><think>\n' }}"
)
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.tool_calls is defined %}[TOOL_CALLS]{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have length 9') }}{% endif %}"
    "{{ c.function | tojson }} {{ c.id }}{% endfor %}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.tool_call_id }} {{ m.content }}[/TOOL_RESULTS]"
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}{# [THINK] #}"
)
LLAMA = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{# <|python_tag|> #}"
)
GEMMA = "{# <|channel>thought <|tool_call>call: enable_thinking #}" + HERMES.replace("<tool_call>", "<|tool_call>")
KIMI = HERMES.replace("<tool_call>", "<|tool_calls_section_begin|>")
MINIMAX = HERMES.replace("<tool_call>", "<minimax:tool_call>") + "{{ '<think>\n' }}"
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>"
    "{% if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}{% for m in messages %}"
    "{% if m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}{{ m.thinking }}<|end|>{% endfor %}"
    "<|start|>assistant{# <|channel|> #}"
)
#: Writes arguments as they come, so an object shows as Python.
CARELESS = HERMES.replace("arguments | tojson", "arguments")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
