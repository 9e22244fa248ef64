"""Baichuan 1 and 2 in torch for transformers 4.46 to 5, with the tensor names of the released folders.

It runs where the folder is opened, without huatuo-jax. What must hold: it computes what `huatuo_jax/models/decoder.py` computes.
Two things are done as the training code does them, not as the released modelling files do: ALiBi's bias is added to the scores in
fp32 (rounded to bf16 it loses accuracy), and a NormHead is normalised where it is used, so the stored rows stay as trained.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_huatuo_baichuan import BaichuanConfig


def alibi_slopes(num_heads):
    """ALiBi's slope of each head, fp32 [heads] (arXiv 2108.12409), also where the number of heads is no power of two."""
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-8 * i / (2 * power)) for i in range(1, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32)


def rope_tables(position_ids, size, theta):
    """Cosine and sine, fp32 [batch, 1, queries, size / 2]."""
    # In fp64 as in training, where a power in fp32 would be off by angles at far positions; on the CPU, because not every device
    # has fp64.
    exponents = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
    frequencies = (theta**-exponents).to(device=position_ids.device, dtype=torch.float32)
    angles = position_ids[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x, tables):
    """Rotates [batch, heads, queries, size] by the half-split layout; in fp32, returned in x's dtype."""
    cos, sin = tables
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class BaichuanRMSNorm(nn.Module):
    """x / rms(x) · weight; statistics and product in fp32."""

    def __init__(self, size, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x):
        """Same shape and dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * self.weight.float()).to(x.dtype)


class BaichuanMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        """[batch, queries, hidden] → the same."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class BaichuanAttention(nn.Module):
    """Causal self-attention; `W_pack` is q, k and v in one matrix."""

    def __init__(self, config, layer_index):
        super().__init__()
        self.layer_index = layer_index
        self.num_heads = config.num_attention_heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, visible, rope, bias, past_key_values):
        """`visible`: bool [batch, 1, queries, keys]; then RoPE's tables, or ALiBi's bias, fp32 [heads, queries, keys]."""
        batch, queries, hidden = x.shape
        q, k, v = (part.view(batch, queries, self.num_heads, -1).transpose(1, 2) for part in self.W_pack(x).chunk(3, dim=-1))
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_index)
        # torch's own attention takes a bias in q's dtype alone, which would round ALiBi's.
        if bias is None:
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        else:
            scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
            # Finite, so that no softmax becomes NaN.
            scores = scores.masked_fill(~visible, torch.finfo(torch.float32).min)
            attended = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.o_proj(attended.transpose(1, 2).reshape(batch, queries, hidden))


class BaichuanLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config, layer_index):
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer_index)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, *args):
        """[batch, queries, hidden] → the same; `args` as `BaichuanAttention.forward`."""
        x = x + self.self_attn(self.input_layernorm(x), *args)
        return x + self.mlp(self.post_attention_layernorm(x))


class BaichuanPreTrainedModel(PreTrainedModel):
    """What transformers asks of every model."""

    config_class = BaichuanConfig
    base_model_prefix = "model"
    _no_split_modules = ["BaichuanLayer"]  # noqa: RUF012  (transformers reads a list)
    _supports_cache_class = True

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)


class BaichuanModel(BaichuanPreTrainedModel):
    """Token ids in, hidden states out."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([BaichuanLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        """The embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value):
        """Replaces the embedding."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """`attention_mask`: [batch, cached + queries], 0 = padding; `position_ids` default to counting what it does not mask."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache()
        batch, queries = x.shape[:2]
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        keys = past + queries
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask has {attention_mask.dim()} dimensions; give [batch, keys], and a dynamic cache")
        mask = x.new_ones((batch, keys), dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if mask.shape[-1] != keys:
            raise ValueError(f"attention_mask covers {mask.shape[-1]} tokens; it must cover {past} cached and {queries} new ones")
        # Padding on the left, as `generate` wants it, must not shift the positions of what follows.
        if position_ids is None:
            position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        index = torch.arange(keys, device=x.device)
        distance = index[None, :] - index[past:, None]
        # Padding attends to padding, so that no softmax is over nothing.
        visible = (distance <= 0) & (mask[:, None, None, :] | ~mask[:, None, past:, None])
        rope = bias = None
        if self.config.positions == "alibi":
            slopes = alibi_slopes(self.config.num_attention_heads).to(x.device)
            bias = slopes[:, None, None] * distance.float()
        else:
            rope = rope_tables(position_ids, self.config.hidden_size // self.config.num_attention_heads, self.config.rope_theta)
        states = [x]
        for layer in self.layers:
            x = layer(x, visible, rope, bias, past_key_values)
            states.append(x)
        x = self.norm(x)
        states[-1] = x  # as transformers' own models: the last of the states is the normed one
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    """Token ids in, logits out, fp32."""

    def __init__(self, config):
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value):
        """Replaces the head."""
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        logits_to_keep=0,
        return_dict=None,
        **kwargs,
    ):
        """`labels`: [batch, queries], −100 = ignored; `logits_to_keep`: only so many last positions, 0 = all."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_hidden_states
        )
        logits = self.logits(outputs.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else outputs.last_hidden_state)
        loss = None
        if labels is not None:
            # transformers' convention: labels are the input ids, shifted here.
            flat, targets = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1).to(logits.device)
            loss = functional.cross_entropy(flat, targets)
            if self.config.z_loss_weight:
                loss = loss + self.config.z_loss_weight * logits.amax(-1).square().mean()
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    def logits(self, hidden):
        """fp32 [batch, queries, vocabulary]; a NormHead's logit is divided by its row's length: the same as a row of length 1."""
        logits = self.lm_head(hidden).float()
        if self.config.head == "norm":
            lengths = torch.linalg.vector_norm(self.lm_head.weight, dim=-1, dtype=torch.float32).clamp(min=1e-12)
            logits = logits / lengths
        return logits
