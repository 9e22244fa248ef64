"""An oracle: Baichuan's architecture written plainly in torch (RoPE or ALiBi, linear head or NormHead), fp32, no cache.

Parameter names are those of the released checkpoints.
"""

import math

import torch
from torch import nn
from torch.nn import functional


def slopes_of(heads: int) -> torch.Tensor:
    """The recursion of the ALiBi paper's reference implementation."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return torch.tensor([start ** (i + 1) for i in range(heads)], dtype=torch.float32)
    closest = 2 ** math.floor(math.log2(heads))
    return torch.cat([slopes_of(closest), slopes_of(2 * closest)[0::2][: heads - closest]])


class Norm(nn.Module):
    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(size)), epsilon

    def forward(self, x):
        return self.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.epsilon)


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, alibi: bool, theta: float):
        super().__init__()
        self.heads, self.alibi, self.theta = heads, alibi, theta
        self.W_pack = nn.Linear(hidden, 3 * hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def rotate(self, x, positions):
        size = x.shape[-1]
        angles = positions[:, None, :, None] / self.theta ** (torch.arange(0, size, 2) / size)
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        turned = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * cos + turned * sin

    def forward(self, x, positions):
        batch, length, hidden = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, hidden // self.heads).transpose(1, 2) for part in self.W_pack(x).chunk(3, -1)
        )
        if not self.alibi:
            q, k = self.rotate(q, positions), self.rotate(k, positions)
        scores = q @ k.transpose(-1, -2) / math.sqrt(hidden // self.heads)
        index = torch.arange(length)
        if self.alibi:
            scores = scores + slopes_of(self.heads)[:, None, None] * (index[None, :] - index[:, None])
        scores = scores.masked_fill(index[None, :] > index[:, None], -math.inf)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, hidden))


class FeedForward(nn.Module):
    def __init__(self, hidden: int, ffn: int):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(hidden, ffn, bias=False), nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, ffn: int, alibi: bool, theta: float, epsilon: float):
        super().__init__()
        self.self_attn, self.mlp = Attention(hidden, heads, alibi, theta), FeedForward(hidden, ffn)
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden, epsilon), Norm(hidden, epsilon)

    def forward(self, x, positions):
        x = x + self.self_attn(self.input_layernorm(x), positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self, vocab: int, layers: int, hidden: int, heads: int, ffn: int, alibi: bool, theta: float, epsilon: float):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, hidden)
        self.layers = nn.ModuleList([Layer(hidden, heads, ffn, alibi, theta, epsilon) for _ in range(layers)])
        self.norm = Norm(hidden, epsilon)

    def forward(self, tokens, positions):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, positions)
        return self.norm(x)


class Baichuan(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model = Trunk(
            config.vocab_size,
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            config.ffn_size,
            config.positions == "alibi",
            config.rope_theta,
            config.norm_eps,
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.norm_head = config.head == "norm"

    def forward(self, tokens, positions):
        hidden = self.model(tokens, positions)
        if self.norm_head:
            return functional.linear(hidden, functional.normalize(self.lm_head.weight))
        return self.lm_head(hidden)
