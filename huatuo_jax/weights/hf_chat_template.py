"""The name of a dialogue format in, the Jinja text for `apply_chat_template` out: the same prompt as `prompt_tokens` makes.

Ours tokenises a prompt piece by piece, transformers renders one string and tokenises that. Ids are the same where no token
reaches over the seam of two pieces; for the huatuo format `DialogueFormat.check` refuses a tokenizer that has one.
A tokenizer with a dummy prefix puts a "▁" in front of every piece: there the rendered text has a space in its place.
"""

from huatuo_jax.config import require

_STRICT_TURNS = (
    "{%- for message in turns -%}"
    "{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}"
    "{{- raise_exception('turns must alternate: user, assistant, user, …') -}}"
    "{%- endif -%}"
)

_WITHOUT_SYSTEM = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{{- raise_exception('the huatuo format has no place for a system prompt') -}}"
    "{%- endif -%}"
    "{%- set turns = messages -%}"
)

_WITH_SYSTEM = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}"
    "{%- set system = '' -%}{%- set turns = messages -%}"
    "{%- endif -%}"
)

_HUATUO = (
    _WITHOUT_SYSTEM
    + _STRICT_TURNS
    + "{%- if loop.index0 % 2 -%}{{- '@SPACE@\\n<答>：' + message['content'] -}}"
    + "{%- else -%}{{- ('' if loop.first else '@SPACE@\\n') + '<问>：' + message['content'] -}}{%- endif -%}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '@SPACE@\\n<答>：' -}}{%- endif -%}"
)

_BAICHUAN2_CHAT = (
    _WITH_SYSTEM
    + "{{- system -}}"
    + _STRICT_TURNS
    + "{{- ('<reserved_107>' if loop.index0 % 2 else '<reserved_106>') + message['content'] -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<reserved_107>' -}}{%- endif -%}"
)

_LLAMA2 = (
    _WITH_SYSTEM
    + _STRICT_TURNS
    + "{%- set text = message['content'] | trim -%}"
    + "{%- if loop.index0 % 2 -%}{{- '@SPACE@' + text + ' ' + eos_token -}}"
    + "{%- elif loop.first and system -%}"
    + "{{- bos_token + '[INST] <<SYS>>\\n' + (system | trim) + '\\n<</SYS>>\\n\\n' + text + ' [/INST]' -}}"
    + "{%- else -%}{{- bos_token + '[INST] ' + text + ' [/INST]' -}}{%- endif -%}"
    + "{%- endfor -%}"
)

_LLAMA3 = (
    _WITH_SYSTEM
    + "{{- '<|begin_of_text|>' -}}"
    + "{%- if system -%}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + (system | trim) + '<|eot_id|>' -}}{%- endif -%}"
    + _STRICT_TURNS
    + "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) + '<|eot_id|>' -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)

_CHATML = (
    _WITH_SYSTEM
    + "{%- if system -%}{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}{%- endif -%}"
    + _STRICT_TURNS
    + "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

JINJA = {"huatuo": _HUATUO, "baichuan2-chat": _BAICHUAN2_CHAT, "llama2": _LLAMA2, "llama3": _LLAMA3, "chatml": _CHATML}

END_OF_TURN = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>"}
"""The token that ends an answer, where it is not the tokenizer's end token."""


def chat_template(name: str, dummy_prefix: bool = False) -> str:
    """Jinja of the dialogue format `name` for a tokenizer with or without a dummy prefix.

    Raises:
      ConfigError: no such format.
    """
    require(name in JINJA, f"no chat template for the dialogue format {name!r}; there are {', '.join(JINJA)}")
    return JINJA[name].replace("@SPACE@", " " if dummy_prefix else "")
